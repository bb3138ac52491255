"""A focal length that the matches leave open, chosen among those that fit by what the photos say densely.

Two photos fix their epipolar geometry and hardly more: many focals, each with its own poses, explain the same matches. How much
of a plane sweep agrees differs among them, a little.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pycolmap

from reconx_core.pointcloud.sfm.focal import FocalPrior, adjusted_to, posterior_cost
from reconx_core.pointcloud.sfm.mapper import Problem, nearest_angle

OPEN = 2.0  # degrees of pose uncertainty from which the focal counts as open
PARALLAX = 5.0  # degrees; with less, what agrees grows with the focal whatever the true one is
STEP = 0.15  # of the logarithm of the focal
STEPS = 5  # either way
# Negative log-likelihood per unit of agreement. Measured on pairs of real photos (docs/decisions.md): agreement decides where
# the matches say nothing, as on an object photographed from afar, and never against them.
WORTH = 45.0

Agreement = Callable[[pycolmap.Reconstruction], float]


def shows_focal(found: pycolmap.Reconstruction) -> bool:
    """Whether stereo can say something that the matches do not: of two photos, from places that are not too near."""
    ids = found.reg_image_ids()
    return len(ids) == 2 and min(nearest_angle(found, image_id) for image_id in ids) > PARALLAX


def choose_focal(
    problem: Problem, found: pycolmap.Reconstruction, priors: list[FocalPrior], agreement: Agreement
) -> pycolmap.Reconstruction:
    """``found`` with its focals multiplied by what prior, matches and ``agreement`` (mean share in [0, 1]) together like best.

    Poses and points are adjusted to the focals.
    """

    def cost(step: float) -> float:
        moved = found if step == 0 else adjusted_to(problem, found, step)
        matches = posterior_cost(problem, found, moved, priors, step)
        # The photos are asked only where they could still decide.
        return matches - WORTH * agreement(moved) if matches < start + 0.5 * WORTH else np.inf

    start = posterior_cost(problem, found, found, priors, 0.0)
    costs = {0: cost(0.0)}
    for side in (-1, 1):
        for k in range(1, STEPS + 1):
            costs[side * k] = cost(side * k * STEP)
            if not costs[side * k] < min(costs.values()) + 0.1 * WORTH:
                break
    best = min(costs, key=lambda k: (costs[k], abs(k)))
    step = STEP * (best + _offset(*(costs.get(best + k, np.inf) for k in (-1, 0, 1))))
    return found if abs(step) < 0.01 else adjusted_to(problem, found, step)


def _offset(a: float, b: float, c: float) -> float:
    """Where the parabola through three equally spaced values has its minimum, in steps from the middle one, the smallest."""
    curvature = a - 2 * b + c
    return 0.5 * (a - c) / curvature if 1e-9 < curvature < np.inf else 0.0
