"""Names and settings of DynamiCrafter's U-Net and image projector, translated into those of our networks.

The names are derived from the structure, so networks of any size are supported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from reconx_core.errors import UserError

# settings of all published networks, the only supported values
_REQUIRED = {
    "use_linear": True, "transformer_depth": 1, "fs_condition": True, "addition_attention": True,
    "temporal_conv": True, "temporal_attention": True, "temporal_selfatt_only": True, "use_causal_attention": False,
    "use_relative_position": False, "image_cross_attention": True, "image_cross_attention_scale_learnable": False,
}  # fmt: skip
_RESIDUAL = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def unet_config(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``ReconXUNet`` for upstream's ``unet_config.params``.

    Raises:
        UserError: the settings describe a network that is not supported.
    """
    for name, value in _REQUIRED.items():
        if upstream.get(name, value) != value:
            raise UserError(f"This U-Net has {name}={upstream[name]}, which is not supported (only {value} is).")
    return {
        "in_channels": upstream["in_channels"],
        "out_channels": upstream["out_channels"],
        "block_out_channels": tuple(upstream["model_channels"] * factor for factor in upstream["channel_mult"]),
        "layers_per_block": upstream["num_res_blocks"],
        "attention_levels": tuple(
            2**level in upstream["attention_resolutions"] for level in range(len(upstream["channel_mult"]))
        ),
        "attention_head_dim": upstream["num_head_channels"],
        "cross_attention_dim": upstream["context_dim"],
        "default_fps": upstream["default_fs"],
        "dropout": upstream["dropout"],
    }


def unet_modules(layers_per_block: int, attention_levels: Sequence[bool]) -> dict[str, str]:
    """Upstream's module names -> ours where they differ: one to one, for ``rename`` in either direction."""
    table = {
        "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
        "fps_embedding.0": "fps_embedding.linear_1", "fps_embedding.2": "fps_embedding.linear_2",
        "input_blocks.0.0": "conv_in", "init_attn.0": "transformer_in", "out.0": "conv_norm_out", "out.2": "conv_out",
        **_residual("middle_block.0", "mid_block", 0), **_attention("middle_block", 1, "mid_block", 0),
        **_residual("middle_block.3", "mid_block", 1),
    }  # fmt: skip
    levels, per_level = len(attention_levels), layers_per_block + 1
    for level, attends in enumerate(attention_levels):
        first, down, up = 1 + level * per_level, f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for layer in range(layers_per_block):
            table |= _layer(f"input_blocks.{first + layer}", down, layer, attends)
        table[f"input_blocks.{first + layers_per_block}.0.op"] = f"{down}.downsamplers.0.conv"
        first = (levels - 1 - level) * per_level
        for layer in range(per_level):
            table |= _layer(f"output_blocks.{first + layer}", up, layer, attends)
        table[f"output_blocks.{first + layers_per_block}.{3 if attends else 1}.conv"] = f"{up}.upsamplers.0.conv"
    return table


def _layer(theirs: str, ours: str, layer: int, attends: bool) -> dict[str, str]:
    return _residual(f"{theirs}.0", ours, layer) | (_attention(theirs, 1, ours, layer) if attends else {})


def _residual(theirs: str, ours: str, layer: int) -> dict[str, str]:
    table = {f"{theirs}.{old}": f"{ours}.resnets.{layer}.{new}" for old, new in _RESIDUAL.items()}
    return table | {f"{theirs}.temopral_conv": f"{ours}.temp_convs.{layer}"}  # upstream's spelling


def _attention(theirs: str, first: int, ours: str, layer: int) -> dict[str, str]:
    spatial, ours_spatial = f"{theirs}.{first}", f"{ours}.attentions.{layer}"
    table = {spatial: ours_spatial, f"{theirs}.{first + 1}": f"{ours}.temp_attentions.{layer}"}
    for name in ("to_k_ip", "to_v_ip"):
        cross = "transformer_blocks.0.attn2"
        table[f"{spatial}.{cross}.{name}"] = f"{ours_spatial}.{cross}.processor.{name}.0"
    return table


def rename(name: str, table: Mapping[str, str]) -> str:
    """The name with its longest dotted prefix in the table replaced; a name without one is returned unchanged."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        replaced = table.get(".".join(parts[:length]))
        if replaced is not None:
            return ".".join([replaced, *parts[length:]])
    return name


def projector_config(upstream: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of diffusers' ``IPAdapterPlusImageProjection`` for upstream's ``image_proj_stage_config.params``."""
    return {
        "embed_dims": upstream["embedding_dim"],
        "output_dims": upstream["output_dim"],
        "hidden_dims": upstream["dim"],
        "depth": upstream["depth"],
        "dim_head": upstream["dim_head"],
        "heads": upstream["heads"],
        "num_queries": upstream["num_queries"] * upstream["video_length"],
        "ffn_ratio": upstream["ff_mult"],
    }
