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


def test_what_was_made_of_the_scene_before_does_not_stand_beside_the_new_one(reconx, tiny, photos, tmp_path):
    out = tmp_path / "out"
    command = ("reconstruct", photos, "-o", out, "--store", tmp_path / "store")
    assert reconx(*command).code == 0
    assert reconx("export", out, out / "scene.splat").code == 0
    assert reconx("export", out / "scene.ply", out / "sent" / "scene.spz").code == 0
    assert reconx("export", out, tmp_path / "scene.spz").code == 0
    (out / "notes.txt").write_text("mine")
    exported = (out / "scene.splat").read_bytes()
    assert EARLIER not in reconx(*command).out, "the same scene"
    assert (out / "scene.splat").exists()
    assert f"now in {out / EARLIER}." in reconx(*command, "-S", "splats.steps=3").out
    assert not any((out / name).exists() for name in ("scene.splat", "sent/scene.spz"))
    assert (out / EARLIER / "scene.splat").read_bytes() == exported
    assert (out / EARLIER / "sent" / "scene.spz").exists()
    assert (out / "notes.txt").exists()
    assert (tmp_path / "scene.spz").exists()
    assert reconx("export", out, out / "scene.splat").code == 0
    assert reconx(*command, "-S", "splats.steps=3").code == 0
    assert (out / "scene.splat").exists(), "of this scene"


def test_exported_files_of_a_scene_that_fails_now_are_put_aside_with_it(tmp_path):
    write_json(scene(tmp_path / "attic") / earlier.MADE, {"of": {"splats": "1", "pointcloud": "2"}})
    (tmp_path / "attic" / "render.mp4").touch()
    earlier.note_derived(tmp_path / "attic", tmp_path / "attic" / "render.mp4")
    earlier.note_derived(tmp_path / "attic", tmp_path / "attic" / "scene.html")  # has a place of its own
    assert json.loads((tmp_path / "attic" / earlier.DERIVED).read_text())["files"] == ["render.mp4"]
    assert put_results_aside(tmp_path, Path("attic"))
    assert list((tmp_path / "attic").iterdir()) == []
    assert (tmp_path / EARLIER / "attic" / "render.mp4").exists()


@pytest.mark.parametrize("files", [None, 5, ["../den", "/etc", 7, ""]])
def test_a_damaged_list_of_exported_files_moves_nothing(tmp_path, files):
    write_json(scene(tmp_path / "attic") / earlier.DERIVED, {"of": [], "files": files})
    (tmp_path / "den").mkdir()
    assert not earlier.put_derived_aside(tmp_path, Path("attic"))
    assert (tmp_path / "den").exists()


@pytest.mark.parametrize("place", ["data", "data/attic", "data/attic/out", "link"])
def test_results_do_not_come_to_lie_among_photos(reconx, tiny, tmp_path, place):
    """The next run would take them for photos, and pictures of one scene in a folder for two."""
    write_folder(tmp_path / "data" / "attic")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    before = sorted(path for path in tmp_path.rglob("*"))
    for source in (tmp_path / "data", tmp_path / "data" / "attic"):
        commands = ["evaluate", "reconstruct"] if place.startswith("data/attic") or source.name == "data" else []
        for command in commands:
            outcome = reconx(command, source, "-o", tmp_path / place, "--store", tmp_path / "store")
            assert (outcome.code, outcome.err.count("\n")) == (2, 1), (command, source)
            assert "name another folder by -o" in outcome.err
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "store") == before


@pytest.mark.parametrize("place", ["data/attic", "data/attic/store"])
def test_the_store_does_not_come_to_lie_among_photos(reconx, tiny, tmp_path, place):
    """Each stage that is stored would change what the scene consists of."""
    write_folder(tmp_path / "data" / "attic")
    for command, source in (("evaluate", tmp_path / "data"), ("reconstruct", tmp_path / "data" / "attic")):
        outcome = reconx(command, source, "-o", tmp_path / "out", "--store", tmp_path / place)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), (command, outcome.err)
        assert "name another folder by --store" in outcome.err
        assert not (tmp_path / "out").exists()


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
