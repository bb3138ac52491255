"""Initialisation of global alignment (eq. 9): closed forms that are robust to outliers.

With known cameras, T_e is given and every world point lies on its pixel's ray, so that only sigma_e and one depth per pixel
are left. Without, the pointmaps are aligned along a spanning tree, and the cameras are estimated from them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pycolmap
import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import camera_rays, fit_similarity, pixel_grid, rigid
from reconx_core.pointcloud.global_alignment.refine import OUTLIER, SOFT, Similarity
from reconx_core.types import Cameras

SAMPLES = 3000  # pixels per pointmap for fitting the transforms
RANSAC_POINTS = 500  # of these, for RANSAC
FOCAL_RANGE = (0.25, 4.0)  # search range of focal / long side


def _sample(height: int, width: int) -> Int[Tensor, " m"]:
    """Indices of about SAMPLES pixels on a regular grid."""
    step = max(1, round((height * width / SAMPLES) ** 0.5))
    return torch.arange(height * width).reshape(height, width)[step // 2 :: step, step // 2 :: step].flatten()


# --- known cameras -----------------------------------------------------------------------------------------------------


def start_from_cameras(
    pairs: Int[Tensor, "e 2"], points: Float[Tensor, "e 2 h w 3"], confidence: Float[Tensor, "e 2 h w"], cameras: Cameras
) -> Similarity:
    """T_e is the first camera's pose, sigma_e aligns the second map with the second camera's rays."""
    height, width = points.shape[2:4]
    sample = _sample(height, width)
    rays = camera_rays(cameras.intrinsics, height, width).flatten(1, 2)[:, sample][pairs[:, 1]]
    to_first = cameras.world_to_cam[pairs[:, 0]] @ cameras.cam_to_world[pairs[:, 1]]
    rays = rays @ to_first[:, :3, :3].mT
    second = points[:, 1].flatten(1, 2)[:, sample]
    # scale * P and the second centre c differ by a multiple of the ray: scale * (P x ray) = c x ray.
    across = torch.linalg.cross(second, rays)
    wanted = torch.linalg.cross(to_first[:, None, :3, 3].expand_as(rays), rays)
    ratio = (across * wanted).sum(-1) / (across * across).sum(-1).clamp(min=1e-12)
    weight = confidence[:, 1].flatten(1)[:, sample] * wanted.norm(dim=-1)
    scale = weighted_median(ratio, weight, dim=1)
    # Coincident centres do not constrain the scale; the prediction's own scale is used then.
    scale = torch.where((scale > 0) & (wanted.norm(dim=-1).amax(1) > 1e-6 * second.norm(dim=-1).amax(1)), scale, 1.0)
    first = cameras.cam_to_world[pairs[:, 0]]
    return Similarity(scale, first[:, :3, :3], first[:, :3, 3])


def weighted_median(values: Float[Tensor, "*n"], weight: Float[Tensor, "*n"], dim: int) -> Float[Tensor, "*m"]:
    """The smallest value at which half of the weight is reached; the unweighted one if all weights are 0."""
    values, order = values.sort(dim=dim)
    total = (weight + 1e-9).gather(dim, order).cumsum(dim)
    index = (total < 0.5 * total.narrow(dim, -1 % total.shape[dim], 1)).sum(dim, keepdim=True)
    return values.gather(dim, index).squeeze(dim)


# --- unknown cameras ---------------------------------------------------------------------------------------------------


class Known(NamedTuple):
    """Prior knowledge of the views and their lenses."""

    fixed: Cameras | None = None  # of the first views
    intrinsics: Float[Tensor, "n 3 3"] | None = None
    principal_points: Float[Tensor, "n 2"] | None = None  # pixels; the middle if None
    shared_focal: bool = False


def start_from_pointmaps(
    pairs: Int[Tensor, "e 2"], points: Float[Tensor, "e 2 h w 3"], confidence: Float[Tensor, "e 2 h w"], n: int, known: Known
) -> tuple[Cameras, Similarity]:
    """Cameras of all n views and the edges' transforms, in the frame of the known cameras if there are any.

    Raises:
        ValueError: the pairs do not connect all views.
    """
    height, width = points.shape[2:4]
    sample = _sample(height, width)
    some, weight = points.flatten(2, 3)[:, :, sample].double().cpu(), confidence.flatten(2)[:, :, sample].double().cpu()
    pairs = pairs.cpu()
    edges, world = _align_along_tree(pairs, some, weight, n)
    intrinsics = _intrinsics(pairs, some, weight, n, (height, width), known)
    of_view = torch.zeros(n, weight.shape[-1], dtype=weight.dtype).index_add_(0, pairs.flatten(), weight.flatten(0, 1))
    cameras = _recover_poses(world, of_view, intrinsics, _first_frames(pairs, edges, weight, n), sample, height, width)
    edges = Similarity(*(part.float() for part in edges))
    return (cameras, edges) if known.fixed is None else _align_to_fixed(known.fixed.cam_to_world.cpu(), cameras, edges)


def _align_to_fixed(fixed: Float[Tensor, "k 4 4"], cameras: Cameras, edges: Similarity) -> tuple[Cameras, Similarity]:
    """Align the world to the fixed poses of its first cameras, and set these poses."""
    k = len(fixed)
    u, _, vt = torch.linalg.svd((fixed[:, :3, :3] @ cameras.cam_to_world[:k, :3, :3].mT).sum(0))
    turn = u @ torch.diag(torch.stack([u.new_ones(()), u.new_ones(()), torch.linalg.det(u @ vt)])) @ vt
    centres = cameras.cam_to_world[:, :3, 3] @ turn.T
    theirs, ours = fixed[:, :3, 3].mean(0), centres[:k].mean(0)
    wide, narrow = (fixed[:, :3, 3] - theirs).norm(), (centres[:k] - ours).norm()
    scale = wide / narrow if min(wide, narrow) > 0 else centres.new_ones(())
    shift = theirs - scale * ours
    poses = rigid(turn @ cameras.cam_to_world[:, :3, :3], scale * centres + shift)
    poses[:k] = fixed
    moved = scale * edges.translation @ turn.T + shift
    return replace(cameras, cam_to_world=poses), Similarity(scale * edges.scale, turn @ edges.rotation, moved)


def _align_along_tree(
    pairs: Int[Tensor, "e 2"], points: Float[Tensor, "e 2 m 3"], weight: Float[Tensor, "e 2 m"], n: int
) -> tuple[Similarity, Float[Tensor, "n m 3"]]:
    """Along the maximum spanning tree (Prim's), align each edge to the points that the tree already has of its views."""
    world = torch.zeros(n, *points.shape[2:], dtype=points.dtype)
    known = torch.zeros(n, dtype=torch.bool)
    strength = weight.mean(-1).prod(-1)
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


def _reweight(weight: Float[Tensor, "e 2 m"], moved: Tensor, world: Tensor) -> Float[Tensor, "e 2 m"]:
    """IRLS weights: least squares with them minimises the weighted sum of norms, with outliers down-weighted.

    The cut-off is not in eq. 9. It is needed for pixels with two predictions: an outlier pulls on the transform of the inlier
    as hard as the inlier on its own, because any point between the two is a minimum.
    """
    distance = (moved - world).norm(dim=-1)
    size = (world - world.mean((1, 2), keepdim=True)).norm(dim=-1).mean((1, 2))[:, None, None]
    cut = OUTLIER * distance[weight > 0].median().maximum(SOFT * size)
    return weight / distance.maximum(SOFT * size) / (1 + (distance / cut) ** 2)


def _fit_robust(source: Float[Tensor, "e m 3"], target: Float[Tensor, "e m 3"], weight: Float[Tensor, "e m"]) -> Similarity:
    """RANSAC, then the reweighted fit, which from a least-squares start would need hundreds of steps to reject outliers."""
    fit = Similarity(*(torch.stack(part) for part in zip(*map(_fit_consensus, source, target, weight))))
    for _ in range(5):
        near = _reweight(weight[:, None], fit(source)[:, None], target[:, None])[:, 0]
        fit = Similarity(*fit_similarity(source, target, near))
    # A fit to no points or to noise may have scale 0, without a logarithm.
    return fit._replace(scale=torch.where(weight.sum(-1) > 0, fit.scale.clamp(min=1e-6), 1.0))


def _fit_consensus(
    source: Float[Tensor, "m 3"], target: Float[Tensor, "m 3"], weight: Float[Tensor, " m"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "3 3"], Float[Tensor, " 3"]]:
    keep = ((weight > 0) & (weight >= weight.median())).nonzero()[:, 0]
    keep = keep[:: max(1, len(keep) // RANSAC_POINTS)]
    size = (target[keep] - target[keep].median(0).values).norm(dim=-1).median() if len(keep) >= 3 else weight.new_zeros(())
    if not size > 0:  # no extent: no points, or a single one
        return weight.new_ones(()), torch.eye(3).to(source), source.new_zeros(3)
    options = pycolmap.RANSACOptions(max_error=float(0.05 * size), random_seed=0, max_num_trials=1000, min_inlier_ratio=0.1)
    found = pycolmap.estimate_sim3d_robust(source[keep].numpy(), target[keep].numpy(), options)
    if found is None:
        return fit_similarity(source, target, weight)
    matrix = torch.from_numpy(found["tgt_from_src"].matrix())  # type: ignore[index]  # a dict, contrary to the stub
    scale = torch.linalg.det(matrix[:, :3]) ** (1 / 3)
    return scale, matrix[:, :3] / scale, matrix[:, 3]


def _intrinsics(
    pairs: Tensor, points: Tensor, weight: Tensor, n: int, size: tuple[int, int], known: Known
) -> Float[Tensor, "n 3 3"]:
    """Known intrinsics; other focals are fitted to the first pointmaps of pairs, which are in their own camera's frame."""
    if known.intrinsics is not None:
        intrinsics = known.intrinsics.cpu().clone()
    else:
        centre = torch.tensor([[size[1] / 2, size[0] / 2]]) if known.principal_points is None else known.principal_points.cpu()
        intrinsics = torch.eye(3).repeat(n, 1, 1)
        intrinsics[:, :2, 2] = centre
        intrinsics[:, 0, 0] = intrinsics[:, 1, 1] = _focals(pairs, points, weight, intrinsics[:, :2, 2], size, known).float()
    if known.fixed is not None:
        intrinsics[: len(known.fixed)] = known.fixed.intrinsics.cpu()
    return intrinsics


def _focals(
    pairs: Tensor, points: Tensor, weight: Tensor, centre: Float[Tensor, "n 2"], size: tuple[int, int], known: Known
) -> Float[Tensor, " n"]:
    """One focal per view (the median of the others if the view is first in no pair), or a shared one."""
    if known.shared_focal and known.fixed is not None:
        return known.fixed.intrinsics[:, 0, 0].cpu().median().repeat(len(centre))
    grid = pixel_grid(*size).flatten(0, 1)[_sample(*size)]
    pixel = (grid - centre[pairs[:, 0], None]).to(points)
    owner = torch.zeros_like(pairs[:, 0]) if known.shared_focal else pairs[:, 0]
    focals = torch.full((len(centre),), torch.nan, dtype=points.dtype)
    for view in owner.unique():
        mine = owner == view
        focals[view] = fit_focal(pixel[mine].flatten(0, 1), points[mine, 0].flatten(0, 1), weight[mine, 0].flatten())
    long_side = max(size)
    return torch.where(focals.isnan(), focals.nanmedian(), focals).clamp(FOCAL_RANGE[0] * long_side, FOCAL_RANGE[1] * long_side)


def fit_focal(pixel: Float[Tensor, "m 2"], points: Float[Tensor, "m 3"], weight: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """argmin_f sum_i C_i || pixel_i / f - (x_i, y_i) / z_i ||, Weiszfeld's iteration; pixels count from the principal point."""
    slope = points[:, :2] / points[:, 2:].clamp(min=1e-9)
    each = (pixel * pixel).sum(-1) / (pixel * slope).sum(-1).clamp(min=1e-12)
    weight = torch.where(points[:, 2] > 1e-6, weight, 0.0)
    focal = weighted_median(each[None], (weight * pixel.norm(dim=-1))[None], dim=1)[0]
    # An outlier close to the camera plane has an unbounded slope, hence unbounded leverage.
    weight = torch.where((each / focal).log().abs() < 0.3, weight, 0.0)
    for _ in range(10):
        near = weight / (pixel - focal * slope).norm(dim=-1).clamp(min=0.05)
        # The slopes are noisy: their squares in the quotient would bias every focal to too small values.
        focal = (near * (pixel * pixel).sum(-1)).sum() / (near * (pixel * slope).sum(-1)).sum().clamp(min=1e-12)
    return focal


def _first_frames(pairs: Tensor, edges: Similarity, weight: Tensor, n: int) -> Float[Tensor, "n 4 4"]:
    """A pose for every view from its edges: its own frame if it is first in a pair, else its partner's."""
    poses = torch.zeros(n, 4, 4, dtype=torch.float64)
    strength = weight.mean(-1).prod(-1)
    for view in range(n):
        first = pairs[:, 0] == view
        edge = torch.where(first if first.any() else pairs[:, 1] == view, strength, -1.0).argmax()
        poses[view] = rigid(edges.rotation[edge], edges.translation[edge])
    return poses


def _recover_poses(
    world: Float[Tensor, "n m 3"],
    weight: Float[Tensor, "n m"],
    intrinsics: Float[Tensor, "n 3 3"],
    otherwise: Float[Tensor, "n 4 4"],
    sample: Tensor,
    height: int,
    width: int,
) -> Cameras:
    """Absolute pose of every view from its own pointmap's confident half, ``otherwise`` if no pose fits."""
    pixel = pixel_grid(height, width).flatten(0, 1)[sample].double().numpy()
    poses = []
    for view in range(len(world)):
        keep = (weight[view] > 0) & (weight[view] >= weight[view].median())
        pose = _absolute_pose(pixel[keep.numpy()], world[view, keep].double().numpy(), intrinsics[view], height, width)
        poses.append(otherwise[view] if pose is None else torch.linalg.inv(pose))
    return Cameras(intrinsics.float(), torch.stack(poses).float(), width, height)


def _absolute_pose(
    pixel: np.ndarray, world: np.ndarray, intrinsics: Tensor, height: int, width: int
) -> Float[Tensor, "4 4"] | None:
    (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
    camera = pycolmap.Camera(model="PINHOLE", width=width, height=height, params=[fx, fy, cx, cy])
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.mergedict({"max_error": 0.01 * max(height, width), "random_seed": 0, "max_num_trials": 1000})
    found = pycolmap.estimate_and_refine_absolute_pose(pixel, world, camera, options)
    if found is None:
        return None
    matrix = torch.from_numpy(found["cam_from_world"].matrix())
    return rigid(matrix[:, :3], matrix[:, 3])
