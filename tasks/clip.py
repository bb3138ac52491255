"""Training clips of the video model: photos, and renders of the point cloud of the first and the last photo at each."""

from typing import Any

import torch

from reconx_core.geometry.point_renders import render_points, visible_points
from reconx_core.types import Clip, Pointmaps, Views
from reconx_core.video.clip import structure_points
from reconx_core.video.sources import photo_renders
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    return {"clip": make_clip(read("views", "views"), read("pointcloud", "pointmaps"))}


def make_clip(views: Views, pointmaps: Pointmaps) -> Clip:
    """Target views in order between the two input views; the pointmaps have the true cameras (`posed` protocol)."""
    order = torch.tensor([0, *range(2, len(views)), 1])
    inputs, clip = views.inputs(), views.select(order)
    assert clip.cameras is not None
    renders, visibility, _ = render_points(*visible_points(inputs, pointmaps), clip.cameras)
    points, colours = structure_points(inputs.images, pointmaps)
    alone = photo_renders(inputs, pointmaps, torch.tensor([0, 1]), clip.cameras)
    return Clip(clip.images, clip.cameras, renders, visibility, *alone, points, colours)
