"""An orbit around the point that photos look at, through the photos' own places."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.nn.functional import normalize

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import depth_of, rigid
from reconx_core.types import Cameras, Pointmaps

PARALLEL = math.radians(3)  # axes with less between them do not tell how far away the point is that they look at
LEVEL = 0.01  # weight of the mean up vector against the photos' horizontals
SAME_PLACE = math.radians(0.5)  # photos that are nearer to each other in angle share radius and height
LEAST_RADIUS = 1e-3  # in mean radii: a photo right above the centre has none


@dataclass(frozen=True)
class Orbit:
    """Angles are in radians about ``up``, from the middle of the photos: these have all between -pi and pi. World frame."""

    centre: Float[Tensor, " 3"]
    axes: Float[Tensor, "3 3"]  # columns: towards the photos' middle, a quarter turn from it, up
    angles: Float[Tensor, " n"]  # of the photos, in their order
    radius: Float[Tensor, " n"]  # from the axis
    height: Float[Tensor, " n"]
    photos: Cameras

    @property
    def span(self) -> tuple[float, float]:
        """The angles of the outermost photos."""
        return float(self.angles.min()), float(self.angles.max())


def orbit_of(pointmaps: Pointmaps) -> Orbit:
    """The orbit through the places of the photos. Equivariant to rigid transforms and scaling of the world.

    Raises:
        UserError: the photos look at no common point.
    """
    cameras, centre, up = pointmaps.cameras, looked_at(pointmaps), upright(pointmaps.cameras)
    offset = cameras.cam_to_world[:, :3, 3].double() - centre
    height = offset @ up
    flat = offset - height[:, None] * up
    radius = flat.norm(dim=-1)
    first = normalize(flat[radius.argmax()], dim=0)
    turned = torch.atan2(flat @ torch.linalg.cross(up, first), flat @ first)
    middle = _middle(turned)
    angles = torch.remainder(turned - middle + math.pi, 2 * math.pi) - math.pi
    ahead = math.cos(middle) * first + math.sin(middle) * torch.linalg.cross(up, first)
    axes = torch.stack([ahead, torch.linalg.cross(up, ahead), up], -1)
    radius = radius.clamp(min=LEAST_RADIUS * float(offset.norm(dim=-1).mean()))
    return Orbit(centre, axes, angles, radius, height, cameras)


def orbit_cameras(orbit: Orbit, angles: Float[Tensor, " k"], share: Float[Tensor, " k"] | None = None) -> Cameras:
    """Cameras at ``angles`` (radians) that look at the centre, upright; at a photo's angle in its place.

    ``share``: of the radius, where they are to be nearer to the axis.
    """
    turn = angles.double()
    radius, height = (torch.from_numpy(value) for value in _through(orbit, turn.numpy()))
    radius = radius if share is None else radius * share
    flat = torch.stack([radius * turn.cos(), radius * turn.sin(), height], -1)
    places = orbit.centre + flat @ orbit.axes.mT
    forward = normalize(orbit.centre - places, dim=-1)
    right = normalize(torch.linalg.cross(forward, orbit.axes[:, 2].expand_as(forward)), dim=-1)
    rotation = torch.stack([right, torch.linalg.cross(forward, right), forward], -1)
    intrinsics = orbit.photos.intrinsics.mean(0).repeat(len(angles), 1, 1)
    return Cameras(intrinsics, rigid(rotation, places).float(), orbit.photos.width, orbit.photos.height)


def angles_of(orbit: Orbit, cameras: Cameras) -> Float[Tensor, " k"]:
    """Where cameras are about the axis, between -pi and pi."""
    flat = (cameras.cam_to_world[:, :3, 3].double() - orbit.centre) @ orbit.axes
    return torch.atan2(flat[:, 1], flat[:, 0])


def looked_at(pointmaps: Pointmaps) -> Float[Tensor, " 3"]:
    """The point nearest to all optical axes; where these are parallel or part, one before the mean camera at median depth.

    Raises:
        UserError: the photos look at no common point: away from each other, all around.
    """
    poses = pointmaps.cameras.cam_to_world.double()
    places, axes = poses[:, :3, 3], poses[:, :3, 2]
    across = (torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]).mean(0)
    # Of two axes the smallest eigenvalue is the squared sine of half the angle between them.
    if torch.linalg.eigvalsh(across)[0] > math.sin(PARALLEL / 2) ** 2:
        towards = (torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]) @ places[:, :, None]
        point = torch.linalg.solve(across, towards.mean(0))[:, 0]
        if bool((((point - places) * axes).sum(-1) > 0).all()):
            return point
    if axes.mean(0).norm() < 0.1:
        raise UserError("condition.path=orbit needs photos that look at one place, but these look away from each other.")
    known = pointmaps.confidence > 0
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)[known]
    return places.mean(0) + float(depth.median()) * normalize(axes.mean(0), dim=0)


def upright(cameras: Cameras) -> Float[Tensor, " 3"]:
    """The mean of the cameras' up vectors, made perpendicular to their horizontal axes as far as these tell.

    Cameras that look down from one side have all their up vectors leaning to the other, and an orbit would lean with them.
    """
    poses = cameras.cam_to_world.double()
    mean = -poses[:, :3, 1].mean(0)
    mean = mean if mean.norm() > 0.1 else -poses[0, :3, 1]
    level = (poses[:, :3, 0, None] * poses[:, None, :3, 0]).mean(0)
    return normalize(torch.linalg.solve(level + LEVEL * torch.eye(3, dtype=torch.float64), mean), dim=0)


def _middle(angles: Float[Tensor, " n"]) -> float:
    """The middle of the shortest arc that holds all ``angles``."""
    ordered = torch.remainder(angles, 2 * math.pi).sort().values
    gaps = torch.cat([ordered[1:], ordered[:1] + 2 * math.pi]) - ordered
    start = (int(gaps.argmax()) + 1) % len(ordered)
    return float(ordered[start] + (2 * math.pi - gaps.max()) / 2)


def _through(orbit: Orbit, angles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Radius and height at ``angles``: smooth, periodic, and nowhere beyond the photos' own."""
    order = orbit.angles.argsort()
    group = np.concatenate([[0], np.cumsum(np.diff(orbit.angles[order].numpy()) > SAME_PLACE)])
    known = [orbit.angles[order], orbit.radius[order].log(), orbit.height[order]]
    turn, radius, height = (np.bincount(group, value.numpy()) / np.bincount(group) for value in known)
    around = np.concatenate([turn - 2 * np.pi, turn, turn + 2 * np.pi])
    wrapped = np.remainder(angles + np.pi, 2 * np.pi) - np.pi
    curves = (PchipInterpolator(around, np.tile(value, 3)) for value in (radius, height))
    log_radius, level = (curve(wrapped) for curve in curves)
    return np.exp(log_radius), level
