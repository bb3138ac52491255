"""The same folder again: what the new run does not make is no longer there as if it were of it, and is not lost either."""

import json
from pathlib import Path

import pytest
from standins import write_folder

from flows.runs import earlier
from flows.runs.earlier import EARLIER, put_others_aside, put_results_aside, require_done
from reconx_core import splats
from reconx_core.errors import UserError
from reconx_core.io.files import write_json


def scene(folder, error=None):
    """A scene as a run leaves it."""
    write_json(folder / "scene.json", {"failed_stage": "splats" if error else None, "error": error})
    if error is None:
        (folder / "scene.ply").write_text(folder.name)
        (folder / "pictures").mkdir()
        (folder / "pictures" / "000.jpg").touch()
    return folder


def test_scenes_that_fail_now_or_are_gone_are_put_aside_until_they_are_made_again(reconx, tiny, tmp_path, monkeypatch):
    data, out = tmp_path / "data", tmp_path / "out"
    for name in ("attic", "cellar", "den"):
        write_folder(data / name)
    command = ("evaluate", data, "-o", out, "--store", tmp_path / "store")
    assert reconx(*command).code == 0
    made = {name: (out / name / "scene.ply").read_bytes() for name in ("attic", "den")}
    (out / "mine" / "pictures").mkdir(parents=True)
    (out / "attic" / "notes.txt").write_text("mine")
    (out / "cellar" / "pictures" / "999.jpg").touch()

    def fail(frames, *_):
        if whole_seen.append(1) or len(whole_seen) == 1:
            raise UserError("Too dark; take brighter photos.")
        return whole(frames, *_)

    whole, whole_seen = splats.fit_splats, []
    monkeypatch.setattr(splats, "fit_splats", fail)
    outcome = reconx(*command, "--scenes", "attic,cellar", "-S", "splats.steps=3")
    assert outcome.code == 1
    assert f"made what is now in {out / EARLIER}: attic, den" in " ".join(outcome.out.split())
    for name, content in made.items():
        assert not (out / name / "scene.ply").exists()
        assert (out / EARLIER / name / "scene.ply").read_bytes() == content
    assert sorted(path.name for path in (out / "attic").iterdir()) == ["notes.txt", "scene.json"]
    assert not (out / "den").exists()
    assert (out / "mine").exists()
    assert (out / "cellar" / "scene.ply").exists()
    assert not (out / "cellar" / "pictures" / "999.jpg").exists(), "of no view of this run"

    for arguments in (("render", out / "attic"), ("export", out / "attic" / "scene.ply", tmp_path / "attic.splat")):
        refused = reconx(*arguments)
        assert refused.code == 2
        where = f"reconx: The scene in '{out / 'attic'}' failed in splats: "
        assert refused.err.startswith(f"{where}Too dark; take brighter photos.")
        assert str(out / EARLIER / "attic") in refused.err
    assert reconx("export", out / EARLIER / "attic", tmp_path / "attic.splat").code == 0

    monkeypatch.setattr(splats, "fit_splats", whole)
    assert reconx(*command).code == 0
    assert (out / "attic" / "scene.ply").read_bytes() == made["attic"]
    assert not (out / EARLIER).exists()


def test_reconstruction_that_fails_does_not_leave_the_scene_before_as_its_own(reconx, tiny, photos, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", splats.fit_splats
    command = ("reconstruct", photos, "-o", out, "--store", tmp_path / "store")
    assert reconx(*command).code == 0
    before = (out / "scene.ply").read_bytes()

    def fail(*_):
        raise UserError("Too dark.")

    monkeypatch.setattr(splats, "fit_splats", fail)
    outcome = reconx(*command, "-S", "splats.steps=3")
    assert (outcome.code, outcome.err) == (2, "reconx: Too dark.\n")
    assert reconx("export", out, tmp_path / "scene.splat").code == 2
    assert not any((out / name).exists() for name in ("scene.ply", "video.mp4", "run.json", "report.html", "cameras"))
    assert (out / EARLIER / "scene.ply").read_bytes() == before
    assert json.loads((out / EARLIER / "scene.json").read_text())["error"] is None
    # A second failure has nothing to put aside, and loses nothing.
    assert reconx(*command, "-S", "splats.steps=3").code == 2
    assert (out / EARLIER / "scene.ply").read_bytes() == before
    monkeypatch.setattr(splats, "fit_splats", whole)
    assert reconx(*command, "-S", "splats.steps=3").code == 0
    assert not (out / EARLIER).exists()


def test_seeds_and_rows_of_an_earlier_run(tmp_path):
    for place in ("attic/seed-0", "attic/seed-1", "den", "full/den"):
        scene(tmp_path / place)
    write_json(tmp_path / "full" / "run.json", {})
    assert put_others_aside(tmp_path, [Path("attic/seed-1"), Path("den")], {"full"}) == ["attic", "full"]
    assert (tmp_path / "attic" / "seed-1" / "scene.ply").exists()
    for place in ("attic/seed-0", "full/den"):
        assert not (tmp_path / place).exists()
        assert (tmp_path / EARLIER / place / "scene.ply").exists()
    # A run of one seed after one of several, and the reverse.
    assert put_others_aside(tmp_path, [Path("attic"), Path("den/seed-0")]) == ["attic", "den"]
    assert list((tmp_path / "attic").iterdir()) == []
    assert not (tmp_path / "den").exists()
    assert (tmp_path / EARLIER / "den" / "scene.ply").exists()


def test_what_no_run_made_and_runs_of_their_own_stay(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "scene.ply").touch()
    write_json(scene(tmp_path / "other") / "request.json", {})
    (tmp_path / "link").symlink_to(scene(tmp_path.parent / f"{tmp_path.name}-elsewhere"))
    assert put_others_aside(tmp_path, []) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "mine", "other"]


def test_a_dataset_that_is_the_runs_folder_too_keeps_its_photos(tmp_path):
    for name in ("attic", "den"):
        (tmp_path / name / "cameras").mkdir(parents=True)
    scene(tmp_path / "attic")
    scene(tmp_path / "den", "Too dark.")
    assert not put_results_aside(tmp_path, Path("den"))
    assert put_others_aside(tmp_path, []) == ["attic"]
    assert (tmp_path / "den" / "cameras").exists()
    assert not (tmp_path / "den" / "scene.json").exists(), "of no scene of this run"


def test_failed_record_does_not_take_the_place_of_the_last_good_one(tmp_path):
    scene(tmp_path / "attic")
    assert put_results_aside(tmp_path, Path("attic"))
    scene(tmp_path / "attic", "Too dark.")
    assert not put_results_aside(tmp_path, Path("attic"))
    assert json.loads((tmp_path / EARLIER / "attic" / "scene.json").read_text())["error"] is None
    with pytest.raises(UserError, match=r"failed in splats: Too dark\. \(An earlier run's is in"):
        require_done(tmp_path / "attic")
    require_done(tmp_path / EARLIER / "attic")
    earlier.forget_earlier(tmp_path, Path("attic"))
    assert not (tmp_path / EARLIER).exists()
