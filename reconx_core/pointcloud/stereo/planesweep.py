"""Dense depth by plane sweep: warp, compare, aggregate along scanlines, refine to subplane accuracy.

Depth maps hold z in the reference camera. Planes are spaced evenly in inverse depth, so neighbouring planes move a source
pixel by about the same number of pixels.
"""

from __future__ import annotations

from functools import partial

import numba
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from reconx_core.cpu.jit import inlined, kernel, one_at_a_time, serial_kernel
from reconx_core.cpu.simd import (
    LANES,
    bilinear,
    both,
    fma,
    greater,
    greater_equal,
    lane_centres,
    least,
    less_equal,
    load,
    maximum,
    minimum,
    negative,
    packed_quads,
    root,
    splat,
    store,
    store_mask,
)
from reconx_core.types import Cameras

OUTSIDE_COST = 0.5  # neutral cost if the source does not see the point
CLIPPED = np.float32(0.25)  # colour difference above which it counts no more
NOISE = np.float32(1e-4)  # variance that keeps the noise of flat windows from correlating
FAR_AWAY = np.float32(1e9)  # cost of what is no plane
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


@serial_kernel
def _warp(reference, source, size, rotation, offset, inverse_depth, grey, colour, seen):
    """Warp the source by one plane: grey value, clipped colour difference to the reference, and where the source sees it."""
    red, green, blue = source[0], source[1], source[2]
    padded = len(grey) // size[0]
    right, bottom = np.float32(size[3] - 1), np.float32(size[2] - 1)
    half = np.float32(0.5)
    for v in range(size[0]):
        y = np.float32(v) + half
        px = rotation[0, 1] * y + rotation[0, 2] + offset[0] * inverse_depth
        py = rotation[1, 1] * y + rotation[1, 2] + offset[1] * inverse_depth
        pz = rotation[2, 1] * y + rotation[2, 2] + offset[2] * inverse_depth
        for u in range(0, padded, LANES):
            at, x = v * padded + u, lane_centres() + np.float32(u)
            z = fma(x, rotation[2, 0], splat(pz))
            safe = maximum(z, np.float32(1e-6))
            qx, qy = fma(x, rotation[0, 0], splat(px)) / safe, fma(x, rotation[1, 0], splat(py)) / safe
            across = both(greater_equal(qx, -half), less_equal(qx, right + half))
            down = both(greater_equal(qy, -half), less_equal(qy, bottom + half))
            store_mask(seen, at, both(both(across, down), greater(z, np.float32(0))))
            qx, qy = minimum(maximum(qx, np.float32(0)), right), minimum(maximum(qy, np.float32(0)), bottom)
            r, g, b = bilinear(red, size[3], qx, qy), bilinear(green, size[3], qx, qy), bilinear(blue, size[3], qx, qy)
            store(grey, at, (r + g + b) * np.float32(1 / 765))
            r, g, b = r - load(reference[0], at), g - load(reference[1], at), b - load(reference[2], at)
            difference = maximum(r, negative(r)) + maximum(g, negative(g)) + maximum(b, negative(b))
            store(colour, at, minimum(difference * np.float32(1 / 765), CLIPPED))
        for u in range(size[1], padded):  # no window reaches what is not in the image
            grey[v * padded + u] = np.float32(0)


@serial_kernel
def _column_sums(target, grey, v, height, padded, radius, sums):
    """Sums of b, b b and a b of the target (a) and the warped source (b) over the rows of a window, for two radii."""
    reach = 2 * radius
    for u in range(0, padded, LANES):
        b = bb = ab = outer_b = outer_bb = outer_ab = splat(np.float32(0))
        for row in range(max(v - reach, 0), min(v + reach, height - 1) + 1):
            one, two = load(target, row * padded + u), load(grey, row * padded + u)
            if abs(row - v) <= radius:
                b, bb, ab = b + two, fma(two, two, bb), fma(one, two, ab)
            else:
                outer_b, outer_bb, outer_ab = outer_b + two, fma(two, two, outer_bb), fma(one, two, outer_ab)
        at = u + reach
        store(sums[0], at, b)
        store(sums[1], at, bb)
        store(sums[2], at, ab)
        store(sums[3], at, b + outer_b)
        store(sums[4], at, bb + outer_bb)
        store(sums[5], at, ab + outer_ab)


@inlined
def _correlation(sums, first, statistics, at, column, radius, share):
    """Zero-mean normalised cross-correlation in windows of one radius, of 16 pixels of a row."""
    b = bb = ab = splat(np.float32(0))
    for k in range(column - radius, column + radius + 1):
        b, bb, ab = b + load(sums[first], k), bb + load(sums[first + 1], k), ab + load(sums[first + 2], k)
    b, bb, ab = b * share, bb * share, ab * share
    a, certainty = load(statistics[0], at), load(statistics[1], at)
    variance = maximum(bb - b * b, np.float32(0)) + NOISE
    value = (ab - a * b) * certainty / root(variance)
    return minimum(maximum(value, np.float32(-1)), np.float32(1))


@serial_kernel
def _compare(target, grey, colour, narrow, wide, shares, size, radius, sums, cost):
    """0.8 (1 - correlation) / 2, its mean over two radii, plus 0.2 times the clipped colour difference."""
    padded = len(grey) // size[0]
    for v in range(size[0]):
        _column_sums(target, grey, v, size[0], padded, radius, sums)
        row_narrow = np.float32(1) / np.float32(min(v + radius, size[0] - 1) - max(v - radius, 0) + 1)
        row_wide = np.float32(1) / np.float32(min(v + 2 * radius, size[0] - 1) - max(v - 2 * radius, 0) + 1)
        for u in range(0, padded, LANES):
            at, column = v * padded + u, u + 2 * radius
            near = _correlation(sums, 0, narrow, at, column, radius, load(shares[0], u) * row_narrow)
            far = _correlation(sums, 3, wide, at, column, 2 * radius, load(shares[1], u) * row_wide)
            unlike = splat(np.float32(0.4)) - (near + far) * np.float32(0.2)
            store(cost, at, fma(load(colour, at), np.float32(0.2) / CLIPPED, unlike))


@kernel
def _plane_costs(reference, target, source, rotation, offset, inverse_depths, narrow, wide, shares, size, radius, cost, seen):
    for d in numba.prange(len(inverse_depths)):
        grey, colour = np.empty(len(target), np.float32), np.empty(len(target), np.float32)
        sums = np.zeros((6, len(target) // size[0] + 4 * radius + LANES), np.float32)
        _warp(reference, source, size, rotation, offset, inverse_depths[d], grey, colour, seen[d])
        _compare(target, grey, colour, narrow, wide, shares, size, radius, sums, cost[d])


def matching_cost(
    reference: Float[Tensor, "h w 3"], source: Float[Tensor, "h2 w2 3"], reference_camera: Cameras, source_camera: Cameras,
    depths: Float[Tensor, " d"], radius: int = 2,
) -> tuple[Float[Tensor, "d h w"], Bool[Tensor, "d h w"]]:  # fmt: skip
    """Cost in [0, 1] of every plane at every pixel against one source, and where the source sees the point.

    0.8 (1 - ZNCC) / 2, the mean over windows of ``radius`` and twice that, plus 0.2 times the clipped colour difference.
    """
    height, width = reference.shape[:2]
    padded = -(-width // LANES) * LANES
    rotation, offset = (to_first_centre(part) for part in plane_homographies(reference_camera, source_camera))
    channels = F.pad(reference.permute(2, 0, 1), (0, padded - width)).flatten(1).contiguous()
    quads = np.stack([packed_quads(channel) for channel in source.permute(2, 0, 1).numpy()])
    cost = np.empty((len(depths), height * padded), np.float32)
    seen = np.empty(cost.shape, np.bool_)
    statistics = [_statistics(reference.mean(-1), r, padded) for r in (radius, 2 * radius)]
    shares = torch.stack([_column_shares(width, r, padded) for r in (radius, 2 * radius)]).numpy()
    size = (height, width, *source.shape[:2])
    with one_at_a_time():
        _plane_costs(
            (channels * 255).numpy(), channels.mean(0).numpy(), quads, rotation.numpy(), offset.numpy(), (1 / depths).numpy(),
            *statistics, shares, size, radius, cost, seen,
        )  # fmt: skip
    return tuple(torch.from_numpy(x).unflatten(1, (height, padded))[..., :width] for x in (cost, seen))


def to_first_centre(homography: Float[Tensor, "3 ..."]) -> Float[Tensor, "3 ..."]:
    """A part of :func:`plane_homographies` whose source pixels count from the centre of the first one, in single precision."""
    shift = torch.tensor([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1]], dtype=homography.dtype)
    return (shift @ homography).float()


def _statistics(grey: Float[Tensor, "h w"], radius: int, padded: int) -> Float32[np.ndarray, "2 p"]:
    """Mean over windows clipped at the border, and 1 / standard deviation; flat, rows of ``padded`` pixels."""
    window = partial(F.avg_pool2d, kernel_size=2 * radius + 1, stride=1, padding=radius, count_include_pad=False)
    mean, square = (window(image[None].double())[0] for image in (grey, grey * grey))
    certainty = ((square - mean * mean).clamp(min=0) + float(NOISE)).rsqrt()
    return F.pad(torch.stack([mean, certainty]).float(), (0, padded - grey.shape[1])).flatten(1).numpy()


def _column_shares(width: int, radius: int, padded: int) -> Float[Tensor, " p"]:
    """1 / number of columns of the window around each column."""
    column = torch.arange(width)
    return F.pad(1.0 / ((column + radius).clamp(max=width - 1) - (column - radius).clamp(min=0) + 1), (0, padded - width))


@inlined
def _step(cost, total, at, planes, before, there, lowest, here, spot, small, jump):
    """Path costs of a pixel's planes from those of the pixel before, added to its total; returns the lowest of them."""
    low = splat(FAR_AWAY)
    for d in range(0, planes, LANES):
        near = minimum(load(before, there + d - 1), load(before, there + d + 1)) + small
        value = load(cost, at + d) + minimum(minimum(load(before, there + d), near) - lowest, jump)
        store(here, spot + d, value)
        store(total, at + d, load(total, at + d) + value)
        low = minimum(value, low)
    return least(low)


@serial_kernel
def _scan(cost, guide, total, sign, small, large):
    """Add to ``total`` the path costs that arrive at each pixel from three neighbours in the row before and one in its own.

    Hirschmueller's recursion. The row before is the one above for ``sign`` 1, where columns ascend, and the one below for -1.
    """
    height, width = guide.shape
    planes = len(cost) // (height * width)
    stride = planes + 2 * LANES  # guard planes at either end avoid branches in the inner loop
    rows = np.full((2, 3, width * stride), FAR_AWAY, np.float32)
    beside = np.full((2, stride), FAR_AWAY, np.float32)
    lows = np.zeros((2, 4, width), np.float32)
    for i in range(height):
        y, now = i if sign > 0 else height - 1 - i, i & 1
        for j in range(width):
            x = j if sign > 0 else width - 1 - j
            at, spot = (y * width + x) * planes, x * stride + LANES
            for k in range(4):
                px, py = x + sign * (1, -1, 0, -1)[k], y - sign * (k < 3)
                if py < 0 or py >= height or px < 0 or px >= width:  # a path begins
                    lowest, jump, there = -FAR_AWAY, np.float32(0), spot
                else:
                    edge = abs(guide[y, x] - guide[py, px])
                    jump = max(large / (np.float32(1) + np.float32(20) * edge), small)
                    lowest, there = lows[now if k == 3 else 1 - now, k, px], px * stride + LANES
                if k == 3:
                    lows[now, k, x] = _step(
                        cost, total, at, planes, beside[1 - (j & 1)], LANES, lowest, beside[j & 1], LANES, small, jump
                    )
                else:
                    lows[now, k, x] = _step(
                        cost, total, at, planes, rows[1 - now, k], there, lowest, rows[now, k], spot, small, jump
                    )


@kernel
def _scan_all(cost, guide, totals, small, large):
    """The eight directions in two groups, one per thread; each group has its own sum, so the result is deterministic."""
    for half in numba.prange(2):
        _scan(cost, guide, totals[half], 1 - 2 * half, small, large)


def aggregate_cost(
    cost: Float[Tensor, "d h w"], guide: Float[Tensor, "h w 3"], small: float = SMALL_STEP, large: float = LARGE_STEP
) -> Float[Tensor, "h w d"]:
    """Semi-global aggregation along eight directions; large steps cost less where the guide image has an edge."""
    count, height, width = cost.shape
    volume = torch.full((height, width, -(-count // LANES) * LANES), float(FAR_AWAY))
    volume[..., :count] = cost.permute(1, 2, 0)
    totals = np.zeros((2, volume.numel()), np.float32)
    with one_at_a_time():
        _scan_all(volume.flatten().numpy(), guide.mean(-1).numpy(), totals, np.float32(small), np.float32(large))
    return torch.from_numpy(totals).sum(0).view(volume.shape)[..., :count] / 8


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
