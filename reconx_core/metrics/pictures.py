"""Pictures of a scored scene: photo, render, error and confidence side by side, and frames along a camera path."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry.camera_path import even_positions, interpolate_path
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians

# Perceptually uniform colour maps, nine anchor colours each.
INFERNO = ("000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "fcffa4")
VIRIDIS = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
ERROR_AT_FULL_SCALE = 0.3


@dataclass(frozen=True)
class Picture:
    """One scored view, panel by panel (`photo`, `render`, `error`, of an input `confidence`, `depth`)."""

    name: str
    is_target: bool
    refined: bool
    panels: dict[str, Float[Tensor, "h w 3"]]


def side_by_side(picture: Picture, gap: int = 4) -> Float[Tensor, "h w2 3"]:
    """The panels from left to right, separated by white."""
    panels = list(picture.panels.values())
    bar = torch.ones(len(panels[0]), gap, 3)
    return torch.cat([strip for panel in panels for strip in (bar, panel)][1:], 1)


def error_heat(
    render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]
) -> Float[Tensor, "h w 3"]:
    """Mean absolute error per pixel, from black (0) to pale yellow (0.3 and more); black outside the mask."""
    error = (render.clamp(0, 1) - photo).abs().mean(-1) * mask
    return colour_map(error / ERROR_AT_FULL_SCALE, INFERNO)


def depth_colours(depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Inverse depth between its 2nd and 98th percentile, bright is near; grey where nothing is rendered.

    ``depth`` is accumulated, as the rasteriser gives it.
    """
    seen = alpha > 0.5
    if not seen.any():
        return torch.full((*depth.shape, 3), 0.5)
    nearness = alpha / depth.clamp(min=1e-9)
    # Every fourth pixel is enough for percentiles, and torch.quantile is limited in size.
    low, high = torch.quantile(nearness[seen][::4], torch.tensor([0.02, 0.98]))
    level = (nearness - low) / (high - low).clamp(min=1e-9)
    return torch.where(seen[..., None], colour_map(level, VIRIDIS), torch.tensor(0.5))


def confidence_colours(confidence: Float[Tensor, "h w"]) -> Float[Tensor, "h w 3"]:
    """Confidence in [0, 1], from dark (0) to yellow (1)."""
    return colour_map(confidence, VIRIDIS)


def colour_map(level: Float[Tensor, "h w"], anchors: tuple[str, ...]) -> Float[Tensor, "h w 3"]:
    """Colours of levels in [0, 1] (clipped), linear between equally spaced anchors."""
    table = torch.tensor([list(bytes.fromhex(anchor)) for anchor in anchors]) / 255
    position = level.clamp(0, 1) * (len(anchors) - 1)
    below = position.floor().long().clamp(max=len(anchors) - 2)
    return torch.lerp(table[below], table[below + 1], (position - below)[..., None])


@torch.no_grad()
def render_path(gaussians: Gaussians, cameras: Cameras, frames: int) -> Float[Tensor, "f h w 3"]:
    """``frames`` renders along a smooth path through ``cameras``; of two cameras there and back, so that it loops."""
    loops = len(cameras) == 2
    positions = _eased(2 * torch.arange(frames) / frames) if loops else even_positions(cameras, frames)
    return torch.stack(list(_renders(gaussians, interpolate_path(cameras, positions))))


@torch.no_grad()
def render_loop(gaussians: Gaussians, cameras: Cameras, frames: int) -> list[Float[Tensor, "h w 3"]]:
    """``frames`` frames through all ``cameras`` and back, so that they loop; the way back is that of the way there again."""
    there = frames // 2 + 1
    positions = _eased(torch.linspace(0, 1, there)) if len(cameras) == 2 else even_positions(cameras, there)
    renders = list(_renders(gaussians, interpolate_path(cameras, positions)))
    return [*renders, *renders[1 : frames - there + 1][::-1]]


def _eased(share: Float[Tensor, " f"]) -> Float[Tensor, " f"]:
    """From 0 to 1 for shares up to 1 and back for those up to 2, slowly at both ends."""
    return ((1 - torch.cos(torch.pi * share)) / 2).clamp(0, 1)


def _renders(gaussians: Gaussians, path: Cameras) -> Iterator[Float[Tensor, "h w 3"]]:
    for i in range(len(path)):
        yield rasterize(gaussians, path[i : i + 1]).rgb[0].clamp(0, 1)
