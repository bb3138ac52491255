"""How far estimated cameras are trusted: what the photos say densely, how open the focals are, how many points there are."""

import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from exact_scene import room as exact_room
from exact_scene import room_depth

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import project, rigid, so3_exp
from reconx_core.pointcloud.sfm.evidence import (
    AGREEMENT,
    CONTRAST,
    DIRECTION,
    POINTS,
    UNCERTAINTY,
    Evidence,
    camera_confidence,
    judge_cameras,
    partners,
    same_depth,
    same_pixel,
)
from reconx_core.pointcloud.sfm.focal import FocalPrior, pose_uncertainty
from reconx_core.pointcloud.sfm.mapper import Problem, reconstruct
from reconx_core.pointcloud.sfm.open_focal import choose_focal
from reconx_core.settings import ViewsSettings
from reconx_core.types import Cameras, PointCloud
from reconx_core.views import load_views

pytestmark = pytest.mark.long


def confidence(agreement=1.0, contrast=10.0, uncertainty=0.0, points=1000, direction=0.0):
    directions = torch.tensor([[0.0, direction], [0.0, 0.0]])
    return camera_confidence(
        Evidence(torch.tensor([1.0, agreement]), torch.tensor([9.0, contrast]), uncertainty, points, directions)
    )


def test_each_of_five_halves_the_confidence_at_its_limit_and_the_weakest_decides():
    assert confidence() > 0.99
    assert confidence(agreement=AGREEMENT) == pytest.approx(0.5)
    assert confidence(contrast=CONTRAST) == pytest.approx(0.5, abs=1e-6)
    assert confidence(uncertainty=UNCERTAINTY) == pytest.approx(0.5)
    assert confidence(points=POINTS) == pytest.approx(0.5)
    assert confidence(direction=DIRECTION) == pytest.approx(0.5)
    assert confidence(direction=torch.inf) == 0
    assert confidence(agreement=AGREEMENT, points=POINTS // 2) == confidence(points=POINTS // 2) < 0.5


def test_every_view_is_compared_with_those_that_share_most_with_it_from_elsewhere():
    """Views 0 and 1 are in one place, where stereo finds no depth; 2 and 3 are elsewhere."""
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.tensor([0.0, 0.001, 1.0, 2.0])
    cameras = Cameras(torch.eye(3).repeat(4, 1, 1), poses, 8, 8)
    cloud = PointCloud(torch.tensor([[0.0, 0.0, 5.0]]).repeat(9, 1), torch.zeros(9, 3), torch.ones(9))
    seen = torch.ones(4, 9, dtype=torch.bool)
    assert partners(cameras, cloud, seen) == [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    seen[3, 1:] = False
    assert (0, 1) not in partners(cameras, cloud, seen)


@pytest.fixture(scope="module")
def room():
    """Photos, and points that all see: made of the cameras alone, for only the depth range comes from them."""
    views = load_views("procedural:room?seed=1&views=3&targets=0&arc=9&width=320&height=240", ViewsSettings())
    cameras = views.cameras
    depth = torch.linspace(1.0, 6.0, 200)
    points = cameras.cam_to_world[0, :3, 3] + depth[:, None] * cameras.cam_to_world[0, :3, 2]
    return views, PointCloud(points, torch.zeros(200, 3), torch.ones(200)), torch.ones(3, 200, dtype=torch.bool)


def turned(cameras: Cameras, view: int, degrees: float) -> Cameras:
    poses = cameras.cam_to_world.clone()
    poses[view, :3, :3] = so3_exp(torch.tensor([0.0, 0.0, math.radians(degrees)])) @ poses[view, :3, :3]
    return replace(cameras, cam_to_world=poses)


def test_true_cameras_are_trusted_in_silence(room):
    views, points, seen = room
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert judge_cameras(views, views.cameras, points, seen, 0.0) > 0.8


@pytest.mark.parametrize("degrees", [8.0, 60.0])
def test_cameras_that_the_photos_contradict_are_told_or_refused(room, degrees):
    views, points, seen = room
    wrong = turned(views.cameras, 1, degrees)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        message = sentence(lambda: judge_cameras(views, wrong, points, seen, 0.0), told)
    assert re.match(
        r"The cameras (may be wrong|of these photos cannot be found).* (only \d+%|hardly better than by chance)", message
    )


def sentence(judge, told):
    """What the user is told."""
    try:
        judge()
    except UserError as error:
        return str(error)
    return str(told[0].message)


def test_what_is_wrong_is_said(room):
    views, points, seen = room
    with pytest.warns(UserWarning, match="do not determine the focal length.*open by 9 degrees"):
        judge_cameras(views, views.cameras, points, seen, 9.0)
    few = seen & (torch.arange(200) < 9)
    with pytest.warns(UserWarning, match="only 9 points in common"):
        judge_cameras(views, views.cameras, points, few, 0.0)
    near = torch.tensor([[0.0, 1, 1], [1, 0, 9], [1, 1, 0]])
    with pytest.warns(UserWarning, match="view_001 and view_002 are so near .* is open by 9 degrees"):
        judge_cameras(views, views.cameras, points, seen, 0.0, near)


def flat_or_deep(flat: bool, views: int):
    """Exact matches of random points from a few sides, of unknown focal; in a plane, two views of them fit any."""
    points = torch.randn(80, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.5, 0.5, 0.0 if flat else 0.5])
    turns = so3_exp(torch.tensor([[0.1 * k, 0.35 * k, 0.0] for k in range(views)]))
    poses = rigid(turns, turns @ torch.tensor([0.0, 0.0, -3.0]))
    intrinsics = torch.tensor([[256.0, 0, 160], [0, 256, 120], [0, 0, 1]])
    pixels, _ = project(points, intrinsics.expand(views, 3, 3), torch.linalg.inv(poses))
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    same = np.stack([np.arange(80)] * 2, 1)
    pairs = {(i, j): same for i in range(views) for j in range(i + 1, views)}
    problem = Problem(list((pixels + noise).double().numpy()), pairs, (0,) * views, (240, 320), {}, 0, 2.0)
    return problem, reconstruct(problem, [intrinsics.double().numpy()], False)


PRIORS = [FocalPrior(256.0, 0.4)]


def test_two_views_of_a_plane_leave_the_focal_and_so_the_rotation_open():
    assert pose_uncertainty(*flat_or_deep(flat=True, views=2), PRIORS) > UNCERTAINTY
    assert pose_uncertainty(*flat_or_deep(flat=False, views=4), PRIORS) < 0.5 * UNCERTAINTY


def focal(reconstruction):
    return reconstruction.cameras[1].focal_length


def liking(wanted):
    """The photos agree best at one focal."""
    return lambda reconstruction: 0.6 - 0.5 * min(math.log(focal(reconstruction) / wanted) ** 2, 1.0)


def test_the_photos_choose_among_focals_that_the_matches_leave_open():
    problem, found = flat_or_deep(flat=True, views=2)
    for wanted in (200.0, 256.0, 360.0):
        assert focal(choose_focal(problem, found, PRIORS, liking(wanted))) == pytest.approx(wanted, rel=0.12)


def test_the_photos_do_not_overrule_matches_that_fix_the_focal():
    problem, found = flat_or_deep(flat=False, views=4)
    assert focal(choose_focal(problem, found, PRIORS, liking(360.0))) == pytest.approx(focal(found), rel=0.03)


def test_a_pixel_comes_back_where_the_depths_are_right_to_a_pixel():
    inputs, depth = exact_room().inputs(), room_depth()
    pair, far = inputs.cameras[[0, 1]], depth[:2] * torch.tensor([1.0, 1.03])[:, None, None]
    assert same_depth(depth[:2], pair).float().mean() > 0.7  # the rest is hidden in the other view, or outside of it
    assert same_pixel(depth[:2], pair).float().mean() > 0.7
    assert same_depth(far, pair).float().mean() < 0.2 < 0.6 < same_pixel(far, pair).float().mean()
    assert not same_pixel(-depth[:2], pair).any()
    assert same_pixel(depth[:2] * torch.tensor([1.0, 1.5])[:, None, None], pair).float().mean() < 0.3
