"""Another method's pictures get the scores that our own renders would get, and what cannot be theirs is refused."""

from dataclasses import replace

import pytest
import torch
from metrics_scene import HEIGHT, WIDTH, make_cameras, make_gaussians, make_pointmaps, make_views

from reconx_core import metrics
from reconx_core.errors import UserError
from reconx_core.metrics import given
from reconx_core.rasterize import rasterize
from reconx_core.settings import MetricsSettings

SETTINGS = MetricsSettings()


@pytest.fixture(scope="module")
def scene():
    """A scene, and one that is a little off."""
    gaussians, cameras = make_gaussians(), make_cameras()
    off = replace(gaussians, means=gaussians.means + 0.01)
    return off, cameras, make_views(gaussians, cameras)


def test_pictures_and_gaussians_score_as_the_scene_itself(scene):
    off, cameras, views = scene
    kept = torch.arange(len(views.inputs()))
    pointmaps = make_pointmaps(cameras[~views.is_target])
    ours, _ = metrics.score_scene(off, views, kept, pointmaps, SETTINGS, torch.Generator())
    with torch.no_grad():
        renders = [rasterize(off, cameras[i : i + 1]).rgb[0] for i in views.is_target.nonzero()[:, 0].tolist()]
    pictured = given.scores_of(given.score_pictures(renders, given.held_out(views, SETTINGS), SETTINGS), views)
    assert pictured.summary["psnr"] == ours.summary["psnr"] < 40
    assert pictured.summary["ssim"] == ours.summary["ssim"]
    seen = given.scores_of(given.score_gaussians(off, views, SETTINGS), views, off)
    for key in ("psnr", "ssim", "photo_psnr", "gaussians"):
        assert seen.summary[key] == ours.summary[key]


def test_nothing_held_out_is_a_sentence(scene):
    with pytest.raises(UserError, match="no view is held out"):
        given.held_out(scene[2].inputs(), SETTINGS)


def test_gaussians_in_another_frame_or_without_cameras_are_refused(scene):
    off, _, views = scene
    given.require_seen(off, views)
    with pytest.raises(UserError, match="no-normalize-world-space"):
        given.require_seen(replace(off, means=off.means + 1000), views)
    with pytest.raises(UserError, match=r"views\.protocol=posed"):
        given.require_seen(off, replace(views, protocol="unposed"))


def test_larger_pictures_are_averaged_by_whole_factors_alone():
    small = torch.rand(6, 8, 3)
    twice = small.repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.equal(given.fitted(small, 6, 8), small)
    assert torch.allclose(given.fitted(twice, 6, 8), small)
    for size in ((7, 8), (12, 8), (3, 4), (9, 12)):
        with pytest.raises(ValueError, match="no whole multiple"):
            given.fitted(torch.zeros(*size, 3), 6, 8)


def test_another_views_photo_is_recognised(scene):
    targets = scene[2].targets()
    assert targets.images.shape[1:] == (HEIGHT, WIDTH, 3)
    assert given.like_another(targets.images[1], targets, 0) == targets.names[1]
    assert given.like_another(targets.images[0], targets, 0) is None
