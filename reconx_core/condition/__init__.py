"""Stage `condition`: the input of the video model, per frame its camera and the point cloud rendered there (paper IV-C)."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.condition.order import view_order
from reconx_core.condition.paths import PlannedPath, around, as_given, with_ends
from reconx_core.geometry.camera_path import interpolate_path
from reconx_core.geometry.transforms import depth_of, rigid, so3_exp
from reconx_core.settings import ConditionSettings
from reconx_core.types import BackendInfo, Cameras, Condition, Pointmaps, Views

BACKENDS: dict[str, BackendInfo] = {
    "points": BackendInfo("condition", "points", "camera path in SE(3), soft z-buffer renders of the point cloud"),
}


def build_condition(
    inputs: Views, pointmaps: Pointmaps, settings: ConditionSettings, generator: torch.Generator, given: Cameras | None = None
) -> Condition:
    """Cameras of the frames to come, in the world frame of the pointmaps, and the point cloud rendered at each.

    ``given``: the cameras of the file that ``settings.path`` names, of the pointmaps' image size.

    Raises:
        UserError: the path is in no place where a camera can be.
    """
    from reconx_core.geometry.point_renders import render_points, visible_points

    path = plan_path(inputs, pointmaps, settings, given)
    renders, visibility, _ = render_points(*visible_points(inputs, pointmaps), path.cameras)
    return Condition(path.cameras, renders, visibility, path.pair, path.position)


def plan_path(inputs: Views, pointmaps: Pointmaps, settings: ConditionSettings, given: Cameras | None) -> PlannedPath:
    """The path that ``settings.path`` asks for; see :func:`build_condition`."""
    if given is not None:
        return as_given(given, pointmaps, settings)
    if settings.path == "orbit":
        return around(pointmaps, settings)
    order = view_order(inputs, pointmaps, settings)
    between = path_between(pointmaps, order, settings)
    return between if settings.path == "between" else with_ends(between, inputs, pointmaps, order, settings)


def path_between(pointmaps: Pointmaps, order: Int[Tensor, " n"], settings: ConditionSettings) -> PlannedPath:
    """Frames between neighbouring photos, off the direct path by ``settings.sway``."""
    along, position = frame_positions(len(order), settings.frames_per_pair)
    pair = order[along]
    path = interpolate_path(pointmaps.cameras[order], along[:, 0] + position)
    return PlannedPath(sway(path, pointmaps, pair, settings.sway), pair, position)


def frame_positions(views: int, frames_per_pair: int) -> tuple[Tensor, Float[Tensor, " f"]]:
    """The places on the path that each frame lies between, and its position in (0, 1); views are no frames."""
    position = (torch.arange(frames_per_pair) + 1.0) / (frames_per_pair + 1)
    first = torch.arange(views - 1).repeat_interleave(frames_per_pair)
    return torch.stack([first, first + 1], -1), position.repeat(views - 1)


def sway(cameras: Cameras, pointmaps: Pointmaps, pair: Int[Tensor, "f 2"], amount: float) -> Cameras:
    """Move frames off the path, by turns up, right, down and left, rotated to keep the scene centre at the same pixel.

    ``amount`` is in baselines of each frame's pair. Frames on a line would not constrain the scene in other directions.
    """
    centres = pointmaps.cameras.cam_to_world[:, :3, 3]
    baseline = (centres[pair[:, 1]] - centres[pair[:, 0]]).norm(dim=-1)
    angle = torch.arange(len(cameras)) * (torch.pi / 2)
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)[pointmaps.confidence > 0].median()
    offset = torch.stack([torch.sin(angle), -torch.cos(angle), torch.zeros_like(angle)], -1) * (amount * baseline)[:, None]
    turn = torch.stack([offset[:, 1], -offset[:, 0], torch.zeros_like(angle)], -1) / depth
    moved = cameras.cam_to_world @ rigid(so3_exp(turn), offset)
    return replace(cameras, cam_to_world=moved)
