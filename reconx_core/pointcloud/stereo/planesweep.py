"""Dense depth by plane sweep: warp, compare, aggregate along scanlines, refine to subplane accuracy.

Depth maps hold z in the reference camera. Planes are spaced evenly in inverse depth, so neighbouring planes move a source
pixel by about the same number of pixels.
"""

from __future__ import annotations

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.cpu.jit import inlined, kernel, one_at_a_time, serial_kernel
from reconx_core.types import Cameras

OUTSIDE_COST = 0.5  # neutral cost if the source does not see the point
SMALL_STEP, LARGE_STEP = 0.02, 0.20  # scanline penalties for a change of one plane and of more, in units of the matching cost


def inverse_depth_planes(near: float, far: float, count: int) -> Float[Tensor, " d"]:
    """Depths from far to near, evenly spaced in inverse depth."""
    return 1 / torch.linspace(1 / far, 1 / near, count)


def plane_homographies(reference: Cameras, source: Cameras) -> tuple[Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
    """(A, b) such that the reference pixel p at depth z falls on the source pixel of A p + b / z (homogeneous)."""
    relative = source.world_to_cam[0].double() @ reference.cam_to_world[0].double()
    intrinsics = source.intrinsics[0].double()
    rotation = intrinsics @ relative[:3, :3] @ torch.linalg.inv(reference.intrinsics[0].double())
    return rotation, intrinsics @ relative[:3, 3]


def to_first_centre(homography: Float[Tensor, "3 ..."]) -> Float[Tensor, "3 ..."]:
    """A part of :func:`plane_homographies` whose source pixels count from the centre of the first one, in single precision."""
    shift = torch.tensor([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]], dtype=homography.dtype)
    return (shift @ homography).float()


@inlined
def _bilinear(image, x, y, c):
    """Bilinear sample with pixel centres at +0.5; coordinates are clamped to the border."""
    height, width = image.shape[0], image.shape[1]
    x = min(max(x - np.float32(0.5), np.float32(0)), np.float32(width - 1))
    y = min(max(y - np.float32(0.5), np.float32(0)), np.float32(height - 1))
    x0, y0 = min(int(x), width - 2), min(int(y), height - 2)
    fx, fy = x - np.float32(x0), y - np.float32(y0)
    top = image[y0, x0, c] + fx * (image[y0, x0 + 1, c] - image[y0, x0, c])
    bottom = image[y0 + 1, x0, c] + fx * (image[y0 + 1, x0 + 1, c] - image[y0 + 1, x0, c])
    return top + fy * (bottom - top)


@serial_kernel
def _warp(reference, source, rotation, offset, inverse_depth, grey, difference, seen):
    """Warp the source by one plane: grey value, colour difference to the reference, and whether it is inside the image."""
    height, width = grey.shape
    for v in range(height):
        y = np.float32(v) + np.float32(0.5)
        for u in range(width):
            x = np.float32(u) + np.float32(0.5)
            px = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2] + offset[0] * inverse_depth
            py = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2] + offset[1] * inverse_depth
            pz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2] + offset[2] * inverse_depth
            qx, qy = px / max(pz, np.float32(1e-6)), py / max(pz, np.float32(1e-6))
            r, g, b = _bilinear(source, qx, qy, 0), _bilinear(source, qx, qy, 1), _bilinear(source, qx, qy, 2)
            grey[v, u] = (r + g + b) / np.float32(3)
            delta = abs(r - reference[v, u, 0]) + abs(g - reference[v, u, 1]) + abs(b - reference[v, u, 2])
            difference[v, u] = delta / np.float32(3)
            seen[v, u] = pz > 0 and qx >= 0 and qy >= 0 and qx <= source.shape[1] and qy <= source.shape[0]


@serial_kernel
def _box_mean(x, radius, scratch, out):
    """Mean over (2r+1)^2 windows, clipped at the border."""
    height, width = x.shape
    for v in range(height):
        total = np.float32(0)
        for u in range(min(radius, width)):
            total += x[v, u]
        for u in range(width):
            if u + radius < width:
                total += x[v, u + radius]
            if u - radius > 0:
                total -= x[v, u - radius - 1]
            scratch[v, u] = total / np.float32(min(u + radius, width - 1) - max(u - radius, 0) + 1)
    for v in range(height):
        low, high = max(v - radius, 0), min(v + radius, height - 1)
        share = np.float32(1) / np.float32(high - low + 1)
        for u in range(width):
            out[v, u] = scratch[low, u] * share
        for k in range(low + 1, high + 1):
            for u in range(width):
                out[v, u] += scratch[k, u] * share


@serial_kernel
def _add_correlation(target, grey, radius, means, product, scratch, out):
    """Add to ``out`` half of the zero-mean normalised cross-correlation of two images over windows of one radius."""
    mean_a, mean_aa, mean_b, mean_bb, mean_ab = means[0], means[1], means[2], means[3], means[4]
    _box_mean(target, radius, scratch, mean_a)
    product[:] = target * target
    _box_mean(product, radius, scratch, mean_aa)
    _box_mean(grey, radius, scratch, mean_b)
    product[:] = grey * grey
    _box_mean(product, radius, scratch, mean_bb)
    product[:] = target * grey
    _box_mean(product, radius, scratch, mean_ab)
    noise = np.float32(1e-4)  # keeps the noise of flat windows from correlating
    for v in range(grey.shape[0]):
        for u in range(grey.shape[1]):
            a, b = mean_a[v, u], mean_b[v, u]
            var_a, var_b = max(mean_aa[v, u] - a * a, np.float32(0)), max(mean_bb[v, u] - b * b, np.float32(0))
            value = (mean_ab[v, u] - a * b) / np.sqrt((var_a + noise) * (var_b + noise))
            out[v, u] += np.float32(0.5) * min(max(value, np.float32(-1)), np.float32(1))


@kernel
def _plane_costs(reference, target, source, rotation, offset, inverse_depths, radius, cost, seen):
    height, width = target.shape
    for d in numba.prange(len(inverse_depths)):
        means = np.empty((5, height, width), np.float32)
        work = np.zeros((5, height, width), np.float32)
        grey, difference, product, scratch, correlation = work[0], work[1], work[2], work[3], work[4]
        _warp(reference, source, rotation, offset, inverse_depths[d], grey, difference, seen[d])
        _add_correlation(target, grey, radius, means, product, scratch, correlation)
        _add_correlation(target, grey, 2 * radius, means, product, scratch, correlation)
        for v in range(grey.shape[0]):
            for u in range(grey.shape[1]):
                colour = min(difference[v, u], np.float32(0.25)) / np.float32(0.25)
                cost[d, v, u] = np.float32(0.4) * (np.float32(1) - correlation[v, u]) + np.float32(0.2) * colour


def matching_cost(
    reference: Float[Tensor, "h w 3"], source: Float[Tensor, "h w 3"], reference_camera: Cameras, source_camera: Cameras,
    depths: Float[Tensor, " d"], radius: int = 2,
) -> tuple[Float[Tensor, "d h w"], Float[Tensor, "d h w"]]:  # fmt: skip
    """Cost in [0, 1] of every plane at every pixel against one source, and where the source sees the point.

    0.8 (1 - ZNCC) / 2, the mean over windows of ``radius`` and twice that, plus 0.2 times the clipped colour difference.
    """
    rotation, offset = plane_homographies(reference_camera, source_camera)
    shape = (len(depths), *reference.shape[:2])
    cost, seen = np.empty(shape, np.float32), np.empty(shape, np.bool_)
    target = reference.mean(-1)
    with one_at_a_time():
        _plane_costs(
        reference.numpy(), target.numpy(), source.numpy(), rotation.float().numpy(), offset.float().numpy(),
        (1 / depths).numpy(), radius, cost, seen,
    )  # fmt: skip
    return torch.from_numpy(cost), torch.from_numpy(seen)


@serial_kernel
def _scan(cost, guide, total, dy, dx, small, large):
    """Add to ``total`` the path costs that arrive at each pixel from the direction (dy, dx) (Hirschmueller's recursion)."""
    height, width, planes = cost.shape
    far_away = np.float32(1e9)  # a guard plane at either end avoids branches in the inner loop
    row_before = np.full((width, planes + 2), far_away, np.float32)
    row = np.full((width, planes + 2), far_away, np.float32)
    for i in range(height):
        y = i if dy >= 0 else height - 1 - i
        for j in range(width):
            x = j if dx >= 0 else width - 1 - j
            here, py, px = row[x], y - dy, x - dx
            if py < 0 or py >= height or px < 0 or px >= width:
                for d in range(planes):
                    here[d + 1] = cost[y, x, d]
                    total[y, x, d] += cost[y, x, d]
                continue
            before = row[px] if dy == 0 else row_before[px]
            lowest = far_away
            for d in range(1, planes + 1):
                lowest = min(lowest, before[d])
            edge = abs(guide[y, x] - guide[py, px])
            jump = max(large / (np.float32(1) + np.float32(20) * edge), small)
            for d in range(planes):
                step = min(before[d], before[d + 2]) + small
                best = min(min(before[d + 1], step) - lowest, jump)
                value = cost[y, x, d] + best
                here[d + 1] = value
                total[y, x, d] += value
        row_before, row = row, row_before


@kernel
def _scan_all(cost, guide, totals, small, large):
    """The eight directions in two groups, one per thread; each group has its own sum, so the result is deterministic."""
    for half in numba.prange(2):
        sign = 1 - 2 * half
        _scan(cost, guide, totals[half], sign, 0, small, large)
        _scan(cost, guide, totals[half], 0, sign, small, large)
        _scan(cost, guide, totals[half], sign, 1, small, large)
        _scan(cost, guide, totals[half], sign, -1, small, large)


def aggregate_cost(
    cost: Float[Tensor, "d h w"], guide: Float[Tensor, "h w 3"], small: float = SMALL_STEP, large: float = LARGE_STEP
) -> Float[Tensor, "h w d"]:
    """Semi-global aggregation along eight directions; large steps cost less where the guide image has an edge."""
    volume = cost.permute(1, 2, 0).contiguous().numpy()
    totals = np.zeros((2, *volume.shape), np.float32)
    with one_at_a_time():
        _scan_all(volume, guide.mean(-1).numpy(), totals, np.float32(small), np.float32(large))
    return torch.from_numpy(totals).sum(0) / 8


def best_depth(
    aggregated: Float[Tensor, "h w d"], depths: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Depth of the cheapest plane, refined by fitting a parabola to its neighbours, and its fractional plane index."""
    count = aggregated.shape[-1]
    index = aggregated.argmin(-1)
    inner = index.clamp(1, count - 2)
    left, middle, right = (aggregated.gather(-1, (inner + k)[..., None])[..., 0] for k in (-1, 0, 1))
    shift = 0.5 * (left - right) / (left - 2 * middle + right).clamp(min=1e-6)
    index = torch.where(index == inner, index + shift.clamp(-0.5, 0.5), index.float())
    inverse = 1 / depths
    return 1 / (inverse[0] + (inverse[-1] - inverse[0]) * index / (count - 1)), index
