"""Given cameras that are not those of the photos are told, with what is wrong where it can be seen."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from exact_scene import draw, room

from reconx_core.geometry.transforms import rigid, so3_exp, transform
from reconx_core.pointcloud.sfm.given import doubtful_cameras
from reconx_core.pointcloud.sfm.solve import solve_cameras
from reconx_core.types import Cameras

NAMES = ("a", "b", "c", "d", "e")
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))


def cameras(count):
    """Some steps apart, turned in all ways."""
    turns = so3_exp(torch.tensor([[0.1, -0.1, 0.05], [0.0, 0.0, 0.0], [-0.1, 0.1, 0.0], [0.05, 0.2, -0.1], [0.1, 0.15, 0.1]]))
    places = torch.tensor([[-0.5, 0.1, 0.2], [0.0, 0.0, 0.0], [0.4, 0.2, 0.1], [0.9, -0.2, 0.0], [-0.8, -0.1, -0.2]])
    intrinsics = torch.tensor([[350.0, 0, 200], [0, 350.0, 150], [0, 0, 1]])
    return Cameras(intrinsics.repeat(count, 1, 1), rigid(turns, places)[:count], 400, 300)


def matched(truth, noise=0.5):
    """What every two of the cameras see of 200 points."""
    rng = np.random.default_rng(0)
    points = torch.tensor(np.stack([rng.uniform(-1, 1, 200), rng.uniform(-1, 1, 200), rng.uniform(3, 6, 200)], 1)).float()
    inside = transform(truth.world_to_cam, points[None])
    pixels = (inside / inside[..., 2:] @ truth.intrinsics.mT)[..., :2].double().numpy()
    pixels += noise * rng.normal(size=pixels.shape)
    return {(i, j): (pixels[i], pixels[j]) for i in range(len(truth)) for j in range(i + 1, len(truth))}


@pytest.mark.parametrize("count", [2, 5])
def test_right_cameras_are_not_doubted(count):
    assert doubtful_cameras(NAMES[:count], cameras(count), matched(cameras(count), noise=1.5)) == ""


def test_some_wrong_matches_are_no_doubt():
    pairs = matched(cameras(3))
    for _, pixels in pairs.values():
        pixels[::4] += 60
    assert doubtful_cameras(NAMES[:3], cameras(3), pairs) == ""


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda poses: poses @ FLIP, "y and z axes of every camera reversed"),
        (torch.linalg.inv, "they fit inverted"),
        (lambda poses: torch.linalg.inv(poses @ FLIP), "they fit inverted"),
        (lambda poses: torch.linalg.inv(poses @ FLIP) @ FLIP, "they fit inverted"),
    ],
    ids=["axes", "inverted", "inverted in other axes", "inverted and turned"],
)
def test_poses_written_in_another_way(count, wrong, words):
    given = replace(cameras(count), cam_to_world=wrong(cameras(count).cam_to_world))
    told = doubtful_cameras(NAMES[:count], given, matched(cameras(count)))
    assert f"do not fit the photos: in {count * (count - 1) // 2} of" in told
    assert words in told


def test_cameras_that_only_moved_up_are_told_by_what_lies_behind_them():
    """With reversed axes their epipolar lines are the same."""
    truth = replace(cameras(2), cam_to_world=torch.eye(4).repeat(2, 1, 1))
    truth.cam_to_world[1, 1, 3] = 0.5
    given = replace(truth, cam_to_world=truth.cam_to_world @ FLIP)
    assert "axes of every camera reversed" in doubtful_cameras(NAMES[:2], given, matched(truth))


def test_cameras_of_other_photos():
    given = replace(cameras(5), cam_to_world=cameras(5).cam_to_world.roll(1, 0))
    assert "which photo each belongs to" in doubtful_cameras(NAMES, given, matched(cameras(5)))


def test_one_wrong_camera_is_named():
    given = replace(cameras(5), cam_to_world=cameras(5).cam_to_world.clone())
    given.cam_to_world[3] = given.cam_to_world[0]
    told = doubtful_cameras(NAMES, given, matched(cameras(5)))
    assert told.startswith("The given camera of d does not fit the photos")


def test_few_matches_say_nothing():
    few = {pair: (one[:20], two[:20]) for pair, (one, two) in matched(cameras(2)).items()}
    given = replace(cameras(2), cam_to_world=cameras(2).cam_to_world @ FLIP)
    assert doubtful_cameras(NAMES[:2], given, few) == ""


@pytest.mark.long
@pytest.mark.parametrize("turned", [False, True])
def test_photos_are_compared_with_the_cameras_given_for_them(turned):
    views = room().inputs()
    given = replace(views.cameras, cam_to_world=views.cameras.cam_to_world @ FLIP) if turned else views.cameras
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        solve_cameras(views, given, draw())
        solve_cameras(views, given, draw(), doubt_given=False)
    assert len(caught) == turned
    assert all("The given cameras do not fit the photos" in str(warning.message) for warning in caught)
