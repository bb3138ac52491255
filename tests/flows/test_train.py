"""`reconx train` from the command line: cached clips, a saved model that a run can use, clear messages for wrong input."""

import io

import pytest
from rich.console import Console

from flows.train import choose_clips, resolve_train_settings, train
from reconx_core.errors import UserError
from reconx_core.training.settings import ClipSource
from reconx_core.video.backends.learned import load_pipeline

DATA = '[{path: "procedural:hall?seed=1&views=2&targets=2&arc=8&width=96&height=64", frames: 4}]'


def run(folder, *changes):
    small = ["frames=4", "size=96", "crop=[64, 64]", "steps=2", "sample_every=2", f"data={DATA}", "validation=[]"]
    console = Console(file=io.StringIO(), width=200)
    train(resolve_train_settings("tiny", [*small, *changes]), folder / "out", folder / "store", console)
    return console.file.getvalue()


@pytest.mark.long
def test_train_makes_a_model_that_a_run_can_use(tmp_path):
    output = run(tmp_path)
    assert "1 of 1 clips" in output
    assert (tmp_path / "out" / "samples" / "000002.png").is_file()
    assert (tmp_path / "mlflow.db").is_file()
    again = run(tmp_path, "steps=3", f"validation={DATA}")
    assert "step 3:" in again
    assert "step 2:" not in again  # it resumed from the checkpoint
    assert load_pipeline(tmp_path / "out" / "model").config.residual
    size = sum(file.stat().st_size for file in (tmp_path / "out" / "model").rglob("*.safetensors"))
    assert size < 40e6  # the size limit of the package


@pytest.mark.long
def test_no_data_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no clip to train on"):
        run(tmp_path, "data=[]")


@pytest.mark.parametrize(
    ("preset", "changes", "words"),
    [("huge", [], "no training preset 'huge'"), ("tiny", ["stepz=3"], "stepz"), ("tiny", ["steps"], "key=value")],
)
def test_wrong_settings_are_sentences(preset, changes, words):
    with pytest.raises(UserError, match=words):
        resolve_train_settings(preset, changes)


@pytest.mark.parametrize("preset", ["tiny", "paper-image", "paper-structure"])
def test_presets_are_valid(preset):
    resolve_train_settings(preset, None)


@pytest.mark.parametrize(("earlier", "field", "value"), [("vary=false", "augment", False), ("kept_clips=3", "clip_cache", 3)])
def test_earlier_names_of_settings_are_accepted(tmp_path, earlier, field, value):
    assert getattr(resolve_train_settings("tiny", [earlier]), field) == value
    file = tmp_path / "own.yaml"
    file.write_text(earlier.replace("=", ": "))
    assert getattr(resolve_train_settings(str(file), None), field) == value


def test_clips_are_drawn_from_the_seed():
    source = ClipSource(path="procedural:hall?seed=1&views=9&targets=1", frames=4, skip=(1, 5), clips=6)
    drawn = [list(choose_clips(source, seed, 0)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({split for _, _, split, _ in drawn[0]}) > 3
    assert all(fps == 30 / int(split.split(":")[2]) for _, _, split, fps in drawn[0])


def test_an_unset_variable_is_named(monkeypatch):
    monkeypatch.delenv("RECONX_DATA", raising=False)
    with pytest.raises(UserError, match=r"RECONX_DATA.*not set"):
        list(choose_clips(ClipSource(path="$RECONX_DATA/posed/fox"), 0, 0))


def test_a_scene_too_short_for_its_clips_is_named():
    source = ClipSource(path="procedural:hall?seed=1&views=2&targets=1", frames=4)
    with pytest.raises(UserError, match=r"hall_1.*3 photos"):
        list(choose_clips(source, 0, 0))
