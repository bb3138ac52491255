"""Smooth camera paths through given cameras: cubic Bezier curves on SE(3), by de Casteljau's construction."""

from __future__ import annotations

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.geometry.transforms import rigid, so3_log
from reconx_core.types import Cameras


def se3_exp(twist: Float[Tensor, "*n 6"]) -> Float[Tensor, "*n 4 4"]:
    """Rigid transforms of twists (rotation vector in radians, then translation); differentiable at zero."""
    top = torch.cat([_skew(twist[..., :3]), twist[..., 3:, None]], -1)
    return torch.linalg.matrix_exp(torch.cat([top, torch.zeros_like(top[..., :1, :])], -2))


def se3_log(matrix: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 6"]:
    """Twists of rigid transforms, rotation angles below 180 degrees."""
    omega = so3_log(matrix[..., :3, :3])
    # exp([[W, I], [0, 0]]) = [[R, V], [0, I]], and V maps the twist's translation to the matrix's.
    block = torch.zeros(*omega.shape[:-1], 6, 6).to(omega)
    block[..., :3, :3] = _skew(omega)
    block[..., :3, 3:] = torch.eye(3).to(omega)
    v = torch.linalg.matrix_exp(block)[..., :3, 3:]
    return torch.cat([omega, torch.linalg.solve(v, matrix[..., :3, 3:])[..., 0]], -1)


def interpolate_path(cameras: Cameras, positions: Float[Tensor, " f"]) -> Cameras:
    """Cameras along the C1 curve through ``cameras``; position k.x lies between camera k and camera k + 1.

    Two cameras are joined by a screw motion, so a path between cameras that look at the same object orbits it. The curve is
    equivariant to rigid transforms and scaling of the world. Intrinsics are interpolated linearly.

    Raises:
        ValueError: a position outside [0, len(cameras) - 1].
    """
    last = len(cameras) - 1
    if len(positions) and not (positions.min() >= 0 and positions.max() <= last):
        raise ValueError(f"positions: expected values in [0, {last}], got {positions.min():.3f} to {positions.max():.3f}")
    if last == 0:
        return cameras[torch.zeros(len(positions), dtype=torch.int64)]
    keys = cameras.cam_to_world.double()
    segment = positions.floor().long().clamp(max=last - 1)
    t = positions.double() - segment
    tangent = _key_twists(keys) / 3
    after, before = keys @ se3_exp(tangent), keys @ se3_exp(-tangent)
    poses = _bezier([keys[segment], after[segment], before[segment + 1], keys[segment + 1]], t)
    intrinsics = torch.lerp(cameras.intrinsics[segment], cameras.intrinsics[segment + 1], t.float()[:, None, None])
    return Cameras(intrinsics, poses.float(), cameras.width, cameras.height)


def continue_path(cameras: Cameras, distance: Float[Tensor, " f"]) -> Cameras:
    """Cameras past the last of at least two, on the screw motion by which the path of :func:`interpolate_path` arrives there.

    ``distance``: how far past it, in steps from the camera before it to the last; 0 is the last camera. Intrinsics are the last
    camera's. Equivariant to rigid transforms and scaling of the world.
    """
    keys = cameras.cam_to_world[-2:].double()
    step = se3_log(_inverse(keys[0]) @ keys[1])
    poses = keys[1] @ se3_exp(distance.double()[:, None] * step)
    intrinsics = cameras.intrinsics[-1:].repeat(len(distance), 1, 1)
    return Cameras(intrinsics, poses.float(), cameras.width, cameras.height)


def even_positions(cameras: Cameras, frames: int) -> Float[Tensor, " f"]:
    """Positions for :func:`interpolate_path` from the first camera to the last at constant speed.

    The length of a step is its translation, as a share of the whole path's, plus its rotation in half turns.
    """
    last = len(cameras) - 1
    if last == 0:
        return torch.zeros(frames)
    dense = torch.linspace(0, last, 32 * last + 1)
    poses = interpolate_path(cameras, dense).cam_to_world.double()
    step = se3_log(torch.linalg.inv(poses[:-1]) @ poses[1:])
    moved = step[:, 3:].norm(dim=-1)
    pace = moved / moved.sum().clamp(min=1e-12) + step[:, :3].norm(dim=-1) / torch.pi + 1e-6
    travelled = torch.nn.functional.pad(pace.cumsum(0), (1, 0)).float()
    wanted = torch.linspace(0, 1, frames) * travelled[-1]
    right = torch.searchsorted(travelled, wanted).clamp(1, len(dense) - 1)
    share = (wanted - travelled[right - 1]) / (travelled[right] - travelled[right - 1])
    return torch.lerp(dense[right - 1], dense[right], share).clamp(0, last)


def _skew(omega: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    x, y, z = omega.unbind(-1)
    o = torch.zeros_like(x)
    return torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))


def _key_twists(keys: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 6"]:
    """Velocity at each key, in that key's frame: a weighted mean of the two neighbouring screw motions.

    The longer step is weighted by the shorter one's length, which bounds the velocity by twice the shorter step: the path does
    not overshoot where the spacing of the photos is uneven.
    """
    steps = se3_log(torch.linalg.inv(keys[:-1]) @ keys[1:]).unflatten(-1, (2, 3))
    before, after = steps[:-1], steps[1:]
    a, b = before.norm(dim=-1, keepdim=True), after.norm(dim=-1, keepdim=True)
    inner = (before * b + after * a) / (a + b).clamp(min=1e-12)
    return torch.cat([steps[:1], inner, steps[-1:]]).flatten(-2)


def _bezier(control: list[Float[Tensor, "f 4 4"]], t: Float[Tensor, " f"]) -> Float[Tensor, "f 4 4"]:
    while len(control) > 1:
        control = [a @ se3_exp(t[:, None] * se3_log(_inverse(a) @ b)) for a, b in pairwise(control)]
    return control[0]


def _inverse(pose: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 4 4"]:
    rotation = pose[..., :3, :3].mT
    return rigid(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])
