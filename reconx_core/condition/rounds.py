"""An orbit in rounds: each goes on from a pair of frames of the one before, and the last one back to the first photo."""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.condition.paths import PlannedPath, pairs_by_angle
from reconx_core.geometry.free_space import FreeSpace, free_space, inside
from reconx_core.geometry.orbit import Orbit, angles_of, orbit_cameras, orbit_of
from reconx_core.geometry.point_renders import render_points, visible_points
from reconx_core.settings import ConditionSettings
from reconx_core.types import Cameras, Condition, PointCloud, Pointmaps, Views

NARROWER = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4)  # shares of the radius that are tried where a camera would be in a surface
SLOPE = 0.06  # by which that share changes from frame to frame, at most
WIDENS = 0.12  # by which it may change towards a photo
SAME = 1e-4  # radians


class Turn(NamedTuple):
    """A round, and what the one before has left."""

    number: int  # from 1
    last: bool
    photos: int  # the first views of the geometry; the others are frames that have joined
    pair: tuple[int, int] | None = None  # views to go on from; None: the photos, or no frame that is sure enough
    reached: Float[Tensor, "4 4"] | None = None  # camera of the last frame that was made
    closed: bool = False  # whether a round before it has come back to the first photo


class Arc(NamedTuple):
    """The part of an orbit that a round is for."""

    orbit: Orbit  # through the photos
    angles: Float[Tensor, " f"]  # radians, growing from the first photo's
    share: Float[Tensor, " f"]  # of the radius
    closes: bool  # ends where the first photo is
    end: float  # angle


def build_round(inputs: Views, pointmaps: Pointmaps, settings: ConditionSettings, turn: Turn) -> Condition:
    """The condition of a round on an orbit; without frames where there is nothing to see for the first time, or to go on from.

    Raises:
        UserError: the photos look at no common point.
    """
    arc = next_arc(pointmaps, settings, turn)
    path = path_on(arc, pointmaps, turn)
    renders, visibility, _ = render_points(*visible_points(inputs, pointmaps), path.cameras)
    found = Condition(path.cameras, renders, visibility, path.pair, path.position)
    why = reason_to_stop(found, settings, turn)
    if not why:
        return found
    warnings.warn(f"Round {turn.number} is left out: {why}.", stacklevel=2)
    return Condition(path.cameras[:0], renders[:0], visibility[:0], path.pair[:0], path.position[:0])


def reason_to_stop(found: Condition, settings: ConditionSettings, turn: Turn) -> str:
    """Why a round is left out; empty where it is not, as the last, which closes the way, while any of that is left."""
    if len(found.cameras) == 0:
        return "the way ends where the rounds before it have come to"
    if turn.number == 1 or turn.last:
        return ""
    if turn.pair is None:
        return "no frame of the round before it is sure enough to go on from"
    new = float((found.visibility == 0).float().mean())
    if new < settings.unseen:
        return f"it would see {new:.1%} of its pixels for the first time, less than {settings.unseen:.1%} (condition.unseen)"
    return ""


def next_arc(pointmaps: Pointmaps, settings: ConditionSettings, turn: Turn) -> Arc:
    """Where the frames of a round are: from what has been reached on by ``settings.advance``, in the last one to the end."""
    orbit, whole = orbit_of(of_photos(pointmaps, turn.photos)), math.radians(settings.degrees)
    start, last_photo = orbit.span
    end = start + whole
    grid = torch.linspace(start, end, settings.frames, dtype=torch.float64)
    reached = None if turn.reached is None else unwrapped(orbit, turn.reached[None], start, turn.closed)
    past = last_photo if reached is None else max(last_photo, reached)
    ahead = grid[grid > past + SAME]  # each round makes one frame at least, or those after it had nothing to go on from
    goal = end if turn.last or len(ahead) == 0 else min(end, max(past + math.radians(settings.advance), float(ahead[0])))
    chosen = (grid <= goal + SAME) & (grid > (start - SAME if reached is None else reached + SAME))
    share = with_photos(free_share(free_space(pointmaps), orbit, grid), orbit, grid)
    full = whole > 2 * math.pi - SAME
    return Arc(orbit, grid[chosen], share[chosen], full and goal >= end - SAME, end)


def of_photos(pointmaps: Pointmaps, photos: int) -> Pointmaps:
    """The geometry of the photos alone, without feature points."""
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    index = torch.arange(photos)
    return Pointmaps(pointmaps.points_world[index], pointmaps.confidence[index], pointmaps.cameras[index], nothing)


def unwrapped(orbit: Orbit, pose: Float[Tensor, "1 4 4"], start: float, whole: bool = True) -> float:
    """A camera's angle, between ``start`` and a turn from it; at ``start`` itself a ``whole`` turn, or none."""
    camera = Cameras(orbit.photos.intrinsics[:1], pose, orbit.photos.width, orbit.photos.height)
    angle = (float(angles_of(orbit, camera)) - start) % (2 * math.pi)
    begins = angle < SAME or angle > 2 * math.pi - SAME
    return start + (2 * math.pi * whole if begins else angle)


def free_share(space: FreeSpace, orbit: Orbit, angles: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The largest share of the radius at which each camera is in no surface, changing slowly along the path."""
    share = torch.full((len(angles),), NARROWER[-1], dtype=torch.float64)
    for tried in reversed(NARROWER):
        places = orbit_cameras(orbit, angles, torch.full_like(share, tried)).cam_to_world[:, :3, 3]
        share[~inside(space, places)] = tried
    steps = torch.arange(len(angles), dtype=torch.float64)
    return (share + SLOPE * (steps[:, None] - steps).abs()).amin(1)


def with_photos(share: Float[Tensor, " k"], orbit: Orbit, angles: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """The shares with all of the radius at the photos: there a camera has been, whatever generated frames have put there."""
    apart = torch.remainder(angles[:, None] - orbit.angles + math.pi, 2 * math.pi) - math.pi
    steps = apart.abs().amin(1) / angles.diff().mean().clamp(min=SAME) if len(angles) > 1 else torch.zeros_like(share)
    return torch.maximum(share, 1 - WIDENS * (steps - SAME).clamp(min=0))


def path_on(arc: Arc, pointmaps: Pointmaps, turn: Turn) -> PlannedPath:
    """The frames of an arc, each with the pair of views that it is generated from."""
    cameras = orbit_cameras(arc.orbit, arc.angles, arc.share)
    if turn.pair is None or len(arc.angles) == 0:
        return PlannedPath(cameras, *pairs_by_angle(arc.orbit, arc.angles))
    start = arc.orbit.span[0]
    inner, outer = (unwrapped(arc.orbit, pointmaps.cameras.cam_to_world[[view]], start) for view in turn.pair)
    inner -= 2 * math.pi * (inner > outer)  # where the first photo is
    first = int(arc.orbit.angles.argmin())
    pair = (turn.pair[1], first) if arc.closes else turn.pair
    position = (arc.angles - outer) / max(SAME, arc.end - outer if arc.closes else outer - inner)
    return PlannedPath(cameras, torch.tensor([pair] * len(position)), (position if arc.closes else 1 + position).float())
