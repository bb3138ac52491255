"""Global alignment (eq. 9): pairwise pointmaps of any backend into one world.

    P* = argmin_{P,T,sigma}  sum_e sum_{v in e} sum_i  C_i^{v,e} || P_i^v - sigma_e T_e P_i^{v,e} ||

The sum of norms is minimised by iteratively reweighted least squares, in which each of its parts has a closed form:
weighted similarity fits for (sigma_e, T_e), weighted means for P. With known cameras T_e is given and every world point
lies on its pixel's ray, so that only sigma_e and one depth per pixel are left.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pycolmap
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry import camera_rays, depth_of, fit_similarity, pixel_grid, rigid, transform, unproject
from reconx_core.types import Cameras

SAMPLES = 3000  # pixels per pointmap that the transforms are fitted to
SOFT = 2e-3  # residual, relative to the distance, below which predictions count as equal and are averaged
WILD = 5.0  # times the median residual: from here on a prediction loses its pull
AGREES = 0.03  # relative distance at which a prediction counts as half in agreement with the fused point
RAY_ROUNDS = 3  # alternations between poses and depths on the rays of known intrinsics


class Aligned(NamedTuple):
    points_world: Float[Tensor, "n h w 3"]
    confidence: Float[Tensor, "n h w"]  # the best of a pixel's predictions, times the share of them that agrees
    cameras: Cameras


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation, one per edge."""

    scale: Float[Tensor, " e"]
    rotation: Float[Tensor, "e 3 3"]
    translation: Float[Tensor, "e 3"]

    def __call__(self, points: Float[Tensor, "e *m 3"]) -> Float[Tensor, "e *m 3"]:
        flat = points.flatten(1, -2)
        return (self.scale[:, None, None] * flat @ self.rotation.mT + self.translation[:, None]).reshape(points.shape)


def align_pointmaps(
    pairs: Int[Tensor, "e 2"],
    points: Float[Tensor, "e 2 h w 3"],
    confidence: Float[Tensor, "e 2 h w"],
    fixed: Cameras | None = None,
    intrinsics: Float[Tensor, "n 3 3"] | None = None,
    iterations: int = 100,
) -> Aligned:
    """World pointmaps, their confidence and cameras of n views from predictions on pairs of them.

    Both pointmaps of a pair are in the frame of its first camera, ``confidence`` is >= 0 and 0 where nothing is known.
    ``fixed``: known cameras of all views; they stay as they are and give frame and units, ``iterations`` then has no use.
    ``intrinsics``: known, poses are not. Without either, one focal per view is recovered; a view that is the first of
    no pair takes the median of the others. Unposed worlds: first camera = identity, median depth = 1.

    Raises:
        ValueError: shapes that disagree, or pairs that do not join all views.
    """
    n = _count_views(pairs, points, confidence, fixed, intrinsics)
    if fixed is not None:
        return _on_rays(pairs, _by_cameras(pairs, points, confidence, fixed), confidence, fixed)
    _, _, height, width, _ = points.shape
    sample = _sample(height, width)
    some, weight = points.flatten(2, 3)[:, :, sample].double(), confidence.flatten(2)[:, :, sample].double()
    edges, world = _alternate(pairs, some, weight, n, iterations)
    if intrinsics is None:
        intrinsics = _recover_intrinsics(pairs, some, weight, n, height, width)
    weight_of_view = torch.zeros(n, weight.shape[-1], dtype=weight.dtype).index_add_(0, pairs.flatten(), weight.flatten(0, 1))
    cameras = _recover_poses(world, weight_of_view, intrinsics, sample, height, width)
    moved = Similarity(*(part.float() for part in edges))(points)
    for _ in range(RAY_ROUNDS):
        aligned = _on_rays(pairs, moved, confidence, cameras)
        cameras = _recover_poses(
            aligned.points_world.flatten(1, 2)[:, sample], weight_of_view, intrinsics, sample, height, width
        )
    return _canonical(_on_rays(pairs, moved, confidence, cameras))


def _count_views(pairs: Tensor, points: Tensor, confidence: Tensor, fixed: Cameras | None, intrinsics: Tensor | None) -> int:
    e, n = len(pairs), int(pairs.max()) + 1
    if points.shape[:2] != (e, 2) or points.shape[-1] != 3 or confidence.shape != points.shape[:-1]:
        raise ValueError(
            f"pairs {tuple(pairs.shape)}, points {tuple(points.shape)}, confidence {tuple(confidence.shape)} disagree"
        )
    known = intrinsics if fixed is None else fixed.intrinsics
    if known is not None and len(known) != n:
        raise ValueError(f"pairs name {n} views, but {len(known)} cameras are given")
    return n


def _sample(height: int, width: int) -> Int[Tensor, " m"]:
    """Indices of about SAMPLES pixels on a regular grid."""
    step = max(1, round((height * width / SAMPLES) ** 0.5))
    return torch.arange(height * width).reshape(height, width)[step // 2 :: step, step // 2 :: step].flatten()


# --- known cameras -----------------------------------------------------------------------------------------------------


def _by_cameras(pairs: Tensor, points: Tensor, confidence: Tensor, cameras: Cameras) -> Float[Tensor, "e 2 h w 3"]:
    """World points of every edge: T_e is the first camera's pose, sigma_e lays the second map on the second camera's rays."""
    height, width = points.shape[2:4]
    sample = _sample(height, width)
    rays = camera_rays(cameras.intrinsics, height, width).flatten(1, 2)[pairs[:, 1]][:, sample]
    to_first = cameras.world_to_cam[pairs[:, 0]] @ cameras.cam_to_world[pairs[:, 1]]
    rays = rays @ to_first[:, :3, :3].mT
    second = points[:, 1].flatten(1, 2)[:, sample]
    # scale * P and the second centre c differ by a multiple of the ray: scale * (P x ray) = c x ray.
    across = torch.linalg.cross(second, rays)
    wanted = torch.linalg.cross(to_first[:, None, :3, 3].expand_as(rays), rays)
    ratio = (across * wanted).sum(-1) / (across * across).sum(-1).clamp(min=1e-12)
    weight = confidence[:, 1].flatten(1)[:, sample] * wanted.norm(dim=-1)
    scale = weighted_median(ratio, weight, dim=1)
    # Centres that coincide say nothing about the scale; a prediction is then taken at its word.
    scale = torch.where((scale > 0) & (wanted.norm(dim=-1).amax(1) > 1e-6 * second.norm(dim=-1).amax(1)), scale, 1.0)
    flat = (scale[:, None, None] * points.flatten(1, 3)) @ cameras.cam_to_world[pairs[:, 0], :3, :3].mT
    return (flat + cameras.cam_to_world[pairs[:, 0], None, :3, 3]).reshape(points.shape)


def _on_rays(pairs: Tensor, moved: Float[Tensor, "e 2 h w 3"], confidence: Tensor, cameras: Cameras) -> Aligned:
    """Per pixel the depth that minimises the sum of weighted distances to its predictions, and their agreement."""
    depths, fused = [], []
    for view in range(len(cameras)):
        edge, side = (pairs == view).nonzero(as_tuple=True)
        camera = cameras[view : view + 1]
        weight = confidence[edge, side]
        found = torch.cat([depth_of(moved[e, s][None], camera) for e, s in zip(edge.tolist(), side.tolist())])
        depth = _soft_median(found, weight)
        off = (found - depth).abs() / depth.abs().clamp(min=1e-9)
        agreement = (weight / (1 + (off / AGREES) ** 2)).sum(0) / weight.sum(0).clamp(min=1e-12)
        # A point behind the camera is no prediction of what the pixel shows.
        fused.append(torch.where(depth > 0, weight.amax(0) * agreement, 0.0))
        depths.append(depth)
    return Aligned(unproject(torch.stack(depths), cameras), torch.stack(fused), cameras)


def _soft_median(values: Float[Tensor, "k h w"], weight: Float[Tensor, "k h w"]) -> Float[Tensor, "h w"]:
    """Weighted median over k that averages what agrees with it to within SOFT."""
    median = weighted_median(values, weight, dim=0)
    for _ in range(3):
        near = (weight + 1e-9) / (values - median).abs().clamp(min=SOFT * median.abs() + 1e-12)
        median = (near * values).sum(0) / near.sum(0)
    return median


def weighted_median(values: Float[Tensor, "*n"], weight: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*m"]:
    """The smallest value at which half of the weight is reached; the plain one where all weights are 0."""
    values, order = values.sort(dim=dim)
    total = (weight + 1e-9).gather(dim, order).cumsum(dim)
    index = (total < 0.5 * total.narrow(dim, -1 % total.shape[dim], 1)).sum(dim, keepdim=True)
    return values.gather(dim, index).squeeze(dim)


# --- unknown cameras ---------------------------------------------------------------------------------------------------


def _alternate(
    pairs: Tensor, points: Float[Tensor, "e 2 m 3"], weight: Float[Tensor, "e 2 m"], n: int, iterations: int
) -> tuple[Similarity, Float[Tensor, "n m 3"]]:
    """Minimise eq. 9 by turns over the world points and over the edges' similarity transforms."""
    edges, world = _start(pairs, points, weight, n)
    for _ in range(iterations):
        world = _fuse(pairs, edges(points), _reweight(weight, edges(points), world[pairs]), n)
        near = _reweight(weight, edges(points), world[pairs])
        edges = Similarity(*fit_similarity(points.flatten(1, 2), world[pairs].flatten(1, 2), near.flatten(1)))
        # Without this the minimum is all points in one place; the paper's normalisation is a product of scales of 1.
        unit = edges.scale.log().mean().exp()
        edges, world = Similarity(edges.scale / unit, edges.rotation, edges.translation / unit), world / unit
    return edges, _fuse(pairs, edges(points), _reweight(weight, edges(points), world[pairs]), n)


def _reweight(weight: Float[Tensor, "e 2 m"], moved: Tensor, world: Tensor) -> Float[Tensor, "e 2 m"]:
    """Weights under which least squares has the minimum of the weighted sum of norms, wild residuals cut off.

    Eq. 9 has no cut. It is needed where a pixel has two predictions: a wild one then pulls on the transform of the good one
    as hard as that on its own, because any point between the two is a minimum.
    """
    distance = (moved - world).norm(dim=-1)
    size = (world - world.mean((1, 2), keepdim=True)).norm(dim=-1).mean((1, 2))[:, None, None]
    cut = WILD * distance[weight > 0].median().maximum(SOFT * size)
    return weight / distance.maximum(SOFT * size) / (1 + (distance / cut) ** 2)


def _fuse(pairs: Tensor, moved: Float[Tensor, "e 2 m 3"], weight: Float[Tensor, "e 2 m"], n: int) -> Float[Tensor, "n m 3"]:
    """Weighted mean over the edges of each view."""
    weight = (weight + 1e-12).flatten(0, 1)[..., None]
    total = weight.new_zeros(n, weight.shape[1], 1).index_add_(0, pairs.flatten(), weight)
    return moved.new_zeros(n, *moved.shape[2:]).index_add_(0, pairs.flatten(), weight * moved.flatten(0, 1)) / total


def _start(pairs: Tensor, points: Tensor, weight: Tensor, n: int) -> tuple[Similarity, Float[Tensor, "n m 3"]]:
    """Along a spanning tree of the most confident edges, each laid on what the tree already has of its two views."""
    world = torch.zeros(n, *points.shape[2:], dtype=points.dtype)
    known = torch.zeros(n, dtype=torch.bool)
    strength = weight.mean(-1).amin(-1)
    known[pairs[strength.argmax(), 0]] = True
    world[pairs[strength.argmax(), 0]] = points[strength.argmax(), 0]
    while not known.all():
        frontier = known[pairs[:, 0]] ^ known[pairs[:, 1]]
        if not frontier.any():
            raise ValueError(f"pairs {pairs.tolist()} do not join all {n} views")
        edge = int(torch.where(frontier, strength, -1.0).argmax())
        old, new = (0, 1) if known[pairs[edge, 0]] else (1, 0)
        placed = _fit_robust(points[edge, old][None], world[pairs[edge, old]][None], weight[edge, old][None])
        world[pairs[edge, new]] = placed(points[edge, new][None])[0]
        known[pairs[edge, new]] = True
    return _fit_robust(points.flatten(1, 2), world[pairs].flatten(1, 2), weight.flatten(1)), world


def _fit_robust(source: Float[Tensor, "e m 3"], target: Float[Tensor, "e m 3"], weight: Float[Tensor, "e m"]) -> Similarity:
    """RANSAC, then the reweighted fit: from a least-squares start, wild points would hold the latter for hundreds of steps."""
    fit = Similarity(*(torch.stack(part) for part in zip(*map(_fit_consensus, source, target, weight))))
    for _ in range(5):
        near = _reweight(weight[:, None], fit(source)[:, None], target[:, None])[:, 0]
        fit = Similarity(*fit_similarity(source, target, near))
    return fit


def _fit_consensus(
    source: Float[Tensor, "m 3"], target: Float[Tensor, "m 3"], weight: Float[Tensor, " m"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
    keep = (weight > 0) & (weight >= weight.median())
    size = (target[keep] - target[keep].median(0).values).norm(dim=-1).median()
    options = pycolmap.RANSACOptions(max_error=float(0.05 * size), random_seed=0, max_num_trials=1000, min_inlier_ratio=0.1)
    found = pycolmap.estimate_sim3d_robust(source[keep].numpy(), target[keep].numpy(), options)
    if found is None:
        return fit_similarity(source, target, weight)
    matrix = torch.from_numpy(found["tgt_from_src"].matrix())  # type: ignore[index]  # a dict, whatever the stub says
    scale = torch.linalg.det(matrix[:, :3]) ** (1 / 3)
    return scale, matrix[:, :3] / scale, matrix[:, 3]


def _recover_intrinsics(
    pairs: Tensor, points: Tensor, weight: Tensor, n: int, height: int, width: int
) -> Float[Tensor, "n 3 3"]:
    """One focal per view from its pointmap in its own frame, the principal point in the middle."""
    pixel = (pixel_grid(height, width).flatten(0, 1)[_sample(height, width)] - torch.tensor([width / 2, height / 2])).to(points)
    focals = torch.full((n,), torch.nan, dtype=points.dtype)
    for view in range(n):
        edge = (pairs[:, 0] == view).nonzero()[:, 0]
        if len(edge):
            focals[view] = fit_focal(
                pixel.expand(len(edge), -1, 2).flatten(0, 1), points[edge, 0].flatten(0, 1), weight[edge, 0].flatten()
            )
    focals = torch.where(focals.isnan(), focals.nanmedian(), focals)
    intrinsics = torch.eye(3).expand(n, 3, 3).clone()
    intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = focals.float()
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = width / 2, height / 2
    return intrinsics


def fit_focal(pixel: Float[Tensor, "m 2"], points: Float[Tensor, "m 3"], weight: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """argmin_f sum_i C_i || pixel_i - f (x_i, y_i) / z_i ||, Weiszfeld's iteration; pixels count from the principal point."""
    slope = points[:, :2] / points[:, 2:].clamp(min=1e-9)
    each = (pixel * pixel).sum(-1) / (pixel * slope).sum(-1).clamp(min=1e-12)
    weight = torch.where(points[:, 2] > 1e-6, weight, 0.0)
    focal = weighted_median(each[None], (weight * pixel.norm(dim=-1))[None], dim=1)[0]
    # A wild point close to the camera's plane has a slope, hence a leverage, without bound.
    weight = torch.where((each / focal).log().abs() < 0.3, weight, 0.0)
    for _ in range(10):
        near = weight / (pixel - focal * slope).norm(dim=-1).clamp(min=0.05)
        focal = (near * (pixel * slope).sum(-1)).sum() / (near * (slope * slope).sum(-1)).sum().clamp(min=1e-12)
    return focal


def _recover_poses(
    world: Float[Tensor, "n m 3"],
    weight: Float[Tensor, "n m"],
    intrinsics: Float[Tensor, "n 3 3"],
    sample: Tensor,
    height: int,
    width: int,
) -> Cameras:
    """Absolute pose of every view from its own pointmap's confident half."""
    pixel = pixel_grid(height, width).flatten(0, 1)[sample].double().numpy()
    poses = []
    for view in range(len(world)):
        keep = (weight[view] > 0) & (weight[view] >= weight[view].median())
        pose = _absolute_pose(pixel[keep.numpy()], world[view, keep].double().numpy(), intrinsics[view], height, width)
        poses.append(torch.linalg.inv(pose))
    return Cameras(intrinsics.float(), torch.stack(poses).float(), width, height)


def _absolute_pose(pixel: np.ndarray, world: np.ndarray, intrinsics: Tensor, height: int, width: int) -> Float[Tensor, "4 4"]:
    (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
    camera = pycolmap.Camera(model="PINHOLE", width=width, height=height, params=[fx, fy, cx, cy])
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.mergedict({"max_error": 0.01 * max(height, width), "random_seed": 0, "max_num_trials": 1000})
    found = pycolmap.estimate_and_refine_absolute_pose(pixel, world, camera, options)
    if found is None:
        raise ValueError("No camera agrees with a view's aligned pointmap")
    matrix = torch.from_numpy(found["cam_from_world"].matrix())
    return rigid(matrix[:, :3], matrix[:, 3])


def _canonical(aligned: Aligned) -> Aligned:
    """First camera = identity, median depth of the confident half = 1."""
    cameras, confidence = aligned.cameras, aligned.confidence
    depth = depth_of(aligned.points_world, cameras)
    unit = depth[(confidence > 0) & (confidence >= confidence.median())].median()
    first = cameras.world_to_cam[0]
    poses = first @ cameras.cam_to_world
    poses[:, :3, 3] /= unit
    poses[0] = torch.eye(4)
    points = transform(first, aligned.points_world.flatten(0, 2)).reshape(aligned.points_world.shape) / unit
    return Aligned(points, confidence, Cameras(cameras.intrinsics, poses, cameras.width, cameras.height))
