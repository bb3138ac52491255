"""Accuracy of geometry where the true depth is known: of pointmaps, of rendered Gaussians and of the point cloud."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from reconx_core.geometry.transforms import depth_of, unproject
from reconx_core.metrics.pose import align_cameras
from reconx_core.metrics.refine import map_targets
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians, PointCloud, Pointmaps, Views

NEAR = 0.03  # of the true depth: what counts as right
REACH = 0.01  # of the median true depth: how near a point has to be for the F-score
SOLID = 0.5  # opacity from which a rendered pixel has a depth
TRUSTED = 0.5  # confidence from which a backend means its depth: below it lie guesses, as on walls without texture
SAMPLES = 50_000  # points of which the distance to the other surface is taken


class DepthScore(NamedTuple):
    """Of pixels whose true depth is known."""

    error: float  # mean relative error of those with an estimate, percent
    within: float  # share of those within NEAR of the truth, percent
    known: float  # share that has an estimate


def score_geometry(
    gaussians: Gaussians, views: Views, depth: Float[Tensor, "n h w"], kept: Int[Tensor, " k"], pointmaps: Pointmaps,
    cloud: PointCloud,
) -> dict[str, float]:  # fmt: skip
    """Scores of a scene's geometry, in the units of the truth; those that have nothing to be taken over are left out.

    ``depth``: true z-depth of all views, 0 where not known. Estimated cameras fix the scale, as they do for held-out views.
    """
    photos, photo_depth = views.inputs().select(kept), depth[~views.is_target][kept]
    truth = photos.true_cameras
    if truth is None or pointmaps.radial is not None:
        return {}  # no scale, or pixels that are not the photos'
    posed = views.protocol == "posed"
    scale = 1.0 if posed else align_cameras(pointmaps.cameras, truth).scale
    known = (photo_depth > 0) & photos.masks
    own = depth_of(pointmaps.points_world, pointmaps.cameras) * scale
    scores = _named("depth", score_depth(own, (pointmaps.confidence > 0) & (own > 0), photo_depth, known))
    scores |= _named("trusted", score_depth(own, (pointmaps.confidence >= TRUSTED) & (own > 0), photo_depth, known))
    targets = views.targets()
    if len(targets) and targets.true_cameras is not None:
        cameras = targets.true_cameras if posed else map_targets(targets.true_cameras, pointmaps.cameras, truth)
        rendered, solid = render_depth(gaussians, cameras)
        target_depth = depth[views.is_target]
        scores |= _named("splats", score_depth(rendered * scale, solid, target_depth, (target_depth > 0) & targets.masks))
    if len(cloud) and known.any():
        xyz = cloud.xyz if posed else align_cameras(pointmaps.cameras, truth).points(cloud.xyz)
        scores |= score_cloud(xyz, unproject(photo_depth, truth)[known], float(photo_depth[known].median()))
    return scores


def score_depth(
    estimate: Float[Tensor, "n h w"], there: Bool[Tensor, "n h w"], truth: Float[Tensor, "n h w"], known: Bool[Tensor, "n h w"]
) -> DepthScore | None:
    """Of z-depth that is estimated where ``there``, against one that is ``known``; None where the two share no pixel."""
    both = there & known
    if not both.any():
        return None
    error = (estimate[both].double() / truth[both].double() - 1).abs()
    share = float(both.sum() / known.sum())
    return DepthScore(100 * float(error.mean()), 100 * float((error < NEAR).double().mean()), share)


@torch.no_grad()
def render_depth(gaussians: Gaussians, cameras: Cameras) -> tuple[Float[Tensor, "n h w"], Bool[Tensor, "n h w"]]:
    """z-depth of the Gaussians, averaged by their weights, and where they are opaque enough to have one."""
    rendered = [rasterize(gaussians, cameras[i : i + 1]) for i in range(len(cameras))]
    alpha = torch.cat([one.alpha for one in rendered])
    return torch.cat([one.depth for one in rendered]) / alpha.clamp(min=1e-6), alpha >= SOLID


def score_cloud(points: Float[Tensor, "p 3"], surface: Float[Tensor, "s 3"], depth: float) -> dict[str, float]:
    """Chamfer distance, percent of ``depth`` (the mean of both directions), and F-score at REACH of ``depth``.

    Distances are those to the nearest point; of more than SAMPLES, evenly taken ones stand for the rest.
    """
    accuracy, completeness = (_distances(*pair) for pair in ((points, surface), (surface, points)))
    precision, recall = (float((distance < REACH * depth).double().mean()) for distance in (accuracy, completeness))
    harmonic = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"chamfer": 50 * float(accuracy.mean() + completeness.mean()) / depth, "f_score": harmonic}


def _distances(points: Float[Tensor, "p 3"], others: Float[Tensor, "q 3"]) -> Float[Tensor, " m"]:
    """From points to the nearest of the others."""
    taken = points[:: -(-len(points) // SAMPLES)]
    return torch.from_numpy(cKDTree(others.double().numpy()).query(taken.double().numpy())[0])


def _named(prefix: str, score: DepthScore | None) -> dict[str, float]:
    if score is None:
        return {}
    return {f"{prefix}_error": score.error, f"{prefix}_within_3": score.within, f"{prefix}_known": score.known}
