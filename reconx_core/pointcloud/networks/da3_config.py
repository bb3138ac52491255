"""Sizes of Depth-Anything-3's networks, and the settings of published checkpoints that they are read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.dpt import DPTConfig

LAST_WIDTH = 32  # before the heads' last convolutions
FEATURES = (5, 7, 9, 11)  # blocks whose states the head reads
ENCODERS = {"vits": (384, 12, 6), "vitb": (768, 12, 12)}  # width, blocks, heads
MODELS = {"da3-small": ("vits", 64, (48, 96, 192, 384)), "da3-base": ("vitb", 128, (96, 192, 384, 768))}
SMALL_DPT = DPTConfig(FEATURES, MODELS["da3-small"][2], 64, LAST_WIDTH)
PARTS = {  # upstream's settings of each part
    "net": {
        "name", "img_size", "patch_size", "embed_dim", "depth", "num_heads", "out_layers", "alt_start", "qknorm_start",
        "rope_start", "cat_token",
    },
    "head": {"dim_in", "output_dim", "features", "out_channels"},
    "cam_enc": {"dim_out"},
    "cam_dec": {"dim_in"},
}  # fmt: skip


@dataclass(frozen=True)
class DA3Config:
    """Sizes of the network; the defaults are those of DA3-SMALL."""

    image_size: int = 518  # of the position table, pixels
    patch: int = 14
    width: int = 384
    depth: int = 12  # blocks
    heads: int = 6
    start: int = 4  # the first block with rotary positions, normalised queries and keys, and attention over all views by turns
    dpt: DPTConfig = SMALL_DPT


def da3_config(settings: Mapping[str, Any]) -> DA3Config:
    """The configuration behind the Hub's config.json: its "config", else its "model_name"; or the former's content alone.

    Raises:
        UserError: a model or setting that this network does not know or has in another form only.
    """
    sizes = settings.get("config", settings)
    return _from_sizes(sizes) if "net" in sizes else _from_name(settings.get("model_name"))


def _from_name(name: Any) -> DA3Config:
    if name not in MODELS:
        raise UserError(f"There is no Depth-Anything-3 network '{name}' here; use {' or '.join(MODELS)}.")
    encoder, fused, levels = MODELS[name]
    return _from_sizes({"net": {"name": encoder}, "head": {"features": fused, "out_channels": levels}})


def _from_sizes(sizes: Mapping[str, Any]) -> DA3Config:
    _require_known(sizes)
    net, head = sizes["net"], sizes["head"]
    width, depth, heads = ENCODERS.get(net.get("name"), (None, None, None))
    config = DA3Config(
        net.get("img_size", 518),
        net.get("patch_size", 14),
        net.get("embed_dim", width),
        net.get("depth", depth),
        net.get("num_heads", heads),
        net.get("alt_start", 4),
        DPTConfig(tuple(net.get("out_layers", FEATURES)), tuple(head["out_channels"]), head["features"], LAST_WIDTH),
    )
    _require_supported(sizes, config)
    return config


def _require_known(sizes: Mapping[str, Any]) -> None:
    for part, values in sizes.items():
        if part not in PARTS and part != "__object__":
            raise UserError(f"The part '{part}' of this Depth-Anything-3 network is not supported; use {' or '.join(MODELS)}.")
        unknown = set(values) - PARTS.get(part, set(values)) - {"__object__"}
        if unknown:
            _refuse(f"{part}.{min(unknown)}", values[min(unknown)])


def _require_supported(sizes: Mapping[str, Any], config: DA3Config) -> None:
    """What this network has in one form only: what follows from other settings."""
    follows = {
        "net.qknorm_start": config.start, "net.rope_start": config.start, "net.cat_token": True, "head.output_dim": 2,
        "head.dim_in": 2 * config.width, "cam_enc.dim_out": config.width, "cam_dec.dim_in": 2 * config.width,
    }  # fmt: skip
    for name, wanted in follows.items():
        part, _, key = name.partition(".")
        found = sizes.get(part, {}).get(key, wanted)
        if found != wanted:
            _refuse(name, found)


def _refuse(name: str, value: Any) -> None:
    raise UserError(
        f"The setting {name}={value!r} of this Depth-Anything-3 network is not supported; use {' or '.join(MODELS)}."
    )
