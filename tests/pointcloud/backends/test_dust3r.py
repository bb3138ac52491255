"""The DUSt3R backend: a fake network with exact predictions must give the exact scene, and a random one must run."""

from dataclasses import replace

import pytest
import torch
from exact_scene import assert_right_cameras, assert_right_depth, draw, room, room_depth
from torch import nn

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import resize_cameras, transform, unproject
from reconx_core.pointcloud import make_backend
from reconx_core.pointcloud.backends import dust3r
from reconx_core.pointcloud.backends.dust3r import Dust3r
from reconx_core.pointcloud.backends.predictions import choose_window, from_window, to_window
from reconx_core.pointcloud.networks.dust3r import PATCH, DUSt3RConfig, Encoded, Prediction
from reconx_core.settings import PointcloudSettings

SETTINGS = PointcloudSettings(backend="dust3r", batch=2)


class Exact(nn.Module):
    """A fake network with exact predictions of the room; the tokens are view indices in the order of encoding."""

    def __init__(self, size):
        super().__init__()
        self.config, self.marker = DUSt3RConfig(image_size=size), nn.Parameter(torch.zeros(1))
        window = choose_window((120, 160), size, PATCH)
        self.cameras = to_window(room().inputs().cameras, window)
        resized = nn.functional.interpolate(room_depth()[:, None], window.full, mode="nearest-exact")[:, 0]
        (top, left), (height, width) = window.corner, window.size
        self.points = unproject(resized[:, top : top + height, left : left + width], self.cameras)
        self.seen = 0

    def encode(self, images):
        number = torch.arange(self.seen, self.seen + len(images))
        self.seen += len(images)
        return Encoded(number[:, None, None].float(), tuple(side // 16 for side in images.shape[-2:]))

    def decode(self, first, second):
        to_first = self.cameras.world_to_cam[first.tokens[:, 0, 0].long()]
        return tuple(self._seen_from(to_first, view.tokens[:, 0, 0].long()) for view in (first, second))

    def _seen_from(self, to_first, views):
        points = transform(to_first, self.points[views].flatten(1, 2)).reshape(self.points[views].shape)
        return Prediction(points, torch.full(points.shape[:-1], 20.0))


def reconstruct(monkeypatch, views, fixed=None, size=160):
    monkeypatch.setattr(dust3r, "load_network", lambda load, path: Exact(size))
    monkeypatch.setattr(dust3r, "find_weights", lambda *names: names)
    return Dust3r(SETTINGS)(views, fixed, draw())


def test_a_right_network_gives_the_right_cameras(monkeypatch):
    inputs = replace(room().inputs(), protocol="unposed")
    pointmaps, kept = reconstruct(monkeypatch, inputs)
    assert kept.tolist() == [0, 1, 2]
    assert_right_cameras(pointmaps.cameras)
    assert_right_depth(pointmaps, same_units=False)


def test_known_cameras_stay_and_give_the_scale(monkeypatch):
    inputs = room().inputs()
    pointmaps, _ = reconstruct(monkeypatch, inputs, inputs.cameras)
    assert torch.equal(pointmaps.cameras.cam_to_world, inputs.cameras.cam_to_world)
    assert torch.equal(pointmaps.cameras.intrinsics, inputs.cameras.intrinsics)
    assert_right_depth(pointmaps)


def test_what_the_window_leaves_out_is_not_trusted(monkeypatch):
    """At 150 pixels the photos are 112 high and 150 wide, of which 144 are whole patches."""
    inputs = room().inputs()
    pointmaps, _ = reconstruct(monkeypatch, inputs, inputs.cameras, size=150)
    assert (pointmaps.confidence[:, :, :3] == 0).all()
    assert (pointmaps.confidence[:, :, -3:] == 0).all()
    assert (pointmaps.confidence[:, 20:-20, 20:-20] > 0.5).float().mean() > 0.7
    assert pointmaps.points_world.isfinite().all()


def test_masked_pixels_are_not_trusted(monkeypatch):
    inputs = room().inputs()
    masks = inputs.masks.clone()
    masks[:, :40] = False
    pointmaps, _ = reconstruct(monkeypatch, replace(inputs, masks=masks), inputs.cameras)
    assert (pointmaps.confidence[:, :40] == 0).all()


def test_cameras_come_back_from_the_window():
    cameras, window = room().inputs().cameras, choose_window((120, 160), 150, PATCH)
    there = to_window(cameras, window)
    assert (there.height, there.width) == window.size
    back = from_window(there, window, 120, 160)
    assert torch.allclose(back.intrinsics, cameras.intrinsics, rtol=1e-6)
    # The window's corner is where the resized photo's camera says.
    full = resize_cameras(cameras, *window.full)
    assert torch.allclose(there.intrinsics[:, :2, 2] + torch.tensor(window.corner[::-1]), full.intrinsics[:, :2, 2])


def test_no_weights_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no weights for pointcloud.backend=dust3r in .*reconx weights fetch dust3r"):
        make_backend(SETTINGS)(room().inputs(), None, draw())


def test_one_photo_is_a_sentence():
    with pytest.raises(UserError, match="at least two photos"):
        make_backend(SETTINGS)(room().inputs().select(torch.tensor([0])), None, draw())
