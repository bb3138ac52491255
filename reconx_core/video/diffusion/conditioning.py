"""Token conditions of the network: CLIP tokens of the first photo, and of the prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import conv2d, interpolate, pad
from transformers import CLIPTextModel, CLIPVisionModel

from reconx_core.errors import UserError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
START, END, PAD = 49406, 49407, 0  # open_clip pads with 0, Hugging Face's tokenizers with END


class ImageProjector(IPAdapterPlusImageProjection, ModelMixin, ConfigMixin):
    """CLIP's image tokens [b, n, embed_dims] to tokens for cross-attention [b, num_queries, output_dims].

    diffusers' module as a model that a pipeline can save and load. The sizes default to DynamiCrafter's.
    """

    @register_to_config
    def __init__(
        self,
        embed_dims: int = 1280,
        output_dims: int = 1024,
        hidden_dims: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 256,
        ffn_ratio: float = 4,
    ) -> None:
        super().__init__(embed_dims, output_dims, hidden_dims, depth, dim_head, heads, num_queries, ffn_ratio)


def clip_pixels(images: Float[Tensor, "b 3 H W"], size: int = 224) -> Float[Tensor, "b 3 size size"]:
    """CLIP preprocessing of images in [-1, 1]: bicubic resize with antialiasing, normalised with CLIP's mean and std."""
    smooth = _blurred(_blurred(images, size, -1), size, -2)
    resized = interpolate(smooth, (size, size), mode="bicubic", align_corners=True)
    mean, std = (torch.tensor(v, dtype=images.dtype, device=images.device).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return ((resized + 1) / 2 - mean) / std


def _blurred(images: Float[Tensor, "b 3 H W"], size: int, axis: int) -> Float[Tensor, "b 3 H W"]:
    """Antialiasing Gaussian along one axis; sigma = (factor - 1) / 2 for downsampling by factor, as in scikit-image, kornia."""
    sigma = max((images.shape[axis] / size - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3)) | 1
    offsets = torch.arange(taps, device=images.device, dtype=images.dtype) - taps // 2
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    along = (1, taps) if axis == -1 else (taps, 1)
    margin = (taps // 2, taps // 2, 0, 0) if axis == -1 else (0, 0, taps // 2, taps // 2)
    single = pad(images, margin, mode="reflect").flatten(0, 1).unsqueeze(1)
    return conv2d(single, (kernel / kernel.sum()).view(1, 1, *along)).view_as(images)


def clip_tokens(encoder: CLIPVisionModel, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b n d"]:
    """All CLIP tokens of images in [-1, 1], before the last layer norm."""
    pixels = clip_pixels(images.float(), cast(int, encoder.config.image_size))
    return encoder(pixels.to(encoder.dtype)).last_hidden_state


def image_tokens(
    encoder: CLIPVisionModel, projector: ImageProjector, images: Float[Tensor, "b 3 H W"]
) -> Float[Tensor, "b n d"]:
    """The tokens that the network attends to for images in [-1, 1]; an all-zero (mid-grey) image is the unconditional input."""
    return projector(clip_tokens(encoder, images).to(projector.dtype))


def text_ids(tokenizer: Any | None, prompts: Sequence[str], length: int = 77) -> Int[Tensor, "b length"]:
    """Token ids of the prompts, cut to ``length`` and padded with 0 as in the network's training.

    ``tokenizer``: a Hugging Face CLIP tokenizer; the empty prompt needs none.

    Raises:
        UserError: a prompt is not empty and there is no tokenizer.
    """
    if tokenizer is None and any(prompts):
        raise UserError(
            "This model was loaded without a tokenizer, so its prompt must stay empty; add a CLIP tokenizer to use one."
        )
    rows = [tokenizer(p, truncation=True, max_length=length).input_ids if p else [START, END] for p in prompts]
    return torch.tensor([[*row, *[PAD] * (length - len(row))] for row in rows])


def text_tokens(encoder: CLIPTextModel, ids: Int[Tensor, "b n"]) -> Float[Tensor, "b n d"]:
    """The last layer's states after the final layer norm, at every position.

    DynamiCrafter uses the penultimate of CLIP's 24 layers, so the encoder in our folder layout has 23.
    """
    return encoder(ids.to(encoder.device)).last_hidden_state
