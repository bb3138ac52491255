"""Known cameras around Depth-Anything-3: brought to the world and units of its training, and the scale of what it predicts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry.transforms import fit_similarity, rigid

LEAST_UNIT = 0.1  # in the given units
ROBUST_FROM = 10  # cameras from which wild ones are left out of the fit
SAMPLES, SEED = 10, 42  # upstream's


class Similarity(NamedTuple):
    """y = scale · rotation x + translation."""

    scale: Float[Tensor, ""]
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, " 3"]

    def __call__(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n 3"]:
        return self.scale * points @ self.rotation.T + self.translation


def normalise_cameras(world_to_cam: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 4 4"]:
    """Known cameras in the first one's frame, scaled to a median distance of 1 from it.

    The lower median is taken and the first camera counts, so of two cameras it is 0: then ``LEAST_UNIT`` is the unit, as in
    upstream, and their distance becomes ten times the given one.
    """
    moved = world_to_cam @ torch.linalg.inv(world_to_cam[:1])
    unit = _centres(moved).norm(dim=-1).median().clamp(min=LEAST_UNIT)
    return rigid(moved[:, :3, :3], moved[:, :3, 3] / unit)


def fit_cameras(given: Float[Tensor, "n 4 4"], predicted: Float[Tensor, "n 4 4"]) -> Similarity:
    """From the given cameras (world-to-camera) to the predicted ones by their centres; of many, wild ones are left out.

    Two cameras determine the scale, the ratio of their distances; one determines nothing, and the scale is 0.
    """
    source, target = _centres(given).double(), _centres(predicted).double()
    fit = _fit(source, target)
    return fit if len(given) < ROBUST_FROM else _robust(source, target, fit)


def move_cameras(world_to_cam: Float[Tensor, "n 4 4"], fit: Similarity) -> Float[Tensor, "n 4 4"]:
    """Given cameras in the predicted world, world-to-camera."""
    rotation = world_to_cam[:, :3, :3].to(fit.rotation) @ fit.rotation.T
    centres = fit(_centres(world_to_cam).to(fit.rotation))
    return rigid(rotation, -(rotation @ centres[..., None])[..., 0])


def _centres(world_to_cam: Float[Tensor, "n 4 4"]) -> Float[Tensor, "n 3"]:
    return -(world_to_cam[:, :3, :3].mT @ world_to_cam[:, :3, 3:])[..., 0]


def _fit(source: Tensor, target: Tensor, keep: Bool[Tensor, " n"] | None = None) -> Similarity:
    weight = torch.ones(len(source), dtype=source.dtype) if keep is None else keep.to(source.dtype)
    return Similarity(*fit_similarity(source, target, weight))


def _robust(source: Float[Tensor, "n 3"], target: Float[Tensor, "n 3"], plain: Similarity) -> Similarity:
    """RANSAC on half of the cameras at a time; near enough is as near as any predicted camera is to a plainly placed one."""
    n, draws = len(source), np.random.default_rng(SEED)
    near = torch.cdist(plain(source), target).amin(1)
    threshold = torch.quantile(near, 0.5)
    best, most, least = None, 0, torch.inf
    for _ in range(SAMPLES):
        keep = torch.zeros(n, dtype=torch.bool)
        keep[draws.choice(np.arange(n), size=max(3, (n + 1) // 2), replace=False)] = True
        error = (_fit(source, target, keep)(source) - target).norm(dim=-1)
        inliers = error <= threshold
        count, mean = int(inliers.sum()), float(error[inliers].mean()) if inliers.any() else torch.inf
        if (count, -mean) > (most, -least):
            best, most, least = inliers, count, mean
    return plain if best is None or most < 3 else _fit(source, target, best)
