"""Photos from one spot are told from photos from two."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from exact_scene import draw, room

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import so3_exp
from reconx_core.pointcloud.sfm.parallax import from_one_spot
from reconx_core.pointcloud.sfm.solve import solve_cameras

SIZE, FOCAL = (300, 400), 350.0


def seen(points, rotation=None, centre=(0.0, 0.0, 0.0), focal=FOCAL, noise=0.2):
    """Pixels of points in front of a camera, as a detector finds them."""
    rotation = np.eye(3) if rotation is None else rotation
    inside = (points - np.asarray(centre)) @ rotation.T
    pixels = focal * inside[:, :2] / inside[:, 2:] + np.array([200, 150])
    return pixels + noise * np.random.default_rng(len(points)).normal(size=pixels.shape)


@pytest.fixture
def points():
    """A deep scene, of which every match is seen by both."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(2, 6, 300)
    return np.stack([rng.uniform(-0.4, 0.4, 300) * depth, rng.uniform(-0.3, 0.3, 300) * depth, depth], 1)


TURN = so3_exp(torch.tensor([0.05, 0.12, 0.03], dtype=torch.float64)).numpy()


@pytest.mark.parametrize("other", [{}, {"rotation": TURN}, {"focal": 1.3 * FOCAL}], ids=["copy", "turn", "zoom"])
def test_a_camera_that_stayed(points, other):
    assert from_one_spot(seen(points), seen(points, **other), SIZE)


def test_some_wrong_matches_do_not_hide_it(points):
    a, b = seen(points), seen(points, TURN)
    b[::12] += np.random.default_rng(1).uniform(-80, 80, b[::12].shape)
    assert from_one_spot(a, b, SIZE)


@pytest.mark.parametrize("rotation", [None, TURN])
def test_a_camera_that_moved(points, rotation):
    assert not from_one_spot(seen(points), seen(points, rotation, (0.2, 0.0, 0.0)), SIZE)


def test_a_flat_scene_from_two_places_is_no_shift(points):
    wall = points * (4 / points[:, 2:])
    assert not from_one_spot(seen(wall), seen(wall, TURN, (0.5, 0.0, 0.0)), SIZE)


@pytest.mark.long
def test_crops_of_one_photo_are_refused_by_name():
    views = room().inputs()
    image = views.images[0]
    crops = torch.stack([image[:110, :140], image[10:, 20:]])
    pair = replace(
        views, images=crops, masks=torch.ones(crops.shape[:3], dtype=torch.bool), names=("left", "right"), cameras=None,
        is_target=torch.zeros(2, dtype=torch.bool), focal_prior=torch.full((2,), float("nan")), protocol="unposed",
    )  # fmt: skip
    with pytest.raises(UserError, match="left and right show the same from one spot"):
        solve_cameras(pair, None, draw())
