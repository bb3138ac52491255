"""What the generators of clips share: which frames make a clip, at which size, and the points that they are conditioned on."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.types import Condition, Pointmaps

POINTS = 8192  # of the point cloud, an eighth of which become structure tokens
SURE = 0.35  # confidence from which a point counts as surface
# Confidence of an invented pixel. It fits what is around it, but nothing measured it: worth more than the least that the splats
# give any pixel (0.05), less than a surface that two photos agree on (0.4). Renders trusted less than that are invented anew.
PLAUSIBLE = 0.2


def structure_points(
    images: Float[Tensor, "n h w 3"], pointmaps: Pointmaps, count: int = POINTS
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """``count`` world points spread evenly over the confident pixels, and their colours.

    Points are repeated where there are fewer; all pixels with any confidence are taken where none is confident.
    """
    sure = pointmaps.confidence > SURE
    known = sure if bool(sure.any()) else pointmaps.confidence > 0
    points, colours = pointmaps.points_world[known], images[known]
    chosen = spread(len(points), count)
    return points[chosen], colours[chosen]


def spread(length: int, count: int) -> Int[Tensor, " c"]:
    """``count`` indices of ``length`` items, evenly spread; some twice where there are fewer items."""
    return torch.linspace(0, length - 1, count).round().long()


def clips_between(condition: Condition) -> list[tuple[Int[Tensor, " 2"], Int[Tensor, " k"]]]:
    """For each pair of views, the indices of the frames between them, ordered from its first view to its second."""
    clips = []
    for pair in condition.pair.unique(dim=0):
        frames = (condition.pair == pair).all(-1).nonzero()[:, 0]
        clips.append((pair, frames[condition.position[frames].argsort(stable=True)]))
    return clips


def model_size(height: int, width: int, pixels: int, multiple: int) -> tuple[int, int]:
    """The (height, width) in multiples of ``multiple`` that is nearest to an area of ``pixels`` with the same aspect."""
    scale = math.sqrt(pixels / (height * width)) / multiple
    return max(1, round(height * scale)) * multiple, max(1, round(width * scale)) * multiple
