"""How well the matches determine from where each photo was taken: directions between the photos, by error propagation.

First-order covariance of all poses with the points eliminated (the Schur complement of bundle adjustment). Neither frame nor
scale is determined, and neither matters to a direction: the pseudo-inverse leaves them out.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from scipy.sparse import bsr_array
from torch import Tensor

from reconx_core.pointcloud.sfm.focal import REDUNDANT
from reconx_core.types import Cameras, PointCloud, Tracks

LEAST_ERROR = 0.25  # pixels; a match is no better than this, however well few of them fit
GAUGE = 7  # degrees of freedom of frame and scale


def direction_errors(cameras: Cameras, points: PointCloud, tracks: Tracks) -> Float[Tensor, "n n"]:
    """[i, j]: standard deviation in degrees of the direction from camera i to camera j, as i sees it; 0 on the diagonal.

    What is counted are the errors of the matches, not those of focal lengths. Infinite where there are too few.
    """
    poses = cameras.cam_to_world.double().numpy()
    noise = _information(cameras, points, tracks)
    if noise is None:
        return torch.full((len(poses), len(poses)), torch.inf).fill_diagonal_(0)
    values, vectors = np.linalg.eigh(noise)
    kept = values[GAUGE:]
    covariance = (vectors[:, GAUGE:] / np.maximum(kept, 1e-12 * kept[-1])) @ vectors[:, GAUGE:].T
    errors = np.zeros((len(poses), len(poses)))
    for i, j in np.argwhere(~np.eye(len(poses), dtype=bool)):
        errors[i, j] = _direction_error(covariance, poses, i, j)
    return torch.from_numpy(errors).float()


def _direction_error(covariance: Float64[np.ndarray, "m m"], poses: Float64[np.ndarray, "n 4 4"], i: int, j: int) -> float:
    baseline = poses[j, :3, 3] - poses[i, :3, 3]
    length = max(float(np.linalg.norm(baseline)), 1e-12)
    unit = baseline / length
    across = (np.eye(3) - np.outer(unit, unit)) / length
    by = np.zeros((3, len(covariance)))
    by[:, 6 * i : 6 * i + 3], by[:, 6 * i + 3 : 6 * i + 6], by[:, 6 * j + 3 : 6 * j + 6] = _cross(unit), -across, across
    largest = np.linalg.eigvalsh(by @ covariance @ by.T)[-1]
    return float(np.rad2deg(np.sqrt(max(largest, 0.0))))


def _information(cameras: Cameras, points: PointCloud, tracks: Tracks) -> Float64[np.ndarray, "m m"] | None:
    """Inverse covariance of rotations (about world axes) and centres of all cameras, six numbers each; None where free."""
    view, point = tracks.view.numpy(), tracks.point.numpy()
    poses, xyz = cameras.cam_to_world.double().numpy(), points.xyz.double().numpy()
    residual, by_point, by_turn = _linearised(cameras, xyz[point], poses[view], view, tracks.xy.double().numpy())
    n, p = len(poses), len(xyz)
    free = 2 * len(view) - 3 * p - (6 * n - GAUGE)
    if free <= 0:
        return None
    rows = np.arange(len(view) + 1)
    # Moving a camera is moving its points the other way.
    camera_part = bsr_array((np.concatenate([by_turn, -by_point], 2), view, rows), shape=(2 * len(view), 6 * n))
    point_part = bsr_array((by_point, point, rows), shape=(2 * len(view), 3 * p))
    own = np.zeros((p, 3, 3))
    np.add.at(own, point, by_point.transpose(0, 2, 1) @ by_point)
    eliminated = bsr_array((_inverse(own), np.arange(p), np.arange(p + 1)), shape=(3 * p, 3 * p))
    mixed = camera_part.T @ point_part
    total = (camera_part.T @ camera_part - mixed @ eliminated @ mixed.T).toarray()
    variance = max(float((residual**2).sum()) / free, LEAST_ERROR**2)
    return total / (variance * REDUNDANT)


def _inverse(matrices: Float64[np.ndarray, "p 3 3"]) -> Float64[np.ndarray, "p 3 3"]:
    """With a little added, for depths that are hardly determined."""
    size = np.trace(matrices, axis1=1, axis2=2)[:, None, None]
    return np.linalg.inv(matrices + (1e-9 * size + 1e-30) * np.eye(3))


def _linearised(
    cameras: Cameras, seen: Float64[np.ndarray, "m 3"], pose: Float64[np.ndarray, "m 4 4"], view: Int64[np.ndarray, " m"],
    pixels: Float64[np.ndarray, "m 2"],
) -> tuple[Float64[np.ndarray, "m 2"], Float64[np.ndarray, "m 2 3"], Float64[np.ndarray, "m 2 3"]]:  # fmt: skip
    """Residuals in pixels, their derivatives by the point, and by a turn of the camera about the world's axes."""
    intrinsics = cameras.intrinsics.double().numpy()[view]
    away = seen - pose[:, :3, 3]
    local = np.einsum("mji,mj->mi", pose[:, :3, :3], away)
    z = np.where(np.abs(local[:, 2:]) < 1e-9, 1e-9, local[:, 2:])
    plane = local[:, :2] / z
    focal = intrinsics[:, [0, 1], [0, 1]]
    residual = focal * plane + intrinsics[:, :2, 2] - pixels
    by_local = np.zeros((len(seen), 2, 3))
    by_local[:, [0, 1], [0, 1]] = focal / z
    by_local[:, :, 2] = -focal * plane / z
    by_point = by_local @ pose[:, :3, :3].transpose(0, 2, 1)
    return residual, by_point, by_point @ _cross(away)  # a turn w moves the point by -w x away, as the camera sees it


def _cross(vectors: Float64[np.ndarray, "*m 3"]) -> Float64[np.ndarray, "*m 3 3"]:
    """Matrices of the cross product with each vector."""
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    nothing = np.zeros_like(x)
    rows = [[nothing, -z, y], [z, nothing, -x], [-y, x, nothing]]
    return np.stack([np.stack(row, -1) for row in rows], -2)
