"""Known cameras of photos without matches: depth then comes from the geometry of the cameras."""

import math

import pytest
import torch

from reconx_core.pointcloud.backends.classical import Classical
from reconx_core.pointcloud.sfm.solve import solve_cameras
from reconx_core.pointcloud.stereo.ranges import AXES_APART, WIDE, ranges_from_cameras
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Views

WIDTH, HEIGHT = 64, 48


def looking(*poses):
    """Cameras at x, turned by so many degrees about the vertical axis."""
    matrices = torch.eye(4).repeat(len(poses), 1, 1)
    for matrix, (x, degrees) in zip(matrices, poses):
        angle = math.radians(degrees)
        matrix[0, 0] = matrix[2, 2] = math.cos(angle)
        matrix[0, 2], matrix[2, 0] = math.sin(angle), -math.sin(angle)
        matrix[0, 3] = x
    intrinsics = torch.tensor([[60.0, 0, WIDTH / 2], [0, 60.0, HEIGHT / 2], [0, 0, 1]])
    return Cameras(intrinsics.repeat(len(poses), 1, 1), matrices, WIDTH, HEIGHT)


def test_ranges_lie_around_the_point_that_all_cameras_look_at():
    near, far = ranges_from_cameras(looking((-1.0, 45.0), (1.0, -45.0)))
    torch.testing.assert_close(near, torch.full((2,), math.sqrt(2) / WIDE))
    torch.testing.assert_close(far, torch.full((2,), math.sqrt(2) * WIDE))


@pytest.mark.parametrize("angles", [(0.0, 0.0), (-30.0, 30.0)], ids=["parallel", "apart"])
def test_cameras_that_look_at_no_common_point_search_around_some_baselines(angles):
    near, far = ranges_from_cameras(looking((-1.0, angles[0]), (1.0, angles[1])))
    torch.testing.assert_close((near * far).sqrt(), torch.full((2,), 2 * AXES_APART))


def test_photos_in_one_place_have_a_finite_range():
    near, far = ranges_from_cameras(looking((0.0, 0.0), (0.0, 0.0)))
    assert ((near > 0) & (near < far) & far.isfinite()).all()


def photos_without_features():
    images = torch.rand(3, HEIGHT, WIDTH, 1, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 3).contiguous()
    everything = torch.ones(3, HEIGHT, WIDTH, dtype=torch.bool)
    cameras = looking((-0.3, 10.0), (0.0, 0.0), (0.3, -10.0))
    none = torch.full((3,), float("nan"))
    return Views(images, everything, ("a", "b", "c"), torch.zeros(3, dtype=torch.bool), cameras, none, "posed")


def test_photos_without_a_match_keep_their_cameras_and_give_depth():
    views = photos_without_features()
    sfm = solve_cameras(views, views.given_cameras, torch.Generator().manual_seed(0))
    assert len(sfm.sparse) == 0
    assert torch.equal(sfm.cameras.cam_to_world, views.cameras.cam_to_world)
    settings = PointcloudSettings(planes=16, rounds=1, stereo_size=64)
    pointmaps, kept = Classical(settings)(views, views.given_cameras, torch.Generator().manual_seed(0))
    assert kept.tolist() == [0, 1, 2]
    assert pointmaps.points_world.isfinite().all()
