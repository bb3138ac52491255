"""Cameras and sparse points from a few photos, without weights: SIFT, two-view geometry, incremental mapping (pycolmap)."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pycolmap
import torch
from jaxtyping import Bool, Float, Float64, Int
from numpy.typing import NDArray
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import transform
from reconx_core.geometry.undistort import straighten
from reconx_core.pointcloud.global_alignment.graph import nearest_pairs
from reconx_core.pointcloud.sfm.covariance import direction_errors
from reconx_core.pointcloud.sfm.evidence import judge_cameras, mean_agreement
from reconx_core.pointcloud.sfm.focal import FocalPrior, contradicted, focal_prior, pose_uncertainty, solve_focals
from reconx_core.pointcloud.sfm.given import doubtful_cameras
from reconx_core.pointcloud.sfm.mapper import Pair, Problem, drop_weakly_linked_images, drop_wide_angle_images, reconstruct
from reconx_core.pointcloud.sfm.matching import (
    Features,
    Matches,
    add_tilted,
    add_unadapted,
    extract_features,
    match_features,
    verify_matches,
)
from reconx_core.pointcloud.sfm.open_focal import OPEN, choose_focal, shows_focal
from reconx_core.pointcloud.sfm.parallax import Pixels, from_one_spot
from reconx_core.pointcloud.sfm.radial import Lens, corner_shift, radial_lenses
from reconx_core.types import Cameras, PointCloud, Tracks, Views

pycolmap.logging.minloglevel = 2  # otherwise glog prints every step; errors are raised as exceptions

WEAK = 40  # minimum number of points of a view; with fewer, it is matched again with tilted copies
# Ordinary photos have 600 to 4,000 features at 512 pixels, 250 to 750 at 256, 50 to 200 at 128.
SMALL, FEW_FEATURES = 256, 200  # long side in pixels, and features of a photo, up to which its size is likely to be the trouble
SAME_LENS = 1.03  # maximum ratio of the focals, or of the sizes, of photos that share a lens


class Solution(NamedTuple):
    problem: Problem
    reconstruction: pycolmap.Reconstruction
    priors: list[FocalPrior] | None  # None if the focals are known


@dataclass(frozen=True)
class Sfm:
    """Cameras of the registered photos and the points that they see.

    World frame: that of the known cameras; without any, the first registered camera is the identity and the median depth is 1.
    """

    cameras: Cameras  # of the registered views, in their order
    registered: Bool[Tensor, " views"]  # which of the given views these are
    sparse: PointCloud
    observations: Bool[Tensor, "n p"]  # registered view x point
    pairs: Int[Tensor, "e 2"]  # matched pairs, indices into the registered views
    inlier_counts: Int[Tensor, " e"]
    camera_confidence: float | None = None  # [0, 1]; None of known cameras
    radial: Float[Tensor, " n"] | None = None  # k1 of lenses by which the photos have to be undistorted with `cameras`
    tracks: Tracks | None = None  # where the registered views see the points of `sparse`


def require_two(views: Views) -> None:
    """Raise UserError for fewer than two photos."""
    if len(views) < 2:
        raise UserError(f"One photo is not enough: give at least two photos of the same place (got {len(views)}).")


def solve_cameras(
    views: Views, fixed: Cameras | None, generator: torch.Generator, doubt_given: bool = True, as_taken: bool = True
) -> Sfm:
    """Estimate the cameras of the input views. ``fixed``: known cameras of all or of the first views.

    Warns where the matches contradict known cameras of all views, unless ``doubt_given`` is false; and where the lens of photos
    without any camera bends, unless ``as_taken`` is false, since they have been undistorted: the cameras are then those of the
    undistorted photos (``radial``).

    Raises:
        UserError: fewer than two photos; or, unless cameras are known, no two photos that overlap, none from another spot than
            the others, or cameras that what the photos show contradicts. Warns if it hardly supports them.
    """
    require_two(views)
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    features = map_threads(extract_features, views.images, views.masks)
    counts = [len(each.keypoints) for each in features]
    posed = fixed is not None and len(fixed) == len(views)
    every = nearest_pairs(fixed) if fixed is not None and posed else list(itertools.combinations(range(len(views)), 2))
    matches = match_pairs(features, every, views, seed)
    if fixed is None:
        _require_parallax(views, matched_keypoints(features, matches))
    elif posed and doubt_given and (doubt := doubtful_cameras(views.names, fixed, matched_keypoints(features, matches))):
        warnings.warn(doubt, stacklevel=2)
    best = _solve(views, fixed, features, matches, seed)
    # With known cameras, points are needed only for the depth range, and a few suffice.
    weak = set() if posed and best is not None else _weak_views(best, len(views))
    if weak:  # wide baselines
        features = tilt_weak(features, views, weak)
        more = match_pairs(features, [pair for pair in every if weak & set(pair)], views, seed)
        best = _better(best, _solve(views, fixed, features, matches | more, seed))
    if best is None and fixed is not None and posed:
        return without_points(fixed)
    if best is None:
        raise UserError(_no_overlap(views, counts))
    uncertainty = 0.0
    if (priors := best.priors) is not None:
        best, uncertainty = _settle_focal(views, best, priors)
        # Photos whose cameras a dataset gives have been undistorted with them.
        lenses = radial_lenses(best.problem, best.reconstruction) if views.cameras is None and as_taken else None
        if lenses is not None:
            return _solve_straightened(views, best.problem, lenses, generator)
        warn_contradicted(contradicted(best.reconstruction, priors))
    sfm = to_sfm(views, fixed, best.problem, best.reconstruction)
    _warn_dropped(views, sfm.registered, counts)
    return sfm if fixed is not None else judge(views, to_canonical(sfm), uncertainty)


def _solve_straightened(views: Views, problem: Problem, lenses: list[Lens], generator: torch.Generator) -> Sfm:
    """The cameras of the photos undistorted by those lenses, with which features are found anew, up to the corners."""
    worst = max(lenses, key=lambda lens: corner_shift(lens, problem.size))
    warnings.warn(
        f"The lens bends straight lines (by {corner_shift(worst, problem.size):.0f} pixels in the corners, k1 "
        f"{worst.k1:+.3f}): the photos are undistorted.",
        stacklevel=3,
    )
    mine = [lenses[k] for k in problem.lens]
    height, width = problem.size
    pinhole = [[[lens.focal, 0, width / 2], [0, lens.focal, height / 2], [0, 0, 1]] for lens in mine]
    cameras = Cameras(torch.tensor(pinhole), torch.eye(4).repeat(len(mine), 1, 1), width, height)
    k1 = torch.tensor([lens.k1 for lens in mine])
    sfm = solve_cameras(straighten(views, cameras, k1), None, generator, as_taken=False)
    # The same pixels through the focals that are found now.
    ratio = sfm.cameras.intrinsics[:, 0, 0] / cameras.intrinsics[sfm.registered, 0, 0]
    return replace(sfm, radial=k1[sfm.registered] * ratio**2)


def _settle_focal(views: Views, found: Solution, priors: list[FocalPrior]) -> tuple[Solution, float]:
    """The solution with the focal that two photos show, where their matches leave it open; and by how much they do."""
    uncertainty = pose_uncertainty(found.problem, found.reconstruction, priors)
    if uncertainty < OPEN or not shows_focal(found.reconstruction):
        return found, uncertainty

    def agreement(reconstruction: pycolmap.Reconstruction) -> float:
        if not reconstruction.num_points3D():
            return 0.0
        sfm = to_canonical(to_sfm(views, None, found.problem, reconstruction))
        return mean_agreement(views.select(sfm.registered), sfm.cameras, sfm.sparse, sfm.observations)

    chosen = choose_focal(found.problem, found.reconstruction, priors, agreement)
    return found._replace(reconstruction=chosen), uncertainty


def judge(views: Views, sfm: Sfm, uncertainty: float) -> Sfm:
    """The estimated cameras with their confidence; warns or raises UserError as ``judge_cameras`` does.

    ``uncertainty``: degrees by which unknown focals leave the poses open.
    """
    seen = views.select(sfm.registered)
    directions = None if sfm.tracks is None else direction_errors(sfm.cameras, sfm.sparse, sfm.tracks)
    confidence = judge_cameras(seen, sfm.cameras, sfm.sparse, sfm.observations, uncertainty, directions)
    return replace(sfm, camera_confidence=confidence)


def without_points(fixed: Cameras) -> Sfm:
    """Known cameras of photos in which no match was found; depth then has to do with the geometry of the cameras."""
    n, pairs = len(fixed), torch.tensor(nearest_pairs(fixed))
    sparse = PointCloud(torch.empty(0, 3), torch.empty(0, 3), torch.empty(0))
    seen = torch.zeros(n, 0, dtype=torch.bool)
    return Sfm(fixed, torch.ones(n, dtype=torch.bool), sparse, seen, pairs, torch.zeros(len(pairs), dtype=torch.int64))


def map_threads(function: Callable[..., Features], *columns: Iterable) -> list[Features]:
    """Run on one photo per thread: SIFT releases the GIL."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, *columns))


def tilt_weak(features: list[Features], views: Views, weak: set[int]) -> list[Features]:
    """Add tilted features to the weak views, and to the others what these are matched with."""

    def more(view: int) -> Features:
        add = add_tilted if view in weak else add_unadapted
        return add(features[view], views.images[view], views.masks[view])

    return map_threads(more, range(len(views)))


def match_pairs(
    features: list[Features], pairs: list[tuple[int, int]], views: Views, seed: int
) -> dict[tuple[int, int], Matches]:
    """Verified matches per pair; pairs without matches are left out."""
    found = {}
    for i, j in pairs:
        matches = verify_matches(features[i], features[j], match_features(features[i], features[j]), match_error(views), seed)
        if len(matches):
            found[i, j] = matches
    return found


def _solve(
    views: Views, fixed: Cameras | None, features: list[Features], matches: dict[tuple[int, int], Matches], seed: int
) -> Solution | None:
    lens, known, prior = _lenses(views, fixed)
    poses = {} if fixed is None else dict(enumerate(fixed.world_to_cam.double().numpy()))
    size = (views.images.shape[1], views.images.shape[2])
    problem = Problem([f.keypoints for f in features], matches, lens, size, poses, seed, match_error(views))
    found = reconstruct(problem, known, False) if prior is None else solve_focals(problem, prior)
    if found is not None:
        drop_wide_angle_images(problem, found)
        drop_weakly_linked_images(problem, found)
    if found is None or found.num_reg_images() < 2 or found.num_points3D() == 0:
        return None
    return Solution(problem, found, prior)


def _weak_views(best: Solution | None, n: int) -> set[int]:
    """Views that are not registered, or with too few points to detect a wrong pose."""
    if best is None:
        return set(range(n))
    points = {i - 1: best.reconstruction.image(i).num_points3D for i in best.reconstruction.reg_image_ids()}
    return {view for view in range(n) if points.get(view, 0) < WEAK}


def _better(one: Solution | None, two: Solution | None) -> Solution | None:
    found = [s for s in (two, one) if s is not None]
    return max(found, key=lambda s: s.reconstruction.num_reg_images(), default=None)


def match_error(views: Views) -> float:
    """Inlier threshold of matches in pixels: the accuracy of SIFT at 512 px, growing slowly with the image size."""
    return 2.0 * max(1.0, max(views.masks.shape[1:]) / 512) ** 0.5


def _lenses(
    views: Views, fixed: Cameras | None
) -> tuple[tuple[int, ...], list[Float64[np.ndarray, "3 3"]], list[FocalPrior] | None]:
    """(lens of each view, intrinsics per lens, focal priors, or None if the focals are known)."""
    known = fixed.intrinsics if fixed is not None else views.given_intrinsics
    if known is None:
        lens, kinds = group_lenses(views)
        return lens, [], [focal_prior(exif, long_side) for exif, long_side in kinds]
    first = list(known.double().numpy())
    if len(first) == len(views):
        return tuple(range(len(views))), first, None
    # The first views are known and fixed; the others are assumed to have the same intrinsics.
    return (*range(len(first)), *[len(first)] * (len(views) - len(first))), [*first, np.median(np.stack(first), 0)], None


def group_lenses(views: Views) -> tuple[tuple[int, ...], list[tuple[float, int]]]:
    """One lens for all photos of one size with the same EXIF focal, or none: lens per view, (EXIF, long side) per lens."""
    lens, kinds = [], list[tuple[float, int]]()
    for exif, image, mask in zip(views.focal_prior.tolist(), views.images, views.masks):
        kind = (exif, _long_side(image, mask))
        same = [k for k, other in enumerate(kinds) if _agree(kind[0], other[0]) and _agree(*map(float, (kind[1], other[1])))]
        if not same:
            kinds.append(kind)
        lens.append(same[0] if same else len(kinds) - 1)
    return tuple(lens), kinds


def _long_side(image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> int:
    """Long side of the photo without its padding, which is black and masked (pixels masked by the user are not black)."""
    rows, columns = (((image > 0).any(-1) | mask).any(axis).nonzero()[:, 0] for axis in (1, 0))
    return max((int(r.max() - r.min()) + 1 for r in (rows, columns) if len(r)), default=max(mask.shape))


def _agree(a: float, b: float) -> bool:
    return (math.isnan(a) and math.isnan(b)) or max(a, b) < SAME_LENS * min(a, b)


def to_sfm(views: Views, fixed: Cameras | None, problem: Problem, reconstruction: pycolmap.Reconstruction) -> Sfm:
    registered = sorted(image_id - 1 for image_id in reconstruction.reg_image_ids())
    where = {view: k for k, view in enumerate(registered)}
    images = [reconstruction.image(view + 1) for view in registered]
    intrinsics = np.stack([reconstruction.camera(image.camera_id).calibration_matrix() for image in images])
    world_to_cam = np.stack([np.concatenate([image.cam_from_world().matrix(), [[0, 0, 0, 1]]]) for image in images])
    height, width = problem.size
    cam_to_world = _float(np.linalg.inv(world_to_cam))
    for view in range(0 if fixed is None else len(fixed)):  # copied bit for bit instead of inverted twice
        cam_to_world[where[view]] = fixed.cam_to_world[view]  # type: ignore[union-attr]
    cameras = Cameras(_float(intrinsics), cam_to_world, width, height)
    sparse, tracks = _points(views, reconstruction, where)
    observations = torch.zeros(len(where), len(sparse), dtype=torch.bool)
    observations[tracks.view, tracks.point] = True
    pairs = [(where[i], where[j], len(m)) for (i, j), m in problem.matches.items() if i in where and j in where]
    table = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 3)
    mask = torch.zeros(len(views), dtype=torch.bool)
    mask[registered] = True
    return Sfm(cameras, mask, sparse, observations, table[:, :2], table[:, 2], tracks=tracks)


def _points(views: Views, reconstruction: pycolmap.Reconstruction, where: dict[int, int]) -> tuple[PointCloud, Tracks]:
    """Points by id with the mean colour of their observations, and these; confidence falls with the reprojection error."""
    points = [reconstruction.point3D(i) for i in sorted(reconstruction.point3D_ids())]
    rgb = torch.zeros(len(points), 3)
    seen = list[tuple[int, int]]()
    pixels = list[NDArray[np.float64]]()
    for index, point in enumerate(points):
        for element in point.track.elements:
            view = element.image_id - 1
            xy = reconstruction.image(element.image_id).points2D[element.point2D_idx].xy
            x, y = xy.astype(int)
            rgb[index] += views.images[view, y, x] / point.track.length()
            seen.append((where[view], index))
            pixels.append(xy)
    error = torch.tensor([point.error for point in points])
    xyz = _float(np.stack([point.xyz for point in points]))
    view_of, point_of = torch.tensor(seen, dtype=torch.int64).reshape(-1, 2).unbind(-1)
    tracks = Tracks(view_of.contiguous(), point_of.contiguous(), _float(np.array(pixels).reshape(-1, 2)))
    return PointCloud(xyz, rgb, torch.exp(-error).float().clamp(0, 1)), tracks


def _float(array: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).float()


def to_canonical(sfm: Sfm) -> Sfm:
    """First camera = identity, median depth of the confident points in the cameras that see them = 1."""
    first = sfm.cameras.cam_to_world[0].double()
    depth = transform(sfm.cameras.world_to_cam, sfm.sparse.xyz[None])[..., 2]
    scale = 1 / depth[sfm.observations & (sfm.sparse.confidence >= sfm.sparse.confidence.median())].median().double()
    to_first = torch.linalg.inv(first)
    poses = to_first @ sfm.cameras.cam_to_world.double()
    poses[:, :3, 3] *= scale
    poses[0] = torch.eye(4)
    xyz = transform(to_first, sfm.sparse.xyz.double()) * scale
    return replace(sfm, cameras=replace(sfm.cameras, cam_to_world=poses.float()), sparse=replace(sfm.sparse, xyz=xyz.float()))


def _warn_dropped(views: Views, registered: Bool[Tensor, " n"], counts: Sequence[int]) -> None:
    dropped = {name: count for name, ok, count in zip(views.names, registered.tolist(), counts) if not ok}
    if dropped:
        hint = _small(views, dropped.values())
        warnings.warn(f"Left out {', '.join(dropped)}: too little in common with the other photos.{hint}", stacklevel=3)


def _small(views: Views, counts: Iterable[int]) -> str:
    """A sentence where photos with so few features were not placed because they are small; else nothing."""
    side, most = max(views.masks.shape[1:]), max(counts)
    if side > SMALL or most >= FEW_FEATURES:
        return ""
    cause = f"Their size is a likely cause: {side} pixels show at most {most} features"
    return f" {cause}; give larger photos, or a larger views.size."


def warn_contradicted(off: list[float]) -> None:
    """Tell that EXIF focals are wrong; ``off``: logarithms of the found ones over them."""
    if off:
        times = math.exp(max(off, key=abs))
        warnings.warn(
            f"The photos show a focal length {times:.1f} times as long as their EXIF data say, as if they had been cropped or "
            "taken through another lens; what they show is taken.",
            stacklevel=3,
        )


def matched_keypoints(features: list[Features], matches: dict[Pair, Matches]) -> dict[Pair, tuple[Pixels, Pixels]]:
    """Positions of every pair's verified matches in both photos."""
    return {
        (i, j): (features[i].keypoints[found[:, 0]], features[j].keypoints[found[:, 1]]) for (i, j), found in matches.items()
    }


def _require_parallax(views: Views, matched: dict[Pair, tuple[Pixels, Pixels]]) -> None:
    """Raise UserError where all photos that overlap were taken from one spot."""
    height, width = views.masks.shape[1:]
    if matched and all(
        from_one_spot(*pixels, (height, width)) for pixels in matched.values()
    ):  # nearly always the first says no
        i, j = next(iter(matched))
        raise UserError(
            f"{views.names[i]} and {views.names[j]} show the same from one spot: only a turn, a shift or a zoom lies between "
            "them, as between copies or crops of one photo, so that no depth can be found; take photos some steps apart."
        )


def _no_overlap(views: Views, counts: Sequence[int]) -> str:
    n = len(views)
    start = f"{' and '.join(views.names)} do not show" if n == 2 else f"No two of the {n} photos show"
    advice = "add photos taken in between, overlapping by half or more."
    return f"{start} enough of the same place to find the cameras; {advice}{_small(views, counts)}"
