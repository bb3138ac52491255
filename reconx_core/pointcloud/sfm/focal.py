"""Unknown focal lengths: reconstruction from several initial values, then a MAP estimate with a log-normal prior."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pycolmap
from jaxtyping import Float64

from reconx_core.pointcloud.sfm.mapper import Problem, bundle_options, reconstruct

TYPICAL = 0.8  # focal / long side: between a phone's main camera and a normal lens
TYPICAL_SPREAD = 0.4  # standard deviation of its logarithm
EXIF_SPREAD = 0.05
# EXIF focals are evidence, not truth: of photos that were cropped, or taken through a foreign lens, they are wrong.
FOREIGN, FOREIGN_SPREAD = 0.1, 0.5  # how often, and the standard deviation of the logarithm then
CONTRADICTED = 4 * EXIF_SPREAD  # logarithm from which the photos say another focal
STARTS = (1.0, 0.65, 1.5, 2.3)  # initial focals, relative to the prior's
FOCAL_RANGE = (0.25, 4.0)  # range of focal / long side; a refinement that ends outside has failed
FINE = 0.06  # step of the log-focal in the search around the refined focal
COARSE = (-0.5, -0.25, 0.0, 0.25, 0.5)  # steps of the log-focal if the matches hardly constrain it
POSTERIOR = (0.2, 0.4, 0.6, 0.8)  # steps of the log-focal, either way, over which poses are compared: clearly other lenses
IMPOSSIBLE = 8.0  # negative log-posterior above the best from which a focal counts for nothing
# Errors of matches are correlated by effects that the pinhole model ignores (distortion, rolling shutter): this many matches
# carry the information of one independent match. Measured on 80 pairs of real photos (docs/decisions.md).
REDUNDANT = 4.0


class FocalPrior(NamedTuple):
    """Log-normal prior of a focal length."""

    focal: float  # pixels
    spread: float  # standard deviation of the logarithm


def focal_prior(exif: float, long_side: int) -> FocalPrior:
    """Prior from the EXIF focal (pixels) if there is one, else the typical focal of photographs."""
    return FocalPrior(TYPICAL * long_side, TYPICAL_SPREAD) if math.isnan(exif) else FocalPrior(exif, EXIF_SPREAD)


def solve_focals(problem: Problem, priors: list[FocalPrior]) -> pycolmap.Reconstruction | None:
    """The best reconstruction with focals refined, one per lens; None if every start fails."""
    known = [p.spread <= EXIF_SPREAD for p in priors]  # among others these stay; alone, they may all be wrong by one factor
    factors = [[s if all(known) or not believed else 1.0 for believed in known] for s in STARTS]
    guesses = [[_pinhole(p.focal * factor, problem.size) for p, factor in zip(priors, row)] for row in factors]
    found = [r for r in (_refined(problem, guess) for guess in guesses) if r is not None]
    if not found:
        return None
    total = count_matched(problem)
    best = max(
        found, key=lambda r: (r.num_reg_images(), -negative_log_likelihood(problem, r, total) - _negative_log_prior(r, priors))
    )
    return map_estimate(problem, best, priors)


def _refined(problem: Problem, guess: list[Float64[np.ndarray, "3 3"]]) -> pycolmap.Reconstruction | None:
    found = reconstruct(problem, guess, True)
    long_side = max(problem.size)
    if found is None or all(
        FOCAL_RANGE[0] < camera.focal_length / long_side < FOCAL_RANGE[1] for camera in found.cameras.values()
    ):
        return found
    return reconstruct(problem, guess, False)


def _pinhole(focal: float, size: tuple[int, int]) -> Float64[np.ndarray, "3 3"]:
    return np.array([[focal, 0.0, size[1] / 2], [0.0, focal, size[0] / 2], [0.0, 0.0, 1.0]])


def count_matched(problem: Problem) -> int:
    seen = [set[int]() for _ in problem.keypoints]
    for (i, j), rows in problem.matches.items():
        seen[i].update(rows[:, 0].tolist())
        seen[j].update(rows[:, 1].tolist())
    return sum(map(len, seen))


def negative_log_likelihood(problem: Problem, reconstruction: pycolmap.Reconstruction, total: int) -> float:
    """Negative log-likelihood up to a constant: squared errors, and a fixed cost for each matched keypoint without a point."""
    count = reconstruction.compute_num_observations()
    price = (problem.max_error / 2) ** 2
    cost = count * reconstruction.compute_mean_reprojection_error() ** 2 + price * (total - count)
    freedom = total / 2  # degrees of freedom: of four coordinates in two photos, the 3-D point takes three
    return 0.5 * freedom / REDUNDANT * math.log(cost / total + 1e-6)


def _negative_log_prior(reconstruction: pycolmap.Reconstruction, priors: list[FocalPrior], step: float = 0.0) -> float:
    """Negative log-prior of the focals multiplied by exp(step)."""
    logs = _logs(reconstruction, priors)
    return sum(_prior_cost(log + step, priors[k].spread) for k, log in logs.items()) / len(logs)


def _prior_cost(log: float, spread: float) -> float:
    """Negative log-density of a focal's logarithm, about 0 at its most likely; that of EXIF has a wide second part."""
    usual = 0.5 * (log / spread) ** 2
    if spread > EXIF_SPREAD:
        return usual
    foreign = 0.5 * (log / FOREIGN_SPREAD) ** 2 - math.log(FOREIGN * spread / FOREIGN_SPREAD)
    return -float(np.logaddexp(math.log(1 - FOREIGN) - usual, -foreign))


def _logs(reconstruction: pycolmap.Reconstruction, priors: list[FocalPrior]) -> dict[int, float]:
    """Of each lens that a registered photo has, the logarithm of its focal over the prior's."""
    return {k: math.log(reconstruction.camera(k + 1).focal_length / priors[k].focal) for k in lenses_in(reconstruction)}


def lenses_in(reconstruction: pycolmap.Reconstruction) -> list[int]:
    """Indices of the lenses that are left in it: the mapper drops those of photos that it could not register."""
    return sorted(camera_id - 1 for camera_id in reconstruction.cameras)


def contradicted(reconstruction: pycolmap.Reconstruction, priors: list[FocalPrior]) -> list[float]:
    """The logarithms by which focals are off those of EXIF, of lenses where they clearly are."""
    logs = _logs(reconstruction, priors)
    return [log for k, log in logs.items() if priors[k].spread <= EXIF_SPREAD and abs(log) > CONTRADICTED]


def map_estimate(problem: Problem, best: pycolmap.Reconstruction, priors: list[FocalPrior]) -> pycolmap.Reconstruction:
    """Scale all focals by the factor that maximises likelihood times prior (MAP), and adjust poses and points to it."""

    def cost(step: float) -> float:
        value = _negative_log_likelihood_at(problem, best, step) + _negative_log_prior(best, priors, step)
        return math.inf if math.isnan(value) else value

    step = _vertex(cost, 0.0)
    off = contradicted(best, priors)
    if abs(step) >= FINE or off:  # the matches hardly constrain the focal, or it is another than EXIF's: search farther
        coarse = min((*COARSE, *(-log for log in off)), key=cost)
        step = coarse + _vertex(cost, coarse)
    return best if abs(step) < 0.003 else adjusted_to(problem, best, step)


def pose_uncertainty(problem: Problem, reconstruction: pycolmap.Reconstruction, priors: list[FocalPrior]) -> float:
    """How far the unknown focals leave the poses open: degrees, root mean square over the focals' posterior.

    The poses are adjusted to each focal of a grid; what counts is the largest change of a relative rotation.
    """
    costs, angles = [posterior_cost(problem, reconstruction, reconstruction, priors, 0.0)], [0.0]
    for side in (-1, 1):
        for step in POSTERIOR:
            adjusted = adjusted_to(problem, reconstruction, side * step)
            cost = posterior_cost(problem, reconstruction, adjusted, priors, side * step)
            if not cost < min(costs) + IMPOSSIBLE:  # also if it is no number
                break
            costs.append(cost)
            angles.append(_largest_rotation(reconstruction, adjusted))
    weights = np.exp(min(costs) - np.array(costs))
    return float(np.sqrt((weights * np.square(angles)).sum() / weights.sum()))


def posterior_cost(
    problem: Problem, best: pycolmap.Reconstruction, adjusted: pycolmap.Reconstruction, priors: list[FocalPrior], step: float
) -> float:
    """Negative log-posterior of the focals of ``best`` times exp(step), to which ``adjusted`` is the solution."""
    count = adjusted.compute_num_observations()
    likelihood = negative_log_likelihood(problem, adjusted, count) if count else math.inf
    return likelihood + _negative_log_prior(best, priors, step)


def _largest_rotation(one: pycolmap.Reconstruction, two: pycolmap.Reconstruction) -> float:
    """Largest angle in degrees between the relative rotations of two images in two reconstructions."""
    ids = sorted(set(one.reg_image_ids()) & set(two.reg_image_ids()))
    rotations = [np.stack([r.image(i).cam_from_world().rotation.matrix() for i in ids]) for r in (one, two)]
    change = np.einsum("nji,njk->nik", *rotations)  # to be the same for all images if only the world turned
    relative = np.einsum("nij,mkj->nmik", change, change)
    cosine = (np.trace(relative, axis1=-2, axis2=-1) - 1) / 2
    return float(np.rad2deg(np.arccos(np.clip(cosine, -1, 1)).max()))


def _vertex(cost: Callable[[float], float], centre: float) -> float:
    """Offset from ``centre`` of the minimum of the parabola through three points FINE apart, at most two steps."""
    a, b, c = cost(centre - FINE), cost(centre), cost(centre + FINE)
    curvature = a - 2 * b + c
    if not 1e-9 < curvature < math.inf:
        return 0.0 if b <= min(a, c) else math.copysign(2 * FINE, a - c)
    return FINE * min(max(0.5 * (a - c) / curvature, -2.0), 2.0)


def _negative_log_likelihood_at(problem: Problem, reconstruction: pycolmap.Reconstruction, step: float) -> float:
    adjusted = reconstruction if step == 0 else adjusted_to(problem, reconstruction, step)
    return negative_log_likelihood(problem, adjusted, adjusted.compute_num_observations())


def adjusted_to(problem: Problem, reconstruction: pycolmap.Reconstruction, step: float) -> pycolmap.Reconstruction:
    """A copy with all focals multiplied by exp(step) and fixed while poses and points are adjusted."""
    copy = pycolmap.Reconstruction(reconstruction)
    for camera in copy.cameras.values():
        camera.focal_length = camera.focal_length * math.exp(step)
    adjust(problem, copy, bundle_options(refine_focal=False))
    return copy


def adjust(problem: Problem, reconstruction: pycolmap.Reconstruction, options: pycolmap.BundleAdjustmentOptions) -> None:
    """Adjust poses and points of all photos, and of the cameras what the options say, in place."""
    # pycolmap.bundle_adjustment would do the same, but re-enables logging for the whole process.
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in sorted(reconstruction.reg_image_ids()):
        config.add_image(image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    pycolmap.create_default_bundle_adjuster(options, config, reconstruction).solve()
    reconstruction.update_point_3d_errors()
    # The error of a point behind a camera is infinite: a single one would decide on the mean of all.
    for point_id in [i for i, point in reconstruction.points3D.items() if point.error > max(problem.size)]:
        reconstruction.delete_point3D(point_id)
