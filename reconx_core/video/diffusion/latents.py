"""Conversion between frames and latents: a pretrained VAE, or patches of pixels as latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTinyOutput
from diffusers.models.autoencoders.vae import DecoderOutput
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

# Standard normal noise of a shape, by purpose ("vae": a frame's posterior, "start", "step") and index.
NoiseSource = Callable[[str, int, tuple[int, ...]], Tensor]
Noise = torch.Generator | list[torch.Generator] | NoiseSource


class PatchLatents(ModelMixin, ConfigMixin):
    """Lossless latents without a VAE: each patch of patch x patch pixels becomes one position with 3 patch^2 channels.

    Has the interface of diffusers' autoencoders. As there, :func:`encode_frames` multiplies the latents by
    ``scaling_factor``, which should give them about unit standard deviation.
    """

    config: Any  # diffusers' dict with attributes

    @register_to_config
    def __init__(self, patch: int = 8, scaling_factor: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("marker", torch.zeros(1))  # diffusers saves, loads and moves only models that have a tensor

    @property
    def dtype(self) -> torch.dtype:
        """Always float32, so that the pixels are not rounded when the networks run in half precision."""
        return torch.float32

    def encode(self, x: Float[Tensor, "n 3 H W"]) -> AutoencoderTinyOutput:
        """Latents [n, 3 patch^2, H / patch, W / patch] of images in [-1, 1]."""
        return AutoencoderTinyOutput(pixel_unshuffle(x, self.config.patch))

    def decode(self, z: Float[Tensor, "n c h w"]) -> DecoderOutput:
        """The images of latents: the exact inverse of :meth:`encode`."""
        return DecoderOutput(pixel_shuffle(z, self.config.patch))


def latent_stride(vae: AutoencoderKL | PatchLatents) -> int:
    """Pixels per latent position along each axis."""
    return vae.config.patch if isinstance(vae, PatchLatents) else 2 ** (len(vae.config["block_out_channels"]) - 1)


def noise_source(noise: Noise, device: torch.device | str) -> NoiseSource:
    """Noise on the device, from a generator, from one generator per clip, or from a function.

    With one generator per clip, a clip does not depend on the rest of its batch. Noise of CPU generators does not depend on
    the device of the networks.
    """
    if isinstance(noise, (torch.Generator, list)):
        return lambda kind, index, shape: randn_tensor(shape, noise, torch.device(device), torch.float32)
    return lambda kind, index, shape: noise(kind, index, shape).to(device)


def encode_frames(
    vae: AutoencoderKL | PatchLatents,
    frames: Float[Tensor, "b f 3 H W"],
    noise: Noise,
    slice_size: int = 8,
    indices: Sequence[int] | None = None,
) -> Float[Tensor, "b c f h w"]:
    """Scaled latents, in float32, of frames in [-1, 1]; those of a VAE are sampled from its posterior.

    ``slice_size``: images encoded at once, which only affects memory. ``indices``: the frames' indices in the clip, which
    select their noise (default 0, 1, 2, ...).
    """
    batch, count = frames.shape[:2]
    numbers = range(count) if indices is None else indices
    encoded: list[Any] = [vae.encode(part.to(vae.dtype)) for part in frames.flatten(0, 1).split(slice_size)]
    if isinstance(vae, PatchLatents):
        latents = torch.cat([e.latents for e in encoded])
    else:
        mean, std = (torch.cat([getattr(e.latent_dist, name) for e in encoded]).float() for name in ("mean", "std"))
        draw = noise_source(noise, frames.device)
        drawn = [draw("vae", number, (batch, *mean.shape[1:])) for number in numbers]
        latents = mean + std * torch.stack(drawn, 1).flatten(0, 1)
    return vae.config["scaling_factor"] * latents.unflatten(0, (batch, count)).transpose(1, 2)


def decode_frames(
    vae: AutoencoderKL | PatchLatents, latents: Float[Tensor, "b c f h w"], slice_size: int = 8
) -> Float[Tensor, "b f 3 H W"]:
    """The frames, about [-1, 1] and in float32, of scaled latents; ``slice_size`` as in :func:`encode_frames`."""
    batch = len(latents)
    images = (latents / vae.config["scaling_factor"]).transpose(1, 2).flatten(0, 1)
    decoded = [vae.decode(part.to(vae.dtype)).sample.float() for part in images.split(slice_size)]
    return torch.cat(decoded).unflatten(0, (batch, -1))


def condition_latents(
    vae: AutoencoderKL | PatchLatents,
    photos: Float[Tensor, "b k 3 H W"],
    positions: Sequence[int],
    count: int,
    renders: Float[Tensor, "b f 3 H W"] | None,
    noise: Noise,
    slice_size: int = 8,
) -> Float[Tensor, "b c f h w"]:
    """The latents that are concatenated to the noisy ones, from photos and renders in [-1, 1].

    With renders, those of each of the ``count`` frames, the photos in place of the renders at their positions. Without,
    the photos' latents at their positions and zeros elsewhere; those of a single photo are repeated in every frame.
    """
    if renders is not None:
        frames = renders.clone()
        frames[:, list(positions)] = photos
        return encode_frames(vae, frames, noise, slice_size)
    known = encode_frames(vae, photos, noise, slice_size, positions)
    if len(positions) == 1:
        return known.repeat_interleave(count, 2)
    latents = known.new_zeros(*known.shape[:2], count, *known.shape[3:])
    latents[:, :, list(positions)] = known
    return latents


def visibility_channels(
    visibility: Float[Tensor, "b f H W"], positions: Sequence[int], stride: int
) -> Float[Tensor, "b c f h w"]:
    """Per-pixel visibility rearranged to the latents' size (c = stride^2); 1 for the photos."""
    seen = visibility.clone()
    seen[:, list(positions)] = 1.0
    return pixel_unshuffle(seen.unsqueeze(2), stride).transpose(1, 2)
