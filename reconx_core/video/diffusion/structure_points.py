"""The points of the 3-D structure condition: as the encoder takes them, and the farthest of them (eq. 10).

Without diffusers, whose import takes seconds: loaders of training batches need no more than this.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.cpu.jit import serial_kernel
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import transform

BLOCK = 64  # points along the curve that are skipped together if a new sample cannot be their nearest one
_CELLS = 10  # bits per axis of the Z-curve that orders the points


def normalise_points(points_world: Float[Tensor, "n 3"], cam_to_world: Float[Tensor, "4 4"]) -> Float[Tensor, "n 3"]:
    """Points in the frame of the first camera, divided by their median depth there: the input of the encoder.

    Raises:
        UserError: no point lies in front of the camera.
    """
    points = transform(torch.linalg.inv(cam_to_world), points_world)
    depth = points[:, 2][points[:, 2] > 0]
    if not len(depth):
        raise UserError("No point of the cloud lies in front of the first camera; check the cameras.")
    return points / depth.median()


def farthest_point_sample(points: Float[Tensor, "n 3"], count: int) -> Int[Tensor, " count"]:
    """Indices of ``count`` points, each the farthest from those before it; the first is the farthest from the centroid.

    Ties are broken by position, so the chosen points do not depend on the order of the input (except among duplicates).
    Distances are float32.

    Raises:
        UserError: there are not ``count`` points, or some are not finite.
    """
    if not 1 <= count <= len(points):
        raise UserError(f"Cannot choose {count} of {len(points)} points; choose at least one and at most all.")
    values = points.detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError("The point cloud holds coordinates that are not finite; remove those points first.")
    order = _neighbours_together(values)
    values = values[order]
    offsets = values - values.mean(0, dtype=np.float64).astype(np.float32)
    picked = np.empty(count, np.int64)
    picked[0] = np.argmax((offsets * offsets).sum(1))
    starts = np.arange(0, len(values), BLOCK)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    _pick_farthest(*np.ascontiguousarray(values.T), low, high, picked)
    return torch.from_numpy(order[picked]).to(points.device)


def _neighbours_together(points: np.ndarray) -> np.ndarray:
    """An order that depends only on the positions: along a Z-curve, then by coordinates."""
    low, high = points.min(0), points.max(0)
    cells = ((points - low) / np.maximum(high - low, np.float32(1e-30)) * (2**_CELLS - 1)).astype(np.int64)
    bits = np.arange(_CELLS)
    code = sum((((cells[:, axis, None] >> bits) & 1) << (3 * bits + axis)).sum(1) for axis in range(3))
    return np.lexsort((*points.T, code))


@serial_kernel
def _pick_farthest(x, y, z, low, high, picked):
    """Farthest point sampling: fill ``picked``, whose first entry is given.

    Squared distances are kept as their bits: those of non-negative floats order like integers, whose maximum the compiler
    vectorises. A block is skipped if its bounding box is farther from the new sample than all its points are from earlier
    ones; that is exact, since rounding preserves the order of the two distances. Sampled points get -1.
    """
    count, blocks = len(x), len(low)
    nearest = np.full(count, np.float32(np.inf).view(np.int32), np.int32)
    farthest = np.full(blocks, np.float32(np.inf).view(np.int32), np.int32)
    for k in range(len(picked) - 1):
        i = picked[k]
        nearest[i] = -1
        best, where = np.int32(-1), 0
        for b in range(blocks):
            dx = max(low[b, 0] - x[i], x[i] - high[b, 0], np.float32(0))
            dy = max(low[b, 1] - y[i], y[i] - high[b, 1], np.float32(0))
            dz = max(low[b, 2] - z[i], z[i] - high[b, 2], np.float32(0))
            if np.float32(dx * dx + dy * dy + dz * dz).view(np.int32) <= farthest[b]:
                farthest[b] = _approach(x, y, z, i, nearest, b * BLOCK, min((b + 1) * BLOCK, count))
            if farthest[b] > best:
                best, where = farthest[b], b
        j = where * BLOCK
        while nearest[j] != best:
            j += 1
        picked[k + 1] = j


@serial_kernel
def _approach(x, y, z, i, nearest, start, end):
    """Update the distances of the points in [start, end) with the new sample i; returns the largest."""
    top = np.int32(-1)
    for j in range(start, end):
        dx, dy, dz = x[j] - x[i], y[j] - y[i], z[j] - z[i]
        nearest[j] = min(nearest[j], np.float32(dx * dx + dy * dy + dz * dz).view(np.int32))
        top = max(top, nearest[j])
    return top
