"""Multi-view consistency of depth maps: support, free-space violations, points projected from other views."""

from __future__ import annotations

import numba
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from reconx_core.cpu.jit import kernel, one_at_a_time
from reconx_core.geometry.transforms import project, unproject
from reconx_core.pointcloud.stereo.planesweep import plane_homographies
from reconx_core.types import Cameras

AGREES = 0.02  # relative depth difference below which two points are on the same surface
IN_FRONT = 0.04  # relative distance in front of a known surface above which a point floats in free space


def _ratios(depth: Float[Tensor, "n h w"], surfaces: Float[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n n p"]:
    """[i, j]: view j's surface depth (0: none) at each point of view i over the point's depth in j; NaN if not visible."""
    return torch.stack([_ratios_of(depth[i], surfaces, cameras, i) for i in range(len(depth))])


def _ratios_of(
    depth: Float[Tensor, "h w"], surfaces: Float[Tensor, "n h w"], cameras: Cameras, view: int
) -> Float[Tensor, "n p"]:
    height, width = depth.shape
    points = unproject(depth[None], cameras[[view]]).reshape(-1, 3)
    pixels, z = project(points, cameras.intrinsics, cameras.world_to_cam)
    grid = pixels / pixels.new_tensor([width, height]) * 2 - 1
    known = F.grid_sample(surfaces[:, None], grid[:, None], mode="nearest", align_corners=False)[:, 0, 0]
    ratio = known / z
    ratio[(grid.abs() > 1).any(-1) | (z <= 0) | (known <= 0)] = float("nan")
    ratio[view] = float("nan")
    return ratio


def count_support(
    depth: Float[Tensor, "n h w"], cameras: Cameras, trusted: Bool[Tensor, "n h w"] | None = None
) -> Float[Tensor, "n h w"]:
    """Number of other views that see the same surface at each pixel's point; only at ``trusted`` pixels if given."""
    ratio = _ratios(depth, depth if trusted is None else torch.where(trusted, depth, 0.0), cameras)
    return ((ratio - 1).abs() < AGREES).sum(1).reshape(depth.shape).float()


def count_violations(depth: Float[Tensor, "n h w"], trusted: Bool[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """Number of other views that see a trusted surface behind each pixel's point."""
    ratio = _ratios(depth, torch.where(trusted, depth, 0.0), cameras)
    return (ratio > 1 + IN_FRONT).sum(1).reshape(depth.shape).float()


def splat_depth(depth: Float[Tensor, "n h w"], trusted: Bool[Tensor, "n h w"], cameras: Cameras) -> Float[Tensor, "n h w"]:
    """Nearest trusted depth of the other views projected to each pixel of each view; infinite if there is none."""
    height, width = depth.shape[1:]
    points = [world[sure] for world, sure in zip(unproject(depth, cameras), trusted)]
    splatted = []
    for view in range(len(depth)):
        nearest = depth.new_full((height * width,), float("inf"))
        for other in (i for i in range(len(depth)) if i != view):
            pixels, z = project(points[other], cameras.intrinsics[view], cameras.world_to_cam[view])
            x, y = pixels.floor().long().unbind(-1)
            inside = (z > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
            nearest = nearest.scatter_reduce(0, (y * width + x)[inside], z[inside], "amin")
        splatted.append(nearest.reshape(height, width))
    return torch.stack(splatted)


def drop_speckles(trusted: Bool[Tensor, "h w"], depth: Float[Tensor, "h w"], spacing: float, least: int) -> Bool[Tensor, "h w"]:
    """Trusted pixels of connected components with at least ``least`` pixels.

    Neighbours are connected if their inverse depths differ by at most ``spacing``. Small components are likely spurious: the
    noise of two views agrees by chance.
    """
    inverse, index = 1 / depth, torch.arange(depth.numel()).reshape(depth.shape)
    edges = []
    for one, two in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        joined = trusted[one] & trusted[two] & ((inverse[one] - inverse[two]).abs() <= spacing)
        edges.append(torch.stack([index[one][joined], index[two][joined]]))
    row, column = torch.cat(edges, 1).numpy()
    graph = coo_array((np.ones(len(row), bool), (row, column)), shape=(depth.numel(),) * 2)
    label = torch.from_numpy(connected_components(graph, directed=False)[1]).long()
    return trusted & (torch.bincount(label)[label] >= least).reshape(depth.shape)


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
    """Add ``penalty`` wherever a plane lies in front of a surface in another view (depth 0: unknown)."""
    volume = cost.clone().numpy()
    for i in range(len(surfaces)):
        rotation, offset = plane_homographies(camera, others[[i]])
        with one_at_a_time():
            _carve(
                volume, surfaces[i].numpy(), rotation.float().numpy(), offset.float().numpy(), (1 / depths).numpy(),
                np.float32(penalty),
            )  # fmt: skip
    return torch.from_numpy(volume)
