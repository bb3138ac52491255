"""Every mistake that a user can make ends in one clear sentence, exit code 2, and without losing what was computed."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import standins
from fork_server import run as start
from PIL import Image
from standins import artifact_bytes, write_folder

from flows import cli
from flows.evaluate import find_scenes, split_names
from reconx_core import views
from reconx_core.errors import UserError
from reconx_core.settings import STAGES

REAL_VIEWS = views.views_with_depth


def write_photo(path, seed=0, size=(standins.WIDTH, standins.HEIGHT), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def assert_sentence(outcome, *words):
    assert outcome.code == 2, outcome.out + outcome.err
    assert outcome.err.startswith("reconx: ")
    assert outcome.err.count("\n") == 1
    assert "Traceback" not in outcome.out + outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


@pytest.fixture
def real_views(tiny, monkeypatch):
    """Stand-ins for all stages but `views`."""
    monkeypatch.setattr(views, "views_with_depth", REAL_VIEWS)
    return tiny


def test_no_such_folder(reconx, tmp_path):
    outcome = reconx("reconstruct", tmp_path / "nowhere", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert_sentence(outcome, "There is no", "nowhere", "give a folder of photos")
    assert not (tmp_path / "out").exists()


def test_empty_folder(reconx, real_views, tmp_path):
    (tmp_path / "empty").mkdir()
    outcome = reconx("reconstruct", tmp_path / "empty", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert_sentence(outcome, "no photos", "empty")


def test_one_photo(reconx, real_views, tmp_path):
    write_photo(tmp_path / "photos" / "a.png")
    outcome = reconx("reconstruct", tmp_path / "photos", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert_sentence(outcome, "at least two photos")


@pytest.mark.parametrize("stage", ["pointcloud", "video"])
def test_an_unknown_backend(reconx, tiny, tmp_path, stage):
    write_folder(tmp_path / "attic")
    setting = ("-S", f"{stage}.backend=dustr")
    outcome = reconx("reconstruct", tmp_path / "attic", "-o", tmp_path / "out", "--store", tmp_path / "store", *setting)
    assert_sentence(outcome, f"There is no {stage} backend 'dustr'; this version has")


@pytest.mark.parametrize("setting", ["pointcloud.backend=dust3r", "video.backend=viewcrafter"])
def test_missing_weights_are_told_before_anything_is_computed(reconx, tiny, tmp_path, monkeypatch, setting):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    for name in ("attic", "cellar"):
        write_folder(tmp_path / "data" / name)
    outcome = reconx("evaluate", tmp_path / "data", "-o", tmp_path / "out", "--store", tmp_path / "store", "-S", setting)
    assert_sentence(outcome, f"no weights for {setting}", "reconx weights")
    assert tiny() == []


def test_truncated_photo_among_good_ones_is_left_out_and_named(reconx, real_views, tmp_path):
    for name in "abc":
        photo = write_photo(tmp_path / "photos" / f"{name}.jpg", seed=ord(name))
    photo.write_bytes(photo.read_bytes()[:300])
    outcome = reconx("reconstruct", tmp_path / "photos", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 0, outcome.err
    assert "c.jpg" in "".join(outcome.out.split())
    assert "left out" in " ".join(outcome.out.split())
    again = reconx("reconstruct", tmp_path / "photos", "-o", tmp_path / "again", "--store", tmp_path / "store")
    assert "left out" in " ".join(again.out.split()), "a note stays with the artifact"
    assert "left out" in (tmp_path / "again" / "report.html").read_text()


def test_grey_and_palette_pictures_are_photos_too(reconx, real_views, tmp_path):
    for name, mode in (("a", "L"), ("b", "RGB"), ("c", "P"), ("d", "RGBA")):
        write_photo(tmp_path / "photos" / f"{name}.png", seed=ord(name), mode=mode)
    outcome = reconx("reconstruct", tmp_path / "photos", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert outcome.code == 0, outcome.err


def test_names_that_are_not_utf8_go_through_everything(reconx, real_views, tmp_path, monkeypatch):
    """Photos, scenes, the run's folder and the store, through Prefect, records, report and MLflow."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / os.fsdecode(b"\xfcbung")
    for scene in (b"caf\xe9", b"broken \xe9"):
        for name in (b"a\xe9.png", b"a\xe8.png", b"c.png"):
            write_photo(folder / os.fsdecode(scene) / os.fsdecode(name), seed=sum(name))
    (folder / os.fsdecode(b"broken \xe9") / "c.png").unlink()
    (folder / os.fsdecode(b"broken \xe9") / os.fsdecode(b"a\xe9.png")).write_bytes(b"no picture")
    out = tmp_path / "runs" / os.fsdecode(b"l\xe4ufe")
    outcome = reconx("evaluate", folder, "-o", out, "--store", folder / "store")
    assert outcome.code == 1, outcome.err
    record = json.loads((out / "run.json").read_text())
    assert set(record["scenes"]) == {"caf\ufffd", "broken \ufffd"}
    assert record["scenes"]["caf\ufffd"]["error"] is None
    assert "broken \ufffd" in record["scenes"]["broken \ufffd"]["error"]
    assert "a\ufffd" in outcome.out
    assert (out / "caf\ufffd" / "cameras" / "images" / "a\ufffd_2.png").exists()
    assert "caf\ufffd" in (out / "report.html").read_text()
    assert "MLflow did not take" not in outcome.out
    assert "failed in views" in outcome.out
    assert reconx("status", out, "--store", folder / "store").code == 0


@pytest.mark.slow
def test_names_with_brackets_are_printed_as_they_are(reconx, tiny, tmp_path, monkeypatch):
    """What rich would take for markup or an emoji, as a scene, a photo's folder, a run, and what is written of it."""
    monkeypatch.chdir(tmp_path)
    for scene in ("attic[red]", "broken[b]"):
        write_folder(tmp_path / "data[bold]" / scene)
    outcome = reconx("evaluate", "data[bold]", "-o", "run[/b]", "--store", "store[/i]")
    assert outcome.code == 1, outcome.err
    for said in ("Evaluating data[bold] (", "attic[red]  splats", "broken[b] failed in views:", "run[/b]/report.html"):
        assert said in outcome.out, said
    assert "run[/b]: data[bold], 2 scenes" in reconx("status", "run[/b]").out
    assert (
        "splats of attic[red] was computed in this run (run[/b])"
        in reconx("why", "attic[red]", "splats", "--run", "run[/b]").out
    )
    scene = "run[/b]/attic[red]/scene.ply"
    for name in ("[/red].splat", "[bold] :smile:.ply"):
        outcome = reconx("export", scene, f"e/{name}")
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out.endswith(f" Gaussians in e/{name}\n")
    assert reconx("render", scene, "-o", "e/[/red]", "--frames", 2).out.endswith(" in e/[/red]\n")
    assert reconx("compare", "run[/b]", "run[/b]", "-o", "e/[bold].html").out.endswith(": e/[bold].html\n")
    assert "Saved as e/[/b]/easy.md" in reconx("table", "easy", "[/i]=run[/b]", "-o", "e/[/b]").out
    outcome = reconx("reconstruct", "data[bold]/attic[red]", "-o", "e/[/i]", "--store", "store[/i]")
    assert "Reconstructing data[bold]/attic[red] (" in outcome.out
    assert "e/[/i]/scene.ply" in outcome.out


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("splats.stepps=3", "did you mean 'splats.steps'?"),
        ("splat.steps=3", "did you mean 'splats"),
        ("splats.steps=-3", "Setting 'splats.steps'"),
        ("splats.steps", "should look like stage.key=value"),
    ],
)
def test_wrong_setting(reconx, tmp_path, photos, setting, expected):
    outcome = reconx("reconstruct", photos, "-o", tmp_path / "out", "-S", setting)
    assert_sentence(outcome, expected)


def test_unknown_preset_and_scene(reconx, real_views, tmp_path, photos):
    assert_sentence(reconx("reconstruct", photos, "-p", "papr"), "There is no preset 'papr'", "paper")
    write_photo(tmp_path / "data" / "attic" / "a.png")
    outcome = reconx("evaluate", tmp_path / "data", "--scenes", "atic", "-o", tmp_path / "out", "--store", tmp_path / "store")
    assert_sentence(outcome, "has no scene 'atic'", "attic")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["reconstruct", "", "-o", "o"], "An argument is empty"),
        (["reconstruct", "garden", "-o", ""], "What follows -o is empty"),
        (["reconstruct", "garden", "--out="], "What follows --out is empty"),
        (["reconstruct", "garden", "--store", ""], "What follows --store is empty"),
        (["reconstruct", "garden", "-p", ""], "What follows -p is empty"),
        (["compare", "", "out"], "An argument is empty"),
        (["gc", "--store="], "What follows --store is empty"),
        (["weights", "verify", ""], "An argument is empty"),
    ],
)
def test_an_empty_path_is_not_the_folder_one_is_in(reconx, tiny, photos, monkeypatch, arguments, words):
    monkeypatch.chdir(photos.parent)
    before = sorted(photos.parent.rglob("*"))
    assert_sentence(reconx(*arguments), words)
    assert sorted(photos.parent.rglob("*")) == before


def test_an_empty_text_of_a_setting_stays_one():
    cli.refuse_empty(["evaluate", "x", "--set=video.prompt=", "-S", "video.prompt="])


def test_scenes_without_a_name(reconx, real_views, tmp_path):
    write_photo(tmp_path / "data" / "attic" / "a.png")
    for scenes in (",", " , "):
        assert_sentence(reconx("evaluate", tmp_path / "data", "--scenes", scenes, "-o", tmp_path / "out"), "names no scene")
    assert split_names("attic, cellar,") == ("attic", "cellar")


def test_scenes_with_commas_in_their_names_can_be_chosen(tmp_path):
    names = ["Smith, J", "a,b,c", "attic", *(f"scene{number}" for number in range(40))]
    for name in names:
        write_folder(tmp_path / name)
    chosen = lambda text: [name for name, _ in find_scenes(str(tmp_path), split_names(text))]  # noqa: E731
    assert chosen("a,b,c, attic,Smith, J") == ["a,b,c", "attic", "Smith, J"]
    assert chosen("attic") == ["attic"]
    with pytest.raises(UserError, match=r"has no scene 'a'; it has .* and \d+ more\.$"):
        chosen("a,b,attic")


def test_an_empty_dataset_in_params_yaml(reconx, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("dataset: ''\n")
    assert_sentence(reconx("evaluate"), "params.yaml should say 'dataset: ...'")


def test_read_only_output_is_told_before_anything_is_computed(reconx, tiny, tmp_path, photos):
    with read_only(tmp_path / "out") as out:
        outcome = reconx("reconstruct", photos, "-o", out / "scene", "--store", tmp_path / "store")
    assert_sentence(outcome, "Cannot write under", "read-only")
    assert tiny() == []


def test_read_only_store_is_told_before_anything_is_computed(reconx, tiny, tmp_path, photos):
    with read_only(tmp_path / "store") as store:
        outcome = reconx("reconstruct", photos, "-o", tmp_path / "out", "--store", store)
    assert_sentence(outcome, "Cannot write under", "read-only")
    assert tiny() == []


def test_output_that_is_a_file(reconx, tiny, tmp_path, photos):
    (tmp_path / "out").write_text("mine")
    assert_sentence(reconx("reconstruct", photos, "-o", tmp_path / "out", "--store", tmp_path / "store"), "there is a file")
    assert (tmp_path / "out").read_text() == "mine"


def test_full_disk_loses_nothing_and_the_next_run_goes_on(reconx, forks, tiny, tmp_path):
    """The kernel refuses every file above 8 KB: what needs one fails and is named, what was made before stays."""
    for name in ("attic", "barn"):
        write_folder(tmp_path / "data" / name)
    log = tmp_path / "log"
    environment = {**os.environ, "RECONX_TEST_LOG": str(log)}
    evaluate = ("evaluate", str(tmp_path / "data"), "-o", str(tmp_path / "out"), "--store")
    failed = start(forks, *evaluate, tmp_path / "store", environment=environment, file_bytes=8192)
    assert failed.returncode == 2, failed.stderr
    assert "is full; free some space" in failed.stderr
    assert "Traceback" not in failed.stderr
    computed = log.read_text().split()
    printed = " ".join(failed.stdout.split())
    for name in ("attic", "barn"):
        assert f"{name} failed in {computed[-1]}: The disk under {tmp_path / 'store'} is full" in printed
    done = start(forks, *evaluate, tmp_path / "store", environment=environment)
    assert done.returncode == 0, done.stderr
    assert Counter(log.read_text().split()) == dict.fromkeys(STAGES, 2) | {computed[-1]: 4}
    assert reconx(*evaluate, tmp_path / "calm").code == 0
    assert artifact_bytes(tmp_path / "store") == artifact_bytes(tmp_path / "calm")


def test_scene_that_is_not_there(reconx, tmp_path):
    for command in (("render",), ("export",), ("view",)):
        assert_sentence(
            reconx(*command, tmp_path / "scene.ply", *(["x.splat"] if command == ("export",) else [])), "There is no scene"
        )


def test_help_is_quick_and_says_what_there_is():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "flows.cli", "--help"], capture_output=True, text=True, timeout=60
    )
    assert "reconstruct" in done.stdout
    loaded = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.count("|") == 2}
    assert not loaded & {"torch", "prefect", "mlflow", "zarr", "numpy"}


@contextmanager
def read_only(folder):
    """A folder that cannot be written to; for root, who may write everywhere, a file system mounted so."""
    folder.mkdir()
    root = os.geteuid() == 0
    if not root:
        folder.chmod(0o555)
    elif not shutil.which("mount") or run("mount", "-t", "tmpfs", "-o", "ro", "none", folder).returncode:
        pytest.skip("root can write everywhere, and mounting is not allowed here")
    try:
        yield folder
    finally:
        run("umount", folder) if root else folder.chmod(0o755)


def run(*command):
    return subprocess.run([str(word) for word in command], capture_output=True)
