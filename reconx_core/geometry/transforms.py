"""Camera geometry shared by all stages: pinhole projection, rotations, rigid and similarity transforms."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.types import Cameras


def pixel_grid(height: int, width: int) -> Float[Tensor, "h w 2"]:
    """Pixel centres (x, y), +0.5."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y], -1)


def camera_rays(intrinsics: Float[Tensor, "*n 3 3"], height: int, width: int) -> Float[Tensor, "*n h w 3"]:
    """Camera-frame directions with z = 1 through every pixel centre."""
    pixels = torch.nn.functional.pad(pixel_grid(height, width), (0, 1), value=1.0).to(intrinsics)
    return torch.einsum("...ij,hwj->...hwi", torch.linalg.inv(intrinsics), pixels)


def transform(matrix: Float[Tensor, "*n 4 4"], points: Float[Tensor, "*n p 3"]) -> Float[Tensor, "*n p 3"]:
    """Apply 4x4 transforms to points."""
    return points @ matrix[..., :3, :3].mT + matrix[..., None, :3, 3]


def project(
    points_world: Float[Tensor, "p 3"], intrinsics: Float[Tensor, "*n 3 3"], world_to_cam: Float[Tensor, "*n 4 4"]
) -> tuple[Float[Tensor, "*n p 2"], Float[Tensor, "*n p"]]:
    """Pixel coordinates and depth (z); pixels of points at z <= 0 are meaningless."""
    cam = transform(world_to_cam, points_world)
    depth = cam[..., 2]
    homogeneous = cam @ intrinsics.mT
    return homogeneous[..., :2] / depth.clamp(min=1e-9)[..., None], depth


def in_picture(pixels: Float[Tensor, "*n 2"], depth: Float[Tensor, "*n"], cameras: Cameras) -> Bool[Tensor, "*n"]:
    """Which points, projected to pixels at a depth by :func:`project`, are before the camera and within its picture."""
    size = pixels.new_tensor([cameras.width, cameras.height])
    return (depth > 0) & ((pixels >= 0) & (pixels < size)).all(-1)


def unproject(depth: Float[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n h w 3"]:
    """World points of z-depth maps."""
    n, height, width = depth.shape
    points = camera_rays(cameras.intrinsics, height, width) * depth[..., None]
    return transform(cameras.cam_to_world, points.reshape(n, -1, 3)).reshape(n, height, width, 3)


def depth_of(points_world: Float[Tensor, "n h w 3"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """z-depth of each view's world points in its own camera."""
    n, height, width, _ = points_world.shape
    return transform(cameras.world_to_cam, points_world.reshape(n, -1, 3))[..., 2].reshape(n, height, width)


def resize_cameras(cameras: Cameras, height: int, width: int) -> Cameras:
    """The same cameras at another image size (pixel (0, 0)'s corner is the origin, so this is a plain scaling)."""
    scale = cameras.intrinsics.new_tensor([width / cameras.width, height / cameras.height, 1.0])
    return Cameras(cameras.intrinsics * scale[:, None], cameras.cam_to_world, width, height)


def join_cameras(first: Cameras, second: Cameras) -> Cameras:
    """Both sets of cameras, of one image size, as one."""
    return replace(
        first, intrinsics=torch.cat([first.intrinsics, second.intrinsics]),
        cam_to_world=torch.cat([first.cam_to_world, second.cam_to_world]),
    )  # fmt: skip


def size_for(long_side: int, height: int, width: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is ``long_side``."""
    scale = long_side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def quaternion_to_matrix(quat: Float[Tensor, "*n 4"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation matrices of wxyz quaternions, which need not be normalised."""
    w, x, y, z = torch.nn.functional.normalize(quat, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def matrix_to_quaternion(rotation: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 4"]:
    """Unit wxyz quaternions with w >= 0 (the largest of four equivalent forms, for accuracy)."""
    m = rotation
    t = torch.stack(
        [
            1 + m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2], 1 + m[..., 0, 0] - m[..., 1, 1] - m[..., 2, 2],
            1 - m[..., 0, 0] + m[..., 1, 1] - m[..., 2, 2], 1 - m[..., 0, 0] - m[..., 1, 1] + m[..., 2, 2],
        ], -1,
    )  # fmt: skip
    a, b, c = m[..., 2, 1] - m[..., 1, 2], m[..., 0, 2] - m[..., 2, 0], m[..., 1, 0] - m[..., 0, 1]
    d, e, f = m[..., 1, 0] + m[..., 0, 1], m[..., 0, 2] + m[..., 2, 0], m[..., 2, 1] + m[..., 1, 2]
    t0, t1, t2, t3 = t.unbind(-1)
    forms = torch.stack([t0, a, b, c, a, t1, d, e, b, d, t2, f, c, e, f, t3], -1).unflatten(-1, (4, 4))
    best = t.argmax(-1)[..., None, None].expand(*t.shape[:-1], 1, 4)
    quat = torch.nn.functional.normalize(forms.gather(-2, best)[..., 0, :], dim=-1)
    return torch.where(quat[..., :1] < 0, -quat, quat)


def so3_exp(omega: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3 3"]:
    """Rotation matrices of axis-angle vectors; differentiable at zero."""
    x, y, z = omega.unbind(-1)
    o = torch.zeros_like(x)
    skew = torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3))
    return torch.linalg.matrix_exp(skew)


def so3_log(rotation: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n 3"]:
    """Axis-angle vectors (radians) of rotation matrices."""
    quat = matrix_to_quaternion(rotation)
    length = quat[..., 1:].norm(dim=-1, keepdim=True)
    angle = 2 * torch.atan2(length, quat[..., :1])
    return quat[..., 1:] * torch.where(length > 1e-8, angle / length.clamp(min=1e-12), 2.0)


def rigid(rotation: Float[Tensor, "*n 3 3"], translation: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 4 4"]:
    """4x4 matrices from rotation and translation."""
    top = torch.cat([rotation, translation[..., None]], -1)
    bottom = top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(*top.shape[:-2], 1, 4)
    return torch.cat([top, bottom], -2)


def fit_similarity(
    source: Float[Tensor, "*n p 3"], target: Float[Tensor, "*n p 3"], weight: Float[Tensor, "*n p"]
) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n 3 3"], Float[Tensor, "*n 3"]]:
    """Weighted least squares (scale, rotation, translation) with target = scale * rotation @ source + translation (Umeyama)."""
    w = (weight / weight.sum(-1, keepdim=True).clamp(min=1e-12))[..., None]
    mean_s, mean_t = (w * source).sum(-2, keepdim=True), (w * target).sum(-2, keepdim=True)
    s, t = source - mean_s, target - mean_t
    u, singular, vt = torch.linalg.svd((w * t).mT @ s)
    flip = torch.ones_like(singular)
    flip[..., 2] = torch.sign(torch.linalg.det(u) * torch.linalg.det(vt))
    rotation = (u * flip[..., None, :]) @ vt
    scale = (singular * flip).sum(-1) / (w * s * s).sum((-1, -2)).clamp(min=1e-12)
    translation = mean_t[..., 0, :] - scale[..., None] * (rotation @ mean_s.mT)[..., 0]
    return scale, rotation, translation


def rotation_angle(a: Float[Tensor, "*n 3 3"], b: Float[Tensor, "*n 3 3"]) -> Float[Tensor, "*n"]:
    """Angle between rotations, in degrees."""
    return torch.rad2deg(so3_log(a.mT @ b).norm(dim=-1))
