"""Training clips of the video model: the photos of a clip and what a model reads of the point cloud of two of them.

Not a stage of a run, but a task like one. Photos and geometry are not stored on their own: of tens of thousands of scenes they
would be most of what lies on the disk, and nothing else would read them.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch

from reconx_core import datasets, pointcloud, views
from reconx_core.errors import UserError
from reconx_core.geometry.point_renders import render_points, visible_points
from reconx_core.geometry.transforms import transform
from reconx_core.settings import ClipSettings
from reconx_core.types import Clip, Pointmaps, Views
from reconx_core.video.clip import structure_points
from reconx_core.video.sources import photo_renders
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    settings = cast(ClipSettings, job.settings)
    made = views.views_of(datasets.read(Path(job.source)), settings.views)
    if settings.clip.contents == "frames":
        return {"clip": in_order(made, settings.clip.second)}
    # A clip shows the photos as they are, in whatever light.
    geometry = settings.pointcloud.model_copy(update={"exposure": "off"})
    pointmaps, _, kept = pointcloud.estimate(made.inputs(), geometry, job.generator())
    if len(kept) < 2:
        raise UserError(f"The two photos of '{job.scene}' do not overlap; choose a smaller skip.")
    return {"clip": make_clip(made, pointmaps, settings)}


def in_order(made: Views, second: int | None) -> Clip:
    """The photos in their order; the two input views, which come first in ``made``, are the first and the ``second``."""
    place = len(made) - 1 if second is None else second
    order = torch.tensor([0, *range(2, place + 1), 1, *range(place + 1, len(made))])
    photos = made.select(order)
    assert photos.cameras is not None
    return Clip(photos.images, photos.cameras, second=second)


def make_clip(made: Views, pointmaps: Pointmaps, settings: ClipSettings) -> Clip:
    """The clip with what ``clip.contents`` names; the pointmaps of the input views have the true cameras (`posed` protocol)."""
    inputs, contents = made.inputs(), settings.clip.contents
    clip = in_order(made, settings.clip.second)
    points, colours = structure_points(inputs.images, pointmaps)
    if contents in ("renders", "sources"):
        renders, visibility, _ = render_points(*visible_points(inputs, pointmaps), clip.cameras)
        clip = replace(clip, renders=renders, visibility=visibility)
    if contents == "sources":
        alone, alone_visibility = photo_renders(inputs, pointmaps, torch.tensor([0, 1]), clip.cameras)
        clip = replace(clip, alone=alone, alone_visibility=alone_visibility)
    return seen_from_first(replace(clip, points=points, colours=colours))


def seen_from_first(clip: Clip) -> Clip:
    """The clip in the frame of its first camera, its points at median depth 1 there: they are stored in half precision.

    Raises:
        UserError: no point lies in front of the first camera.
    """
    world_to_first = torch.linalg.inv(clip.cameras.cam_to_world[0])
    assert clip.points is not None
    points = transform(world_to_first, clip.points)
    depth = points[:, 2][points[:, 2] > 0]
    if not len(depth):
        raise UserError("No point of the clip lies in front of its first camera.")
    poses = world_to_first @ clip.cameras.cam_to_world
    poses[:, :3, 3] /= depth.median()
    limit = torch.finfo(torch.float16).max
    points = (points / depth.median()).clamp(-limit, limit)
    return replace(clip, cameras=replace(clip.cameras, cam_to_world=poses), points=points)
