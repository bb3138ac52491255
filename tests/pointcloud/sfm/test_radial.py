"""Photos through a lens that bends come out straight, with the cameras of straight ones; straight photos stay as they are."""

import warnings
from dataclasses import replace

import pytest
import torch
from bent_photos import bend
from exact_scene import draw

from reconx_core import pointcloud
from reconx_core.geometry.undistort import straighten
from reconx_core.metrics.pose import pose_errors
from reconx_core.pointcloud.sfm.radial import Lens, corner_shift
from reconx_core.pointcloud.sfm.solve import solve_cameras
from reconx_core.settings import PointcloudSettings, ViewsSettings
from reconx_core.views import load_views

pytestmark = pytest.mark.long

K1 = -0.15


@pytest.fixture(scope="module")
def room():
    return load_views("procedural:room?seed=1&views=3&targets=0&arc=9&fov=70&width=320&height=240", ViewsSettings()).inputs()


def solve(views):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        sfm = solve_cameras(views, None, draw())
    return sfm, [str(w.message) for w in said]


def test_a_lens_that_bends_is_found_with_its_cameras(room):
    sfm, said = solve(bend(room, K1))
    assert len(said) == 1
    assert "bends straight lines (by 2" in said[0]  # 22 pixels in the corners
    assert (sfm.radial / K1 - 1).abs().max() < 0.1
    assert (sfm.cameras.intrinsics[:, 0, 0] / room.cameras.intrinsics[:, 0, 0] - 1).abs().max() < 0.02
    assert pose_errors(sfm.cameras, room.cameras)["rotation_error"] < 0.2
    straight = straighten(bend(room, K1), sfm.cameras, sfm.radial)
    inside = straight.masks[..., None]
    assert inside.float().mean() > 0.9
    assert ((straight.images - room.images).abs() * inside).mean() < 0.5 * ((bend(room, K1).images - room.images).abs()).mean()


def test_straight_photos_are_left_as_they_are(room):
    assert solve(replace(room, cameras=None, protocol="unposed"))[0].radial is None


@pytest.mark.slow
def test_photos_with_cameras_are_left_as_they_are(room):
    """What a dataset gives cameras of has been undistorted with them, even where its protocol hides the cameras."""
    hidden = replace(bend(room, K1), cameras=room.cameras)
    assert solve(hidden)[0].radial is None


@pytest.mark.slow
def test_pointmaps_are_those_of_the_straight_photos(room):
    settings = PointcloudSettings(backend="classical", planes=32, rounds=1, stereo_size=160)
    with pytest.warns(UserWarning, match="bends straight lines"):
        pointmaps, cloud, kept = pointcloud.estimate(bend(room, K1), settings, draw())
    assert (pointmaps.radial / K1 - 1).abs().max() < 0.1
    straight = straighten(bend(room, K1).select(kept), pointmaps.cameras, pointmaps.radial)
    sure = pointmaps.confidence > pointcloud.FUSED_CONFIDENCE
    assert not (sure & ~straight.masks).any()
    assert torch.equal(cloud.rgb, straight.images[sure])


def test_a_corner_moves_by_what_the_term_says():
    assert corner_shift(Lens(focal=250.0, k1=-0.1), (300, 400)) == pytest.approx(0.1 * 250)
