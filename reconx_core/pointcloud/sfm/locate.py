"""Cameras of frames among photos with known cameras and points: absolute poses from feature matches, then bundle adjustment.

The photos are held. Frames are matched with the photos, of which every pixel's point is known, and with the frames next to
them, so that one that hardly matches a photo is joined to it by its neighbours.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pycolmap
import torch
from jaxtyping import Float64

from reconx_core.geometry.transforms import join_cameras
from reconx_core.pointcloud.sfm.adjust import LOOSE, LOOSE_ANGLE, TIGHT, TIGHT_ANGLE
from reconx_core.pointcloud.sfm.mapper import (
    Problem,
    make_cache,
    make_camera,
    mapper_options,
    register_fixed,
    register_next,
    shared_points,
    to_rigid,
)
from reconx_core.pointcloud.sfm.matching import extract_features
from reconx_core.pointcloud.sfm.solve import map_threads, match_error, match_pairs
from reconx_core.types import Cameras, Located, Pointmaps, Views

SURE = 0.35  # confidence of a photo's pixel from which its point serves for absolute poses
NEIGHBOURS = 3  # following frames that each frame is matched with
PNP_ERROR = 3.0  # inlier threshold of absolute poses, relative to that of matches: stereo depth is not exact
FEWEST_INLIERS = 12  # of an absolute pose to start from
FEWEST_POINTS, LEAST_SHARE = 20, 0.1  # points, and share of its points, that join a frame to photos, or to frames that do
NO_MATCHES = "too little in common with the photos"

Poses = dict[int, Float64[np.ndarray, "4 4"]]  # world-to-camera, by index into photos and frames together


def locate_frames(photos: Views, known: Pointmaps, frames: Views, near: Cameras | None, generator: torch.Generator) -> Located:
    """The cameras of ``frames``, whose intrinsics are in ``frames.cameras``, in the world of the photos' ``known`` points.

    ``near``: cameras to start from; otherwise absolute poses are estimated from the photos' points.
    """
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    problem, intrinsics = match_frames(photos, known, frames, seed)
    poses = near_poses(near, len(photos)) if near is not None else absolute_poses(problem, known, intrinsics)
    found = adjust_frames(problem, intrinsics, poses)
    linked = linked_frames(found, len(photos))
    return to_located(found, linked, len(photos), len(frames))


def match_frames(photos: Views, known: Pointmaps, frames: Views, seed: int) -> tuple[Problem, list[Float64[np.ndarray, "3 3"]]]:
    """Features and verified matches of photos and frames, the photos' poses as fixed; and everyone's intrinsics."""
    views = join_views(photos, known.cameras, frames)
    features = map_threads(extract_features, views.images, views.masks)
    matches = match_pairs(features, frame_pairs(len(photos), len(frames)), views, seed)
    cameras = views.cameras
    assert cameras is not None
    fixed = dict(enumerate(known.cameras.world_to_cam.double().numpy()))
    size, lens = (cameras.height, cameras.width), tuple(range(len(views)))
    problem = Problem([f.keypoints for f in features], matches, lens, size, fixed, seed, match_error(views))
    return problem, list(cameras.intrinsics.double().numpy())


def join_views(photos: Views, cameras: Cameras, frames: Views) -> Views:
    """Photos and frames as one set whose intrinsics are known."""
    assert frames.cameras is not None
    return Views(
        torch.cat([photos.images, frames.images]), torch.cat([photos.masks, frames.masks]), photos.names + frames.names,
        torch.zeros(len(photos) + len(frames), dtype=torch.bool), join_cameras(cameras, frames.cameras),
        torch.full((len(photos) + len(frames),), torch.nan), "intrinsics",
    )  # fmt: skip


def frame_pairs(photos: int, frames: int) -> list[tuple[int, int]]:
    """The photos with each other, each frame with every photo and with the ``NEIGHBOURS`` frames after it."""
    n = photos + frames
    return [(i, j) for i in range(n) for j in range(i + 1, n) if i < photos or j - i <= NEIGHBOURS]


def near_poses(near: Cameras, photos: int) -> Poses:
    return {photos + i: pose for i, pose in enumerate(near.world_to_cam.double().numpy())}


def absolute_poses(problem: Problem, known: Pointmaps, intrinsics: list[Float64[np.ndarray, "3 3"]]) -> Poses:
    """Pose of every frame whose matches with the photos agree on one."""
    photos, poses = len(known.cameras), Poses()
    for frame in range(photos, len(problem.keypoints)):
        pixels, points = _correspondences(problem, known, frame)
        pose = absolute_pose(pixels, points, make_camera(intrinsics[frame], problem.size), problem)
        if pose is not None:
            poses[frame] = pose
    return poses


def _correspondences(
    problem: Problem, known: Pointmaps, frame: int
) -> tuple[Float64[np.ndarray, "m 2"], Float64[np.ndarray, "m 3"]]:
    """Pixels of a frame and the world points that they show, by its matches with sure pixels of the photos."""
    pixels, points = [np.empty((0, 2))], [np.empty((0, 3))]
    for photo in range(len(known.cameras)):
        rows = problem.matches.get((photo, frame), np.empty((0, 2), np.int64))
        column, row = np.floor(problem.keypoints[photo][rows[:, 0]]).astype(int).T
        sure = known.confidence[photo, row, column].numpy() >= SURE
        points.append(known.points_world[photo, row, column].double().numpy()[sure])
        pixels.append(problem.keypoints[frame][rows[sure, 1]])
    return np.concatenate(pixels), np.concatenate(points)


def absolute_pose(
    pixels: Float64[np.ndarray, "m 2"], points: Float64[np.ndarray, "m 3"], camera: pycolmap.Camera, problem: Problem
) -> Float64[np.ndarray, "4 4"] | None:
    """World-to-camera by RANSAC and refinement; None if too few correspondences agree."""
    if len(pixels) < FEWEST_INLIERS:
        return None
    options = pycolmap.AbsolutePoseEstimationOptions()
    error = PNP_ERROR * problem.max_error
    options.ransac.mergedict({"max_error": error, "random_seed": problem.seed, "max_num_trials": 5000, "min_inlier_ratio": 0.1})
    found = pycolmap.estimate_and_refine_absolute_pose(pixels, points, camera, options)
    if found is None or np.asarray(found["inlier_mask"]).sum() < FEWEST_INLIERS:
        return None
    return np.concatenate([found["cam_from_world"].matrix(), [[0.0, 0.0, 0.0, 1.0]]])


def adjust_frames(
    problem: Problem, intrinsics: list[Float64[np.ndarray, "3 3"]], poses: Mapping[int, Float64[np.ndarray, "4 4"]]
) -> pycolmap.Reconstruction:
    """Triangulate all matches from the photos' and the frames' poses, adjust the frames' and register those without any.

    The photos do not move. Image id = index + 1.
    """
    reconstruction, cache = pycolmap.Reconstruction(), make_cache(problem, intrinsics)
    mapper = pycolmap.IncrementalMapper(cache)
    register_fixed(problem, reconstruction, cache)
    mapper.begin_reconstruction(reconstruction)  # what is registered by now is held
    for view, world_to_cam in poses.items():
        reconstruction.frame(view + 1).set_cam_from_world(problem.lens[view] + 1, to_rigid(world_to_cam))
        mapper.observation_manager.register_frame(view + 1)
    options, triangulation, bundle = mapper_options(problem, False)
    for angle, error in ((LOOSE_ANGLE, LOOSE), (TIGHT_ANGLE, TIGHT)):
        options.filter_max_reproj_error = error * problem.max_error
        triangulation.create_max_angle_error = triangulation.continue_max_angle_error = angle
        triangulation.complete_max_reproj_error = triangulation.merge_max_reproj_error = error * problem.max_error
        for image_id in sorted(reconstruction.reg_image_ids()):
            mapper.triangulate_image(triangulation, image_id)
        mapper.iterative_global_refinement(5, 0.0005, options, bundle, triangulation, False)
    while image_id := register_next(mapper, options, False):  # of the triangulated points, so that all is joined to the photos
        mapper.triangulate_image(triangulation, image_id)
    mapper.iterative_global_refinement(5, 0.0005, options, bundle, triangulation, False)
    mapper.end_reconstruction(False)
    return reconstruction


def linked_frames(reconstruction: pycolmap.Reconstruction, photos: int) -> set[int]:
    """Frames that share ``FEWEST_POINTS`` and ``LEAST_SHARE`` of their points with the photos, or with frames that do.

    Frames of another place agree with each other, but hardly a point joins them to the photos.
    """
    ids = sorted(reconstruction.reg_image_ids())
    seen = shared_points(reconstruction, ids)
    linked = {row for row, image_id in enumerate(ids) if image_id <= photos}
    while True:
        there = seen[sorted(linked)].any(0)
        enough = np.maximum(FEWEST_POINTS, LEAST_SHARE * seen.sum(1)) <= (seen & there).sum(1)
        more = set(np.flatnonzero(enough).tolist()) - linked
        if not more:
            return {ids[row] - 1 for row in linked if ids[row] > photos}
        linked |= more


def to_located(reconstruction: pycolmap.Reconstruction, linked: set[int], photos: int, frames: int) -> Located:
    poses = torch.eye(4).repeat(frames, 1, 1)
    for view in linked:
        world_to_cam = np.concatenate([reconstruction.image(view + 1).cam_from_world().matrix(), [[0.0, 0.0, 0.0, 1.0]]])
        poses[view - photos] = torch.from_numpy(np.linalg.inv(world_to_cam)).float()
    return Located(poses, tuple("" if photos + i in linked else NO_MATCHES for i in range(frames)))
