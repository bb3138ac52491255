"""What depth maps of several views say about each other: agreement, free space, points that another view knows."""

from __future__ import annotations

import numba
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry import project, unproject
from reconx_core.jit import kernel, one_at_a_time
from reconx_core.pointcloud.planesweep import plane_homographies
from reconx_core.types import Cameras

AGREES = 0.02  # relative difference of two depths that count as one surface
IN_FRONT = 0.04  # relative distance before a known surface that counts as floating in free space


def _depth_seen_by_others(depth: Float[Tensor, "n h w"], cameras: Cameras, view: int) -> Float[Tensor, "n p"]:
    """For each pixel of ``view``: the other views' depth at its world point, over that point's depth there; NaN unseen."""
    height, width = depth.shape[1:]
    points = unproject(depth[[view]], cameras[[view]]).reshape(-1, 3)
    pixels, z = project(points, cameras.intrinsics, cameras.world_to_cam)
    grid = pixels / pixels.new_tensor([width, height]) * 2 - 1
    known = F.grid_sample(depth[:, None], grid[:, None], mode="nearest", align_corners=False)[:, 0, 0]
    ratio = known / z
    ratio[(grid.abs() > 1).any(-1) | (z <= 0) | (known <= 0)] = float("nan")
    ratio[view] = float("nan")
    return ratio


def count_support(depth: Float[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """How many other views have the same surface at each pixel's point."""
    counts = [((_depth_seen_by_others(depth, cameras, i) - 1).abs() < AGREES).sum(0) for i in range(len(depth))]
    return torch.stack(counts).reshape(depth.shape).float()


def count_violations(depth: Float[Tensor, "n h w"], trusted: Bool[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """How many other views look through each pixel's point at a surface they trust."""
    n, height, width = depth.shape
    surfaces = torch.where(trusted, depth, torch.zeros_like(depth))
    counts = []
    for i in range(n):
        mixed = surfaces.clone()
        mixed[i] = depth[i]
        counts.append((_depth_seen_by_others(mixed, cameras, i) > 1 + IN_FRONT).sum(0))
    return torch.stack(counts).reshape(n, height, width).float()


def splat_depth(
    depth: Float[Tensor, "n h w"], trusted: Bool[Tensor, "n h w"], cameras: Cameras, view: int
) -> Float[Tensor, "h w"]:
    """Nearest trusted depth that the other views know at each pixel of ``view``; infinite where none."""
    n, height, width = depth.shape
    nearest = depth.new_full((height * width,), float("inf"))
    for other in (i for i in range(n) if i != view):
        points = unproject(depth[[other]], cameras[[other]])[0][trusted[other]]
        pixels, z = project(points, cameras.intrinsics[view], cameras.world_to_cam[view])
        x, y = pixels.floor().long().unbind(-1)
        inside = (z > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        nearest = nearest.scatter_reduce(0, (y * width + x)[inside], z[inside], "amin")
    return nearest.reshape(height, width)


@kernel
def _carve(cost, surface, rotation, offset, inverse_depths, penalty):
    planes, height, width = cost.shape
    for d in numba.prange(planes):
        depth = np.float32(1) / inverse_depths[d]
        for v in range(height):
            for u in range(width):
                x, y = np.float32(u) + np.float32(0.5), np.float32(v) + np.float32(0.5)
                qz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] + offset[2] * inverse_depths[d]
                if qz <= np.float32(1e-6):
                    continue
                qx = (rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] + offset[0] * inverse_depths[d]) / qz
                qy = (rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] + offset[1] * inverse_depths[d]) / qz
                if qx < 0 or qy < 0 or qx >= surface.shape[1] or qy >= surface.shape[0]:
                    continue
                if surface[int(qy), int(qx)] > qz * depth * np.float32(1 + IN_FRONT):
                    cost[d, v, u] += penalty


def carve_free_space(
    cost: Float[Tensor, "d h w"], camera: Cameras, surfaces: Float[Tensor, "s h w"], others: Cameras,
    depths: Float[Tensor, " d"], penalty: float,
) -> Float[Tensor, "d h w"]:  # fmt: skip
    """Add ``penalty`` wherever a plane lies in front of a surface that another view knows (depth 0: unknown)."""
    volume = cost.clone().numpy()
    for i in range(len(surfaces)):
        rotation, offset = plane_homographies(camera, others[[i]])
        with one_at_a_time():
            _carve(
                volume, surfaces[i].numpy(), rotation.float().numpy(), offset.float().numpy(), (1 / depths).numpy(),
                np.float32(penalty),
            )  # fmt: skip
    return torch.from_numpy(volume)
