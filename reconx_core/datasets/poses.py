"""Poses as files give them, made fit for use: rigid, finite, in single precision, and near the origin."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from reconx_core.datasets.capture import Capture
from reconx_core.datasets.intrinsics import require_plausible
from reconx_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

# Cameras farther from the origin than this many times their own spread are moved. At this ratio single precision still keeps
# positions to 6e-5 of the spread, about a hundredth of a pixel; in UTM or ECEF coordinates the ratio is 10^4 and more.
_FAR = 1000.0
_AS_GIVEN = 1e-3  # deviations of a rotation that come from few decimals: such matrices are used as they are
_SHEARED = 2e-2  # deviations from right angles that are no longer rounding


def make_usable(capture: Capture, source: Path) -> Capture:
    """The capture with its poses, which readers give in float64, made rigid and float32, relative to ``Capture.origin``.

    A pose with NaN or infinite numbers becomes None, and so do a few that are no rotations among others that are; a warning
    names these, and tells where no pose is left. Scaled axes, as Blender, Unreal and Metashape export them, are normalised,
    with a warning. The origin is (0, 0, 0) unless the cameras lie too far from it for single precision.

    Raises:
        UserError: intrinsics are impossible, or most poses have no rotation but a shear or a mirror image; ``source`` and the
            photo are named.
    """
    require_plausible(capture, source)
    given = [None if p.cam_to_world is None else p.cam_to_world.double() for p in capture.photos]
    poses = _make_all_rigid(given, [f"'{photo.name}' in {source}" for photo in capture.photos])
    _warn_of_none_valid(given, poses, source)
    _warn_of_scale(given, poses, source)
    origin = _find_origin([pose[:3, 3] for pose in poses if pose is not None])
    moved = [None if pose is None else relative_to(pose, origin).float() for pose in poses]
    photos = tuple(replace(photo, cam_to_world=pose) for photo, pose in zip(capture.photos, moved))
    return replace(capture, photos=photos, origin=origin)


def relative_to(cam_to_world: Float[Tensor, "*n 4 4"], origin: Sequence[float]) -> Float[Tensor, "*n 4 4"]:
    """The same cameras in float64, in a frame of the same axes with its zero at ``origin``."""
    import torch

    moved = cam_to_world.double().clone()
    moved[..., :3, 3] -= torch.tensor(origin, dtype=torch.float64)
    return moved


def _make_all_rigid(given: Sequence[Float[Tensor, "4 4"] | None], labels: Sequence[str]) -> list[Float[Tensor, "4 4"] | None]:
    """The poses made rigid; the few that cannot be become None, with a warning. Raises UserError if these are not few."""
    poses: list[Float[Tensor, "4 4"] | None] = []
    problems: list[UserError] = []
    for pose, label in zip(given, labels):
        try:
            poses.append(_make_rigid(pose, label))
        except UserError as problem:
            poses.append(None)
            problems.append(problem)
    usable = sum(pose is not None for pose in poses)
    # Where many are wrong, the program that wrote them is, and the others are not to be trusted.
    if problems and (usable < 2 or len(problems) >= usable):
        raise problems[0]
    for problem in problems:
        warnings.warn(f"{problem} This pose is not used.", stacklevel=3)
    return poses


def _make_rigid(pose: Float[Tensor, "4 4"] | None, label: str) -> Float[Tensor, "4 4"] | None:
    import torch

    if pose is None or not pose.float().isfinite().all():
        return None
    pose = _affine(pose, label)
    lengths = pose[:3, :3].norm(dim=0)
    if not bool((lengths > 0).all()):
        raise UserError(f"The pose of {label} has no rotation: an axis of it is zero; export the cameras again.")
    rotation = pose[:3, :3] / lengths.clamp(min=1e-30)
    error = float((rotation.mT @ rotation - torch.eye(3, dtype=pose.dtype)).abs().max())
    if error > _SHEARED:
        raise UserError(f"The pose of {label} has no rotation: its axes are sheared; export the cameras without a shear.")
    if torch.linalg.det(rotation) < 0:
        raise UserError(f"The pose of {label} is a mirror image; export the cameras in right-handed coordinates.")
    if error < _AS_GIVEN and _scale_error(pose) < _AS_GIVEN:
        return pose
    u, _, vt = torch.linalg.svd(rotation)
    return torch.cat([torch.cat([u @ vt, pose[:3, 3:]], 1), pose[3:]])


def _affine(pose: Float[Tensor, "4 4"], label: str) -> Float[Tensor, "4 4"]:
    """The pose with 0 0 0 1 as its last row, which holds for matrices that are scaled as a whole."""
    if pose[3].tolist() == [0, 0, 0, 1]:
        return pose
    if pose[3, :3].any() or pose[3, 3] == 0:
        raise UserError(f"The pose of {label} should have 0 0 0 1 as its last row; is the matrix transposed?")
    return pose / pose[3, 3]


def _scale_error(pose: Float[Tensor, "4 4"]) -> float:
    return float((pose[:3, :3].norm(dim=0) - 1).abs().max())


def _warn_of_none_valid(
    given: Sequence[Float[Tensor, "4 4"] | None], poses: Sequence[Float[Tensor, "4 4"] | None], source: Path
) -> None:
    """Where some are left, the others are told by name when the photos are chosen; a file without any pose is no mistake."""
    count = sum(pose is not None for pose in given)
    if count and not any(pose is not None for pose in poses):
        problem = f"None of the {count} poses in {source} is valid: all hold numbers that are not finite in single precision"
        warnings.warn(f"{problem}; no pose is used, so export the cameras again if theirs are known.", stacklevel=3)


def _warn_of_scale(
    given: Sequence[Float[Tensor, "4 4"] | None], poses: Sequence[Float[Tensor, "4 4"] | None], source: Path
) -> None:
    scaled = [g for g, pose in zip(given, poses) if g is not None and pose is not None and _scale_error(g) >= _AS_GIVEN]
    if scaled:
        example = float(scaled[0][:3, 0].norm())
        problem = f"{len(scaled)} of {len(given)} poses in {source} have scaled axes (by {example:.4g})"
        warnings.warn(f"{problem}; they are normalised, and the positions are used as given.", stacklevel=3)


def _find_origin(positions: Sequence[Float[Tensor, " 3"]]) -> tuple[float, float, float]:
    """A round point amid the cameras if they lie far from zero, else zero. Medians: one stray camera should not decide."""
    import torch

    if not positions:
        return 0.0, 0.0, 0.0
    points = torch.stack(list(positions)).numpy()
    centre = np.median(points, axis=0)
    distances = np.linalg.norm(points - centre, axis=1)
    spread = float(np.median(distances)) or float(distances.max())
    if not np.linalg.norm(centre) > _FAR * spread > 0:
        return 0.0, 0.0, 0.0
    # Rounded to a power of ten above the spread, so that people can type the point, and a scene whose program added a round
    # offset is computed from the same numbers as without it. What remains, at most 90 times the spread, costs no precision.
    step = 10.0 ** (1 + math.ceil(math.log10(spread)))
    x, y, z = (round(float(c) / step) * step for c in centre)
    return x, y, z
