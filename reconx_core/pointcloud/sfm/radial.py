"""One radial term per lens, where the photos decide it: the lenses of many phones and wide angles bend straight lines."""

from __future__ import annotations

import math
from typing import NamedTuple

import pycolmap

from reconx_core.pointcloud.sfm.focal import adjust, count_matched, lenses_in, negative_log_likelihood
from reconx_core.pointcloud.sfm.mapper import Problem, bundle_options

MIN_PHOTOS = 3  # two fit a radial term and a focal as they like
MIN_GAIN = 5.0  # of the log-likelihood (docs/decisions.md has what it is of straight and of bent pictures)
MIN_SHIFT = 0.004  # of the long side, in the corners: below it, resampling would cost more than it mends


class Lens(NamedTuple):
    """A lens with one radial term: a ray with tangent r to the axis is seen at focal * r * (1 + k1 r^2)."""

    focal: float  # pixels
    k1: float


def radial_lenses(problem: Problem, found: pycolmap.Reconstruction) -> list[Lens] | None:
    """Every lens with its radial term, adjusted together with poses and points; None unless the matches clearly ask for it."""
    if found.num_reg_images() < MIN_PHOTOS:
        return None
    straight, bent, total = pycolmap.Reconstruction(found), _bent(problem, found), count_matched(problem)
    straight.update_point_3d_errors()
    gain = negative_log_likelihood(problem, straight, total) - negative_log_likelihood(problem, bent, total)
    lenses = [_lens(problem, bent, k) for k in range(max(problem.lens) + 1)]
    shift = max(corner_shift(lens, problem.size) for lens in lenses)
    return lenses if gain > MIN_GAIN and shift > MIN_SHIFT * max(problem.size) else None


def _lens(problem: Problem, bent: pycolmap.Reconstruction, index: int) -> Lens:
    """One of the lenses; straight if no photo of it was registered."""
    if index not in lenses_in(bent):
        return Lens(float(max(problem.size)), 0.0)
    camera = bent.camera(index + 1)
    return Lens(camera.focal_length, float(camera.params[3]))


def corner_shift(lens: Lens, size: tuple[int, int]) -> float:
    """Pixels by which the radial term moves the corners of a picture of that height and width."""
    return abs(lens.k1) * math.hypot(*size) ** 3 / (8 * lens.focal**2)


def _bent(problem: Problem, found: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """A copy in which focals and radial terms are adjusted, too."""
    copy = pycolmap.Reconstruction(found)
    for camera in copy.cameras.values():
        centre = camera.principal_point_x, camera.principal_point_y
        focal, camera.model = camera.focal_length, pycolmap.CameraModelId.SIMPLE_RADIAL
        camera.params = [focal, *centre, 0.0]
    options = bundle_options(refine_focal=True)
    options.refine_extra_params = True
    adjust(problem, copy, options)
    return copy
