"""A small room with exact pointmaps: the optimisation makes photos and held-out views better."""

import dataclasses
import importlib.util
import sys
from importlib import import_module

import pytest
import torch
from exact_scene import draw, room, room_pointmaps

from reconx_core.condition import build_condition
from reconx_core.confidence import estimate_confidence
from reconx_core.errors import UserError
from reconx_core.losses.lpips import LAYOUTS, Lpips
from reconx_core.pointcloud import make_backend
from reconx_core.rasterize import rasterize
from reconx_core.settings import ConditionSettings, ConfidenceSettings, PointcloudSettings, SplatsSettings, VideoSettings
from reconx_core.splats import fit_splats, initial_gaussians
from reconx_core.splats.optimise import (
    FULL_STEP,
    RATES_FOR,
    frame_weights,
    halved,
    optimise,
    param_groups,
    perceptual_loss,
    step_loss,
    visiting_order,
    work_done,
)
from reconx_core.types import Frames
from reconx_core.video import generate_frames

pytestmark = pytest.mark.long

SETTINGS = SplatsSettings(backend="cpu", steps=150, max_gaussians=12_000, sh_degree=0)


def frames(video="points", confidence=False) -> Frames:
    inputs, pointmaps = room().inputs(), room_pointmaps()
    guide = build_condition(inputs, pointmaps, ConditionSettings(frames_per_pair=1), draw())
    made = generate_frames(inputs, pointmaps, guide, VideoSettings(backend=video), draw())
    settings = ConfidenceSettings(enabled=confidence, size=64)
    backend = make_backend(PointcloudSettings(planes=16), fast=True)
    return estimate_confidence(inputs, made, pointmaps, backend, settings, draw())


def psnr(gaussians, views) -> float:
    with torch.no_grad():
        renders = rasterize(gaussians, views.cameras).rgb.clamp(0, 1)
    return float(-10 * torch.log10((renders - views.images).square().mean()))


@pytest.fixture(scope="module")
def made():
    return frames()


@pytest.fixture(scope="module")
def fitted(made):
    """(start, result) of a short optimisation."""
    return initial_gaussians(made, room_pointmaps(), SETTINGS, "cpu", draw()), fit_splats(
        made, room_pointmaps(), SETTINGS, draw()
    )


def named(gaussians):
    return {field.name: getattr(gaussians, field.name) for field in dataclasses.fields(gaussians)}


def test_photos_are_matched(fitted):
    start, result = fitted
    assert psnr(result, room().inputs()) > max(25, psnr(start, room().inputs()) + 1)


def test_held_out_views_gain(fitted):
    start, result = fitted
    assert psnr(result, room().targets()) > psnr(start, room().targets()) + 0.5


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("gsplat") is None, reason="needs a CUDA GPU and gsplat"
)
def test_gsplat_fits_as_the_cpu_does(made, fitted):
    """The paths part by rounding, so the scenes differ; how good they are does not."""
    result = fit_splats(made, room_pointmaps(), SETTINGS.model_copy(update={"backend": "gsplat"}), draw())
    assert result.means.device.type == "cpu"
    for views in (room().inputs(), room().targets()):
        assert psnr(result, views) == pytest.approx(psnr(fitted[1], views), abs=0.3)


def test_the_number_of_gaussians_stays(fitted):
    assert len(fitted[1]) == len(fitted[0])
    assert not torch.equal(fitted[1].means, fitted[0].means)


def test_all_that_comes_out_is_finite(fitted):
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert getattr(fitted[1], name).isfinite().all(), name


def test_no_steps_leave_the_start(made):
    settings = SETTINGS.model_copy(update={"steps": 0})
    start = initial_gaussians(made, room_pointmaps(), settings, "cpu", draw())
    assert torch.equal(fit_splats(made, room_pointmaps(), settings, draw()).means, start.means)


def test_same_bytes_again_and_other_bytes_with_another_seed(made):
    settings = SETTINGS.model_copy(update={"steps": 8, "max_gaussians": 2000, "fill": False, "backdrop": False})
    one, two, other = (fit_splats(made, room_pointmaps(), settings, draw(seed)) for seed in (0, 0, 1))
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    assert not torch.equal(one.means, other.means)


def test_coarse_steps_count_less_than_others():
    """Counted alike, the fit was said to be nearly done when its cheap quarter was."""
    assert work_done(2, 8, 2) == (2, 2 + 6 * FULL_STEP)
    assert work_done(5, 8, 2) == (2 + 3 * FULL_STEP, 2 + 6 * FULL_STEP)
    assert work_done(8, 8, 0) == (8 * FULL_STEP, 8 * FULL_STEP)


def test_progress_counts_the_steps(made):
    reports = []
    settings = SETTINGS.model_copy(update={"steps": 3, "max_gaussians": 500, "fill": False, "backdrop": False})
    fit_splats(made, room_pointmaps(), settings, draw(), lambda done, total: reports.append((done, total)))
    coarse = round(settings.coarse * 3)
    assert reports == [work_done(step, 3, coarse) for step in (1, 2, 3)]
    assert reports[-1][0] == reports[-1][1]


@pytest.mark.parametrize(
    ("video", "confidence", "changes"),
    [
        ("points", True, {}),
        ("none", True, {}),
        ("points", False, {}),
        ("points", True, {"init": "sparse"}),
        ("points", True, {"init": "random"}),
        ("points", True, {"lpips_weight": 0.0}),
        ("points", True, {"ssim_weight": 0.0}),
        ("points", True, {"fill": False, "backdrop": False, "sh_degree": 2}),
        ("points", True, {"pixels": "all", "fill": False, "backdrop": False, "sampling": "uniform"}),
    ],
    ids=["all", "no video", "no confidence", "sparse", "random", "no lpips", "no ssim", "no filling", "as the paper"],
)
def test_every_switch_of_table_v_runs(video, confidence, changes):
    settings = SplatsSettings(steps=6, max_gaussians=1000).model_copy(update=changes)
    judged = frames(video, confidence)
    start = initial_gaussians(judged, room_pointmaps(), settings, "cpu", draw())
    result = fit_splats(judged, room_pointmaps(), settings, draw())
    assert len(result) == len(start)
    assert psnr(result, room().inputs()) > psnr(start, room().inputs())


def test_unsure_pixels_count_less_and_none_of_a_frame_nothing(made):
    settings = SETTINGS.model_copy(update={"frame_weight": 0.5, "confidence_floor": 0.1})
    confidence = made.confidence.clone()
    confidence[:, 0, 0] = 0
    weight = frame_weights(Frames(made.images, made.cameras, confidence, made.is_photo), settings)
    assert (weight[:3, 0, 0] == 0).all()  # masked in a photo: never
    torch.testing.assert_close(weight[3:, 0, 0], torch.full((2,), 0.05))
    torch.testing.assert_close(weight[3:].max(), 0.5 * confidence[3:].max())


@pytest.fixture(scope="module")
def lpips() -> Lpips:
    """With random weights: the real ones are not ours to ship."""
    draw_from, before, vgg = draw(7), 3, {}
    channels = (64, 128, 256, 512, 512)
    for stage, width in zip(LAYOUTS["vgg"].stages, channels):
        for number in stage:
            spread = (2 / (9 * before)) ** 0.5
            vgg[f"features.{number}.weight"] = spread * torch.randn(width, before, 3, 3, generator=draw_from)
            vgg[f"features.{number}.bias"] = torch.zeros(width)
            before = width
    return Lpips(vgg, {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=draw_from) for i, c in enumerate(channels)})


@pytest.mark.parametrize("smaller", [False, True], ids=["masked out", "a smaller photo on the canvas"])
def test_masked_pixels_of_photos_do_not_pull(monkeypatch, lpips, smaller):
    """A photo that is wrong where it is masked out changes nothing, by no term of the loss."""
    monkeypatch.setattr(sys.modules[step_loss.__module__], "load_lpips", lambda device: lpips)
    plain = frames("none")
    confidence, images = plain.confidence.clone(), plain.images.clone()
    masked = torch.zeros_like(confidence, dtype=torch.bool)
    masked[:1, :, torch.arange(160).sub(80).abs() > 50] = smaller
    masked[:, 40:80, 60:100] |= not smaller
    confidence[masked] = 0
    damaged = torch.where(masked[..., None], 1 - images, images)
    settings = SplatsSettings(steps=5, max_gaussians=500, fill=False, init="sparse", lpips_every=2, lpips_crop=48)
    one, two = (
        fit_splats(Frames(x, plain.cameras, confidence, plain.is_photo), room_pointmaps(), settings, draw())
        for x in (images, damaged)
    )
    assert torch.equal(one.means, two.means)
    assert torch.equal(one.sh, two.sh)


def test_a_term_on_every_tenth_step_counts_as_one_on_each(lpips):
    render, photo = room().inputs().images[:2, 30:78, 50:98].unbind()
    weight = torch.rand(render.shape[:2], generator=draw())

    def mean_loss(**changes):
        settings = SplatsSettings(l1_weight=0, ssim_weight=0, lpips_weight=0.5, lpips_crop=48, **changes)
        losses = [step_loss(render, photo, weight, step, lpips, settings, draw()) for step in range(4)]
        return float(torch.stack(losses).mean()), [float(loss) > 0 for loss in losses]

    every, second = mean_loss(lpips_every=1), mean_loss(lpips_every=2)
    assert (every[1], second[1]) == ([True] * 4, [True, False] * 2)
    assert second[0] == pytest.approx(every[0], rel=1e-6)
    assert every[0] == pytest.approx(0.5 * float(lpips(render[None], photo[None], weight[None])), rel=1e-6)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the backend is there")
def test_a_rasteriser_that_cannot_run_is_said(made):
    with pytest.raises(UserError, match="gsplat needs a CUDA GPU"):
        fit_splats(made, room_pointmaps(), SplatsSettings(backend="gsplat"), draw())


def visits(is_photo: torch.Tensor, steps: int, joined: int = 0, **changes) -> list[int]:
    """The visiting order, where the first ``joined`` of the generated frames are views of the geometry."""
    views = torch.arange(len(is_photo)) < int(is_photo.sum()) + joined
    return list(visiting_order(is_photo, views & ~is_photo, SplatsSettings(steps=steps, **changes), draw()))


def test_every_photo_and_frame_has_its_turn_and_photos_the_last_word():
    is_photo = torch.tensor([True] * 2 + [False] * 6)
    order = visits(is_photo, 100)
    assert len(order) == 100
    assert set(order[:75]) == set(range(8))
    assert sum(i < 2 for i in order[:75]) == 25  # one in three
    assert set(order[75:]) == {0, 1}
    assert set(visits(is_photo[:2], 4)) == {0, 1}


def test_frames_that_have_joined_stay_to_the_end_and_the_photos_turns_stay_as_many():
    order = visits(torch.tensor([True] * 2 + [False] * 6), 120, joined=3)
    assert set(order[:90]) == set(range(8))
    assert set(order[90:]) == {0, 1, 2, 3, 4}
    assert sum(i < 2 for i in order) == 40  # one in three all through


def test_before_a_background_that_changes_dark_surfaces_become_no_gaps(made):
    """Where frames have joined, which have no backdrop."""
    views = len(room_pointmaps().cameras)
    dark = dataclasses.replace(made, images=0.1 * made.images, confidence=torch.ones_like(made.confidence))
    settings = SETTINGS.model_copy(update={"backdrop": False, "dropout": 0.0})
    start = initial_gaussians(made, room_pointmaps(), settings, "cpu", draw())
    thin = dataclasses.replace(start, logit_opacities=start.logit_opacities.clamp(max=0.0))

    def gaps(joined):
        result = optimise(thin, dark, joined, settings, "cpu", draw(), lambda done, total: None)
        with torch.no_grad():
            return float((rasterize(result, dark.cameras).alpha < 0.5).float().mean())

    nothing = torch.zeros(len(made), dtype=torch.bool)
    assert gaps(torch.arange(len(made)) == views) < 0.1 * gaps(nothing)


def test_halved_frames_are_means_by_weight_and_what_their_cameras_see():
    cameras = dataclasses.replace(room_pointmaps().cameras[[0]], width=8, height=6)
    images, weights = torch.rand(1, 6, 8, 3, generator=draw()), torch.ones(1, 6, 8)
    images[:, :, 4:], weights[:, :, 4:] = 0.5, 0.0
    images[:, :, :4] = 0.2
    colours, small, shares = halved(images, cameras, weights)
    assert (small.width, small.height) == (4, 3)
    torch.testing.assert_close(small.intrinsics[0, :2], cameras.intrinsics[0, :2] / 2)
    torch.testing.assert_close(
        colours[shares > 1e-3], torch.full((int((shares > 1e-3).sum()), 3), 0.2)
    )  # not of what counts nothing
    torch.testing.assert_close(shares[:, :, [0, 3]], torch.tensor([1.0, 0.0]).expand(1, 3, 2))


def test_the_first_steps_see_small_frames(made, monkeypatch):
    seen = []

    def rasterize_and_note(gaussians, cameras, *more):
        seen.append((cameras.height, cameras.width))
        return rasterize(gaussians, cameras, *more)

    monkeypatch.setattr(import_module("reconx_core.splats.optimise"), "rasterize", rasterize_and_note)
    fit_splats(made, room_pointmaps(), SETTINGS.model_copy(update={"steps": 8, "coarse": 0.25}), draw())
    size = made.images.shape[1:3]
    assert seen == 2 * [(size[0] // 2, size[1] // 2)] + 6 * [tuple(size)]


def test_uniformly_every_frame_has_as_many_turns():
    is_photo = torch.tensor([True] * 2 + [False] * 6)
    order = visits(is_photo, 80, sampling="uniform")
    assert torch.bincount(torch.tensor(order)).tolist() == [10] * 8
    assert all(sorted(order[i : i + 8]) == list(range(8)) for i in range(0, 80, 8))
    assert len({tuple(order[i : i + 8]) for i in range(0, 80, 8)}) > 5


def test_lpips_of_the_whole_image_or_of_a_crop(lpips):
    render, photo = room().inputs().images[:2, :60, :60].unbind()
    weight = torch.rand(60, 60, generator=draw())
    whole, crop = (perceptual_loss(lpips, render, photo, weight, SplatsSettings(lpips_crop=size), draw()) for size in (0, 32))
    assert whole == lpips(render[None], photo[None], weight[None])
    assert crop != whole


def test_more_steps_are_smaller(fitted):
    start, _ = fitted
    few, many = ([group["lr"] for group in param_groups(named(start), 1.0, steps)] for steps in (RATES_FOR, 4 * RATES_FOR))
    assert [a / b for a, b in zip(few, many)] == pytest.approx([4.0] * len(few))
    assert few == [group["lr"] for group in param_groups(named(start), 1.0, RATES_FOR // 2)]
