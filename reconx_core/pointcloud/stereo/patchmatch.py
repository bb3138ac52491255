"""Slanted-plane refinement of depth maps (PatchMatch stereo), which a fronto-parallel sweep lacks at wide baselines.

A surface patch is a plane, and the inverse depth of a plane is affine in the pixel: w(x, y) = w0 + gx (x - px) + gy (y - py)
around its pixel (px, py). Every pixel has (w0, gx, gy), tries its neighbours' planes and random perturbations of its own,
and keeps the one with the lowest photometric cost. Pixels are updated in a checkerboard order, so that no two that are updated
in parallel read each other.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.cpu.jit import inlined, kernel, one_at_a_time, serial_kernel
from reconx_core.pointcloud.stereo.planesweep import plane_homographies
from reconx_core.types import Cameras

STEP, REACH = 2, 5  # a patch is 6x6 samples, two pixels apart
SIDE = REACH + 1
SAME = np.float32(0.03)  # planes closer than this share of the plane spacing count as equal
WORST = np.float32(1.0)
# Offsets for plane propagation: near neighbours in a diamond, then far ones.
NEIGHBOURS = np.array(
    [(-1, 0), (1, 0), (0, -1), (0, 1), (-5, 0), (5, 0), (0, -5), (0, 5), (-13, 0), (13, 0), (0, -13), (0, 13)]
)


@inlined
def _random(state):
    """A uniform number in [-1, 1) from a counter (PCG's output hash): independent of the order of the pixels."""
    low = np.uint64(0xFFFFFFFF)  # numba multiplies uint32 as uint64, so the overflow is masked explicitly
    state = (np.uint64(state) * np.uint64(747796405) + np.uint64(2891336453)) & low
    word = (((state >> ((state >> np.uint64(28)) + np.uint64(4))) ^ state) * np.uint64(277803737)) & low
    word = (word >> np.uint64(22)) ^ word
    return np.float32(word) * np.float32(2.0 / 4294967296.0) - np.float32(1)


@kernel
def _patch_weights(grey, weights):
    """Bilateral weights, so that a patch does not extend across image edges."""
    height, width = grey.shape
    for v in numba.prange(height):
        for u in range(width):
            for k in range(SIDE * SIDE):
                dy, dx = (k // SIDE) * STEP - REACH, (k % SIDE) * STEP - REACH
                y, x = min(max(v + dy, 0), height - 1), min(max(u + dx, 0), width - 1)
                colour = abs(grey[y, x] - grey[v, u]) / np.float32(0.12)
                weights[v, u, k] = np.exp(-colour - np.float32(dy * dy + dx * dx) / np.float32(72))


@serial_kernel
def _patch_cost(grey, weights, source, rotation, offset, u, v, w0, gx, gy):
    """(1 - weighted NCC) / 2 of one patch against one source, in [0, 1]; WORST where the source does not see it."""
    height, width = source.shape
    sum_w = sum_a = sum_b = sum_aa = sum_bb = sum_ab = np.float32(0)
    for k in range(SIDE * SIDE):
        dy, dx = (k // SIDE) * STEP - REACH, (k % SIDE) * STEP - REACH
        y, x = v + dy, u + dx
        if y < 0 or x < 0 or y >= grey.shape[0] or x >= grey.shape[1]:
            continue
        inverse = w0 + gx * np.float32(dx) + gy * np.float32(dy)
        px, py = np.float32(x) + np.float32(0.5), np.float32(y) + np.float32(0.5)
        qz = rotation[2, 0] * px + rotation[2, 1] * py + rotation[2, 2] + offset[2] * inverse
        if inverse <= 0 or qz <= np.float32(1e-6):
            return WORST
        sx = (rotation[0, 0] * px + rotation[0, 1] * py + rotation[0, 2] + offset[0] * inverse) / qz - np.float32(0.5)
        sy = (rotation[1, 0] * px + rotation[1, 1] * py + rotation[1, 2] + offset[1] * inverse) / qz - np.float32(0.5)
        if not (sx >= 0 and sy >= 0 and sx < width - 1 and sy < height - 1):
            if dx * dx + dy * dy <= 2:
                return WORST
            continue
        ix, iy = int(sx), int(sy)
        fx, fy = sx - np.float32(ix), sy - np.float32(iy)
        top = source[iy, ix] + fx * (source[iy, ix + 1] - source[iy, ix])
        bottom = source[iy + 1, ix] + fx * (source[iy + 1, ix + 1] - source[iy + 1, ix])
        a, b, weight = grey[y, x], top + fy * (bottom - top), weights[v, u, k]
        sum_w += weight
        sum_a += weight * a
        sum_b += weight * b
        sum_aa += weight * a * a
        sum_bb += weight * b * b
        sum_ab += weight * a * b
    if sum_w < np.float32(1e-3):
        return WORST
    share = np.float32(1) / sum_w
    mean_a, mean_b = sum_a * share, sum_b * share
    var_a = max(sum_aa * share - mean_a * mean_a, np.float32(0)) + np.float32(1e-4)
    var_b = max(sum_bb * share - mean_b * mean_b, np.float32(0)) + np.float32(1e-4)
    correlation = (sum_ab * share - mean_a * mean_b) / np.sqrt(var_a * var_b)
    return np.float32(0.5) * (np.float32(1) - min(max(correlation, np.float32(-1)), np.float32(1)))


@serial_kernel
def _cost(grey, weights, sources, rotations, offsets, u, v, w0, gx, gy):
    """Cost over the sources: the best, and the second best with half the weight, because a point may be occluded in some."""
    first = second = WORST
    for s in range(len(sources)):
        value = _patch_cost(grey, weights, sources[s], rotations[s], offsets[s], u, v, w0, gx, gy)
        if value < first:
            first, second = value, first
        elif value < second:
            second = value
    if len(sources) == 1:
        return first
    return np.float32(0.7) * first + np.float32(0.3) * min(second, first + np.float32(0.3))


@inlined
def _prior(inverse, prior, weight, spacing):
    """Cost of deviating from the prior depth, which decides in textureless areas."""
    return weight * min(abs(inverse - prior) / spacing, np.float32(3))


@kernel
def _sweep(grey, weights, sources, rotations, offsets, planes, costs, prior, prior_weight, spacing, limits, colour, seed):
    height, width = grey.shape
    for v in numba.prange(height):
        for u in range((v + colour) & 1, width, 2):
            best = costs[v, u]
            w0, gx, gy = planes[v, u, 0], planes[v, u, 1], planes[v, u, 2]
            for k in range(len(NEIGHBOURS) + 4):
                if k < len(NEIGHBOURS):
                    y, x = v + NEIGHBOURS[k, 0], u + NEIGHBOURS[k, 1]
                    if y < 0 or x < 0 or y >= height or x >= width:
                        continue
                    hx, hy = planes[y, x, 1], planes[y, x, 2]
                    h0 = planes[y, x, 0] + hx * np.float32(u - x) + hy * np.float32(v - y)
                else:
                    scale = np.float32(4) ** np.float32(len(NEIGHBOURS) - k)
                    counter = ((seed * 8 + k) * height + v) * width + u
                    h0 = w0 + _random(counter * 3) * spacing * scale * np.float32(4)
                    hx = gx + _random(counter * 3 + 1) * spacing * scale * np.float32(0.4)
                    hy = gy + _random(counter * 3 + 2) * spacing * scale * np.float32(0.4)
                if h0 < limits[0] or h0 > limits[1]:
                    continue
                if abs(h0 - w0) + np.float32(REACH) * (abs(hx - gx) + abs(hy - gy)) < SAME * spacing:
                    continue
                value = _prior(h0, prior[v, u], prior_weight[v, u], spacing)
                if value >= best:
                    continue
                value += _cost(grey, weights, sources, rotations, offsets, u, v, h0, hx, hy)
                if value < best:
                    best, w0, gx, gy = value, h0, hx, hy
            costs[v, u], planes[v, u, 0], planes[v, u, 1], planes[v, u, 2] = best, w0, gx, gy


@kernel
def _start(grey, weights, sources, rotations, offsets, planes, costs, prior, prior_weight, spacing):
    for v in numba.prange(grey.shape[0]):
        for u in range(grey.shape[1]):
            w0, gx, gy = planes[v, u, 0], planes[v, u, 1], planes[v, u, 2]
            value = _cost(grey, weights, sources, rotations, offsets, u, v, w0, gx, gy)
            costs[v, u] = value + _prior(w0, prior[v, u], prior_weight[v, u], spacing)


@kernel
def _photo_costs(grey, weights, sources, rotations, offsets, planes, costs):
    for v in numba.prange(grey.shape[0]):
        for u in range(grey.shape[1]):
            costs[v, u] = _cost(
                grey, weights, sources, rotations, offsets, u, v, planes[v, u, 0], planes[v, u, 1], planes[v, u, 2]
            )


def refine_depth(
    reference: Float[Tensor, "h w 3"], sources: Float[Tensor, "s h w 3"], reference_camera: Cameras, source_cameras: Cameras,
    depth: Float[Tensor, "h w"], trust: Float[Tensor, "h w"], near: float, far: float, spacing: float, iterations: int = 6,
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:  # fmt: skip
    """Depth (z) and photometric agreement in [0, 1] after slanted-plane search from ``depth``.

    ``trust`` is the cost of deviating from the given depth by one ``spacing`` of inverse depth.
    """
    grey, source_greys = reference.mean(-1).numpy(), sources.mean(-1).numpy()
    maps = [plane_homographies(reference_camera, source_cameras[[i]]) for i in range(len(sources))]
    rotations = torch.stack([m[0] for m in maps]).float().numpy()
    offsets = torch.stack([m[1] for m in maps]).float().numpy()
    inverse = (1 / depth).numpy()
    weights = np.empty((*grey.shape, SIDE * SIDE), np.float32)
    planes = np.stack([inverse, np.zeros_like(inverse), np.zeros_like(inverse)], -1)
    costs = np.empty_like(grey)
    scene = (grey, weights, source_greys, rotations, offsets, planes, costs)
    prior = (inverse, trust.numpy(), np.float32(spacing))
    limits = np.array([1 / far, 1 / near], np.float32)
    with one_at_a_time():
        _patch_weights(grey, weights)
        _start(*scene, *prior)
        for k in range(2 * iterations):
            _sweep(*scene, *prior, limits, k & 1, k)
        _photo_costs(*scene)
    return torch.from_numpy(1 / planes[..., 0]), 1 - 2 * torch.from_numpy(costs).clamp(0, 0.5)
