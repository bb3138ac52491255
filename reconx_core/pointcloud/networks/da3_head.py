"""Depth-Anything-3's dense head: depth and rays from four blocks' patch tokens (DPT with two chains of fusion).

Parameters are named as in the published checkpoints.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor, nn

from reconx_core.pointcloud.networks.da3_config import DA3Config
from reconx_core.pointcloud.networks.dpt import DPTConfig, Fusion, Pyramid, resizers, tokens_to_map, upsample
from reconx_core.pointcloud.networks.vggt import add_uv
from reconx_core.pointcloud.networks.vit import LayerNorm

DEPTH, RAYS = 2, 7  # channels: depth and its confidence; direction, origin and their confidence
LEVELS = 4


class MoveChannels(nn.Module):
    """The channels from one place among the axes to another."""

    def __init__(self, source: int, target: int) -> None:
        super().__init__()
        self.source, self.target = source, target

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(self.source, self.target)


class DualPyramid(Pyramid):
    """Four levels fused twice, for depth and for rays, each with its last convolutions.

    The checkpoints hold the rays' convolutions once per level, of which only the finest level's are used, and one normalisation
    that all four share.
    """

    def __init__(self, config: DPTConfig) -> None:
        super().__init__(config, "da3")
        width, half, last = config.width, config.width // 2, config.last_width
        for number in range(1, LEVELS + 1):
            self.add_module(f"refinenet{number}_aux", Fusion(width, "da3", joins=number < LEVELS))
        self.output_conv1 = _conv(width, half)
        self.output_conv2 = nn.Sequential(_conv(half, last), nn.ReLU(inplace=True), nn.Conv2d(last, DEPTH, 1))
        widths = (width, half, width, half, width, half)
        self.output_conv1_aux = nn.ModuleList(
            nn.Sequential(*(_conv(before, after) for before, after in itertools.pairwise(widths))) for _ in range(LEVELS)
        )
        norm = LayerNorm(last)
        self.output_conv2_aux = nn.ModuleList(
            nn.Sequential(
                _conv(half, last), MoveChannels(1, -1), norm, MoveChannels(-1, 1), nn.ReLU(), nn.Conv2d(last, RAYS, 1)
            )
            for _ in range(LEVELS)
        )


def _conv(before: int, after: int) -> nn.Conv2d:
    return nn.Conv2d(before, after, 3, padding=1)


class DualHead(nn.Module):
    """Depth per pixel, and rays at 8 times the patch grid."""

    def __init__(self, config: DA3Config) -> None:
        super().__init__()
        dpt = config.dpt
        self.config = config
        self.norm = LayerNorm(2 * config.width)
        self.projects = nn.ModuleList(nn.Conv2d(2 * config.width, width, 1) for width in dpt.level_widths)
        self.resize_layers = nn.ModuleList(resizers(dpt.level_widths))
        self.scratch = DualPyramid(dpt)

    def forward(
        self, features: Mapping[int, Float[Tensor, "f n c"]], grid: tuple[int, int], rays: bool
    ) -> tuple[Float[Tensor, "f 2 h w"], Float[Tensor, "f 7 8r 8s"] | None]:
        """Raw depth and, where asked for, raw rays."""
        maps = self.scratch.narrow(self._levels(features, grid))
        return self._depth(maps, grid), self._rays(maps, grid) if rays else None

    def _levels(self, features: Mapping[int, Float[Tensor, "f n c"]], grid: tuple[int, int]) -> list[Tensor]:
        """The blocks' patches as maps at 4, 2, 1 and 1/2 times the patch grid."""
        levels = []
        for layer, project, resize in zip(self.config.dpt.layers, self.projects, self.resize_layers):
            patches = tokens_to_map(self.norm(features[layer]), grid)
            levels.append(resize(add_uv(project(patches), grid[1] / grid[0])))
        return levels

    def _depth(self, maps: list[Tensor], grid: tuple[int, int]) -> Float[Tensor, "f 2 h w"]:
        fused = self.scratch.output_conv1(self.scratch.fuse(maps))
        pixels = upsample(fused, [length * self.config.patch for length in grid])
        return self.scratch.output_conv2(add_uv(pixels, grid[1] / grid[0]))

    def _rays(self, maps: list[Tensor], grid: tuple[int, int]) -> Float[Tensor, "f 7 8r 8s"]:
        fused = self.scratch.output_conv1_aux[-1](self.scratch.fuse(maps, "_aux"))
        return self.scratch.output_conv2_aux[-1](add_uv(fused, grid[1] / grid[0]))
