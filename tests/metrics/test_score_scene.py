"""The protocols on a scene whose photos are its own renders."""

import dataclasses
import math

import pytest
import torch
from metrics_scene import make_cameras, make_gaussians, make_pointmaps, make_views, move_cameras, move_gaussians

from reconx_core.geometry.transforms import rigid, rotation_angle, so3_exp
from reconx_core.metrics import score_scene
from reconx_core.metrics.pictures import confidence_colours, side_by_side
from reconx_core.metrics.refine import map_targets, refine_camera
from reconx_core.settings import MetricsSettings
from reconx_core.types import Cameras, Gaussians, Scores, Views

MOVE = rigid(so3_exp(torch.tensor([0.4, -0.7, 0.2])), torch.tensor([3.0, -1.0, 2.0]))
SCALE = 1.7


@pytest.fixture(scope="module")
def gaussians() -> Gaussians:
    return make_gaussians()


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))


def worse(gaussians: Gaussians) -> Gaussians:
    """The scene with slightly wrong colours, so that scores are finite."""
    return dataclasses.replace(gaussians, sh=gaussians.sh + 0.2)


def score(gaussians: Gaussians, views: Views, cameras: Cameras, **settings: int):
    kept = torch.arange(len(cameras))
    return score_scene(gaussians, views, kept, make_pointmaps(cameras), MetricsSettings(**settings), torch.Generator())


def rows(scores: Scores, **where: bool) -> list[float]:
    return [v.psnr for v in scores.views if all(getattr(v, k) == x for k, x in where.items())]


def test_posed(gaussians):
    cameras = make_cameras()
    scores, pictures = score(worse(gaussians), make_views(gaussians, cameras), cameras[::2])
    assert scores.protocol == "posed"
    assert len(rows(scores, is_target=True, refined=False)) == 2
    assert not rows(scores, refined=True)
    assert scores.summary["psnr"] == pytest.approx(sum(rows(scores, is_target=True)) / 2)
    assert scores.summary["photo_psnr"] == pytest.approx(sum(rows(scores, is_target=False)) / 3)
    assert scores.summary["lpips"] is None
    assert scores.summary["gaussians"] == len(gaussians)
    assert scores.summary["registered"] == 1
    assert "rotation_error" not in scores.summary
    assert "psnr_unrefined" not in scores.summary
    assert [list(p.panels)[3:] for p in pictures] == [["confidence", "depth"]] * 3 + [["depth"]] * 2
    assert side_by_side(pictures[0]).shape == (72, 5 * 96 + 4 * 4, 3)
    torch.testing.assert_close(pictures[0].panels["confidence"][0], confidence_colours(torch.linspace(0, 1, 96)[None])[0])


def test_confidence_in_estimated_cameras_is_among_the_scores(gaussians):
    cameras = make_cameras()
    given = make_pointmaps(cameras[::2])
    estimated = dataclasses.replace(given, camera_confidence=0.25)
    views = make_views(gaussians, cameras)
    for pointmaps, wanted in ((given, None), (estimated, 0.25)):
        scores, _ = score_scene(gaussians, views, torch.arange(3), pointmaps, MetricsSettings(), torch.Generator())
        assert scores.summary.get("camera_confidence") == wanted


def test_perfect_scene_scores_perfectly(gaussians):
    cameras = make_cameras()
    scores, _ = score(gaussians, make_views(gaussians, cameras), cameras[::2])
    assert all(view.psnr > 100 for view in scores.views)
    assert all(view.ssim == pytest.approx(1) for view in scores.views)


@pytest.mark.parametrize("protocol", ["unposed", "intrinsics"])
def test_unposed_is_posed_after_alignment(gaussians, protocol):
    """A similarity transform of the whole reconstruction must not change its scores."""
    cameras = make_cameras()
    posed, _ = score(worse(gaussians), make_views(gaussians, cameras), cameras[::2])
    moved = move_gaussians(worse(gaussians), SCALE, MOVE)
    views = make_views(gaussians, cameras, protocol)
    unposed, pictures = score(moved, views, move_cameras(cameras[::2], SCALE, MOVE), refine_steps=3)
    assert unposed.summary["psnr_unrefined"] == pytest.approx(posed.summary["psnr"], abs=2e-3)
    assert unposed.summary["ssim_unrefined"] == pytest.approx(posed.summary["ssim"], abs=1e-4)
    assert unposed.summary["photo_psnr"] == pytest.approx(posed.summary["photo_psnr"], abs=2e-3)
    assert unposed.summary["psnr"] == pytest.approx(posed.summary["psnr"], abs=0.2)
    assert unposed.summary["rotation_error"] == pytest.approx(0, abs=0.05)
    assert unposed.summary["auc_5"] == pytest.approx(1, abs=0.02)
    assert len(rows(unposed, refined=True)) == len(rows(unposed, refined=False, is_target=True)) == 2
    assert [p.refined for p in pictures] == [False] * 3 + [True] * 2


def test_unposed_without_refinement(gaussians):
    cameras = make_cameras()
    scores, _ = score(worse(gaussians), make_views(gaussians, cameras, "unposed"), cameras[::2], refine_steps=0)
    assert "psnr" in scores.summary
    assert "psnr_unrefined" not in scores.summary


def test_refinement_recovers_a_small_perturbation(gaussians):
    cameras = make_cameras()
    views = make_views(gaussians, cameras)
    nudge = rigid(so3_exp(torch.tensor([0.01, -0.02, 0.015])), torch.tensor([0.03, 0.02, -0.03]))
    start = dataclasses.replace(cameras[1:2], cam_to_world=cameras[1:2].cam_to_world @ nudge)
    found = refine_camera(gaussians, start, views.images[1], views.masks[1], 90)
    angle = rotation_angle(found.cam_to_world[0, :3, :3], cameras.cam_to_world[1, :3, :3])
    distance = (found.cam_to_world[0, :3, 3] - cameras.cam_to_world[1, :3, 3]).norm()
    assert angle < 0.1
    assert distance < 0.006


def test_refinement_never_returns_a_worse_camera(gaussians):
    cameras = make_cameras()
    views = make_views(gaussians, cameras)
    found = refine_camera(gaussians, cameras[1:2], views.images[1], views.masks[1], 2)
    assert torch.equal(found.cam_to_world, cameras.cam_to_world[1:2])


def test_targets_follow_the_focal_length(gaussians):
    cameras = make_cameras()
    longer = dataclasses.replace(cameras, intrinsics=cameras.intrinsics * torch.tensor([1.25, 1.25, 1.0])[:, None])
    mapped = map_targets(cameras[1::2], longer[::2], cameras[::2])
    torch.testing.assert_close(mapped.intrinsics[:, 0, 0], torch.full((2,), 90 * 1.25))
    torch.testing.assert_close(mapped.intrinsics[:, :2, 2], cameras.intrinsics[1::2, :2, 2])


def test_users_photos_have_photo_scores_only(gaussians):
    cameras = make_cameras()
    views = dataclasses.replace(
        make_views(gaussians, cameras), cameras=None, protocol="unposed", is_target=torch.zeros(5, dtype=torch.bool)
    )
    scores, _ = score(worse(gaussians), views, cameras)
    assert set(scores.summary) == {"photo_psnr", "photo_ssim", "photo_lpips", "photo_lpips_alex", "gaussians", "registered"}
    assert math.isfinite(scores.summary["photo_psnr"])


def test_views_that_were_not_registered(gaussians):
    cameras = make_cameras()
    kept = torch.tensor([0, 2])
    scores, _ = score_scene(
        worse(gaussians), make_views(gaussians, cameras, "unposed"), kept, make_pointmaps(cameras[::2][kept]),
        MetricsSettings(refine_steps=0), torch.Generator(),
    )  # fmt: skip
    assert scores.summary["registered"] == pytest.approx(2 / 3)
    assert [v.view for v in scores.views if not v.is_target] == ["photo_0.jpg", "photo_4.jpg"]


def test_smaller_size(gaussians):
    cameras = make_cameras()
    scores, pictures = score(worse(gaussians), make_views(gaussians, cameras), cameras[::2], size=64)
    assert pictures[0].panels["photo"].shape == (48, 64, 3)
    assert scores.summary["psnr"] > 15


def test_masked_pixels_do_not_count(gaussians):
    cameras = make_cameras()
    views = make_views(gaussians, cameras)
    masks = views.masks.clone()
    masks[:, :, 60:] = False
    spoilt = views.images.clone()
    spoilt[~masks] = 0.0
    clean, _ = score(worse(gaussians), dataclasses.replace(views, masks=masks), cameras[::2])
    dirty, _ = score(worse(gaussians), dataclasses.replace(views, masks=masks, images=spoilt), cameras[::2])
    assert rows(clean) == rows(dirty)


def test_photos_are_scored_in_their_own_light(gaussians):
    """The scene is in the light that all share; held-out views, whose light nobody knows, are scored as they are."""
    cameras = make_cameras()
    plain, maps = make_views(worse(gaussians), cameras), make_pointmaps(cameras[::2])
    exposures = torch.tensor([[1.5, 1.4, 1.4], [0.8, 0.8, 0.9], [0.7, 0.7, 0.7]])
    own = plain.images.clone()
    own[::2] = plain.images[::2] ** (1 / exposures[:, None, None])
    dark = dataclasses.replace(plain, images=own)
    settings, kept = MetricsSettings(), torch.arange(3)
    seen = [
        score_scene(worse(gaussians), views, kept, dataclasses.replace(maps, exposures=given), settings, torch.Generator())[0]
        for views, given in ((plain, None), (dark, None), (dark, exposures))
    ]
    photos, targets = ([rows(scores, is_target=which) for scores in seen] for which in (False, True))
    assert targets[0] == targets[1] == targets[2]
    assert max(photos[1]) < 30
    assert min(photos[2]) > 45
