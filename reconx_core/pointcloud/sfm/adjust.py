"""Bundle adjustment of approximate cameras, such as a network's, on verified feature matches.

Incremental mapping is not needed: points are triangulated with the approximate cameras, under loose thresholds first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pycolmap
import torch
from jaxtyping import Float64

from reconx_core.pointcloud.global_alignment.graph import nearest_pairs
from reconx_core.pointcloud.sfm.focal import EXIF_SPREAD, FOCAL_RANGE, FocalPrior, contradicted, map_estimate, pose_uncertainty
from reconx_core.pointcloud.sfm.mapper import (
    Pair,
    Problem,
    make_cache,
    make_camera,
    mapper_options,
    matched_pixels,
    register_fixed,
    to_rigid,
)
from reconx_core.pointcloud.sfm.matching import Features, Matches, extract_features
from reconx_core.pointcloud.sfm.solve import (
    Sfm,
    group_lenses,
    judge,
    map_threads,
    match_error,
    match_pairs,
    tilt_weak,
    to_canonical,
    to_sfm,
    warn_contradicted,
)
from reconx_core.pointcloud.sfm.twoview import sampson_error
from reconx_core.types import Cameras, Views

FEWEST_POINTS = 30  # triangulated points that every view needs
FEWEST_MATCHES = 60  # matched keypoints of a view below which tilted features are added
LOOSE_ANGLE, TIGHT_ANGLE = 8.0, 2.0  # degrees between a ray and its point, before and after the first adjustment
LOOSE, TIGHT = 12.0, 2.0  # maximum reprojection error, relative to the matches' inlier threshold
APPROXIMATE_SPREAD = 0.2  # standard deviation of the log-focal of approximate cameras

Intrinsics = list[Float64[np.ndarray, "3 3"]]


def adjust_cameras(views: Views, approximate: Cameras, generator: torch.Generator) -> Sfm | None:
    """Adjust the cameras of all views to their verified matches; given intrinsics are kept, otherwise focals are adjusted.

    World frame: the first camera is the identity and the median depth is 1.

    Returns None, and the approximate cameras are to be kept, unless every view has at least ``FEWEST_POINTS`` triangulated
    points and the median epipolar error of all matches has decreased.
    """
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    features, matches = find_matches(views, nearest_pairs(approximate), seed)
    lens, intrinsics, priors = _lenses(views, approximate)
    size = (views.images.shape[1], views.images.shape[2])
    problem = Problem([f.keypoints for f in features], matches, lens, size, {}, seed, match_error(views))
    poses = dict(enumerate(approximate.world_to_cam.double().numpy()))
    found = _adjust(problem, poses, intrinsics, priors)
    if found is None or not _is_better(problem, poses, intrinsics, found):
        return None
    uncertainty = 0.0
    if priors is not None:
        warn_contradicted(contradicted(found, priors))
        uncertainty = pose_uncertainty(problem, found, priors)
    return judge(views, to_canonical(to_sfm(views, None, problem, found)), uncertainty)


def find_matches(views: Views, pairs: list[Pair], seed: int) -> tuple[list[Features], dict[Pair, Matches]]:
    """Features of all views and verified matches of the pairs; tilted features help views with few matches."""
    features = map_threads(extract_features, views.images, views.masks)
    matches = match_pairs(features, pairs, views, seed)
    weak = {view for view in range(len(views)) if _count_matched(matches, view) < FEWEST_MATCHES}
    if weak:
        features = tilt_weak(features, views, weak)
        matches |= match_pairs(features, [pair for pair in pairs if weak & set(pair)], views, seed)
    return features, matches


def _count_matched(matches: Mapping[Pair, Matches], view: int) -> int:
    rows = [m[:, pair.index(view)] for pair, m in matches.items() if view in pair]
    return len(np.unique(np.concatenate(rows))) if rows else 0


def _lenses(views: Views, approximate: Cameras) -> tuple[tuple[int, ...], Intrinsics, list[FocalPrior] | None]:
    """Lens of each view, intrinsics per lens, and priors of the focals, None if the intrinsics are given."""
    given = views.given_intrinsics
    if given is not None:
        return tuple(range(len(views))), list(given.double().numpy()), None
    lens, kinds = group_lenses(views)
    focals = approximate.intrinsics[:, [0, 1], [0, 1]].double().log().mean(1).exp()
    focals = focals.clamp(*(limit * max(approximate.width, approximate.height) for limit in FOCAL_RANGE))
    index = torch.tensor(lens)
    middle = (approximate.width / 2, approximate.height / 2)
    priors = []
    for number, (exif, _) in enumerate(kinds):
        own = float(focals[index == number].median())
        priors.append(FocalPrior(own, APPROXIMATE_SPREAD) if np.isnan(exif) else FocalPrior(exif, EXIF_SPREAD))
    return lens, [np.array([[p.focal, 0.0, middle[0]], [0.0, p.focal, middle[1]], [0.0, 0.0, 1.0]]) for p in priors], priors


def _adjust(
    problem: Problem,
    poses: Mapping[int, Float64[np.ndarray, "4 4"]],
    intrinsics: Intrinsics,
    priors: list[FocalPrior] | None,
) -> pycolmap.Reconstruction | None:
    """Adjusted poses, points and, with priors, focals; None if too few points can be triangulated."""
    found = triangulate_and_adjust(problem, poses, intrinsics, priors is not None)
    low, high = (limit * max(problem.size) for limit in FOCAL_RANGE)
    if priors and not all(low < camera.focal_length < high for camera in found.cameras.values()):
        found = triangulate_and_adjust(problem, poses, intrinsics, False)
    if min((found.image(view + 1).num_points3D for view in poses), default=0) < FEWEST_POINTS:
        return None
    return map_estimate(problem, found, priors) if priors else found


def triangulate_and_adjust(
    problem: Problem, poses: Mapping[int, Float64[np.ndarray, "4 4"]], intrinsics: Intrinsics, refine_focal: bool
) -> pycolmap.Reconstruction:
    """Triangulate the matches with approximate world-to-camera poses and adjust poses and points, then once more, tighter.

    Focals are adjusted in the second round only. Image id = photo index + 1.
    """
    reconstruction = pycolmap.Reconstruction()
    cache = make_cache(problem, intrinsics)
    mapper = pycolmap.IncrementalMapper(cache)
    register_fixed(replace(problem, fixed_poses=poses), reconstruction, cache)
    mapper.begin_reconstruction(reconstruction)
    for angle, error, focal in ((LOOSE_ANGLE, LOOSE, False), (TIGHT_ANGLE, TIGHT, refine_focal)):
        options, triangulation, bundle = mapper_options(problem, focal)
        options.filter_max_reproj_error = error * problem.max_error
        triangulation.create_max_angle_error = triangulation.continue_max_angle_error = angle
        triangulation.complete_max_reproj_error = triangulation.merge_max_reproj_error = error * problem.max_error
        for view in poses:
            mapper.triangulate_image(triangulation, view + 1)
        mapper.iterative_global_refinement(5, 0.0005, options, bundle, triangulation, False)
    mapper.end_reconstruction(False)
    return reconstruction


def _is_better(
    problem: Problem, poses: Mapping[int, Float64[np.ndarray, "4 4"]], intrinsics: Intrinsics, found: pycolmap.Reconstruction
) -> bool:
    before = {view: (make_camera(intrinsics[problem.lens[view]], problem.size), to_rigid(poses[view])) for view in poses}
    after = {view: (found.camera(problem.lens[view] + 1), found.image(view + 1).cam_from_world()) for view in poses}
    return epipolar_error(problem, after) < epipolar_error(problem, before)


def epipolar_error(problem: Problem, cameras: Mapping[int, tuple[pycolmap.Camera, pycolmap.Rigid3d]]) -> float:
    """Median Sampson error in pixels of all matches; ``cameras``: camera and world-to-camera pose per view."""
    errors = []
    for pair in problem.matches:
        (camera1, pose1), (camera2, pose2) = (cameras[view] for view in pair)
        errors.append(sampson_error(pose2 * pose1.inverse(), camera1, camera2, *matched_pixels(problem, pair)))
    return float(np.median(np.concatenate(errors))) if errors else np.inf
