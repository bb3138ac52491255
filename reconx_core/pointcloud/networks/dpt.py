"""Dense prediction from the tokens of four transformer layers (DPT), the part that DUSt3R, VGGT and Depth-Anything-3 share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Variant = Literal["dust3r", "vggt", "da3"]


@dataclass(frozen=True)
class DPTConfig:
    """The layers that a dense head reads, finest level first, and its widths."""

    layers: tuple[int, ...]
    level_widths: tuple[int, ...]
    width: int = 256  # of the fused maps
    last_width: int = 128  # before the last convolution


def tokens_to_map(tokens: Float[Tensor, "b n c"], grid: tuple[int, int]) -> Float[Tensor, "b c r s"]:
    """Patch tokens as a feature map."""
    return tokens.mT.unflatten(-1, grid)


def resizers(widths: Sequence[int]) -> list[nn.Module]:
    """Layers that resize the four levels to 4, 2, 1 and 1/2 times the patch grid."""
    return [
        nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
        nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
        nn.Identity(),
        nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
    ]


def upsample(x: Float[Tensor, "b c h w"], size: Sequence[int]) -> Float[Tensor, "b c y x"]:
    """Bilinear, with aligned corners."""
    return functional.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


class ResidualUnit(nn.Module):
    """Two convolutions of relu(x), added to x or, in VGGT (whose first ReLU works in place), to relu(x)."""

    def __init__(self, width: int, variant: Variant) -> None:
        super().__init__()
        self.adds_relu = variant == "vggt"
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        active = x.relu()
        return self.conv2(self.conv1(active).relu_()).add_(active if self.adds_relu else x)


class Fusion(nn.Module):
    """Add a level's map to the coarser result, refine and upsample."""

    def __init__(self, width: int, variant: Variant, joins: bool = True) -> None:
        super().__init__()
        if joins:
            self.resConfUnit1 = ResidualUnit(width, variant)
        self.resConfUnit2 = ResidualUnit(width, variant)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(
        self, x: Float[Tensor, "b c h w"], level: Float[Tensor, "b c h w"] | None, size: Sequence[int]
    ) -> Float[Tensor, "b c y x"]:
        if level is not None:
            x = self.resConfUnit1(level).add_(x)
        # upstream interpolates first; the two commute, and this order is a quarter of the work
        return upsample(self.out_conv(self.resConfUnit2(x)), size)


class Pyramid(nn.Module):
    """Four levels projected to one width and fused from coarse to fine, to 8 times the patch grid.

    The variants differ in the residual units; in the coarsest step, where DUSt3R doubles the size and crops to the next
    level, while the others interpolate to that level's size; and in that step's unit for the added map, which is unused but
    present in DUSt3R's checkpoints.
    """

    def __init__(self, config: DPTConfig, variant: Variant) -> None:
        super().__init__()
        self.cuts = variant == "dust3r"
        for number, width in enumerate(config.level_widths, 1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(width, config.width, 3, padding=1, bias=False))
            joins = number < 4 or variant == "dust3r"
            self.add_module(f"refinenet{number}", Fusion(config.width, variant, joins))

    def forward(self, levels: Sequence[Tensor]) -> Float[Tensor, "b c 8r 8s"]:
        """``levels``: [b, level width, ...] at 4, 2, 1 and 1/2 times the patch grid, the last rounded up."""
        return self.fuse(self.narrow(levels))

    def narrow(self, levels: Sequence[Tensor]) -> list[Tensor]:
        """The levels at their own sizes and at the fused maps' width."""
        return [self.get_submodule(f"layer{number}_rn")(level) for number, level in enumerate(levels, 1)]

    def fuse(self, maps: Sequence[Tensor], suffix: str = "") -> Float[Tensor, "b c 8r 8s"]:
        """What `narrow` gives, from coarse to fine; ``suffix``: of the names of the steps."""
        coarsest, finer = maps[3], maps[2].shape[-2:]
        doubled = [2 * length for length in coarsest.shape[-2:]]
        size = doubled if self.cuts else finer
        fused = self.get_submodule(f"refinenet4{suffix}")(coarsest, None, size)[..., : finer[0], : finer[1]]
        for number in (3, 2, 1):
            level = maps[number - 1]
            fused = self.get_submodule(f"refinenet{number}{suffix}")(fused, level, [2 * length for length in level.shape[-2:]])
        return fused
