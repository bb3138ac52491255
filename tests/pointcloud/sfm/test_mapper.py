"""Structure from motion on exact matches of random points."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from reconx_core.geometry.transforms import project, rigid, so3_exp
from reconx_core.pointcloud.sfm.focal import EXIF_SPREAD, FocalPrior, contradicted, lenses_in, pose_uncertainty, solve_focals
from reconx_core.pointcloud.sfm.mapper import (
    MIN_LINK,
    Problem,
    drop_weakly_linked_images,
    drop_wide_angle_images,
    nearest_angle,
    reconstruct,
    weakest_link,
)
from reconx_core.pointcloud.sfm.radial import radial_lenses

INTRINSICS = torch.tensor([[300.0, 0, 160], [0, 300, 120], [0, 0, 1]])


def on_circle(degrees: tuple[float, ...]) -> Problem:
    """60 points in a ball, seen from a circle of radius 4 around it; every photo sees every point."""
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)) * 0.4
    turns = so3_exp(torch.tensor([[0.0, math.radians(d), 0.0] for d in degrees]))
    poses = rigid(turns, turns @ torch.tensor([0.0, 0.0, -4.0]))
    pixels, _ = project(points, INTRINSICS.expand(len(poses), 3, 3), torch.linalg.inv(poses))
    keypoints = [p.double().numpy() for p in pixels]
    same = np.stack([np.arange(60)] * 2, 1)
    pairs = {(i, j): same for i in range(len(poses)) for j in range(i + 1, len(poses))}
    return Problem(keypoints, pairs, (0,) * len(poses), (240, 320), {}, 0, 2.0)


def registered(degrees: tuple[float, ...]) -> list[int]:
    problem = on_circle(degrees)
    found = reconstruct(problem, [INTRINSICS.double().numpy()], False)
    assert found is not None
    drop_wide_angle_images(problem, found)
    return sorted(i - 1 for i in found.reg_image_ids())


def test_views_that_see_points_under_a_fair_angle_stay():
    assert registered((0, 20, 60)) == [0, 1, 2]


def test_a_view_from_an_impossible_side_goes_and_the_others_stay():
    assert registered((0, 20, 125)) == [0, 1]


def test_the_angle_is_that_to_the_nearest_view():
    found = reconstruct(on_circle((0, 20, 60)), [INTRINSICS.double().numpy()], False)
    assert [nearest_angle(found, i) for i in (1, 2, 3)] == pytest.approx([20, 20, 40], abs=2)


def test_an_image_whose_points_lost_their_other_views_has_no_angle():
    found = reconstruct(on_circle((0, 20)), [INTRINSICS.double().numpy()], False)
    for point in found.points3D.values():
        for element in [e for e in point.track.elements if e.image_id == 2]:
            point.track.delete_element(element.image_id, element.point2D_idx)
    assert nearest_angle(found, 1) == 0


def two_groups(joint: int):
    """Views 0 and 1 see the first points, 2, 3 and 4 the others; all see ``joint`` of them."""
    problem = on_circle((0, 15, 25, 35, 45))
    first, second = np.arange(25 + joint // 2), np.arange(25 - joint // 2, 60)
    sees = [first, first, second, second, second]
    common = {(i, j): np.intersect1d(sees[i], sees[j]) for i, j in problem.matches}
    found = reconstruct(
        replace(problem, matches={pair: np.stack([rows] * 2, 1) for pair, rows in common.items()}),
        [INTRINSICS.double().numpy()],
        False,
    )
    assert found.num_reg_images() == 5
    return problem, found


@pytest.mark.parametrize(("joint", "left"), [(MIN_LINK - 2, [3, 4, 5]), (MIN_LINK + 2, [1, 2, 3, 4, 5])])
def test_the_smaller_group_goes_if_a_few_points_join_it_to_the_others(joint, left):
    problem, found = two_groups(joint)
    assert weakest_link(found) == (joint, {1, 2})
    drop_weakly_linked_images(problem, found)
    assert sorted(found.reg_image_ids()) == left


def test_given_poses_are_never_dropped():
    problem, found = two_groups(MIN_LINK - 2)
    drop_weakly_linked_images(replace(problem, fixed_poses={0: np.eye(4)}), found)
    assert found.num_reg_images() == 5


def test_two_photos_stay_together():
    problem = on_circle((0, 20))
    few = {pair: rows[:12] for pair, rows in problem.matches.items()}
    found = reconstruct(replace(problem, matches=few), [INTRINSICS.double().numpy()], False)
    drop_weakly_linked_images(problem, found)
    assert found.num_reg_images() == 2


@pytest.mark.parametrize(("count", "seed"), [(16, 0), (16, 3), (20, 3)])
def test_matches_by_chance_that_hold_no_photo_are_no_result(count, seed):
    """The mapper starts with the pair and loses both photos again."""
    keypoints = [np.random.default_rng(seed + 100 * view).uniform(0, 240, (count, 2)) for view in (0, 1)]
    problem = Problem(keypoints, {(0, 1): np.stack([np.arange(count)] * 2, 1)}, (0, 0), (240, 320), {}, 0, 2.0)
    assert reconstruct(problem, [np.array([[256.0, 0, 160], [0, 256, 120], [0, 0, 1]])], True) is None


def test_a_photo_of_another_lens_that_is_left_out_takes_its_lens_along():
    everything = on_circle((0, 15, 30, 45))
    matches = {pair: rows for pair, rows in everything.matches.items() if 3 not in pair}
    problem = replace(everything, matches=matches, lens=(0, 0, 0, 1))
    priors = [FocalPrior(300.0, EXIF_SPREAD), FocalPrior(900.0, EXIF_SPREAD)]
    found = solve_focals(problem, priors)
    assert found is not None
    assert lenses_in(found) == [0]
    assert contradicted(found, priors) == []
    assert pose_uncertainty(problem, found, priors) < 1
    assert radial_lenses(problem, found) is None
