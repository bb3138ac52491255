"""`reconx why`: what it says of stages that ran, were found, were repaired, failed, or were never reached."""

import json
import shutil
from dataclasses import replace

import pytest
from standins import write_folder

from flows.execution.plan import ScenePlan
from flows.execution.run import resolve_settings
from flows.runs.explain import changes, choose, nearest
from flows.runs.request import RunRequest
from reconx_core.cache import store
from reconx_core.errors import UserError
from reconx_core.settings import STAGES
from tasks import execute


@pytest.fixture
def run(reconx, tiny, photos, tmp_path, monkeypatch):
    """``run("first", "-S", ...)`` reconstructs the photos into that folder; returns the stages that were computed."""
    monkeypatch.chdir(tmp_path)

    def go(out, *options):
        assert reconx("reconstruct", photos, "-o", out, "--store", "store", *options).code == 0
        return tiny()

    return go


@pytest.fixture
def why(reconx):
    """``why("splats")`` of the scene `garden`: what is printed, in lines."""

    def ask(stage, *options, scene="garden"):
        outcome = reconx("why", scene, stage, "--store", "store", *options)
        assert outcome.code == 0, outcome.err
        return outcome.out.splitlines()

    return ask


def test_a_setting_and_what_follows_from_it(run, why):
    run("first")
    assert why("splats")[1] == "The store had no earlier splats of garden."
    assert run("second", "-S", "splats.steps=3") == ["splats", "metrics"]
    head, compared, *changed = why("splats")
    assert head.startswith("splats of garden was computed in this run (second), done 20")
    assert compared.startswith("Compared with the nearest earlier one, of 20")
    assert compared.endswith("by the run first, this differs:")
    assert changed == ["  splats.steps: 400 -> 3"]
    assert why("metrics")[2:] == ["  the bytes of splats changed, because", "    splats.steps: 400 -> 3"]
    head, rest = why("confidence")
    assert head.startswith("confidence of garden was found in the store by this run (second); it was made 20")
    assert head.endswith("by the run first.")
    assert rest.startswith("Nothing that it depends on has changed since: the bytes of views, pointcloud, video, settings")
    assert "was computed in this run (first)" in why("splats", "--run", "first")[0]


def test_a_photo_and_a_stage_whose_output_stayed_the_same(run, why, photos):
    run("first")
    shutil.copy(photos / "b.png", photos / "a.png")
    shutil.copy(photos / "b.png", photos / "c.png")
    # The stand-in for views does not look at the photos.
    assert run("second") == ["views"]
    assert why("views")[2:] == ["  input files: a.png changed; c.png added"]
    assert why("pointcloud")[2:] == ["views was computed anew in this run and gave the same bytes as before."]
    (photos / "c.png").unlink()
    run("second")
    assert why("views")[2:] == ["  input files: c.png gone"]


def test_code_by_its_files(run, why, monkeypatch):
    run("first")
    version, parts, place = execute.code_version, execute.module_versions, "reconx_core/splats/__init__.py"

    def edited(modules):
        return "reconx_core.splats" in modules

    monkeypatch.setattr(execute, "code_version", lambda *m: version(*m) + "edited" * edited(m))
    monkeypatch.setattr(execute, "module_versions", lambda *m: parts(*m) | ({place: "edited"} if edited(m) else {}))
    assert run("second")[0] == "splats"
    assert why("splats")[2:] == [f"  code: {place} changed"]


def test_a_library_by_its_versions_and_a_machine_that_does_not_count(run, why, monkeypatch, tmp_path):
    run("first")
    versions = execute.versions

    def upgraded(modules, without=()):
        known = versions(modules, without)
        return known | {"numba": "99.1"} if "reconx_core.splats" in modules else known

    monkeypatch.setattr(execute, "versions", upgraded)
    assert run("second")[0] == "splats"
    change = f"  numba {versions(('reconx_core.splats',))['numba']} -> 99.1"
    assert why("splats")[2:] == [change]
    manifest = next(m for m in (tmp_path / "store").glob("splats/*/manifest.json") if '"99.1"' not in m.read_text())
    measured = json.loads(manifest.with_name("measured.json").read_text())
    measured["machine"] |= {"gpu": "NVIDIA A100", "driver": "550.1"}
    manifest.with_name("measured.json").write_text(json.dumps(measured))
    assert why("splats")[2:] == [change, "  beside that, the machine: gpu NVIDIA A100 -> none, driver 550.1 -> none"]


def test_a_rasteriser_by_its_name(run, why, monkeypatch):
    run("first")
    monkeypatch.setattr(execute, "rasterizer", lambda backend: "gsplat 1.5.3")
    assert run("second") == ["splats", "metrics"]
    assert why("splats")[2:] == ["  rasterizer: cpu -> gsplat 1.5.3"]


@pytest.mark.slow
def test_an_entry_that_was_damaged_or_gone(run, why, tmp_path):
    run("first")
    (entry,) = (tmp_path / "store" / "splats").iterdir()
    (entry / "surplus").write_text("x")
    assert run("first") == ["splats"]
    assert why("splats")[1].startswith(f"The store had it already, but damaged (splats/{entry.name}: surplus changed")
    missing = "An earlier run had made it, but it was missing from the store; nothing that it depends on had changed."
    for out in ("first", "second"):
        shutil.rmtree(entry)
        assert run(out) == ["splats"]
        assert why("splats")[1] == missing


def test_a_scene_that_failed_and_names_that_are_not_there(reconx, tiny, why, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("attic", "broken"):
        write_folder(tmp_path / "data" / name)
    assert reconx("evaluate", "data", "-o", "out", "--store", "store").code == 1
    (line,) = why("video", scene="broken")
    assert line.startswith("video of broken was not reached, because views failed at 20")
    assert line.endswith(": This scene is broken; take another one.")
    assert why("views", scene="broken")[0].startswith("views of broken failed at 20")
    for scene, stage, message in (
        ("atic", "video", "No run with the store store has a scene 'atic'; did you mean attic?"),
        ("zzz", "video", "No run with the store store has a scene 'zzz'; there are attic, broken."),
        ("attic", "vide", f"There is no stage 'vide'; there are {', '.join(STAGES)}."),
    ):
        outcome = reconx("why", scene, stage, "--store", "store")
        assert (outcome.code, outcome.err) == (2, f"reconx: {message}\n")
    outcome = reconx("why", "attic", "video", "--run", "data")
    assert (outcome.code, "no request.json in 'data'" in outcome.err) == (2, True)


# --- without runs ------------------------------------------------------------------------------------------------------


def publish(root, stage, key, made, keys=None, **parts):
    """An artifact of scene `u` whose key is made of ``parts``; its parents' ``keys`` by stage."""
    keys = keys or {}
    known = {
        "settings": {}, "source": "", "code": "c", "weights": {}, "device": "cpu", "modules": {}, "parent_keys": keys,
        "parents": {name: store.reference_of_manifest(store.manifest_of(root, name, k)).digest for name, k in keys.items()},
    }  # fmt: skip
    about = {"scene": "u"} | {name: value for name, value in (known | parts).items() if value is not None}
    store.publish(root, stage, key, about, {"bytes": key.encode()}, {"made": made})
    return store.manifest_of(root, stage, key)


def test_causes_are_followed_to_their_root_and_told_once(tmp_path):
    publish(tmp_path, "views", "v1", 1, source='{"a.png": "1", "b.png": "1"}')
    publish(tmp_path, "views", "v2", 2, source='{"a.png": "2", "b.png": "1"}')
    for n in "12":
        publish(tmp_path, "pointcloud", f"p{n}", int(n), {"views": f"v{n}"}, weights={"w.safetensors": n})
    first, second = (
        publish(tmp_path, "condition", f"c{n}", int(n), {"views": f"v{n}", "pointcloud": f"p{n}"}, device=device)
        for n, device in (("1", "cpu"), ("2", "cuda"))
    )
    assert changes(tmp_path, first, second, set()) == [
        "the bytes of views changed, because",
        "  input files: a.png changed",
        "the bytes of pointcloud changed, because",
        "  the bytes of views changed, see above",
        "  weights: w.safetensors changed",
        "device: cpu -> cuda",
    ]


def test_what_older_manifests_lack_is_said(tmp_path):
    old = publish(tmp_path, "views", "old", 1, settings=None, modules=None, source="procedural:room")
    new = publish(tmp_path, "views", "new", 2, code="d", source="procedural:room?seed=1")
    assert changes(tmp_path, old, new, set()) == [
        "settings not recorded in the earlier one",
        "source: procedural:room -> procedural:room?seed=1",
        "code; which files is not recorded",
    ]
    first = publish(tmp_path, "pointcloud", "p1", 1, {"views": "old"}, parent_keys=None)
    second = publish(tmp_path, "pointcloud", "p2", 2, {"views": "new"})
    assert changes(tmp_path, first, second, set()) == ["the bytes of views changed; from which artifacts is not recorded"]
    third = publish(tmp_path, "pointcloud", "p3", 3, {"views": "old"})
    store.remove(tmp_path, "views", "old")
    gone = ["the bytes of views changed; the earlier artifact is no longer in the store"]
    assert changes(tmp_path, third, second, set()) == gone


def test_a_stage_that_does_not_repeat_itself_is_called_so(tmp_path):
    publish(tmp_path, "views", "v", 1)
    first = publish(tmp_path, "pointcloud", "p1", 1, {"views": "v"})
    second = publish(tmp_path, "pointcloud", "p2", 1, {"views": "v"}, parents={"views": "other"})
    (line,) = changes(tmp_path, first, second, set())
    assert line.endswith("although it was computed from the same: it does not repeat itself exactly")


def test_the_nearest_differs_least_and_then_is_the_newest_of_the_same_scene(tmp_path):
    def splats(key, made, **settings):
        return publish(tmp_path, "splats", key, made, settings={"splats": settings})

    manifest = splats("this", 50, steps=1, rate=1)
    assert nearest(tmp_path, manifest, 40) is None
    splats("near-old", 10, steps=2, rate=1)
    splats("near", 20, steps=1, rate=2)
    splats("far", 30, steps=2, rate=2)
    splats("of-this-run", 45, steps=1, rate=1)
    publish(tmp_path, "splats", "other-scene", 30, settings={"splats": {"steps": 1, "rate": 1}}, scene="w")
    assert nearest(tmp_path, manifest, 40)["key"] == "near"


def test_rows_and_seeds_must_be_named_only_where_they_part(tmp_path):
    plans = [
        ScenePlan("u", "u", resolve_settings(None, [f"seed={seed}", f"splats.steps={steps}"]), row, seeded=True)
        for row, steps in (("short", 1), ("long", 2))
        for seed in (0, 1)
    ]
    request = RunRequest(tmp_path / "out", tmp_path, "u", "", 0.0, {}, 1, tuple(plans), {}, {}, frozenset())

    def chosen(stage, row=None, seed=None):
        return choose(request, tmp_path, "u", stage, row, seed)[stage].plan.label

    assert chosen("views") == "u · short · seed 0"
    assert chosen("video", seed=1) == "u · short · seed 1"
    assert chosen("splats", "long", 1) == "u · long · seed 1"
    for options, message in (
        (("splats",), r"name one by --row \(short, long\) and --seed \(0, 1\)\."),
        (("splats", "long"), r"name one by --seed \(0, 1\)\."),
        (("splats", "lon"), "has no row 'lon'; did you mean long?"),
        (("splats", "long", 7), r"has no seed 7; there are 0, 1\."),
    ):
        with pytest.raises(UserError, match=message):
            chosen(*options)
    plain = tuple(replace(plan, row="") for plan in plans[:1])
    with pytest.raises(UserError, match=r"has no rows, as only an ablation has them; leave out --row\."):
        choose(replace(request, plans=plain), tmp_path, "u", "splats", "foo", None)


def test_manifests_hold_a_version_of_every_file_that_counts(run, tmp_path):
    run("first")
    manifest = json.loads(next((tmp_path / "store" / "splats").glob("*/manifest.json")).read_text())
    assert {"tasks/splats.py", "reconx_core/splats/__init__.py"} <= set(manifest["modules"])
    assert not any(place.startswith("reconx_core/video/") for place in manifest["modules"])
