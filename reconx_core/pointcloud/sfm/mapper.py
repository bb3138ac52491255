"""Incremental structure from motion on given matches: pycolmap's mapper, driven step by step so that two photos are enough."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap
from jaxtyping import Bool, Float64, Int64
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

from reconx_core.pointcloud.sfm.matching import Matches
from reconx_core.pointcloud.sfm.twoview import RelativePose, relative_pose, triangulated_depth

Pair = tuple[int, int]

MIN_ANGLE = 0.05  # degrees; points with less parallax are excluded; those with little carry little weight but do no harm
MIN_NEIGHBOUR_ANGLE = 1.0  # degrees; with less parallax the baseline to a photo is unreliable
MAX_ANGLE = 80.0  # degrees between two views of a point: SIFT matches from farther apart are spurious
MIN_LINK = 16  # minimum number of points that join two groups of photos: fewer wrong matches can agree by chance
MIN_START = 8  # minimum number of points of an initial pair and of a registered photo


@dataclass(frozen=True)
class Problem:
    """Keypoints and verified matches of n photos of one size, and the index of each photo's lens (``lens``)."""

    keypoints: list[Float64[np.ndarray, "k 2"]]
    matches: Mapping[Pair, Matches]
    lens: tuple[int, ...]
    size: tuple[int, int]  # height, width
    fixed_poses: Mapping[int, Float64[np.ndarray, "4 4"]]  # world-to-camera of photos that must not move
    seed: int
    max_error: float  # pixels


def reconstruct(
    problem: Problem, intrinsics: list[Float64[np.ndarray, "3 3"]], refine_focal: bool
) -> pycolmap.Reconstruction | None:
    """Poses and points of as many photos as can be registered; None if there is no initial pair, or none that holds.

    ``intrinsics`` holds one matrix per lens. Image id = photo index + 1.
    """
    reconstruction = pycolmap.Reconstruction()
    cache = make_cache(problem, intrinsics)
    mapper = pycolmap.IncrementalMapper(cache)
    register_fixed(problem, reconstruction, cache)
    mapper.begin_reconstruction(reconstruction)
    options, triangulation, bundle = mapper_options(problem, refine_focal)
    for view in problem.fixed_poses:
        mapper.triangulate_image(triangulation, view + 1)
    if reconstruction.num_reg_images() < 2 and not _start(problem, mapper, options, triangulation, bundle):
        mapper.end_reconstruction(True)
        return None
    _grow(problem, mapper, options, triangulation, bundle)
    mapper.iterative_global_refinement(5, 0.0005, options, bundle, triangulation, False)
    _drop_unsupported(problem, mapper)
    mapper.end_reconstruction(False)
    return reconstruction if reconstruction.num_reg_images() > 1 else None


def make_cache(problem: Problem, intrinsics: list[Float64[np.ndarray, "3 3"]]) -> pycolmap.DatabaseCache:
    cache = pycolmap.DatabaseCache()
    for index, matrix in enumerate(intrinsics):
        camera = make_camera(matrix, problem.size, index + 1)
        cache.add_camera(camera)
        rig = pycolmap.Rig(rig_id=index + 1)
        rig.add_ref_sensor(camera.sensor_id)
        cache.add_rig(rig)
    for view, keypoints in enumerate(problem.keypoints):
        _add_image(cache, view, problem.lens[view], keypoints)
    for (i, j), matches in problem.matches.items():
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = int(pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED)
        geometry.inlier_matches = matches.astype(np.uint32)
        cache.correspondence_graph.add_two_view_geometry(i + 1, j + 1, geometry)
    cache.correspondence_graph.finalize()
    return cache


def _add_image(cache: pycolmap.DatabaseCache, view: int, lens: int, keypoints: Float64[np.ndarray, "k 2"]) -> None:
    image = pycolmap.Image(name=f"{view:04d}", keypoints=keypoints, camera_id=lens + 1, image_id=view + 1)
    image.frame_id = view + 1
    frame = pycolmap.Frame(frame_id=view + 1, rig_id=lens + 1)
    frame.add_data_id(image.data_id)
    cache.add_frame(frame)
    cache.add_image(image)


def make_camera(intrinsics: Float64[np.ndarray, "3 3"], size: tuple[int, int], camera_id: int = 1) -> pycolmap.Camera:
    """A COLMAP camera; with a single focal if both axes agree, so that refinement keeps them equal."""
    (fx, _, cx), (_, fy, cy), _ = intrinsics.tolist()
    model, params = ("SIMPLE_PINHOLE", [fx, cx, cy]) if fx == fy else ("PINHOLE", [fx, fy, cx, cy])
    return pycolmap.Camera(model=model, width=size[1], height=size[0], params=params, camera_id=camera_id)


def mapper_options(problem: Problem, refine_focal: bool):
    shared = {"random_seed": problem.seed}
    options = pycolmap.IncrementalMapperOptions(
        num_threads=1, abs_pose_min_num_inliers=10, abs_pose_min_inlier_ratio=0.15, abs_pose_max_error=3 * problem.max_error,
        abs_pose_refine_focal_length=False, filter_max_reproj_error=2 * problem.max_error, filter_min_tri_angle=MIN_ANGLE,
        init_min_tri_angle=MIN_ANGLE, fix_existing_frames=bool(problem.fixed_poses), **shared,
    )  # fmt: skip
    triangulation = pycolmap.IncrementalTriangulatorOptions(
        ignore_two_view_tracks=False, min_angle=MIN_ANGLE, merge_max_reproj_error=2 * problem.max_error,
        complete_max_reproj_error=2 * problem.max_error, **shared,
    )  # fmt: skip
    return options, triangulation, bundle_options(refine_focal)


def bundle_options(refine_focal: bool) -> pycolmap.BundleAdjustmentOptions:
    """Robust bundle adjustment on one thread: with more, the order of the sums and thus the last bits would vary."""
    options = pycolmap.BundleAdjustmentOptions(refine_focal_length=refine_focal, print_summary=False)
    options.ceres.loss_function_type = pycolmap.LossFunctionType.SOFT_L1
    options.ceres.solver_options.num_threads = 1
    options.ceres.solver_options.max_num_iterations = 50
    return options


def to_rigid(world_to_cam: Float64[np.ndarray, "4 4"]) -> pycolmap.Rigid3d:
    return pycolmap.Rigid3d(np.ascontiguousarray(world_to_cam[:3]))


def register_fixed(problem: Problem, reconstruction: pycolmap.Reconstruction, cache: pycolmap.DatabaseCache) -> None:
    """Register the photos with known poses before the mapper starts; it keeps only those fixed."""
    reconstruction.load(cache)
    for view, world_to_cam in problem.fixed_poses.items():
        reconstruction.frame(view + 1).set_cam_from_world(problem.lens[view] + 1, to_rigid(world_to_cam))
        reconstruction.register_frame(view + 1)


def _start(problem: Problem, mapper: pycolmap.IncrementalMapper, options, triangulation, bundle) -> bool:
    """Register and triangulate the pair with the most matches at a sufficient triangulation angle."""
    poses = {pair: pose for pair in problem.matches if (pose := pair_pose(problem, mapper.reconstruction, pair)) is not None}
    for (i, j), pose in sorted(poses.items(), key=lambda item: -item[1].support)[:5]:
        mapper.register_initial_image_pair(options, i + 1, j + 1, pose.cam2_from_cam1)
        for view in (i, j):
            mapper.triangulate_image(triangulation, view + 1)
        if mapper.reconstruction.num_points3D() >= MIN_START:
            mapper.adjust_global_bundle(options, bundle)
            mapper.filter_points(options)
            return True
        for view in (i, j):
            mapper.observation_manager.deregister_frame(view + 1)
    return False


def pair_pose(problem: Problem, reconstruction: pycolmap.Reconstruction, pair: Pair) -> RelativePose | None:
    """Relative pose of one pair from its verified matches."""
    return relative_pose(
        *_cameras(problem, reconstruction, pair), *matched_pixels(problem, pair), problem.max_error, problem.seed
    )


def _cameras(problem: Problem, reconstruction: pycolmap.Reconstruction, pair: Pair) -> tuple[pycolmap.Camera, pycolmap.Camera]:
    return reconstruction.camera(problem.lens[pair[0]] + 1), reconstruction.camera(problem.lens[pair[1]] + 1)


def matched_pixels(problem: Problem, pair: Pair) -> tuple[Float64[np.ndarray, "m 2"], Float64[np.ndarray, "m 2"]]:
    """Positions of the verified matches in both photos; the pair may be given in either order."""
    i, j = pair
    rows = problem.matches[pair] if pair in problem.matches else problem.matches[j, i][:, ::-1]
    return problem.keypoints[i][rows[:, 0]], problem.keypoints[j][rows[:, 1]]


def _grow(problem: Problem, mapper: pycolmap.IncrementalMapper, options, triangulation, bundle) -> None:
    """Register one photo after the other by absolute pose, or else by its relative pose to a registered one."""
    while mapper.reconstruction.num_reg_images() < len(problem.keypoints):
        registered = register_next(mapper, options, False) or register_next(mapper, options, True)
        registered = registered or _register_by_neighbour(problem, mapper)
        if not registered:
            return
        mapper.triangulate_image(triangulation, registered)
        mapper.iterative_global_refinement(2, 0.001, options, bundle, triangulation, False)


def register_next(mapper: pycolmap.IncrementalMapper, options, structure_less: bool) -> int:
    """Id of the image that was registered, 0 if none was."""
    register = mapper.register_next_structure_less_image if structure_less else mapper.register_next_image
    return next((i for i in mapper.find_next_images(options, structure_less) if register(options, i)), 0)


def _drop_unsupported(problem: Problem, mapper: pycolmap.IncrementalMapper) -> None:
    """Deregister photos with hardly any points after refinement: their poses are wrong."""
    for image_id in sorted(mapper.reconstruction.reg_image_ids()):
        few = mapper.reconstruction.image(image_id).num_points3D < MIN_START
        if few and image_id - 1 not in problem.fixed_poses:
            mapper.observation_manager.deregister_frame(image_id)


def drop_wide_angle_images(problem: Problem, reconstruction: pycolmap.Reconstruction) -> None:
    """Deregister photos that share points only at angles above MAX_ANGLE. Needs final focals, on which the angles depend."""
    for image_id in sorted(set(reconstruction.reg_image_ids()) - {view + 1 for view in problem.fixed_poses}):
        if nearest_angle(reconstruction, image_id) > MAX_ANGLE:
            reconstruction.deregister_frame(image_id)


def drop_weakly_linked_images(problem: Problem, reconstruction: pycolmap.Reconstruction) -> None:
    """Deregister the smaller one of two groups of photos that fewer than MIN_LINK points join: how they lie is an accident.

    Two photos are never separated, nor photos whose poses are given.
    """
    while len(reconstruction.reg_image_ids()) > 2 and not problem.fixed_poses:
        link, group = weakest_link(reconstruction)
        if link >= MIN_LINK:
            return
        for image_id in sorted(group):
            reconstruction.deregister_frame(image_id)


def weakest_link(reconstruction: pycolmap.Reconstruction) -> tuple[int, set[int]]:
    """(number of points, image ids of the smaller group): the two groups of photos that the fewest points join.

    Tried are the groups that fall apart where the tree of the strongest links is cut, not all.
    """
    ids = sorted(reconstruction.reg_image_ids())
    seen = shared_points(reconstruction, ids)
    best = (len(seen[0]) + 1, set[int]())
    for group in _cuts(seen.astype(np.int64) @ seen.T.astype(np.int64)):
        joint = int((seen[group].any(0) & seen[~group].any(0)).sum())
        best = min(best, (joint, {i for i, inside in zip(ids, group) if inside}), key=lambda found: found[0])
    return best


def shared_points(reconstruction: pycolmap.Reconstruction, image_ids: list[int]) -> Bool[np.ndarray, "n p"]:
    """Which of the images observes which point, by the point's id."""
    seen = np.zeros((len(image_ids), max(reconstruction.point3D_ids(), default=0) + 1), bool)
    for row, image_id in enumerate(image_ids):
        for point in reconstruction.image(image_id).get_observation_points2D():
            seen[row, point.point3D_id] = True
    return seen


def _cuts(shared: Int64[np.ndarray, "n n"]) -> list[Bool[np.ndarray, " n"]]:
    """The smaller side of each cut of the spanning tree of the largest numbers of shared points."""
    tree = minimum_spanning_tree(-(shared + 1)).toarray() != 0  # one more: 0 would be no edge
    sides = []
    for i, j in np.argwhere(tree):
        rest = tree.copy()
        rest[i, j] = False
        _, label = connected_components(rest, directed=False)
        side = label == label[i]
        sides.append(min(side, ~side, key=lambda one: (one.sum(), shared[one].sum())))
    return sides


def nearest_angle(reconstruction: pycolmap.Reconstruction, image_id: int) -> float:
    """Median over an image's points of the angle, in degrees, to the nearest other view of the point.

    0 if it shares no point with another view: points that have lost their other views say nothing about the angle.
    """
    centres = {i: reconstruction.image(i).projection_center() for i in reconstruction.reg_image_ids()}
    angles = list[float]()
    for seen in reconstruction.image(image_id).get_observation_points2D():
        point = reconstruction.point3D(seen.point3D_id)
        own = _unit(centres[image_id] - point.xyz)
        others = {element.image_id for element in point.track.elements} - {image_id}
        if not others:
            continue
        angles.append(math.acos(min(max(float(own @ _unit(centres[i] - point.xyz)) for i in others), 1.0)))
    return float(np.rad2deg(np.median(angles))) if angles else 0.0


def _unit(vector: Float64[np.ndarray, " 3"]) -> Float64[np.ndarray, " 3"]:
    return vector / np.linalg.norm(vector)


def _register_by_neighbour(problem: Problem, mapper: pycolmap.IncrementalMapper) -> int:
    """Register a photo that shares too few points for an absolute pose by its relative pose to one neighbour.

    The baseline, which two photos do not determine, is chosen such that the matches' depths agree with those of nearby
    points in the neighbour. Returns the image id, 0 if there is no such photo.
    """
    reconstruction = mapper.reconstruction
    there = {i - 1 for i in reconstruction.reg_image_ids()}
    across = [pair for pair in problem.matches if len(there & set(pair)) == 1]
    for pair in sorted(across, key=lambda pair: -len(problem.matches[pair])):
        known, new = pair if pair[0] in there else pair[::-1]
        pose = pair_pose(problem, reconstruction, (known, new))
        if pose is None or pose.inliers < MIN_START or pose.parallax < MIN_NEIGHBOUR_ANGLE:
            continue
        step = _step_length(problem, reconstruction, known, new, pose)
        if step is not None:
            relative = pycolmap.Rigid3d(pose.cam2_from_cam1.rotation, step * pose.cam2_from_cam1.translation)
            frame = reconstruction.frame(new + 1)
            frame.set_cam_from_world(problem.lens[new] + 1, relative * reconstruction.image(known + 1).cam_from_world())
            mapper.observation_manager.register_frame(new + 1)
            return new + 1
    return 0


def _step_length(
    problem: Problem, reconstruction: pycolmap.Reconstruction, known: int, new: int, pose: RelativePose
) -> float | None:
    """Median ratio of the depths of points near the matches, in the known photo, to the matches' depths at a baseline of 1."""
    image = reconstruction.image(known + 1)
    seen = [p for p in image.points2D if p.has_point3D()]
    if len(seen) < MIN_START:
        return None
    depth = (image.cam_from_world() * np.stack([reconstruction.point3D(p.point3D_id).xyz for p in seen]))[:, 2]
    xy1, xy2 = matched_pixels(problem, (known, new))
    found = triangulated_depth(pose.cam2_from_cam1, *_cameras(problem, reconstruction, (known, new)), xy1, xy2)
    distance, nearest = cKDTree(np.stack([p.xy for p in seen])).query(xy1)
    near = (found > 0) & (distance <= max(1.0, np.quantile(distance, 0.25)))
    return float(np.median(depth[nearest[near]] / found[near])) if near.any() else None
