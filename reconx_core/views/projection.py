"""Photos that no pinhole camera fits, told by their pixels: panoramas of the whole sphere and discs of fisheye lenses.

Both would pass for photos until the scene is wrong. The tests are strict, since an ordinary photo must not be refused.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_DARK = 0.06


def describe_projection(image: Float[Tensor, "h w 3"]) -> str | None:
    """What a photo looks like if it is none of a pinhole camera."""
    if _is_sphere(image):
        return "a panorama of the whole sphere (it is 2:1 and goes on from its right edge at its left one)"
    height, width = image.shape[:2]
    halves = image.split(height, dim=1) if width == 2 * height else (image,)
    return "of a fisheye lens (a disc on black)" if all(map(_is_disc, halves)) else None


def _is_sphere(image: Float[Tensor, "h w 3"]) -> bool:
    """Whether the edges continue each other as neighbouring columns do, and the first and last rows are one point each."""
    height, width = image.shape[:2]
    if abs(width - 2 * height) > 2 or height < 32:
        return False
    across = _difference(image, 0, width - 1)
    step = (image[:, 1:] - image[:, :-1]).abs().mean((0, 2)).median()
    # Far from the edge the two sides must differ: else they are alike on the whole, as sky or a studio's wall are.
    apart = torch.stack([_difference(image, k, width - 1 - k) for k in (width // 32, width // 16)]).mean()
    spread = image.std(1).mean(-1)
    poles = torch.maximum(spread[0], spread[-1])
    return bool(apart > 0.02 and across < 0.5 * apart and across < 2 * step + 1 / 255 and poles < 0.35 * spread.median())


def _difference(image: Float[Tensor, "h w 3"], first: int, second: int) -> Tensor:
    return (image[:, first] - image[:, second]).abs().mean()


def _is_disc(image: Float[Tensor, "h w 3"]) -> bool:
    """Whether the largest circle in the picture is filled up to its rim, and all beyond is black."""
    height, width = image.shape[:2]
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    radius = torch.hypot(x, y) / (min(height, width) / 2)
    dark = image.amax(-1) < _DARK
    beyond, rim = dark[radius > 1.03], dark[(radius > 0.8) & (radius < 0.95)]
    return bool(beyond.numel() and beyond.float().mean() > 0.98 and rim.float().mean() < 0.05)
