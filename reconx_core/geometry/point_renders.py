"""Renders of the point cloud from any camera: a soft z-buffer of round splats with a visibility mask (paper IV-C)."""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.cpu.jit import kernel, one_at_a_time, serial_kernel
from reconx_core.geometry.transforms import depth_of
from reconx_core.types import Cameras, Pointmaps, Views

SURFACE_DEPTH = 0.03  # points within this relative depth behind the nearest one belong to one surface and blend
MAX_RADIUS = 4.0  # pixels; a nearer point leaves holes rather than a large disc
OCCLUDER_CONFIDENCE = 0.35  # confidence from which a point may hide others


@serial_kernel
def _project(points, sizes, world_to_cam, intrinsics, k):
    """Pixel position, depth and footprint radius of point k; depth 0 where it is behind the camera."""
    x, y, z = points[k, 0], points[k, 1], points[k, 2]
    cam_x = world_to_cam[0, 0] * x + world_to_cam[0, 1] * y + world_to_cam[0, 2] * z + world_to_cam[0, 3]
    cam_y = world_to_cam[1, 0] * x + world_to_cam[1, 1] * y + world_to_cam[1, 2] * z + world_to_cam[1, 3]
    depth = world_to_cam[2, 0] * x + world_to_cam[2, 1] * y + world_to_cam[2, 2] * z + world_to_cam[2, 3]
    if depth <= np.float32(1e-6):
        return np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    u = intrinsics[0, 0] * cam_x / depth + intrinsics[0, 2]
    v = intrinsics[1, 1] * cam_y / depth + intrinsics[1, 2]
    radius = min(max(np.float32(0.8) * sizes[k] * intrinsics[0, 0] / depth, np.float32(0.75)), np.float32(MAX_RADIUS))
    return u, v, depth, radius


@serial_kernel
def _nearest(points, sizes, confidence, world_to_cam, intrinsics, depths, least):
    """z-buffer of the points whose confidence is at least ``least``; existing depths are only replaced by nearer ones."""
    height, width = depths.shape
    for k in range(len(points)):
        if confidence[k] < least:
            continue
        u, v, z, radius = _project(points, sizes, world_to_cam, intrinsics, k)
        if z <= 0 or u < -radius or v < -radius or u > width + radius or v > height + radius:
            continue
        for y in range(max(int(v - radius), 0), min(int(v + radius) + 1, height)):
            for x in range(max(int(u - radius), 0), min(int(u + radius) + 1, width)):
                dx, dy = np.float32(x) + np.float32(0.5) - u, np.float32(y) + np.float32(0.5) - v
                if dx * dx + dy * dy <= radius * radius and (depths[y, x] == 0 or z < depths[y, x]):
                    depths[y, x] = z


@serial_kernel
def _blend(points, sizes, colours, confidence, world_to_cam, intrinsics, depths, sums, trust, coverage):
    """Sum colours, confidences and weights of all points on the nearest surface."""
    height, width = depths.shape
    for k in range(len(points)):
        u, v, z, radius = _project(points, sizes, world_to_cam, intrinsics, k)
        if z <= 0 or u < -radius or v < -radius or u > width + radius or v > height + radius:
            continue
        for y in range(max(int(v - radius), 0), min(int(v + radius) + 1, height)):
            for x in range(max(int(u - radius), 0), min(int(u + radius) + 1, width)):
                dx, dy = np.float32(x) + np.float32(0.5) - u, np.float32(y) + np.float32(0.5) - v
                distance = (dx * dx + dy * dy) / (radius * radius)
                behind = (z / depths[y, x] - np.float32(1)) / np.float32(SURFACE_DEPTH) if depths[y, x] > 0 else np.float32(9)
                if distance > 1 or behind > 2 or behind < -2:
                    continue
                weight = np.exp(-np.float32(3) * distance - behind * behind)
                certain = weight * (confidence[k] * confidence[k] + np.float32(1e-4))
                for c in range(3):
                    sums[y, x, c] += certain * colours[k, c]
                trust[y, x] += certain * confidence[k]
                coverage[y, x] += certain


@kernel
def _render_all(points, sizes, colours, confidence, world_to_cam, intrinsics, depths, images, trust):
    for f in numba.prange(len(world_to_cam)):
        coverage = np.zeros(depths.shape[1:], np.float32)
        _nearest(points, sizes, confidence, world_to_cam[f], intrinsics[f], depths[f], np.float32(OCCLUDER_CONFIDENCE))
        unsure = np.zeros(depths.shape[1:], np.float32)
        _nearest(points, sizes, confidence, world_to_cam[f], intrinsics[f], unsure, np.float32(1e-6))
        for y in range(depths.shape[1]):
            for x in range(depths.shape[2]):
                if depths[f, y, x] == 0:
                    depths[f, y, x] = unsure[y, x]
        _blend(points, sizes, colours, confidence, world_to_cam[f], intrinsics[f], depths[f], images[f], trust[f], coverage)
        for y in range(depths.shape[1]):
            for x in range(depths.shape[2]):
                share = np.float32(1) / max(coverage[y, x], np.float32(1e-9))
                trust[f, y, x] *= share
                for c in range(3):
                    images[f, y, x, c] *= share


def render_points(
    xyz: Float[Tensor, "p 3"], size: Float[Tensor, " p"], rgb: Float[Tensor, "p 3"], confidence: Float[Tensor, " p"],
    cameras: Cameras,
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"], Float[Tensor, "f h w"]]:  # fmt: skip
    """Colour, visibility in [0, 1] and depth of world points at every camera; zero where no point is seen.

    ``size`` is the world distance between neighbouring points. Confident points decide which surface is in front;
    uncertain ones are only visible where there is no confident one. Visibility is the blended confidence of what is seen.
    """
    shape = (len(cameras), cameras.height, cameras.width)
    depths, trust = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    images = np.zeros((*shape, 3), np.float32)
    arrays = [x.contiguous().numpy() for x in (xyz, size, rgb, confidence, cameras.world_to_cam, cameras.intrinsics)]
    with one_at_a_time():
        _render_all(*arrays, depths, images, trust)
    return torch.from_numpy(images), torch.from_numpy(trust), torch.from_numpy(depths)


def visible_points(inputs: Views, pointmaps: Pointmaps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points with any confidence: position, distance between neighbours, colour, confidence."""
    known = pointmaps.confidence > 0
    focal = pointmaps.cameras.intrinsics[:, 0, 0][:, None, None]
    size = depth_of(pointmaps.points_world, pointmaps.cameras) / focal
    return pointmaps.points_world[known], size[known], inputs.images[known], pointmaps.confidence[known]
