"""Shared by the video backends: which frames form a clip, at which size, and the points that condition them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.types import Condition, Pointmaps

POINTS = 8192  # points for the structure encoder, which makes one token of eight points
SURE = 0.35  # confidence above which a point counts as surface
# Confidence of a generated pixel that no photo shows. It is plausible but not measured: more than the minimum confidence in the
# splats stage (0.05), less than that of a surface on which two photos agree (0.4). `wan-vace` regenerates pixels below it.
PLAUSIBLE = 0.2


def network_dtype(name: str) -> torch.dtype:
    """The numbers that ``video.dtype`` names; ``auto`` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, name)


def structure_points(
    images: Float[Tensor, "n h w 3"], pointmaps: Pointmaps, count: int = POINTS
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """``count`` world points, evenly subsampled from the confident pixels, and their colours.

    If there are fewer confident pixels, points are repeated; if there are none, all pixels with confidence > 0 are used.
    """
    sure = pointmaps.confidence > SURE
    known = sure if bool(sure.any()) else pointmaps.confidence > 0
    points, colours = pointmaps.points_world[known], images[known]
    chosen = even_indices(len(points), count)
    return points[chosen], colours[chosen]


def even_indices(length: int, count: int) -> Int[Tensor, " c"]:
    """``count`` evenly spaced indices of ``length`` items, with repetitions if there are fewer items."""
    return torch.linspace(0, length - 1, count).round().long()


def clips_between(condition: Condition) -> list[tuple[Int[Tensor, " 2"], Int[Tensor, " k"]]]:
    """For each pair of views, the indices of the frames between them, ordered from its first view to its second."""
    clips = []
    for pair in condition.pair.unique(dim=0):
        frames = (condition.pair == pair).all(-1).nonzero()[:, 0]
        clips.append((pair, frames[condition.position[frames].argsort(stable=True)]))
    return clips


def model_size(height: int, width: int, pixels: int, multiple: int) -> tuple[int, int]:
    """(height, width) in multiples of ``multiple`` with about the same aspect ratio and an area of about ``pixels``."""
    scale = math.sqrt(pixels / (height * width)) / multiple
    return max(1, round(height * scale)) * multiple, max(1, round(width * scale)) * multiple
