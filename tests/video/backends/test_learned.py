"""The backends on ReconXPipeline, with a small random model that is saved and loaded like a real one."""

import json

import pytest
import torch
from exact_scene import draw, room, room_pointmaps
from small_models import small_pipeline

from reconx_core.condition import build_condition
from reconx_core.errors import UserError
from reconx_core.settings import ConditionSettings, VideoSettings
from reconx_core.video import generate_frames, weights_of
from reconx_core.video.backends.learned import RECIPES, find_model, learned_frames, load_pipeline, resizers, with_settings
from reconx_core.video.clip import PLAUSIBLE
from reconx_core.video.hole_filling import fill_holes


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "small"
    pipeline = small_pipeline()
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=1e-2, generator=torch.Generator().manual_seed(0))
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def guide():
    return build_condition(room().inputs(), room_pointmaps(), ConditionSettings(frames_per_pair=2), draw())


def generate(guide, folder, seed=0, **changes):
    settings = VideoSettings(backend="reconx-tiny", weights=str(folder), **changes)
    return learned_frames(room().inputs(), room_pointmaps(), guide, settings, draw(seed))


def test_there_is_a_frame_for_each_camera(guide, weights):
    images, confidence = generate(guide, weights)
    assert images.shape == guide.renders.shape
    assert torch.equal(confidence, guide.visibility.clamp(min=PLAUSIBLE))
    assert 0 <= images.min() <= images.max() <= 1


def test_one_seed_gives_the_same_frames(guide, weights):
    first, again, other = (generate(guide, weights, seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_an_untrained_residual_model_gives_the_renders_back(guide, tmp_path):
    pipeline = small_pipeline()
    torch.nn.init.zeros_(pipeline.unet.conv_out.weight)
    torch.nn.init.zeros_(pipeline.unet.conv_out.bias)
    pipeline.save_pretrained(tmp_path)
    expected, _ = fill_holes(guide.renders, guide.visibility)
    assert torch.allclose(generate(guide, tmp_path)[0], expected, atol=1e-5)


def test_structure_can_be_left_out(guide, tmp_path):
    pipeline = small_pipeline()
    for name, parameter in pipeline.unet.named_parameters():
        if "structure_gate" in name:
            torch.nn.init.ones_(parameter)
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    pipeline.save_pretrained(tmp_path)
    assert not torch.equal(generate(guide, tmp_path)[0], generate(guide, tmp_path, structure=False)[0])


def test_more_steps_are_told_as_they_come(guide, weights):
    reports = []
    settings = VideoSettings(backend="reconx-tiny", weights=str(weights), steps=3)
    learned_frames(
        room().inputs(), room_pointmaps(), guide, settings, draw(), lambda done, total: reports.append((done, total))
    )
    assert reports == [(k, 6) for k in range(1, 7)]


def test_missing_weights_are_a_sentence(guide, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no weights for video.backend=viewcrafter.*reconx weights convert"):
        generate_frames(room().inputs(), room_pointmaps(), guide, VideoSettings(backend="viewcrafter"), draw())


def test_a_broken_model_is_a_sentence(guide, weights, tmp_path):
    for name in ("model_index.json", "scheduler", "unet"):
        (tmp_path / name).symlink_to(weights / name)
    with pytest.raises(UserError, match="Cannot read the video model"):
        generate(guide, tmp_path)


def test_weights_are_found_by_name_and_by_path(weights, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(weights.parent))
    by_name, by_path = (VideoSettings(backend="reconx", weights=name) for name in ("small", str(weights)))
    assert find_model(by_name) == find_model(by_path) == weights_of(by_path) == weights.resolve()
    assert weights_of(VideoSettings(backend="points")) is None


def test_a_model_stays_loaded(weights):
    assert load_pipeline(weights.resolve()) is load_pipeline(weights.resolve())
    assert json.loads((weights / "model_index.json").read_text())["_class_name"] == "ReconXPipeline"


def test_networks_compute_in_the_numbers_of_the_setting(guide, weights):
    exact, rough = (generate(guide, weights, dtype=dtype)[0] for dtype in ("auto", "bfloat16"))
    assert load_pipeline(weights.resolve(), False, "bfloat16").unet.dtype == torch.bfloat16
    assert 0 < (exact - rough).abs().mean() < 0.05


@pytest.mark.parametrize(("pixels", "shape"), [(0, (64, 96)), (96 * 128, (96, 128))])
def test_frames_come_back_at_their_own_size(pixels, shape):
    fit, back = resizers(45, 70, pixels, 32)
    images = torch.rand(2, 45, 70, 3, generator=draw())
    assert fit(images).shape == (2, 3, *shape)
    assert back(fit(images)).shape == images.shape
    assert pixels or torch.equal(back(fit(images)), images)


def test_what_the_user_asks_for_goes_before_the_recipe():
    recipe = with_settings(RECIPES["viewcrafter"], VideoSettings(backend="viewcrafter", steps=7))
    assert (recipe.steps, recipe.guidance, recipe.fps) == (7, 7.5, 10)


def test_what_the_user_asks_for_reaches_the_pipeline(guide, weights, monkeypatch):
    from reconx_core.video.diffusion.pipeline import ReconXPipeline

    given, call = [], ReconXPipeline.__call__
    monkeypatch.setattr(ReconXPipeline, "__call__", lambda self, *a, **k: given.append(k) or call(self, *a, **k))
    asked = {"image_guidance": 2.0, "structure_guidance": 3.0, "fps": 7, "batch_guidance": False, "vae_slice": 2}
    changed, plain = generate(guide, weights, **asked)[0], generate(guide, weights)[0]
    names = ("image_guidance_scale", "structure_guidance_scale", "fps", "batch_guidance", "vae_slice_size")
    assert [given[0][name] for name in names] == list(asked.values())
    assert [given[-1][name] for name in names] == [None, None, None, True, 8]
    assert not torch.equal(changed, plain)
