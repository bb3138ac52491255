"""Scores of geometry against a known depth: exact on made-up cases, and the same whichever way the scene is turned."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from metrics_scene import move_cameras

from reconx_core.datasets import read
from reconx_core.geometry.transforms import rigid, so3_exp, unproject
from reconx_core.metrics.depth import render_depth, score_cloud, score_depth, score_geometry
from reconx_core.settings import ViewsSettings
from reconx_core.types import Cameras, Gaussians, PointCloud, Pointmaps
from reconx_core.views import views_with_depth

HALL = "procedural:hall?seed=1&views=2&targets=1&width=128&height=96"


@pytest.fixture(scope="module")
def scene():
    """Views, their true depth, and pointmaps that have it."""
    views, depth = views_with_depth(read(Path(HALL)), ViewsSettings(size=128))
    cameras = views.inputs().cameras
    empty = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    own = depth[~views.is_target]
    return views, depth, Pointmaps(unproject(own, cameras), torch.ones_like(own), cameras, empty)


def cloud_of(pointmaps):
    xyz = pointmaps.points_world.reshape(-1, 3)
    return PointCloud(xyz, torch.zeros_like(xyz), torch.ones(len(xyz)))


def none(count=0):
    return Gaussians(
        torch.zeros(count, 3), torch.ones(count, 4), torch.zeros(count, 3), torch.zeros(count), torch.zeros(count, 1, 3)
    )


def wall(cameras):
    """Opaque Gaussians on the plane z = 2 before the first camera."""
    steps = torch.linspace(-3, 3, 121)
    y, x = torch.meshgrid(steps, steps, indexing="ij")
    local = torch.stack([x, y, torch.full_like(x, 2.0)], -1).reshape(-1, 3)
    means = local @ cameras.cam_to_world[0, :3, :3].mT + cameras.cam_to_world[0, :3, 3]
    n = len(means)
    return Gaussians(means, torch.ones(n, 4), torch.full((n, 3), -4.0), torch.full((n,), 6.0), torch.zeros(n, 1, 3))


def test_error_share_and_coverage_are_those_of_the_pixels_that_both_have():
    truth = torch.tensor([[[1.0, 2.0, 4.0, 5.0, 0.0]]])
    estimate = torch.tensor([[[1.02, 2.2, 4.0, 9.0, 7.0]]])
    score = score_depth(estimate, torch.tensor([[[True, True, True, False, True]]]), truth, truth > 0)
    assert score.error == pytest.approx(4.0, abs=1e-4)
    assert score.within == pytest.approx(200 / 3)
    assert score.known == 0.75
    assert score_depth(estimate, torch.zeros_like(truth, dtype=torch.bool), truth, truth > 0) is None


def test_guesses_do_not_count_where_only_trusted_depth_does(scene):
    views, depth, pointmaps = scene
    own = depth[~views.is_target].clone()
    own[:, :, :64] *= 3
    confidence = torch.full_like(own, 0.9)
    confidence[:, :, :64] = 0.05
    guessed = Pointmaps(unproject(own, pointmaps.cameras), confidence, pointmaps.cameras, pointmaps.sparse)
    scores = score_geometry(none(), views, depth, torch.arange(2), guessed, cloud_of(pointmaps))
    assert scores["depth_known"] == 1
    assert scores["depth_error"] == pytest.approx(100, rel=1e-3)
    assert scores["trusted_error"] < 1e-3
    assert (scores["trusted_within_3"], scores["trusted_known"]) == (100, 0.5)


@pytest.mark.parametrize(("off", "chamfer", "f_score"), [(0.0, 0.0, 1.0), (0.005, 0.25, 1.0), (0.03, 1.5, 0.0)])
def test_a_cloud_beside_the_surface_is_as_far_off_as_it_is_moved(off, chamfer, f_score):
    y, x = torch.meshgrid(torch.arange(30.0), torch.arange(40.0), indexing="ij")
    surface = torch.stack([x, y, torch.zeros_like(x)], -1).reshape(-1, 3)
    scores = score_cloud(surface + torch.tensor([0, 0, off]), surface, 2.0)
    assert scores["chamfer"] == pytest.approx(chamfer, abs=1e-4)
    assert scores["f_score"] == f_score


def test_half_a_surface_costs_recall():
    surface = torch.stack([torch.arange(1000.0), torch.zeros(1000), torch.zeros(1000)], -1)
    scores = score_cloud(surface[:500], surface, 10.0)
    assert scores["f_score"] == pytest.approx(2 * 0.5 / 1.5, abs=1e-6)


def test_the_truth_itself_is_without_error(scene):
    views, depth, pointmaps = scene
    scores = score_geometry(none(), views, depth, torch.arange(2), pointmaps, cloud_of(pointmaps))
    assert scores["depth_error"] < 1e-3
    assert (scores["depth_within_3"], scores["depth_known"], scores["f_score"]) == (100, 1, 1)
    assert "splats_error" not in scores  # nothing is rendered where there is no Gaussian
    longer = replace(pointmaps, points_world=unproject(depth[~views.is_target] * 1.05, pointmaps.cameras))
    assert score_geometry(none(), views, depth, torch.arange(2), longer, cloud_of(longer))["depth_error"] == pytest.approx(
        5, abs=1e-3
    )


def test_a_scene_in_a_frame_of_its_own_scores_alike(scene):
    views, depth, pointmaps = scene
    move = rigid(so3_exp(torch.tensor([0.3, -1.0, 0.2])), torch.tensor([1.0, 2.0, 3.0]))
    worse = replace(pointmaps, points_world=unproject(depth[~views.is_target] * 1.02, pointmaps.cameras))
    moved = replace(
        worse,
        cameras=move_cameras(worse.cameras, 0.4, move),
        points_world=0.4 * worse.points_world @ move[:3, :3].mT + move[:3, 3],
    )
    given = score_geometry(none(), views, depth, torch.arange(2), worse, cloud_of(worse))
    found = score_geometry(none(), replace(views, protocol="unposed"), depth, torch.arange(2), moved, cloud_of(moved))
    assert found == pytest.approx(given, rel=1e-3)
    assert given["depth_error"] == pytest.approx(2, abs=1e-3)


def test_rendered_depth_is_the_distance_of_a_wall():
    intrinsics = torch.tensor([[[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]]])
    cameras = Cameras(intrinsics, rigid(so3_exp(torch.tensor([[0.2, 0.5, 0.1]])), torch.tensor([[1.0, 0, 0]])), 64, 48)
    depth, solid = render_depth(wall(cameras), cameras)
    assert solid.all()
    assert (depth - 2).abs().max() < 0.05


@pytest.mark.parametrize("settings", [{"size": 64}, {"crop": (48, 48)}, {"shrink": 2}])
def test_depth_follows_its_photo_through_resizing_and_cropping(scene, settings):
    """Its points lie on the surface that the photos at their own size show."""
    whole, true, _ = scene
    surface = unproject(true, whole.cameras).reshape(-1, 3)
    views, depth = views_with_depth(read(Path(HALL)), ViewsSettings(**settings))
    assert depth.shape == views.masks.shape != true.shape
    near = 0.015 * float(true.median())

    def share(depth):
        return float(
            (torch.cdist(unproject(depth, views.cameras).reshape(-1, 3)[::7], surface).min(1).values < near).float().mean()
        )

    assert share(depth) > 0.97
    assert share(depth.roll(4, 2)) < 0.9  # as where a crop or the canvas were forgotten


def test_photos_without_depth_have_none():
    whole = read(Path(HALL))
    bare = replace(whole, photos=tuple(replace(photo, load_depth=None) for photo in whole.photos))
    assert views_with_depth(bare, ViewsSettings(size=64))[1] is None
    bent = replace(whole, photos=tuple(replace(photo, distortion=(0.01, 0.0, 0.0, 0.0)) for photo in whole.photos))
    assert views_with_depth(bent, ViewsSettings(size=64))[1] is None
