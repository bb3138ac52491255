"""The backend around Depth-Anything-3's network: a correct network gives the correct scene, whatever is known beforehand."""

import warnings
from dataclasses import replace

import pytest
import torch
from exact_scene import assert_located, assert_right_cameras, assert_right_depth, draw, room, shoot, withheld
from small_models import save_hub, small_da3
from torch import nn

from reconx_core.datasets import procedural
from reconx_core.datasets.raycast import render
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import resize_cameras, rigid, rotation_angle, so3_exp
from reconx_core.pointcloud import make_backend, weights_of
from reconx_core.pointcloud.backends import da3
from reconx_core.pointcloud.backends.da3 import Da3
from reconx_core.pointcloud.networks.da3 import DA3Prediction
from reconx_core.pointcloud.networks.da3_camera import encode_cameras
from reconx_core.settings import PointcloudSettings, ViewsSettings
from reconx_core.views import load_views

pytestmark = pytest.mark.long

SETTINGS = PointcloudSettings(backend="da3")
UNIT = 3.0  # the network's scale is its own


class Exact(nn.Module):
    """A network that knows the scene, in the first photo's frame and in other units; its cameras may be off."""

    def __init__(self, cameras, depth, off=0.0):
        super().__init__()
        self.cameras, self.depth, self.off, self.marker = cameras, depth, off, nn.Parameter(torch.zeros(1))

    def forward(self, images, cameras=None, frames_per_chunk=None, rays=True):
        height, width = images.shape[-2:]
        own = resize_cameras(self.cameras, height, width)
        depth = nn.functional.interpolate(self.depth[None] * UNIT, (height, width), mode="nearest-exact")
        world_to_cam = own.world_to_cam @ own.cam_to_world[:1]
        count = len(world_to_cam)
        turn = so3_exp(self.off * torch.randn(count, 3, generator=draw(1)) / 57.3)
        shift = self.off * 0.02 * torch.randn(count, 3, generator=draw(2))
        moved = rigid(turn @ world_to_cam[:, :3, :3], UNIT * (world_to_cam[:, :3, 3] + shift))
        encoding = encode_cameras(moved, own.intrinsics, height, width)
        self.asked = cameras
        return DA3Prediction(encoding[None], depth, torch.full_like(depth, 20.0), None, None, torch.zeros(1).long())


def install(monkeypatch, network):
    monkeypatch.setattr(da3, "load_network", lambda load, path: network)
    monkeypatch.setattr(da3, "find_weights", lambda *names: names)
    return network


def exact(monkeypatch, off=0.0):
    cameras = room().inputs().cameras
    return install(monkeypatch, Exact(cameras, shoot(cameras)[1], off))


def test_the_networks_cameras_come_through(monkeypatch):
    exact(monkeypatch)
    with pytest.warns(UserWarning, match="did not improve the network's cameras"):  # there is nothing to improve
        pointmaps, kept = Da3(SETTINGS)(replace(room().inputs(), protocol="unposed"), None, draw())
    assert kept.tolist() == [0, 1, 2]
    assert_right_cameras(pointmaps.cameras)
    assert_right_depth(pointmaps, same_units=False)
    assert pointmaps.camera_confidence > 0.8


def test_known_cameras_give_the_scale(monkeypatch):
    network, inputs = exact(monkeypatch, off=2.0), room().inputs()
    pointmaps, _ = Da3(SETTINGS)(inputs, inputs.cameras, draw())
    assert torch.equal(pointmaps.cameras.cam_to_world, inputs.cameras.cam_to_world)
    assert network.asked is not None
    assert pointmaps.confidence.median() > 0.9


@pytest.mark.parametrize("count", [2, 3])
def test_known_cameras_give_the_depth(monkeypatch, count):
    exact(monkeypatch)
    inputs = room().inputs()
    network = exact(monkeypatch)
    network.cameras, network.depth = network.cameras[:count], network.depth[:count]
    chosen = inputs.select(torch.arange(count))
    pointmaps, _ = Da3(SETTINGS)(chosen, chosen.cameras, draw())
    found = torch.linalg.inv(pointmaps.cameras.cam_to_world)
    depth = torch.einsum("nij,nhwj->nhwi", found[:, :3, :3], pointmaps.points_world)[..., 2] + found[:, 2, 3, None, None]
    good = pointmaps.confidence > 0.5
    assert good.float().mean() > 0.7
    assert (depth / shoot(chosen.cameras)[1] - 1)[good].abs().quantile(0.9) < 0.02


def test_first_cameras_alone_are_kept_and_not_shown_to_the_network(monkeypatch):
    network, inputs = exact(monkeypatch), room().inputs()
    pointmaps, _ = Da3(SETTINGS)(inputs, inputs.cameras[:2], draw())
    assert network.asked is None
    assert torch.equal(pointmaps.cameras.cam_to_world[:2], inputs.cameras.cam_to_world[:2])
    assert rotation_angle(pointmaps.cameras.cam_to_world[2, :3, :3], inputs.cameras.cam_to_world[2, :3, :3]) < 0.2


@pytest.mark.parametrize("off", [0.0, 1.0])
def test_a_withheld_camera_is_found_beside_those_that_are_held(monkeypatch, off):
    """To what feature matches in 160 pixels give; also where the network is a degree off."""
    exact(monkeypatch, off)
    assert_located(Da3(SETTINGS).locate(*withheld(), None, draw()), degrees=0.3, share=0.1)


@pytest.mark.slow  # the adjustment itself: sfm/test_adjust.py
@pytest.mark.parametrize("protocol", ["unposed", "intrinsics"])
def test_cameras_that_are_off_are_adjusted_to_matches(monkeypatch, protocol):
    source = "procedural:hall?seed=3&views=3&targets=0&arc=12&width=320&height=240"
    views = replace(load_views(source, ViewsSettings(size=320)).inputs(), protocol=protocol)
    scene, truth = procedural.build("hall", 3), views.cameras
    depth = torch.stack([render(scene, k, pose, 240, 320)[1] for k, pose in zip(truth.intrinsics, truth.cam_to_world)])
    install(monkeypatch, Exact(truth, depth, off=2.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pointmaps, _ = Da3(SETTINGS)(views, None, draw())
    relative = torch.linalg.inv(truth.cam_to_world[:1]) @ truth.cam_to_world
    assert rotation_angle(pointmaps.cameras.cam_to_world[:, :3, :3], relative[:, :3, :3]).max() < 0.1
    assert len(pointmaps.sparse) > 100
    found = pointmaps.cameras.world_to_cam
    z = torch.einsum("nij,nhwj->nhwi", found[:, :3, :3], pointmaps.points_world)[..., 2] + found[:, 2, 3, None, None]
    ratio = (z / depth)[pointmaps.confidence > 0.5]
    assert (ratio / ratio.median() - 1).abs().quantile(0.9) < 0.02
    again, _ = Da3(SETTINGS)(views, None, draw())
    assert torch.equal(again.points_world, pointmaps.points_world)


@pytest.mark.filterwarnings("ignore:The photos' feature matches", "ignore:The cameras may be wrong")
@pytest.mark.parametrize("posed", [False, True])
@pytest.mark.parametrize("folder", ["DA3-BASE", "DA3-SMALL"])
def test_a_file_of_weights_goes_through(monkeypatch, tmp_path, posed, folder):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    save_hub(tmp_path / folder, *small_da3())
    assert weights_of(SETTINGS) == tmp_path / folder
    inputs = room().inputs()
    fixed = inputs.cameras if posed else None
    inputs = inputs if posed else replace(inputs, protocol="unposed")
    backend = make_backend(SETTINGS, fast=True)
    pointmaps, kept = backend(inputs, fixed, draw())
    assert kept.tolist() == [0, 1, 2]
    assert pointmaps.points_world.isfinite().all()
    assert pointmaps.confidence.amin() >= 0
    assert 0 < pointmaps.confidence.amax() <= 1
    again, _ = backend(inputs, fixed, draw())
    assert torch.equal(again.points_world, pointmaps.points_world)


def test_no_weights_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    for call in (lambda: make_backend(SETTINGS)(room().inputs(), None, draw()), lambda: weights_of(SETTINGS)):
        with pytest.raises(UserError, match=r"no weights for pointcloud.backend=da3 in .* or .*reconx weights fetch da3-base"):
            call()
