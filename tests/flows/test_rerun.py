"""A run that changes nothing: no artifact and no photo is read again, and what lies in the folder of results is left alone."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from flows.evaluate import EvaluationRequest, wants_pages
from flows.execution.plan import ScenePlan, SceneRun
from flows.runs.results import lay_scene
from reconx_core.cache import digests
from reconx_core.cache.store import Reference
from reconx_core.settings import STAGES, Settings


@pytest.fixture
def command(photos, tmp_path):
    return "reconstruct", photos, "-o", tmp_path / "out", "--store", tmp_path / "store"


def laid_out(folder):
    """Inode and bytes of every file of a scene: a file that is written anew gets another inode."""
    names = ("scene.ply", "scene.html", "video.mp4", "scores.parquet", "metrics.json", "cameras", "pictures")
    places = [folder / name for name in names]
    files = [path for place in places for path in (place, *place.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): (path.stat().st_ino, path.read_bytes()) for path in files}


def test_no_file_is_hashed_twice(reconx, tiny, command, photos, tmp_path, monkeypatch):
    hashed, digest = Counter(), digests.file_digest

    def counted(path):
        hashed[path.name if ".tmp" in path.parts else path] += 1
        return digest(path)

    monkeypatch.setattr(digests, "file_digest", counted)
    digests.backdate(photos.iterdir())
    assert reconx(*command).code == 0
    assert {hashed[path] for path in photos.iterdir()} == {1}
    outside = {"manifest.json", "measured.json", "prefect.json"}
    kept = [
        p.name for stage in STAGES for p in (tmp_path / "store" / stage).rglob("*") if p.is_file() and p.name not in outside
    ]
    assert {name: hashed[name] for name in kept} == Counter(kept)  # as they were published
    hashed.clear()
    assert reconx(*command).code == 0
    assert not hashed


def test_results_that_are_there_already_are_left_alone(reconx, tiny, command, tmp_path):
    reconx(*command)
    before = laid_out(tmp_path / "out")
    assert {"scene.ply", "scene.html", "video.mp4", "cameras/transforms.json", "pictures/000.jpg"} <= set(before)
    assert reconx(*command).code == 0
    assert laid_out(tmp_path / "out") == before


def test_pages_to_look_around_in_come_and_go_as_asked(reconx, tiny, command, photos, tmp_path):
    out, root = tmp_path / "out", tmp_path / "store"
    assert reconx(*command).code == 0
    assert 'data-pages="scene.html"' in (out / "report.html").read_text()
    record, page = json.loads((out / "scene.json").read_text()), (out / "scene.html").read_bytes()
    references = {stage: Reference(**artifact) for stage, artifact in record["artifacts"].items()}
    run = SceneRun(ScenePlan(photos.name, str(photos), Settings()), references)
    lay_scene(run, root, out, page=False)
    assert not (out / "scene.html").exists()
    lay_scene(run, root, out)
    assert (out / "scene.html").read_bytes() == page


def test_many_scenes_get_no_pages_unless_asked_for():
    request = EvaluationRequest("data", Settings())
    assert wants_pages(request, 50)
    assert not wants_pages(request, 51)
    assert wants_pages(replace(request, pages=True), 7289)
    assert not wants_pages(replace(request, pages=False), 1)


LONGER = pytest.param("longer", marks=pytest.mark.slow)


@pytest.mark.parametrize("spoil", ["deleted", LONGER, "of the same size", "interrupted"])
def test_results_that_were_touched_are_laid_out_anew(reconx, tiny, command, tmp_path, spoil):
    reconx(*command)
    before = {name: content for name, (_, content) in laid_out(tmp_path / "out").items()}
    victim = tmp_path / "out" / "scene.ply"
    if spoil == "deleted":
        victim.unlink()
    elif spoil == "interrupted":
        (tmp_path / "out" / ".made.json").write_text('{"of"')
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content + (b"!" if spoil == "longer" else b""))
    assert reconx(*command).code == 0
    assert {name: content for name, (_, content) in laid_out(tmp_path / "out").items()} == before


def test_another_setting_reaches_the_results(reconx, tiny, command, tmp_path):
    reconx(*command)
    before = laid_out(tmp_path / "out")["scene.ply"]
    assert reconx(*command, "-S", "splats.steps=3").code == 0
    assert laid_out(tmp_path / "out")["scene.ply"][1] != before[1]
    assert reconx(*command).code == 0
    assert laid_out(tmp_path / "out")["scene.ply"][1] == before[1]
