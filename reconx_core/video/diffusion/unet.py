"""The video network: DynamiCrafter's 3-D U-Net built from diffusers' blocks, with the paper's structure attention (eq. 11)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.transformers.transformer_temporal import TransformerTemporalModel
from diffusers.models.unets.unet_3d_blocks import UNetMidBlock3DCrossAttn, get_down_block, get_up_block
from diffusers.models.unets.unet_3d_condition import UNet3DConditionOutput
from jaxtyping import Float, Int
from torch import Tensor, nn

from reconx_core.errors import UserError
from reconx_core.video.diffusion.structure_attention import PlainAttnProcessor, StructureAttnProcessor, Tokens


class FrameConv(nn.Conv3d):
    """A temporal convolution, computed as a 2-D convolution over (frame, pixel), which is faster on the CPU than 3-D."""

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, (3, 1, 1), padding=(1, 0, 0))
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, sample: Float[Tensor, "b c f h w"]) -> Float[Tensor, "b c f h w"]:
        flat = nn.functional.conv2d(sample.flatten(-2), self.weight[..., 0], self.bias, padding=(1, 0))
        return flat.unflatten(-1, sample.shape[-2:])


class ReconXUNet(ModelMixin, ConfigMixin):
    """Predicts v of noisy latents, given the photos' latents, text, image and structure tokens, and the frame rate.

    Parameter names are those of diffusers' ``UNet3DConditionModel`` and IP-Adapter processors, so that published weights
    load by renaming (``checkpoints.unet_keys``). With every structure gate at zero the network is DynamiCrafter's, bit for bit.

    Args:
        in_channels: noisy latents, then condition latents.
        out_channels: channels of the prediction.
        block_out_channels: width of each level; each further level halves height and width.
        layers_per_block: residual blocks per level (one more on the way up).
        attention_levels: which levels have spatial and temporal attention; the middle block always has.
        attention_head_dim: channels per head; a level has as many heads as fit its width.
        cross_attention_dim: width of text and image tokens.
        norm_num_groups: groups of all group norms.
        input_attention_heads: heads of the temporal transformer after the first convolution.
        default_fps: the frame rate assumed when none is given.
        image_tokens_per_frame: with this many image tokens per frame, each frame has its own; 0: always shared.
        dropout: in the residual blocks and their temporal convolutions while training; attention has none.
        structure_dim: width of the structure tokens; None: a network without the third attention term.

    Raises:
        UserError: the levels do not fit together.
    """

    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns: Any = ("norm", "time_embedding", "fps_embedding")

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: tuple[bool, ...] = (True, True, True, False),
        attention_head_dim: int = 64,
        cross_attention_dim: int = 1024,
        norm_num_groups: int = 32,
        input_attention_heads: int = 8,
        default_fps: int = 24,
        image_tokens_per_frame: int = 16,
        dropout: float = 0.1,
        structure_dim: int | None = None,
    ) -> None:
        super().__init__()
        _check_levels(self.config)
        width = block_out_channels[0]
        self.gradient_checkpointing = False
        self.conv_in = nn.Conv2d(in_channels, width, 3, padding=1)
        self.time_proj = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(width, 4 * width)
        self.fps_embedding = TimestepEmbedding(width, 4 * width)
        self.transformer_in = TransformerTemporalModel(
            input_attention_heads, attention_head_dim, in_channels=width, norm_num_groups=norm_num_groups
        )
        self.down_blocks = nn.ModuleList(_down_blocks(self.config))
        self.mid_block = UNetMidBlock3DCrossAttn(in_channels=block_out_channels[-1], **_common(self.config))
        self.up_blocks = nn.ModuleList(_up_blocks(self.config))
        self.conv_norm_out = nn.GroupNorm(norm_num_groups, width, eps=1e-5)
        self.conv_out = nn.Conv2d(width, out_channels, 3, padding=1)
        _prepare(self)

    def add_structure(self, structure_dim: int) -> None:
        """Give a network without it the structure attention (eq. 11), its gates at zero: what it predicts stays the same."""
        for module in self.modules():
            if isinstance(module, StructureAttnProcessor):
                module.add_structure(structure_dim)
        self.register_to_config(structure_dim=structure_dim)

    def forward(
        self,
        sample: Float[Tensor, "b c f h w"],
        timestep: Int[Tensor, " b"] | int,
        text_tokens: Float[Tensor, "b t d"],
        image_tokens: Float[Tensor, "b n d"],
        fps: Int[Tensor, " b"] | None = None,
        structure_tokens: Float[Tensor, "b s e"] | None = None,
        return_dict: bool = True,
    ) -> UNet3DConditionOutput | tuple[Float[Tensor, "b o f h w"]]:
        """Predict v (b, out_channels, f, h, w).

        ``text_tokens`` may have any length; at 0 the text term is left out. With ``image_tokens_per_frame`` · f image tokens
        each frame attends to its own share in order, with any other number all frames attend to all (as upstream). A clip
        without structure in a batch with it gets zeros as structure tokens. h and w may be any size.

        Raises:
            UserError: there are structure tokens but the network has no structure attention.
        """
        frames = sample.shape[2]
        tokens = self._tokens(text_tokens, image_tokens, structure_tokens, frames)
        # 1. time and frame rate: one embedding for every frame of a clip
        temb = self._embedding(sample, timestep, fps).repeat_interleave(frames, dim=0)
        # 2. frames become the batch
        sample = self.conv_in(sample.transpose(1, 2).flatten(0, 1))
        sample = self.transformer_in(sample, num_frames=frames, return_dict=False)[0]
        # 3. down, middle, up
        skips = [sample]
        for block in self.down_blocks:
            sample, produced = self._run(block, sample, temb=temb, tokens=tokens, num_frames=frames)
            skips.extend(produced)
        sample = self._run(self.mid_block, sample, temb=temb, tokens=tokens, num_frames=frames)
        count = self.config["layers_per_block"] + 1
        for block in self.up_blocks:
            used, skips = tuple(skips[-count:]), skips[:-count]
            # the next skip connection is of the next finer level, whose size need not be twice this one's
            size = skips[-1].shape[2:] if skips else None
            sample = self._run(
                block, sample, temb=temb, tokens=tokens, num_frames=frames, res_hidden_states_tuple=used, upsample_size=size
            )
        # 4. out, and frames apart again
        sample = self.conv_out(nn.functional.silu(self.conv_norm_out(sample)))
        sample = sample.unflatten(0, (-1, frames)).transpose(1, 2)
        return UNet3DConditionOutput(sample=sample) if return_dict else (sample,)

    def _tokens(self, text: Tensor, image: Tensor, structure: Tensor | None, frames: int) -> Tokens:
        if structure is not None and self.config["structure_dim"] is None:
            raise UserError("This video network has no structure attention (structure_dim); leave the structure tokens out.")
        per_frame = self.config["image_tokens_per_frame"]
        if per_frame and image.shape[1] == per_frame * frames:
            image = image.unflatten(1, (frames, per_frame)).flatten(0, 1)
        return Tokens(text, image, structure)

    def _embedding(self, sample: Tensor, timestep: Tensor | int, fps: Tensor | None) -> Float[Tensor, "b e"]:
        def sinusoid(value: Any) -> Tensor:
            return self.time_proj(torch.as_tensor(value, device=sample.device).expand(len(sample))).to(self.dtype)

        rate = self.config["default_fps"] if fps is None else fps
        return self.time_embedding(sinusoid(timestep)) + self.fps_embedding(sinusoid(rate))

    def _run(self, block: nn.Module, sample: Tensor, tokens: Tokens, **inputs: Any) -> Any:
        """Run one block, with gradient checkpointing if enabled."""
        if getattr(block, "has_cross_attention", False):
            inputs["encoder_hidden_states"] = tokens
        run = partial(block, **inputs)
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(run, sample)
        return run(sample)


def spatial_cross_attentions(unet: ReconXUNet) -> Iterator[Attention]:
    """The layers that see text, image and structure tokens (eq. 11), in the order of the network."""
    for block in [*unet.down_blocks, unet.mid_block, *unet.up_blocks]:
        for transformer in getattr(block, "attentions", []):
            yield from (layer.attn2 for layer in transformer.transformer_blocks)


def _check_levels(config: Any) -> None:
    widths, levels = config.block_out_channels, config.attention_levels
    if len(widths) != len(levels):
        raise UserError(f"The network has {len(widths)} block_out_channels but {len(levels)} attention_levels.")
    attending = [width for width, has in zip(widths, levels) if has] + [widths[-1]]
    if any(width % config.attention_head_dim for width in attending):
        raise UserError(f"attention_head_dim {config.attention_head_dim} does not divide all of the widths {attending}.")


def _common(config: Any) -> dict[str, Any]:
    # diffusers' 3-D blocks expect the width of a head as num_attention_heads
    return {
        "temb_channels": 4 * config.block_out_channels[0],
        "num_attention_heads": config.attention_head_dim,
        "cross_attention_dim": config.cross_attention_dim,
        "resnet_eps": 1e-5,
        "resnet_act_fn": "silu",
        "resnet_groups": config.norm_num_groups,
        "dropout": config.dropout,
    }


def _down_blocks(config: Any) -> Iterator[nn.Module]:
    widths = config.block_out_channels
    for level, (before, width) in enumerate(zip([widths[0], *widths], widths)):
        yield get_down_block(
            "CrossAttnDownBlock3D" if config.attention_levels[level] else "DownBlock3D",
            num_layers=config.layers_per_block,
            in_channels=before,
            out_channels=width,
            add_downsample=level + 1 < len(widths),
            downsample_padding=1,
            **_common(config),
        )


def _up_blocks(config: Any) -> Iterator[nn.Module]:
    widths = config.block_out_channels
    for level in reversed(range(len(widths))):
        yield get_up_block(
            "CrossAttnUpBlock3D" if config.attention_levels[level] else "UpBlock3D",
            num_layers=config.layers_per_block + 1,
            in_channels=widths[max(level - 1, 0)],
            out_channels=widths[level],
            prev_output_channel=widths[min(level + 1, len(widths) - 1)],
            add_upsample=level > 0,
            **_common(config),
        )


def _prepare(unet: ReconXUNet) -> None:
    """Set what diffusers' blocks do not take as arguments: attention, temporal convolution, dropout, a neutral frame rate."""
    for module in unet.modules():
        if isinstance(module, Attention):
            _set_processor(module, PlainAttnProcessor())
        if isinstance(module, TemporalConvLayer):
            for steps in (module.conv1, module.conv2, module.conv3, module.conv4):
                _prepare_steps(steps, unet.config["dropout"])
    sizes = unet.config["cross_attention_dim"], unet.config["structure_dim"]
    for attention in spatial_cross_attentions(unet):
        _set_processor(attention, StructureAttnProcessor(attention.inner_dim, *sizes))
    nn.init.zeros_(unet.fps_embedding.linear_2.weight)
    nn.init.zeros_(unet.fps_embedding.linear_2.bias)


def _set_processor(attention: Attention, processor: Any) -> None:
    attention.set_processor(processor)  # typed as diffusers' own ones only


def _prepare_steps(steps: Any, probability: float) -> None:
    steps[-1] = FrameConv(steps[-1])
    for step in steps:
        if isinstance(step, nn.Dropout):
            step.p = probability
