"""The picture of a scene from above."""

import numpy as np
import pytest
import torch

from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.reporting.above import FRAME, PHOTO, SIDE, axes_above, draw_above, reach_of
from reconx_core.types import Cameras, PointCloud

LENS = torch.tensor([[40.0, 0, 20], [0, 40.0, 15], [0, 0, 1]])


def cameras(*places):
    return Cameras(LENS.repeat(len(places), 1, 1), rigid(torch.eye(3).repeat(len(places), 1, 1), torch.tensor(places)), 40, 30)


def cloud_of(xyz):
    return PointCloud(xyz, torch.full_like(xyz, 0.2), torch.ones(len(xyz)))


def where(image, colour):
    """Middle of the pixels of a colour: x, y."""
    rows, columns = np.nonzero((np.abs(np.asarray(image).astype(int) - colour).sum(-1)) < 30)
    return columns.mean(), rows.mean()


def test_ahead_is_up_and_right_is_right():
    photos, path = cameras((-1.0, 0, 0), (-0.8, 0, 0)), cameras((1.0, 0, 0), (1.2, 0, 0))
    image = draw_above(cloud_of(torch.tensor([[0.0, 0, 4.0]]).repeat(50, 1)), photos, path)
    assert image.size == (SIDE, SIDE)
    (photo_x, photo_y), (frame_x, _), points = where(image, PHOTO), where(image, FRAME), np.asarray(image)[: SIDE // 2]
    assert photo_x < SIDE / 2 < frame_x
    assert photo_y > SIDE * 0.8
    assert points.min() < 200  # the cloud lies ahead


def test_a_ceiling_does_not_hide_the_scene():
    photos, path = cameras((0.0, 0, 0), (1.0, 0, 0)), cameras((0.5, 0, 0))
    draws = torch.Generator().manual_seed(0)
    floor, ceiling = (torch.rand(2000, 3, generator=draws) * 4 for _ in range(2))
    floor[:, 1], ceiling[:, 1] = 1.0, -3.0
    one = draw_above(cloud_of(floor), photos, path)
    both = cloud_of(torch.cat([floor, ceiling]))
    assert np.abs(np.asarray(draw_above(both, photos, path)).astype(int) - np.asarray(one)).mean() < 20


def test_the_axes_are_those_of_the_photos_wherever_they_are():
    turn = so3_exp(torch.tensor([0.3, 0.8, -0.2]))
    photos = Cameras(LENS.repeat(2, 1, 1), rigid(turn.repeat(2, 1, 1), torch.zeros(2, 3)), 40, 30)
    right, ahead, up = axes_above(photos)
    torch.testing.assert_close(torch.stack([right, -up, ahead], -1), turn, atol=1e-6, rtol=0)


def test_a_scene_without_points_and_photos_all_around_are_drawn():
    turns = so3_exp(torch.tensor([[0.0, 0, 0], [0.0, torch.pi, 0]]))
    photos = Cameras(LENS.repeat(2, 1, 1), rigid(turns, torch.zeros(2, 3)), 40, 30)
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    assert draw_above(nothing, photos, photos).size == (SIDE, SIDE)


def test_reach_is_measured_from_the_nearest_photo():
    photos = cameras((0.0, 0, 0), (2.0, 0, 0), (4.0, 0, 0))
    turned = cameras((4.5, 0, 0), (1.0, 0, 0), (7.0, 0, 0))
    turned.cam_to_world[1, :3, :3] = so3_exp(torch.tensor([0.0, 0.5, 0]))
    far, degrees = reach_of(photos, turned)
    assert far == pytest.approx(1.5)
    assert degrees == pytest.approx(torch.rad2deg(torch.tensor(0.5)).item(), abs=1e-3)
