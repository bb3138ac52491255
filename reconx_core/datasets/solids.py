"""Unit cubes, balls and cylinders under rotation about the vertical and scaling: ray hits, normals, texture coordinates.

Every solid has six square faces, ordered as on a cube (+x -x +y -y +z -z); balls and cylinders are projected onto a cube.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

_NEAR = 1e-4  # smaller ray parameters hit the surface that the ray starts from


@dataclass(frozen=True)
class Solid:
    """A unit solid (|x|, |y|, |z| <= 1) scaled by ``half``, turned by ``yaw`` and moved to ``centre``."""

    kind: Literal["room", "box", "ball", "cylinder"]
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float = 0.0

    def to_local(self, points: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        return self.turn(points - points.new_tensor(self.centre), -self.yaw) / points.new_tensor(self.half)

    def to_world(self, local: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        return self.turn(local * local.new_tensor(self.half), self.yaw) + local.new_tensor(self.centre)

    @staticmethod
    def turn(vectors: Float[Tensor, "p 3"], yaw: float) -> Float[Tensor, "p 3"]:
        if yaw == 0:
            return vectors
        x, y, z = vectors.unbind(-1)
        cos, sin = math.cos(yaw), math.sin(yaw)
        return torch.stack([cos * x + sin * z, y, cos * z - sin * x], -1)

    def normal(self, local: Float[Tensor, "p 3"]) -> Float[Tensor, "p 3"]:
        """Unit world normals, out of the solid (of a room: into it)."""
        cube = _cube_normal(local, self.kind == "cylinder")
        if self.kind == "ball":
            cube = local
        elif self.kind == "cylinder":
            cube = torch.where(cube[:, 1:2] != 0, cube, local * local.new_tensor([1, 0, 1]))
        normal = F.normalize(self.turn(cube / local.new_tensor(self.half), self.yaw), dim=-1)
        return -normal if self.kind == "room" else normal

    def extent(self, face: int) -> tuple[float, float]:
        """Size of a face in metres, along its two texture coordinates."""
        x, y, z = (2 * half for half in self.half)
        return ((z, y), (x, z), (x, y))[face // 2]


def first_hit(
    solids: tuple[Solid, ...], origin: Float[Tensor, "p 3"], direction: Float[Tensor, "p 3"]
) -> tuple[Tensor, Tensor]:
    """Ray parameter and index of the nearest solid; inside a room every ray hits."""
    depth = torch.full((len(origin),), math.inf)
    nearest = torch.zeros(len(origin), dtype=torch.int64)
    for s, solid in enumerate(solids):
        o, d = solid.to_local(origin), Solid.turn(direction, -solid.yaw) / direction.new_tensor(solid.half)
        t = {"room": _exit_cube, "box": _enter_cube, "ball": _enter_ball, "cylinder": _enter_cylinder}[solid.kind](o, d)
        closer = t < depth
        depth, nearest = torch.where(closer, t, depth), torch.where(closer, s, nearest)
    return depth, nearest


def is_blocked(solids: tuple[Solid, ...], origin: Float[Tensor, "p 3"], direction: Float[Tensor, "p 3"]) -> Bool[Tensor, " p"]:
    """Whether a solid lies on the way from ``origin`` to ``origin + direction``."""
    blocked = torch.zeros(len(origin), dtype=torch.bool)
    squared = (direction**2).sum(-1)
    for solid in solids:
        # Few rays come near a solid: the ball around it rules the others out.
        away = direction.new_tensor(solid.centre) - origin
        nearest = ((away * direction).sum(-1) / squared).clamp(0, 1)
        distance = (away - nearest[:, None] * direction).norm(dim=-1)
        near = ((distance < 1.01 * math.hypot(*solid.half)) & ~blocked).nonzero()[:, 0]
        blocked[near] = first_hit((solid,), origin[near], direction[near])[0] < 1
    return blocked


def face_uv(local: Float[Tensor, "p 3"], cylinder: bool) -> tuple[Int[Tensor, " p"], Float[Tensor, "p 2"]]:
    """Face (0...5: +x -x +y -y +z -z) and coordinates in [-1, 1] of points on a unit solid, projected onto the cube."""
    axis = _cube_normal(local, cylinder).abs().argmax(-1)
    major = local.gather(1, axis[:, None])
    others = torch.tensor([[2, 1], [0, 2], [0, 1]])[axis]
    uv = local.gather(1, others) / major.abs().clamp(min=1e-9)
    if cylinder:  # the height runs linearly along the side
        uv[:, 1] = torch.where(axis == 1, uv[:, 1], local[:, 1])
    return 2 * axis + (major[:, 0] < 0), uv.clamp(-1, 1)


def on_surface(kind: str, face: int, uv: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
    """Inverse of :func:`face_uv`."""
    axis, sign = face // 2, 1.0 - 2.0 * (face % 2)
    order = ([2, 1], [0, 2], [0, 1])[axis]
    cube = torch.full((len(uv), 3), sign)
    cube[:, order] = uv
    if kind == "ball":
        return F.normalize(cube, dim=-1)
    if kind == "cylinder" and axis != 1:
        cube[:, [0, 2]] = F.normalize(cube[:, [0, 2]], dim=-1)
    return cube


def _cube_normal(local: Float[Tensor, "p 3"], cylinder: bool) -> Float[Tensor, "p 3"]:
    """The cube's face that a point belongs to, as a signed unit vector."""
    size = local.abs()
    if cylinder:  # caps where |y| is 1, whatever x and z are
        cap = size[:, 1] > 1 - 1e-4
        size = torch.stack([size[:, 0], torch.where(cap, 2.0, 0.0), size[:, 2]], -1)
    axis = size.argmax(-1)
    return F.one_hot(axis, 3) * local.gather(1, axis[:, None]).sign()


def _slabs(origin: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Entry and exit of the cube |x|, |y|, |z| <= 1."""
    inverse = 1 / torch.where(direction.abs() < 1e-9, 1e-9, direction)
    a, b = (-1 - origin) * inverse, (1 - origin) * inverse
    return torch.minimum(a, b).amax(-1), torch.maximum(a, b).amin(-1)


def _exit_cube(origin: Tensor, direction: Tensor) -> Tensor:
    return _slabs(origin, direction)[1]


def _enter_cube(origin: Tensor, direction: Tensor) -> Tensor:
    near, far = _slabs(origin, direction)
    return torch.where((near < far) & (near > _NEAR), near, math.inf)


def _enter_ball(origin: Tensor, direction: Tensor) -> Tensor:
    a, b, c = (direction**2).sum(-1), (origin * direction).sum(-1), (origin**2).sum(-1) - 1
    root = b * b - a * c
    t = (-b - root.clamp(min=0).sqrt()) / a
    return torch.where((root > 0) & (t > _NEAR), t, math.inf)


def _enter_cylinder(origin: Tensor, direction: Tensor) -> Tensor:
    flat_o, flat_d = origin[:, [0, 2]], direction[:, [0, 2]]
    side = _enter_ball(flat_o, flat_d)
    side = torch.where((origin[:, 1] + side * direction[:, 1]).abs() <= 1, side, math.inf)
    cap = (-direction[:, 1].sign() - origin[:, 1]) / torch.where(direction[:, 1].abs() < 1e-9, 1e-9, direction[:, 1])
    on_cap = ((flat_o + cap[:, None] * flat_d) ** 2).sum(-1) <= 1
    return torch.minimum(side, torch.where(on_cap & (cap > _NEAR), cap, math.inf))
