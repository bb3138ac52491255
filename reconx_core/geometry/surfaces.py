"""Which photos show a point: those on whose surface it lies, by their pointmaps."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import depth_of, in_picture, project
from reconx_core.types import Pointmaps

CONFIDENT = 0.5  # from which a pixel's depth counts


class Sight(NamedTuple):
    """Points in photos."""

    seen: Bool[Tensor, "n p"]
    row: Int[Tensor, "n p"]  # of the pixel; any where the point is not in the picture
    column: Int[Tensor, "n p"]


def sight_of(points: Float[Tensor, "p 3"], pointmaps: Pointmaps, within: float) -> Sight:
    """A photo shows a point if its confident depth is ``within`` that of the point, relatively, where the point falls."""
    cameras, depth = pointmaps.cameras, depth_of(pointmaps.points_world, pointmaps.cameras)
    pixels, z = project(points, cameras.intrinsics, cameras.world_to_cam)
    ahead = in_picture(pixels, z, cameras)
    column, row = torch.where(ahead[..., None], pixels, 0.0).long().unbind(-1)
    photo = torch.arange(len(cameras))[:, None]
    near = (depth[photo, row, column] / z - 1).abs() < within
    return Sight(ahead & near & (pointmaps.confidence[photo, row, column] > CONFIDENT), row, column)
