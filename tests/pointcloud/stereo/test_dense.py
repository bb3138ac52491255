"""Depth of a procedural room with exact cameras, against its exact depth."""

import pytest
import torch
from exact_scene import relative_error, room, room_depth, shoot

from reconx_core.pointcloud.stereo.dense import Scene, estimate_depth
from reconx_core.types import Cameras

pytestmark = pytest.mark.long

PAIRS = torch.tensor([[0, 1], [1, 2]])


def scene(planes=64):
    inputs, depth = room().inputs(), room_depth()
    near, far = 0.7 * depth.amin((1, 2)), 1.4 * depth.amax((1, 2))
    return Scene(inputs.images, inputs.cameras, [[1, 2], [0, 2], [1, 0]], near, far, planes)


@pytest.fixture(scope="module")
def estimated():
    return estimate_depth(scene(), PAIRS, rounds=1)


def test_depth_of_a_room(estimated):
    error = relative_error(estimated[0], room_depth())
    assert error.median() < 0.01
    assert (error < 0.02).float().mean() > 0.7
    assert (error < 0.05).float().mean() > 0.8


def test_confidence_tells_good_depth_from_bad(estimated):
    depth, confidence = estimated
    error = relative_error(depth, room_depth())
    sure = confidence > 0.5
    assert sure.float().mean() > 0.7
    assert (error[sure] < 0.05).float().mean() > 0.9
    assert error[sure].mean() < error[~sure].mean() / 3


def test_confidence_is_a_share(estimated):
    assert estimated[1].min() >= 0
    assert estimated[1].max() <= 1


def test_no_pixel_is_without_depth(estimated):
    limits = scene()
    assert estimated[0].isfinite().all()
    assert (estimated[0] >= 0.9 * limits.near[:, None, None]).all()
    assert (estimated[0] <= 1.1 * limits.far[:, None, None]).all()


def small():
    """A quarter of the pixels, few planes."""
    cameras = room().inputs().cameras
    k = cameras.intrinsics * torch.tensor([0.5, 0.5, 1.0])[:, None]
    few = Cameras(k, cameras.cam_to_world, 80, 60)
    images, depth = shoot(few)
    near, far = 0.7 * depth.amin((1, 2)), 1.4 * depth.amax((1, 2))
    return Scene(images, few, [[1, 2], [0, 2], [1, 0]], near, far, 24)


@pytest.mark.slow  # test_classical.py compares all of the backend's bytes
def test_same_bytes_again():
    one, two = (estimate_depth(small(), PAIRS, rounds=1) for _ in range(2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
