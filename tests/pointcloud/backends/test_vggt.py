"""The VGGT backend: exact predictions must give the exact scene, with and without known cameras."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from exact_scene import assert_located, assert_right_cameras, assert_right_depth, draw, room, room_depth, withheld
from small_models import save_hub, small_vggt
from torch import nn

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import matrix_to_quaternion, so3_exp, transform, unproject
from reconx_core.pointcloud import make_backend
from reconx_core.pointcloud.backends import vggt
from reconx_core.pointcloud.backends.predictions import choose_window, to_window
from reconx_core.pointcloud.backends.vggt import Vggt, as_pairs
from reconx_core.pointcloud.networks.vggt import VGGTConfig, VGGTPrediction
from reconx_core.settings import PointcloudSettings

SETTINGS = PointcloudSettings(backend="vggt")
UNIT = 3.0  # the network's scale is its own


class Exact(nn.Module):
    """A fake network with exact predictions of the room, in the first photo's frame and in other units."""

    def __init__(self, off=0.0):
        super().__init__()
        self.off = off  # degrees by which the second camera is turned about its axis
        self.config, self.marker = VGGTConfig(image_size=160, patch=8), nn.Parameter(torch.zeros(1))

    def forward(self, images, frames_per_chunk=None, points=True):
        cameras = to_window(room().inputs().cameras, choose_window((120, 160), 160, 8))
        world_to_cam = cameras.world_to_cam @ cameras.cam_to_world[:1]
        world_to_cam[1, :3] = so3_exp(torch.tensor([0.0, 0.0, math.radians(self.off)])) @ world_to_cam[1, :3]
        translation, rotation = world_to_cam[:, :3, 3] * UNIT, matrix_to_quaternion(world_to_cam[:, :3, :3])
        sides = torch.tensor([cameras.height, cameras.width])
        fov = 2 * torch.atan(sides / 2 / cameras.intrinsics[:, [1, 0], [1, 0]])
        encoding = torch.cat([translation, rotation.roll(-1, 1), fov], 1)
        depth = room_depth()[None] * UNIT
        return VGGTPrediction(encoding[None], depth, torch.full_like(depth, 20.0), None, None)


def reconstruct(monkeypatch, views, fixed=None, off=0.0):
    monkeypatch.setattr(vggt, "load_network", lambda load, path: Exact(off))
    monkeypatch.setattr(vggt, "find_weights", lambda *names: names)
    return Vggt(SETTINGS)(views, fixed, draw())


def test_the_networks_cameras_come_through(monkeypatch):
    inputs = replace(room().inputs(), protocol="unposed")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pointmaps, kept = reconstruct(monkeypatch, inputs)
    assert kept.tolist() == [0, 1, 2]
    assert_right_cameras(pointmaps.cameras)
    assert pointmaps.camera_confidence > 0.8


def test_cameras_that_the_photos_contradict_are_told(monkeypatch):
    with pytest.warns(UserWarning, match=r"The cameras may be wrong \(camera_confidence 0\..*view_00[0-2] agrees"):
        pointmaps, _ = reconstruct(monkeypatch, replace(room().inputs(), protocol="unposed"), off=25.0)
    assert pointmaps.camera_confidence < 0.5


def test_known_cameras_give_the_scale(monkeypatch):
    inputs = room().inputs()
    pointmaps, _ = reconstruct(monkeypatch, inputs, inputs.cameras)
    assert torch.equal(pointmaps.cameras.cam_to_world, inputs.cameras.cam_to_world)
    assert pointmaps.camera_confidence is None
    assert_right_depth(pointmaps)


def test_a_depth_belongs_to_the_middle_of_its_pixel():
    """Exact depth at pixel centres, with the principal point at half the width, gives the exact points.

    Upstream, too, unprojects index u at u + 0.5 against width / 2 (its `depth_to_cam_coords_points`). Half a pixel off, the
    points would be ten times as far away as is allowed here.
    """
    cameras, scale = room().inputs().cameras, UNIT
    points = as_pairs(Exact()(None))[1]
    world = unproject(room_depth(), cameras)[:1]
    inside = scale * transform(cameras.world_to_cam[:1], world.flatten(1, 2)).reshape(world.shape)
    half = 0.5 * scale * room_depth()[0] / cameras.intrinsics[0, 0, 0]  # the offset that half a pixel makes, per pixel
    error = (points[0, 0] - inside[0]).norm(dim=-1) / half
    assert error.max() < 0.1
    index = torch.arange(160) - 80.0  # as if pixel centres lay at whole numbers
    shifted = (index * scale * room_depth()[0] / cameras.intrinsics[0, 0, 0] - inside[0, ..., 0]).abs() / half
    torch.testing.assert_close(shifted, torch.ones(120, 160), atol=0.1, rtol=0)


def test_a_withheld_camera_is_found_beside_those_that_are_held(monkeypatch):
    monkeypatch.setattr(vggt, "load_network", lambda load, path: Exact())
    monkeypatch.setattr(vggt, "find_weights", lambda *names: names)
    assert_located(Vggt(SETTINGS).locate(*withheld(), None, draw()))


@pytest.mark.parametrize("posed", [False, True])
def test_a_file_of_weights_goes_through(monkeypatch, tmp_path, posed):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    save_hub(tmp_path / "VGGT-1B", *small_vggt())
    inputs = room().inputs()
    pointmaps, kept = make_backend(SETTINGS)(inputs, inputs.cameras if posed else None, draw())
    assert kept.tolist() == [0, 1, 2]
    assert pointmaps.points_world.isfinite().all()
    assert pointmaps.confidence.amin() >= 0
    assert pointmaps.confidence.amax() <= 1
    assert pointmaps.confidence.amax() > 0
    again, _ = make_backend(SETTINGS)(inputs, inputs.cameras if posed else None, draw())
    assert torch.equal(again.points_world, pointmaps.points_world)


def test_no_weights_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no weights for pointcloud.backend=vggt in .* or .*reconx weights fetch vggt"):
        make_backend(SETTINGS)(room().inputs(), None, draw())
