"""`reconx train` from the command line: cached clips, a saved model that a run can use, clear messages for wrong input."""

import io
import json
import re

import pytest
from rich.console import Console

from flows.train import resolve_train_settings, train
from flows.training.clips import draw_clips
from reconx_core.errors import UserError
from reconx_core.settings import PointcloudSettings
from reconx_core.training.settings import ClipSource, TrainSettings
from reconx_core.video.backends.learned import load_pipeline

SMALL = "{path: 'procedural:hall?seed=2&views=2&targets=2&arc=8&width=64&height=48', frames: 4}"
DATA = '[{path: "procedural:hall?seed=1&views=2&targets=2&arc=8&width=96&height=64", frames: 4}]'


def run(folder, *changes):
    small = ["frames=4", "size=96", "crop=[64, 64]", "steps=2", "sample_every=2", f"data={DATA}", "validation=[]"]
    console = Console(file=io.StringIO(), width=200)
    train(resolve_train_settings("tiny", [*small, *changes]), folder / "out", folder / "store", console)
    return console.file.getvalue()


@pytest.mark.slow
def test_train_makes_a_model_that_a_run_can_use(server, tmp_path):
    data = f"data={DATA[:-1]}, {SMALL}]"
    output = run(tmp_path, data)
    assert (
        "1 clips; left out: 1 (1 smaller than the crop; for example hall_2 0:1:4 has 48 x 64 pixels, the crop 64 x 64)"
        in output
    )
    assert (tmp_path / "out" / "samples" / "000002.png").is_file()
    assert (tmp_path / "mlflow.db").is_file()
    again = run(tmp_path, data, "steps=3", f"validation={DATA}")
    assert re.search(r"step 3: .*validation loss -?\d", again)
    assert "step 2:" not in again  # it resumed from the checkpoint
    assert load_pipeline(tmp_path / "out" / "model").config.residual
    size = sum(file.stat().st_size for file in (tmp_path / "out" / "model").rglob("*.safetensors"))
    assert size < 40e6  # the size limit of the package


def test_a_checkpoint_of_other_settings_is_told_before_clips_are_made(tmp_path):
    kept = tmp_path / "out" / "checkpoints" / "000002"
    kept.mkdir(parents=True)
    saved = resolve_train_settings("tiny", ["crop=[48, 48]"]).model_dump(mode="json")
    (kept / "progress.json").write_text(json.dumps({"updates": 2, "settings": saved}))
    with pytest.raises(UserError, match=r"made with other settings \(.*crop.*\); use them, or another folder"):
        run(tmp_path)
    assert not (tmp_path / "store").is_dir() or not list((tmp_path / "store").glob("[a-z]*"))


@pytest.mark.long
def test_no_data_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no clip to train on"):
        run(tmp_path, "data=[]")


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [("huge", [], "no training preset 'huge'"), ("tiny", ["stepz=3"], "stepz"), ("tiny", ["steps"], "key=value")]
    + [
        ("tiny", [setting], words)
        for setting, words in (
            (
                "data=nothere",
                r"'data' \(of tiny.yaml or -S\) should be a list, such as data=\[{path: PATH}\], but is",
            ),
            ("crop=5", r"'crop' .* should be two whole numbers, such as \[128, 256\], but is '5'"),
            ("data=[{path: x, skip: 1}]", r"'data.0.skip' .* should be two whole numbers"),
            ("data=[a]", r"'data.0' .* should be {KEY: VALUE}, with KEY one of path, frames, "),
            ("pointcloud=5", r"'pointcloud' .* should be {KEY: VALUE}, with KEY one of backend, "),
            ("stepz=1", r"There is no training setting 'stepz' .*; did you mean 'steps'\?"),
            ("pointcloud.plane=3", r"did you mean 'pointcloud.planes'\?"),
            ("data=[{path: x, fram: 3}]", r"did you mean 'data.0.frames'\?"),
            ("steps=x", r"'steps' \(of tiny.yaml or -S\) should be a whole number, but is 'x'"),
        )
    ],
)
def test_wrong_settings_are_sentences(preset, changes, words):
    with pytest.raises(UserError, match=words):
        resolve_train_settings(preset, changes)


@pytest.mark.parametrize("preset", ["tiny", "paper-image", "paper-structure", "extrapolate"])
def test_presets_are_valid(preset):
    resolve_train_settings(preset, None)


@pytest.mark.parametrize(("earlier", "field", "value"), [("vary=false", "augment", False), ("kept_clips=3", "clip_cache", 3)])
def test_earlier_names_of_settings_are_accepted(tmp_path, earlier, field, value):
    assert getattr(resolve_train_settings("tiny", [earlier]), field) == value
    file = tmp_path / "own.yaml"
    file.write_text(earlier.replace("=", ": "))
    assert getattr(resolve_train_settings(str(file), None), field) == value


def test_a_preset_that_is_a_list_is_a_sentence(tmp_path):
    (tmp_path / "list.yaml").write_text("- steps: 3\n")
    with pytest.raises(UserError, match=r"list\.yaml should hold training settings.*holds list"):
        resolve_train_settings(str(tmp_path / "list.yaml"), None)


def test_a_crop_that_no_clip_can_hold_is_told_before_any_is_made():
    with pytest.raises(UserError, match=r"512 x 512 is larger than the clips \(size=320"):
        resolve_train_settings("tiny", ["crop=[512, 512]", "size=320"])
    with pytest.raises(UserError, match="larger than the clips"):
        resolve_train_settings("paper-image", ["crop=[576, 512]"])


def drawn(path, seed=0, epoch=0, second_photo="last", contents="points", **source):
    settings = TrainSettings(seed=seed, second_photo=second_photo)
    return draw_clips([ClipSource(path=path, **source)], settings, contents, epoch)


def test_clips_are_drawn_from_the_seed_and_the_epoch():
    source = {"frames": 4, "skip": (1, 5), "clips": 6}
    first, same, other, later = (
        drawn("procedural:hall?seed=1&views=9&targets=1", *by, **source) for by in ((0,), (0,), (1,), (0, 1))
    )
    names = [[plan.name for plan in wanted.plans] for wanted in (first, same, other, later)]
    assert names[0] == names[1]
    assert names[0] != names[2]
    assert names[0] != names[3]
    assert len(set(names[0])) > 3
    splits = [plan.settings.views.split for plan in first.plans]
    assert first.rates == [30 / int(split.split(":")[2]) for split in splits]


def test_a_second_photo_is_drawn_from_the_middle_half():
    clips = drawn("procedural:hall?seed=1&views=8&targets=1", second_photo="random", frames=9, clips=30)
    places = {plan.settings.clip.second for plan in clips.plans}
    assert places == {2, 3, 4, 5, 6}
    plan = clips.plans[0]
    assert plan.settings.views.split.startswith(f"views:0,{plan.settings.clip.second}:1,")


def test_frames_alone_do_not_depend_on_the_geometry():
    plan = drawn("procedural:hall?seed=1&views=2&targets=1", contents="frames", frames=3).plans[0]
    assert plan.settings.pointcloud == PointcloudSettings()


@pytest.mark.parametrize("preset", ["paper-image", "paper-structure", "extrapolate"])
def test_clips_of_the_papers_recipes_are_as_large_as_a_step_needs_them(preset):
    settings = resolve_train_settings(preset, None)
    source = ClipSource(path="procedural:hall?seed=1&views=40&targets=1", frames=settings.frames)
    views = draw_clips([source], settings, "frames").plans[0].settings.views
    assert views.crop == settings.crop == (512, 512)


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("RECONX_DATA", raising=False)
    with pytest.raises(UserError, match=r"RECONX_DATA.*not set"):
        drawn("$RECONX_DATA/posed/fox")


def test_scenes_that_are_too_short_are_counted():
    wanted = drawn("procedural:hall?seed=1..3&views=2&targets=1", frames=4)
    assert wanted.plans == []
    assert wanted.left_out == {"scenes are too short": 3}
    assert "'hall_1' has 3 photos" in wanted.example


def test_the_geometry_is_a_setting_and_its_weights_are_asked_for_first(tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    chosen = resolve_train_settings("paper-structure", ["pointcloud.batch=2"]).pointcloud
    assert (chosen.backend, chosen.batch) == ("dust3r", 2)
    assert resolve_train_settings("tiny", ["pointcloud.planes=32"]).pointcloud.backend == "classical"
    with pytest.raises(UserError, match=r"no weights for pointcloud.backend=dust3r.*reconx weights fetch dust3r"):
        run(tmp_path, "pointcloud.backend=dust3r")


def test_extrapolation_and_augmentation_exclude_each_other():
    with pytest.raises(UserError, match="second_photo=random needs augment=false"):
        resolve_train_settings("tiny", ["second_photo=random"])
