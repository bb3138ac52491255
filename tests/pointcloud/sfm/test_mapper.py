"""Structure from motion on exact matches of random points."""

import math

import numpy as np
import pytest
import torch

from reconx_core.geometry.transforms import project, rigid, so3_exp
from reconx_core.pointcloud.sfm.mapper import Problem, drop_wide_angle_images, nearest_angle, reconstruct

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
