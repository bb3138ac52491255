"""Intrinsics that no camera has: they are refused with the likely cause, since nothing after the readers would notice."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reconx_core.datasets.capture import Capture, Photo
from reconx_core.errors import UserError
from reconx_core.io.exif import LONGEST, SHORTEST

_NORMALISED = 5.0  # pixels; a focal length below is one in widths of the picture
_OUTSIDE = 1.0  # share of the picture from its centre: half of it beyond the border
_FAR = 0.25  # as above: an unusual crop, or numbers for a picture of another size
_SMALL = 16  # pixels; in smaller pictures the first pixel is no corner
_BLOWN_UP = 10.0  # radial factor of a lens whose numbers are wrong
_STEPS = 64  # radii from the principal point to the farthest corner at which the radial factor is computed


def require_plausible(capture: Capture, source: Path) -> None:
    """Checks the known intrinsics of all photos; a warning tells of principal points far from the centre.

    Raises:
        UserError: a camera is impossible; the photo, ``source`` and the number are named.
    """
    far: list[str] = []
    seen: set[tuple[object, ...]] = set()  # most photos share one camera
    for photo in capture.photos:
        if photo.intrinsics is None:
            continue
        values: list[float] = photo.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        key = (*values, photo.size, photo.distortion)
        if key in seen:
            continue
        seen.add(key)
        if problem := _problem(values, photo):
            raise UserError(f"The camera of '{photo.name}' in {source} has {problem}.")
        if photo.size is not None and _offset(values, photo.size) > _FAR:
            far.append(f"({values[2]:.5g}, {values[3]:.5g}) of '{photo.name}' ({photo.size[1]}x{photo.size[0]})")
    if far:
        problem = f"{len(far)} camera(s) in {source} have a principal point far from the picture's centre, such as {far[0]}"
        warnings.warn(f"{problem}; it is used as given, so check that it is for pictures of that size.", stacklevel=3)


def _problem(values: Sequence[float], photo: Photo) -> str | None:
    """What is wrong with fx, fy, cx, cy and the lens, and the likely cause."""
    if not all(map(math.isfinite, (*values, *photo.distortion))):
        numbers = ", ".join(f"{value:.6g}" for value in (*values, *photo.distortion))
        return f"numbers that are not finite ({numbers}); export the cameras again"
    if photo.size is not None and min(photo.size) <= 0:
        return f"a picture size of {photo.size[1]}x{photo.size[0]} pixels; give the pictures' width and height"
    if min(values[:2]) <= 0:
        number = min(values[:2])
        return f"a focal length of {number:.6g} pixels; it must be positive"
    if photo.size is None:
        return None
    return _focal_problem(values[:2], photo.size) or _centre_problem(values, photo.size) or _lens_problem(values, photo)


def _focal_problem(focals: Sequence[float], size: tuple[int, int]) -> str | None:
    wrong = [focal for focal in focals if not SHORTEST <= focal / max(size) <= LONGEST]
    if not wrong:
        return None
    if wrong[0] / max(size) > LONGEST:
        advice = "check its unit, and the picture size that it is for"
    elif wrong[0] < _NORMALISED:
        advice = "it looks like a share of the picture's width, or an angle in the wrong unit, and should be in pixels"
    else:
        advice = "it looks like millimetres, or is for a far smaller picture, and should be in pixels"
    return f"a focal length of {wrong[0]:.6g} pixels for a picture of {size[1]}x{size[0]}; {advice}"


def _centre_problem(values: Sequence[float], size: tuple[int, int]) -> str | None:
    cx, cy = values[2:]
    label = f"its principal point at ({cx:.6g}, {cy:.6g}) in a picture of {size[1]}x{size[0]}"
    if _offset(values, size) > _OUTSIDE:
        return f"{label}, far outside it; the camera is probably for pictures of another size"
    if min(size) > _SMALL and 0 <= cx <= 1 and 0 <= cy <= 1:
        return f"{label}, in its corner; it looks like a share of the picture's size and should be in pixels"
    return None


def _offset(values: Sequence[float], size: tuple[int, int]) -> float:
    """The principal point's distance from the centre in widths or heights of the picture, whichever is more."""
    return max(abs(values[2] / size[1] - 0.5), abs(values[3] / size[0] - 0.5))


def _lens_problem(values: Sequence[float], photo: Photo) -> str | None:
    """Distortion that turns the picture inside out, or throws it far outside itself, before its farthest corner."""
    if photo.size is None or not any(photo.distortion):
        return None
    fx, fy, cx, cy = values
    x, y = max(cx, photo.size[1] - cx) / fx, max(cy, photo.size[0] - cy) / fy
    factors = _radial_factors(np.linspace(0, x * x + y * y, _STEPS), photo.distortion)
    wrong = factors[~((factors > 0) & (factors < _BLOWN_UP))]
    if not len(wrong):
        return None
    listed = ", ".join(f"{value:.4g}" for value in photo.distortion)
    return f"a lens distortion ({listed}) that scales parts of the picture by {wrong[0]:.3g}; check its numbers and their order"


def _radial_factors(r2: np.ndarray, distortion: tuple[float, ...]) -> np.ndarray:
    """By what distances from the principal point are multiplied; NaN beyond a pole of the quotient."""
    k1, k2, _, _, k3, k4, k5, k6 = (*distortion, *(0.0,) * 4)[:8]
    below = 1 + k4 * r2 + k5 * r2**2 + k6 * r2**3
    above = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    return np.where(below > 0, above / np.where(below > 0, below, 1.0), np.nan)
