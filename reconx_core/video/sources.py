"""Images that a model may blend a frame from: renders of each photo's points alone, and blurred versions of the render."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.point_renders import render_points, visible_points
from reconx_core.types import Cameras, Pointmaps, Views
from reconx_core.video.hole_filling import fill_holes

SOFTER = (2, 6)  # factors by which the render is downsampled and upsampled again
SOURCES = 2 + len(SOFTER)


def photo_renders(
    inputs: Views, pointmaps: Pointmaps, pair: Int[Tensor, " 2"], cameras: Cameras
) -> tuple[Float[Tensor, "f 2 h w 3"], Float[Tensor, "f 2 h w"]]:
    """Renders of the points of each photo of the pair alone at every camera, and their visibility (0 in holes).

    Where the two renders disagree, one shows a wrong depth or an occluded surface; the joint render hides that.
    """
    per_photo = []
    for view in pair:
        per_photo.append(render_points(*visible_points(inputs.select(view[None]), _of_view(pointmaps, view)), cameras)[:2])
    renders, visibility = (torch.stack(parts, 1) for parts in zip(*per_photo))
    return renders, visibility


def frame_sources(
    renders: Float[Tensor, "f h w 3"], visibility: Float[Tensor, "f h w"],
    alone: tuple[Float[Tensor, "f 2 h w 3"], Float[Tensor, "f 2 h w"]],
) -> Float[Tensor, "f s h w 4"]:  # fmt: skip
    """Colour and visibility of all sources of every frame. The holes of ``renders`` are already filled."""
    filled = (fill_holes(*render) for render in zip(*(part.unbind(1) for part in alone)))
    photos = torch.stack([torch.cat([r, v[..., None]], -1) for r, v in filled], 1)
    soft = torch.stack([torch.cat([soften(renders, by), visibility[..., None]], -1) for by in SOFTER], 1)
    return torch.cat([photos, soft], 1)


def soften(images: Float[Tensor, "f h w 3"], factor: int) -> Float[Tensor, "f h w 3"]:
    """Low-pass filter: downsample by ``factor`` and upsample again."""
    planes = images.movedim(-1, 1)
    small = [max(1, round(side / factor)) for side in planes.shape[-2:]]
    coarse = F.interpolate(planes, small, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(coarse, planes.shape[-2:], mode="bilinear", align_corners=False).movedim(1, -1)


def _of_view(pointmaps: Pointmaps, view: Int[Tensor, ""]) -> Pointmaps:
    one = view[None]
    points, confidence, cameras = pointmaps.points_world[one], pointmaps.confidence[one], pointmaps.cameras[one]
    return replace(pointmaps, points_world=points, confidence=confidence, cameras=cameras)
