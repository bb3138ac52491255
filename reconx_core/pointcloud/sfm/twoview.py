"""Relative pose of two photos with known or assumed intrinsics, and how well it is supported."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from jaxtyping import Float64

FULL_PARALLAX = 6.0  # degrees; more than this between two rays adds nothing to how well a pair can start a scene


@dataclass(frozen=True)
class RelativePose:
    cam2_from_cam1: pycolmap.Rigid3d
    inliers: int
    parallax: float  # median angle between the rays of the inliers, degrees
    support: float  # inliers, each weighted by its parallax up to FULL_PARALLAX
    cost: float  # truncated squared Sampson error summed over all matches, in units of max_error²


def relative_pose(
    camera1: pycolmap.Camera, camera2: pycolmap.Camera, xy1: Float64[np.ndarray, "m 2"],
    xy2: Float64[np.ndarray, "m 2"], max_error: float, seed: int,
) -> RelativePose | None:  # fmt: skip
    """LO-RANSAC on the essential matrix, refined on its inliers; None where nothing agrees. ``max_error`` is in pixels."""
    options = pycolmap.RANSACOptions(
        max_error=max_error, random_seed=seed, min_num_trials=200, max_num_trials=2000, confidence=0.999
    )
    found = pycolmap.estimate_relative_pose(camera1, xy1, camera2, xy2, options)
    if found is None:
        return None
    mask = np.asarray(found["inlier_mask"], bool)
    refined = pycolmap.refine_relative_pose(found["cam2_from_cam1"], camera1, xy1, camera2, xy2, mask)
    pose = (refined or found)["cam2_from_cam1"]
    error = sampson_error(pose, camera1, camera2, xy1, xy2) / max_error
    angle = parallax(pose, camera1, camera2, xy1, xy2)
    mask = error < 1
    if not mask.any():
        return None
    support = float(np.minimum(angle[mask] / FULL_PARALLAX, 1).sum())
    return RelativePose(pose, int(mask.sum()), float(np.median(angle[mask])), support, float(np.minimum(error**2, 1).sum()))


def rays(camera: pycolmap.Camera, xy: Float64[np.ndarray, "m 2"]) -> Float64[np.ndarray, "m 3"]:
    """Unit directions in the camera's frame."""
    directions = np.concatenate([camera.cam_from_img(xy), np.ones((len(xy), 1))], 1)
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def parallax(
    cam2_from_cam1: pycolmap.Rigid3d, camera1: pycolmap.Camera, camera2: pycolmap.Camera,
    xy1: Float64[np.ndarray, "m 2"], xy2: Float64[np.ndarray, "m 2"],
) -> Float64[np.ndarray, " m"]:  # fmt: skip
    """Angle in degrees between the two rays of each match."""
    rotated = rays(camera1, xy1) @ cam2_from_cam1.rotation.matrix().T
    other = rays(camera2, xy2)
    return np.rad2deg(np.arctan2(np.linalg.norm(np.cross(rotated, other), axis=1), (rotated * other).sum(1)))


def sampson_error(
    cam2_from_cam1: pycolmap.Rigid3d, camera1: pycolmap.Camera, camera2: pycolmap.Camera,
    xy1: Float64[np.ndarray, "m 2"], xy2: Float64[np.ndarray, "m 2"],
) -> Float64[np.ndarray, " m"]:  # fmt: skip
    """First-order distance in pixels of each match from the epipolar geometry."""
    essential = pycolmap.essential_matrix_from_pose(cam2_from_cam1)
    inverse1, inverse2 = (np.linalg.inv(c.calibration_matrix()) for c in (camera1, camera2))
    fundamental = inverse2.T @ essential @ inverse1
    one, two = (np.concatenate([xy, np.ones((len(xy), 1))], 1) for xy in (xy1, xy2))
    line2, line1 = one @ fundamental.T, two @ fundamental
    gradient = (line2[:, :2] ** 2).sum(1) + (line1[:, :2] ** 2).sum(1)
    return np.abs((two * line2).sum(1)) / np.sqrt(gradient + 1e-30)


def triangulated_depth(
    cam2_from_cam1: pycolmap.Rigid3d, camera1: pycolmap.Camera, camera2: pycolmap.Camera,
    xy1: Float64[np.ndarray, "m 2"], xy2: Float64[np.ndarray, "m 2"],
) -> Float64[np.ndarray, " m"]:  # fmt: skip
    """z in the first camera of each match's point, in units of the translation: where the rays are closest, least squares."""
    ray1 = rays(camera1, xy1)
    turned = ray1 @ cam2_from_cam1.rotation.matrix().T
    # distance * turned + t is parallel to ray2.
    across = np.cross(turned, ray2 := rays(camera2, xy2))
    offset = np.cross(cam2_from_cam1.translation, ray2)
    return -(across * offset).sum(1) / np.maximum((across * across).sum(1), 1e-18) * ray1[:, 2]
