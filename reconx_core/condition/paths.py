"""The camera paths that go beyond the photos: past the first and the last one, around what they show, or as a file says.

Each is held against what is known of the scene's surfaces: what it cannot keep of the path is said in a warning.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.geometry.camera_path import continue_path
from reconx_core.geometry.free_space import FreeSpace, free_space, obstacles
from reconx_core.geometry.orbit import Orbit, orbit_cameras, orbit_of
from reconx_core.geometry.transforms import depth_of, join_cameras
from reconx_core.settings import ConditionSettings
from reconx_core.types import Cameras, Pointmaps, Views

STEPS = 32  # places at which the way past a photo is held against the surfaces
DEGREE_STEPS = 180  # and an orbit
GIVEN = "the file's path"
LEAST_REACH = 0.1  # share of `condition.reach` below which frames past a photo would all show the same


class PlannedPath(NamedTuple):
    """Frames in the order of the path; pair and position as in `Condition`."""

    cameras: Cameras
    pair: Int[Tensor, "f 2"]
    position: Float[Tensor, " f"]


def joined(*parts: PlannedPath) -> PlannedPath:
    """The parts of a path one after the other."""
    first, *others = parts
    for other in others:
        cameras, pair = join_cameras(first.cameras, other.cameras), torch.cat([first.pair, other.pair])
        first = PlannedPath(cameras, pair, torch.cat([first.position, other.position]))
    return first


def with_ends(
    between: PlannedPath, inputs: Views, pointmaps: Pointmaps, order: Tensor, settings: ConditionSettings
) -> PlannedPath:
    """The path between the photos, in ``order``, with frames past the first and the last one.

    The motion goes on as the path arrives there, slowed down where it would run into a surface or behind one. A warning says
    why there are no frames past the photos.
    """
    if len(order) < 2 or settings.beyond == 0:
        one = (
            "one photo has no direction to go on in"
            if len(order) < 2
            else "condition.frames_beyond or half of frames_per_pair is 0"
        )
        warnings.warn(f"No frames are made past the photos: {one}.", stacklevel=2)
        return between
    space = free_space(pointmaps)
    after = past_end(space, inputs, order, settings)
    before = past_end(space, inputs, order.flip(0), settings)
    turned = PlannedPath(before.cameras[_backwards(before)], before.pair[_backwards(before)], before.position.flip(0))
    return joined(turned, between, after)


def _backwards(path: PlannedPath) -> Int[Tensor, " f"]:
    return torch.arange(len(path.position)).flip(0)


def past_end(space: FreeSpace, inputs: Views, order: Int[Tensor, " n"], settings: ConditionSettings) -> PlannedPath:
    """Frames past the last photo of ``order``, at equal distances but where the path is slowed down; with a warning there."""
    pair, count = order[-2:], settings.beyond
    cameras = space.pointmaps.cameras[pair]
    free, why = way_free(space, cameras, settings.reach)
    wanted = settings.reach * (torch.arange(count) + 1.0) / count
    distance = slowed(wanted, free) if why else wanted
    if why:
        _warn_of_end(inputs.names[int(order[-1])], free, why, settings)
    if free < LEAST_REACH * settings.reach:
        distance = distance[:0]
    return PlannedPath(continue_path(cameras, distance), pair.repeat(len(distance), 1), 1 + distance)


def way_free(space: FreeSpace, cameras: Cameras, reach: float) -> tuple[float, str]:
    """How far past the last of two cameras a camera can go on, in their baselines, and what stops it; empty if nothing does."""
    places = reach * (torch.arange(STEPS) + 1.0) / STEPS
    for distance, why in zip(places.tolist(), obstacles(space, continue_path(cameras, places))):
        if why:
            return distance - reach / STEPS, why
    return reach, ""


def slowed(wanted: Float[Tensor, " f"], free: float) -> Float[Tensor, " f"]:
    """Distances that begin as ``wanted``, which start at 0, and come to rest before ``free``."""
    return free * torch.tanh(wanted / max(free, 1e-9))


def _warn_of_end(name: str, free: float, why: str, settings: ConditionSettings) -> None:
    done = f"is slowed down to stay within {free:.2g}" if free >= LEAST_REACH * settings.reach else "is left out, all"
    message = f"The path past photo {name} {done} of {settings.reach:.2g} baselines (condition.reach): beyond, it {why}."
    warnings.warn(message, stacklevel=2)


def around(pointmaps: Pointmaps, settings: ConditionSettings) -> PlannedPath:
    """An orbit around the point that the photos look at, as far as it is free; one of 360 degrees closes.

    Raises:
        UserError: the photos look at no common point, or all of the orbit is behind surfaces.
    """
    orbit, space = orbit_of(pointmaps), free_space(pointmaps)
    low, high, why = free_arc(space, orbit, math.radians(settings.degrees))
    if why:
        turned = f"{math.degrees(high - low):.0f} of {settings.degrees:.0f} degrees"
        warnings.warn(f"The orbit is shortened to {turned} (condition.degrees): beyond, it {why}.", stacklevel=2)
    closed = high - low > 2 * math.pi - 1e-6
    angles = low + (high - low) * torch.arange(settings.frames, dtype=torch.float64) / max(1, settings.frames - (not closed))
    pair, position = pairs_by_angle(orbit, angles)
    return _checked(PlannedPath(orbit_cameras(orbit, angles), pair, position), space, "the orbit")


def free_arc(space: FreeSpace, orbit: Orbit, length: float) -> tuple[float, float, str]:
    """The angles from which to which an orbit of ``length`` (radians) around the photos' middle is free, and what stops it.

    Only what lies past the outermost photos stops it: between them, single frames are left out.
    """
    ends, reasons = [], []
    for end, sign in zip(orbit.span, (-1.0, 1.0)):
        angles = sign * torch.linspace(0, length / 2, DEGREE_STEPS, dtype=torch.float64)
        beyond = angles[sign * angles > sign * end]
        why = obstacles(space, orbit_cameras(orbit, beyond))
        stop = next((i for i, reason in enumerate(why) if reason), None)
        reasons += [] if stop is None else [why[stop]]
        ends.append(sign * length / 2 if stop is None else float(beyond[stop - 1]) if stop else end)
    return ends[0], ends[1], " and ".join(dict.fromkeys(reasons))


def pairs_by_angle(orbit: Orbit, angles: Float[Tensor, " k"]) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """For each angle (radians) the two photos nearest to it, and its position between or beyond them."""
    apart = _wrapped(angles[:, None] - orbit.angles)
    if apart.shape[1] < 2:
        return torch.zeros(len(angles), 2, dtype=torch.int64), torch.zeros(len(angles))
    nearest, second = apart.abs().argsort(dim=1, stable=True)[:, :2].unbind(1)
    gap = _wrapped(orbit.angles[second] - orbit.angles[nearest])
    gap = torch.where(gap.abs() < 1e-6, 1e-6, gap)
    return _placed(nearest, second, apart.gather(1, nearest[:, None])[:, 0] / gap, gap > 0)


def as_given(cameras: Cameras, pointmaps: Pointmaps, settings: ConditionSettings) -> PlannedPath:
    """A path of given cameras in the world of the pointmaps, evenly thinned, without those that cannot be where they are.

    Raises:
        UserError: that leaves none.
    """
    count = len(cameras)
    if count > settings.frames:
        message = f"The path has {count} cameras, of which {settings.frames} are taken, evenly (condition.frames)"
        warnings.warn(f"{message}; every one becomes a frame to generate.", stacklevel=2)
        cameras = cameras[torch.linspace(0, count - 1, settings.frames).round().long()]
    pair, position = pairs_by_place(cameras, pointmaps)
    return _checked(PlannedPath(cameras, pair, position), free_space(pointmaps), GIVEN)


def pairs_by_place(cameras: Cameras, pointmaps: Pointmaps) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """For each camera the two photos nearest to it in place and direction, and its position between or beyond them."""
    photos, depth = pointmaps.cameras.cam_to_world, depth_of(pointmaps.points_world, pointmaps.cameras)
    if len(photos) < 2:
        return torch.zeros(len(cameras), 2, dtype=torch.int64), torch.zeros(len(cameras))
    typical = depth[pointmaps.confidence > 0].median()
    places = cameras.cam_to_world[:, :3, 3]
    apart = torch.cdist(places, photos[:, :3, 3]) / typical + 1 - cameras.cam_to_world[:, :3, 2] @ photos[:, :3, 2].mT
    nearest, second = apart.argsort(dim=1, stable=True)[:, :2].unbind(1)
    start, way = photos[nearest, :3, 3], photos[second, :3, 3] - photos[nearest, :3, 3]
    progress = ((places - start) * way).sum(-1) / way.square().sum(-1).clamp(min=1e-12)
    return _placed(nearest, second, progress, nearest < second)


def _placed(
    nearest: Int[Tensor, " k"], second: Int[Tensor, " k"], progress: Float[Tensor, " k"], forwards: Tensor
) -> tuple[Int[Tensor, "k 2"], Float[Tensor, " k"]]:
    """Pair and position of frames at ``progress`` from their nearest photo (0) to the second one (1).

    Frames beside the two come after the pair's second photo; those between go by ``forwards`` from the nearest or to it.
    """
    turn = (progress < 0) | (~forwards & (progress <= 1))
    pair = torch.where(turn[:, None], torch.stack([second, nearest], -1), torch.stack([nearest, second], -1))
    return pair, torch.where(turn, 1 - progress, progress).float()


def _wrapped(angle: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Between -pi and pi."""
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def _checked(path: PlannedPath, space: FreeSpace, what: str) -> PlannedPath:
    """The path without frames that cannot be where they are, with a warning; UserError if none is left."""
    why = obstacles(space, path.cameras)
    kept = torch.tensor([not reason for reason in why])
    reasons = ", ".join(f"{count} because it {reason}" for reason, count in sorted(Counter(filter(None, why)).items()))
    if len(kept) and not kept.any():
        hint = " Are they in the frame of this scene (docs/paths.md)?" if what == GIVEN else ""
        raise UserError(f"None of the {len(why)} cameras of {what} can be used: {reasons}.{hint}")
    if not kept.all():
        lost = int((~kept).sum())
        warnings.warn(f"{lost} of {len(why)} cameras of {what} are left out: {reasons}.", stacklevel=3)
    index = kept.nonzero()[:, 0]
    return PlannedPath(path.cameras[index], path.pair[index], path.position[index])
