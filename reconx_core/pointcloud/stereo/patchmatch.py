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
from reconx_core.cpu.simd import (
    LANES,
    bilinear,
    both,
    fma,
    greater,
    greater_equal,
    lane,
    lane_sums,
    load,
    maximum,
    minimum,
    packed_quads,
    select,
    splat,
)
from reconx_core.pointcloud.stereo.planesweep import plane_homographies, to_first_centre
from reconx_core.types import Cameras

STEP, REACH = 2, 5  # a patch is 6x6 samples, two pixels apart, without its corners: two vectors
SAMPLES = 2 * LANES
SAME = np.float32(0.03)  # planes closer than this share of the plane spacing count as equal
WORST = np.float32(1.0)
NOISE = np.float32(1e-4 * 255**2)  # keeps the noise of flat patches from correlating
# Offsets for plane propagation: near neighbours in a diamond, then far ones. All lead to pixels of the other colour.
NEIGHBOURS = np.array(
    [(-1, 0), (1, 0), (0, -1), (0, 1), (-5, 0), (5, 0), (0, -5), (0, 5), (-13, 0), (13, 0), (0, -13), (0, 13)]
)


def _patch_offsets() -> np.ndarray:
    """dx of a patch's samples, then their dy."""
    reach = range(-REACH, REACH + 1, STEP)
    inner = [(dx, dy) for dy in reach for dx in reach if abs(dx) + abs(dy) < 2 * REACH]
    return np.array(inner, np.float32).T.ravel()


OFFSETS = _patch_offsets()


@inlined
def _random(state):
    """A uniform number in [-1, 1) from a counter (PCG's output hash): independent of the order of the pixels."""
    low = np.uint64(0xFFFFFFFF)  # numba multiplies uint32 as uint64, so the overflow is masked explicitly
    state = (np.uint64(state) * np.uint64(747796405) + np.uint64(2891336453)) & low
    word = (((state >> ((state >> np.uint64(28)) + np.uint64(4))) ^ state) * np.uint64(277803737)) & low
    word = (word >> np.uint64(22)) ^ word
    return np.float32(word) * np.float32(2.0 / 4294967296.0) - np.float32(1)


@kernel
def _patches(grey, offsets, weights, values):
    """Bilateral weights of every pixel's samples, so that a patch does not extend across image edges, and their grey values.

    Samples outside of the image have weight 0.
    """
    height, width = grey.shape
    for v in numba.prange(height):
        for u in range(width):
            for k in range(SAMPLES):
                dx, dy = int(offsets[k]), int(offsets[SAMPLES + k])
                y, x, at = v + dy, u + dx, (v * width + u) * SAMPLES + k
                if y < 0 or x < 0 or y >= height or x >= width:
                    weights[at] = values[at] = np.float32(0)
                    continue
                colour = abs(grey[y, x] - grey[v, u]) / np.float32(0.12)
                weights[at] = np.exp(-colour - np.float32(dy * dy + dx * dx) / np.float32(72))
                values[at] = grey[y, x] * np.float32(255)


@inlined
def _moments(patch, source, at, k, qx, qy, qz):
    """Of samples k to k + 15: weight, and the weighted a, b, a a, b b and a b of the patch (a) and the source (b).

    ``qx``, ``qy``, ``qz``: the homogeneous source pixel, affine in the sample's offset (for dx, for dy, constant).
    """
    offsets, weights, values = patch
    quads, height, width = source
    dx, dy = load(offsets, k), load(offsets, SAMPLES + k)
    z = fma(dx, qz[0], fma(dy, qz[1], splat(qz[2])))
    behind = maximum(z, np.float32(1e-6))
    x = fma(dx, qx[0], fma(dy, qx[1], splat(qx[2]))) / behind
    y = fma(dx, qy[0], fma(dy, qy[1], splat(qy[2]))) / behind
    right, bottom = np.float32(width - 1), np.float32(height - 1)
    inside = both(both(greater_equal(x, np.float32(0)), greater_equal(y, np.float32(0))), greater(z, np.float32(1e-6)))
    inside = both(inside, both(greater(splat(right), x), greater(splat(bottom), y)))
    x, y = minimum(maximum(x, np.float32(0)), right), minimum(maximum(y, np.float32(0)), bottom)
    a, b = load(values, at + k), bilinear(quads, width, x, y)
    w = select(inside, load(weights, at + k), np.float32(0))
    wa, wb = w * a, w * b
    return w, wa, wb, wa * a, wb * b, wa * b


@inlined
def _affine(row, offset, px, py, w0, gx, gy):
    """One homogeneous coordinate of the source pixels: its change along x and along y, and its value at (px, py)."""
    return row[0] + offset * gx, row[1] + offset * gy, row[0] * px + row[1] * py + row[2] + offset * w0


@serial_kernel
def _patch_cost(patch, source, rotation, offset, at, u, v, w0, gx, gy):
    """(1 - weighted NCC) / 2 of one patch against one source, in [0, 1]; WORST where the source does not see it."""
    _, height, width = source
    if w0 <= np.float32(REACH) * (abs(gx) + abs(gy)):
        return WORST
    px, py = np.float32(u) + np.float32(0.5), np.float32(v) + np.float32(0.5)
    qx, qy, qz = (
        _affine(rotation[0], offset[0], px, py, w0, gx, gy),
        _affine(rotation[1], offset[1], px, py, w0, gx, gy),
        _affine(rotation[2], offset[2], px, py, w0, gx, gy),
    )
    if not (qz[2] > np.float32(1e-6) and qx[2] >= 0 and qy[2] >= 0):
        return WORST
    if qx[2] >= np.float32(width - 1) * qz[2] or qy[2] >= np.float32(height - 1) * qz[2]:
        return WORST
    s = _moments(patch, source, at, 0, qx, qy, qz)
    t = _moments(patch, source, at, LANES, qx, qy, qz)
    m = (s[0] + t[0], s[1] + t[1], s[2] + t[2], s[3] + t[3], s[4] + t[4], s[5] + t[5])
    sums = lane_sums((m[0], m[1], m[2], m[3], m[4], m[5], m[0], m[1], m[2], m[3], m[4], m[5]))
    sum_w = lane(sums, np.int32(0))
    if sum_w < np.float32(1e-3):
        return WORST
    share = np.float32(1) / sum_w
    mean_a, mean_b = lane(sums, np.int32(1)) * share, lane(sums, np.int32(2)) * share
    var_a = max(lane(sums, np.int32(3)) * share - mean_a * mean_a, np.float32(0)) + NOISE
    var_b = max(lane(sums, np.int32(4)) * share - mean_b * mean_b, np.float32(0)) + NOISE
    correlation = (lane(sums, np.int32(5)) * share - mean_a * mean_b) / np.sqrt(var_a * var_b)
    return np.float32(0.5) * (np.float32(1) - min(max(correlation, np.float32(-1)), np.float32(1)))


@serial_kernel
def _cost(patch, sources, rotations, offsets, size, u, v, w0, gx, gy):
    """Cost over the sources: the best, and the second best with half the weight, because a point may be occluded in some."""
    first = second = WORST
    at = (v * size[1] + u) * SAMPLES
    for s in range(len(sources)):
        source = (sources[s], size[0], size[1])
        value = _patch_cost(patch, source, rotations[s], offsets[s], at, u, v, w0, gx, gy)
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
def _sweep(patch, sources, rotations, offsets, size, planes, costs, prior, prior_weight, spacing, changed, limits, number):
    """Update the pixels of one colour, that of the sweep's ``number``; ``changed`` holds the last sweep that changed a pixel.

    A neighbour's plane that has not changed since a pixel was updated last has lost against the pixel's own already.
    """
    height, width = size
    for v in numba.prange(height):
        for u in range((v + number) & 1, width, 2):
            best = costs[v, u]
            w0, gx, gy = planes[v, u, 0], planes[v, u, 1], planes[v, u, 2]
            for k in range(len(NEIGHBOURS) + 4):
                if k < len(NEIGHBOURS):
                    y, x = v + NEIGHBOURS[k, 0], u + NEIGHBOURS[k, 1]
                    if y < 0 or x < 0 or y >= height or x >= width or changed[y, x] < number - 1:
                        continue
                    hx, hy = planes[y, x, 1], planes[y, x, 2]
                    h0 = planes[y, x, 0] + hx * np.float32(u - x) + hy * np.float32(v - y)
                else:
                    scale = np.float32(4) ** np.float32(len(NEIGHBOURS) - k)
                    counter = ((number * 8 + k) * height + v) * width + u
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
                value += _cost(patch, sources, rotations, offsets, size, u, v, h0, hx, hy)
                if value < best:
                    best, w0, gx, gy = value, h0, hx, hy
                    changed[v, u] = number
            costs[v, u], planes[v, u, 0], planes[v, u, 1], planes[v, u, 2] = best, w0, gx, gy


@kernel
def _start(patch, sources, rotations, offsets, size, planes, costs, prior, prior_weight, spacing):
    for v in numba.prange(size[0]):
        for u in range(size[1]):
            w0, gx, gy = planes[v, u, 0], planes[v, u, 1], planes[v, u, 2]
            value = _cost(patch, sources, rotations, offsets, size, u, v, w0, gx, gy)
            costs[v, u] = value + _prior(w0, prior[v, u], prior_weight[v, u], spacing)


@kernel
def _photo_costs(patch, sources, rotations, offsets, size, planes, costs):
    for v in numba.prange(size[0]):
        for u in range(size[1]):
            w0, gx, gy = planes[v, u, 0], planes[v, u, 1], planes[v, u, 2]
            costs[v, u] = _cost(patch, sources, rotations, offsets, size, u, v, w0, gx, gy)


def refine_depth(
    reference: Float[Tensor, "h w 3"], sources: Float[Tensor, "s h w 3"], reference_camera: Cameras, source_cameras: Cameras,
    depth: Float[Tensor, "h w"], trust: Float[Tensor, "h w"], near: float, far: float, spacing: float, iterations: int = 6,
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:  # fmt: skip
    """Depth (z) and photometric agreement in [0, 1] after slanted-plane search from ``depth``.

    ``trust`` is the cost of deviating from the given depth by one ``spacing`` of inverse depth.
    """
    grey, quads = reference.mean(-1).numpy(), np.stack([packed_quads(source.mean(-1).numpy()) for source in sources])
    maps = [plane_homographies(reference_camera, source_cameras[[i]]) for i in range(len(sources))]
    rotations, offsets = (torch.stack([to_first_centre(part) for part in parts]).numpy() for parts in zip(*maps))
    inverse = (1 / depth).numpy()
    weights, values = np.empty((2, grey.size * SAMPLES), np.float32)
    planes = np.stack([inverse, np.zeros_like(inverse), np.zeros_like(inverse)], -1)
    costs, changed = np.empty_like(grey), np.zeros(grey.shape, np.int16)
    scene = ((OFFSETS, weights, values), quads, rotations, offsets, grey.shape, planes, costs)
    prior = (inverse, trust.numpy(), np.float32(spacing))
    limits = np.array([1 / far, 1 / near], np.float32)
    with one_at_a_time():
        _patches(grey, OFFSETS, weights, values)
        _start(*scene, *prior)
        for number in range(2 * iterations):
            _sweep(*scene, *prior, changed, limits, number)
        _photo_costs(*scene)
    return torch.from_numpy(1 / planes[..., 0]), 1 - 2 * torch.from_numpy(costs).clamp(0, 0.5)
