"""In which order the camera path visits the photos."""

import math
import warnings

import pytest
import torch

from reconx_core.condition import build_condition
from reconx_core.condition.order import best_path, path_overlap, view_order, view_overlap
from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.settings import ConditionSettings
from reconx_core.types import Cameras, PointCloud, Pointmaps, Views

SIDE = 8


def around_a_ball(*degrees):
    """Cameras on a circle around a unit ball, and the side of the ball that each one sees."""
    turns = so3_exp(torch.tensor([[0.0, math.radians(d), 0.0] for d in degrees]))
    poses = rigid(turns, turns @ torch.tensor([0.0, 0.0, -4.0]))
    x, y = torch.meshgrid(torch.linspace(-0.6, 0.6, SIDE), torch.linspace(-0.6, 0.6, SIDE), indexing="xy")
    front = torch.stack([x, y, -(1 - x * x - y * y).sqrt()], -1)
    points = torch.einsum("nij,hwj->nhwi", turns, front)
    intrinsics = torch.tensor([[12.0, 0, SIDE / 2], [0, 12.0, SIDE / 2], [0, 0, 1]]).repeat(len(degrees), 1, 1)
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    pointmaps = Pointmaps(points, torch.ones(len(degrees), SIDE, SIDE), Cameras(intrinsics, poses, SIDE, SIDE), nothing)
    names = tuple(f"{d}.jpg" for d in degrees)
    flags = torch.zeros(len(degrees), dtype=torch.bool)
    everything = torch.ones(len(degrees), SIDE, SIDE, dtype=torch.bool)
    images = torch.full((len(degrees), SIDE, SIDE, 3), 0.5)
    return Views(images, everything, names, flags, None, torch.full((len(degrees),), math.nan)), pointmaps


def order(degrees, **settings):
    return view_order(*around_a_ball(*degrees), ConditionSettings(**settings)).tolist()


def test_views_side_by_side_overlap_more_than_those_across():
    overlap = view_overlap(around_a_ball(0, 20, 40, 180)[1])
    assert overlap[0, 1] > overlap[0, 2] > overlap[0, 3]
    assert overlap[0, 3] < 0.05  # inside the picture, but on the ball's other side
    torch.testing.assert_close(overlap, overlap.T)


def test_a_shuffled_orbit_is_put_in_order_and_that_is_said():
    with pytest.warns(UserWarning, match="no sequence.*0.jpg, 30.jpg, 60.jpg, 90.jpg, 120.jpg"):
        assert order((0, 90, 30, 120, 60)) == [0, 2, 4, 1, 3]


def test_a_sequence_stays_as_it_is_in_silence():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert order((0, 30, 60, 90, 120)) == [0, 1, 2, 3, 4]
        assert order((120, 90, 60, 30, 0)) == [0, 1, 2, 3, 4]


def test_the_user_decides_on_the_order():
    assert order((0, 90, 30, 120, 60), order="name") == [0, 1, 2, 3, 4]
    assert order((0, 90, 30, 120, 60), order="overlap") == [0, 2, 4, 1, 3]
    assert order((0, 90)) == [0, 1]


def test_no_other_path_has_more_overlap():
    overlap = torch.rand(6, 6, generator=torch.Generator().manual_seed(3))
    overlap = overlap + overlap.T
    found = path_overlap(overlap, best_path(overlap))
    shuffled = [torch.randperm(6, generator=torch.Generator().manual_seed(seed)) for seed in range(300)]
    assert found >= max(path_overlap(overlap, path) for path in shuffled)


def test_frames_lie_between_neighbours_on_the_path():
    views, pointmaps = around_a_ball(0, 60, 30)
    guide = build_condition(
        views, pointmaps, ConditionSettings(order="overlap", frames_per_pair=1, sway=0.0), torch.Generator()
    )
    assert guide.pair.tolist() == [[0, 2], [2, 1]]
    angle = torch.rad2deg(torch.atan2(guide.cameras.cam_to_world[:, 0, 2], guide.cameras.cam_to_world[:, 2, 2]))
    torch.testing.assert_close(angle, torch.tensor([15.0, 45.0]), atol=1.0, rtol=0)
