"""The project's own dvc.yaml, in a copy of the project, with stand-in stages."""

import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import fork_server
import pytest
import yaml
from standins import write_folder

from flows.execution.run import resolve_settings
from flows.stage import adopt, lay, write_inputs
from reconx_core.cache import store
from reconx_core.cache.code_version import module_versions
from reconx_core.errors import UserError
from reconx_core.settings import STAGES, Settings
from tasks.execute import PARENTS, SECTIONS, SEEDLESS, _modules_of

ROOT = Path(__file__).parents[2]
README_SHOW = next(
    line.split("#")[0].strip().removeprefix(".venv/bin/dvc ")
    for line in (ROOT / "README.md").read_text().splitlines()
    if ".venv/bin/dvc exp show" in line
)
READ = {"video": {"reconx_core/video/reconx-tiny"}}  # what lies in the package and is no code


AUTHOR = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}


@pytest.fixture
def project(server, mlflow_tables, tmp_path):
    """A copy of the code and of dvc.yaml, and a `reconx` on the PATH that has stand-in stages and runs that copy."""
    folder = tmp_path / "project"
    for name in ("reconx_core", "tasks", "flows", "data"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / ".dvc", folder / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        shutil.copy(ROOT / name, folder / name)
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-qm", "copy")):  # experiments are git's
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=folder, check=True)
    command = tmp_path / "bin" / "reconx"
    command.parent.mkdir()
    with fork_server.fork_server(tmp_path, mlflow_tables, {**os.environ, "PYTHONPATH": str(folder)}) as socket:
        command.write_text(f'#!/bin/sh\nexec {sys.executable} {fork_server.__file__} start {socket} "$@"\n')
        command.chmod(command.stat().st_mode | stat.S_IXUSR)
        yield folder


@dataclass
class Runner:
    """DVC and git in a project, with stand-in stages and one store; RECONX_TEST_LOG lists what was computed."""

    project: Path
    folder: Path  # of all

    def __call__(self, *words):
        return self._run(sys.executable, "-m", "dvc", *words)

    def git(self, *words):
        return self._run("git", *words)

    def stages(self, *words):
        """What DVC ran, without `inputs`, which always runs; and what was computed."""
        (self.folder / "computed.log").write_text("")
        output = self(*words)
        assert "Running stage 'inputs'" in output
        ran = [stage for stage in STAGES if f"Running stage '{stage}'" in output]
        return ran, (self.folder / "computed.log").read_text().split()

    def _run(self, *command):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        log, store, weights = (str(self.folder / name) for name in ("computed.log", "store", "weights"))
        places = {"PATH": path, "RECONX_TEST_LOG": log, "RECONX_STORE": store, "RECONX_WEIGHTS": weights}
        environment = {**os.environ, **AUTHOR, **places, "COLUMNS": "100"}
        run = subprocess.run(command, cwd=self.project, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout


@pytest.fixture
def dvc(project, tmp_path):
    return Runner(project, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_repro_runs_only_what_changed(dvc, project, tmp_path):
    ran, computed = dvc.stages("repro")
    assert ran == list(STAGES)
    assert sorted(computed) == sorted(2 * STAGES)  # two scenes
    assert dvc.stages("repro") == ([], [])
    # An experiment writes the setting into params.yaml, as a user would do by hand, and starts `dvc repro`.
    output = dvc("exp", "run", "-n", "longer", "-S", "splats.steps=4")
    assert yaml.safe_load((project / "params.yaml").read_text())["splats"]["steps"] == 4
    assert [stage for stage in STAGES if f"Running stage '{stage}'" in output] == ["splats", "metrics"]
    assert "The report: artifacts/report/report.html" in output
    assert "longer" in (project / "artifacts" / "report" / "report.html").read_text()
    check_view(project, tmp_path / "store")
    scores = json.loads((project / "artifacts" / "metrics" / "scores.json").read_text())
    assert f"{scores['psnr']:.2f}" in output
    shown = json.loads(dvc("exp", "show", "--json"))
    assert any(f'"psnr": {scores["psnr"]}' in json.dumps(part) and '"longer"' in json.dumps(part) for part in shown)
    table = dvc(*shlex.split(README_SHOW))
    assert max(map(len, table.splitlines())) <= 100
    assert "longer" in table
    assert all(f" {word} " in table for word in ("psnr", "ssim", "splats.steps", "4"))
    assert f" {str(scores['psnr'])[:5]}" in table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_changed_photos_and_weights_that_are_new_run_what_they_touch(dvc, project, tmp_path):
    photos = write_folder(project / "data" / "garden")
    dvc("add", "data/garden")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("procedural:room?seed=0..1", "data/garden"))
    dvc.git("add", "-A")
    dvc.git("commit", "-qm", "photos")
    assert dvc.stages("repro")[0] == list(STAGES)
    place_lpips(tmp_path / "weights")
    ran, computed = dvc.stages("exp", "run")
    assert (ran, computed) == (["splats", "metrics"], ["splats", "metrics"])
    (photos / "a.png").unlink()
    shutil.copy(photos / "b.png", photos / "a.png")
    dvc("add", "data/garden")
    ran, computed = dvc.stages("repro")
    assert ran[0] == computed[0] == "views"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_pushed_to_a_folder_is_pulled_into_a_clone_and_computed_by_nobody(dvc, project, tmp_path):
    dvc("remote", "add", "-d", "shared", str(tmp_path / "remote"))
    dvc("repro")
    dvc.git("add", "-A")
    dvc.git("commit", "-qm", "results")
    dvc("push")
    assert str(tmp_path) not in (project / "dvc.lock").read_text()
    clone = tmp_path / "clone"
    dvc.git("clone", "-q", str(project), str(clone))
    there = Runner(clone, tmp_path / "there")
    (there.folder / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "bin" / "reconx", there.folder / "bin" / "reconx")
    there("pull")
    assert there.stages("repro") == ([], [])
    assert there.git("status", "--porcelain") == ""
    # What was pulled serves the next change; nothing before it is computed.
    params = clone / "params.yaml"
    settings = yaml.safe_load(params.read_text())
    settings["splats"]["steps"] = 4
    params.write_text(yaml.safe_dump(settings))
    assert there.stages("repro") == (["splats", "metrics"], 2 * ["splats"] + 2 * ["metrics"])


def place_lpips(weights):
    weights.mkdir(exist_ok=True)
    for name in ("vgg16-397923af.pth", "vgg.pth"):
        (weights / name).write_bytes(b"weights")  # the stand-ins do not open them


def check_view(project, root):
    """artifacts/<stage>/ shows the store's files, without copying them and without what was measured."""
    index = json.loads((project / "artifacts" / "splats" / "index.json").read_text())
    assert list(index["scenes"]) == ["room_0", "room_1"]
    assert index["failed"] == {}
    view = project / "artifacts" / "splats" / "room_0"
    key = json.loads((view / "manifest.json").read_text())["key"]
    entry = root / "splats" / key
    names = {p.relative_to(view).as_posix() for p in view.rglob("*") if p.is_file()}
    kept = {p.relative_to(entry).as_posix() for p in entry.rglob("*") if p.is_file()}
    assert kept - names == {"measured.json", "prefect.json"}


@pytest.fixture
def pulled(tmp_path):
    """Artifacts as `dvc pull` leaves them, of an artifact in another store; its reference."""
    reference = store.publish(tmp_path / "a", "views", 32 * "1", {}, {"note.txt": b"kept"}, {"seconds": 1})
    lay(reference.folder(tmp_path / "a"), tmp_path / "artifacts" / "views" / "room")
    return reference


def test_pulled_artifacts_are_taken_into_an_empty_store(pulled, tmp_path):
    adopt(tmp_path / "artifacts", tmp_path / "b")
    assert store.find(tmp_path / "b", "views", 32 * "1") == pulled
    damaged = tmp_path / "artifacts" / "views" / "room" / "note.txt"
    damaged.unlink()
    damaged.write_bytes(b"Kept")
    adopt(tmp_path / "artifacts", tmp_path / "c")
    assert store.find(tmp_path / "c", "views", 32 * "1") is None
    (damaged.parent / store.MANIFEST).write_text("{")
    adopt(tmp_path / "artifacts", tmp_path / "c")
    assert list(store.entries(tmp_path / "c")) == []


def test_links_into_dvcs_cache_are_followed(pulled, tmp_path):
    note = tmp_path / "artifacts" / "views" / "room" / "note.txt"
    note.rename(tmp_path / "cache")
    note.symlink_to(tmp_path / "cache")
    adopt(tmp_path / "artifacts", tmp_path / "b")
    (tmp_path / "cache").unlink()
    assert store.find(tmp_path / "b", "views", 32 * "1") == pulled


STRANGE = (
    {"stage": "../../x"}, {"stage": "/tmp"}, {"stage": "video"}, {"stage": 3}, {"stage": None}, {"key": "../../../x"},
    {"key": "1" * 31}, {"key": "G" * 32}, {"key": "1" * 32 + "\n"}, {"key": ["1"]}, {"key": "."},
)  # fmt: skip


@pytest.mark.parametrize("change", STRANGE, ids=str)
def test_a_manifest_that_names_another_place_is_refused(pulled, tmp_path, change):
    manifest = tmp_path / "artifacts" / "views" / "room" / store.MANIFEST
    content = json.loads(manifest.read_text())
    manifest.unlink()
    manifest.write_text(json.dumps(content | change))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="is of no artifact of reconx"):
        adopt(tmp_path / "artifacts", tmp_path / "store")
    assert sorted(tmp_path.rglob("*")) == before
    for place in ((change.get("stage", "views"), change.get("key", 32 * "1")),):
        if place != ("video", 32 * "1"):
            with pytest.raises(UserError, match="is no place of an artifact"):
                store.adopt(tmp_path / "store", *place, lambda folder: None)


def test_inputs_change_with_what_they_are_of_and_with_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    for name in ("attic", "cellar"):
        write_folder(tmp_path / "photos" / name)
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("procedural:room?seed=0..1", "photos"))

    def written():
        write_inputs(tmp_path / "store")
        return {path.stem: path.read_text() for path in (tmp_path / "artifacts" / "inputs").iterdir()}

    def changed(before):
        return {stage for stage, text in written().items() if before[stage] != text}

    first = written()
    assert set(json.loads(first["views"])) == {"attic", "cellar"}
    assert not any(str(tmp_path) in text for text in first.values())
    assert changed(first) == set()
    picture = tmp_path / "photos" / "attic" / "a.png"
    picture.write_bytes(picture.read_bytes() + b"1")
    assert changed(first) == {"views"}
    second = written()
    place_lpips(tmp_path / "weights")
    assert changed(second) == {"splats", "metrics"}
    third = written()
    params.write_text(params.read_text().replace("backend: reconx-tiny", "backend: viewcrafter"))
    assert changed(third) == {"video"}
    assert json.loads(written()["video"]) is None  # they are not there, as the stage will say


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_code_settings_and_parents(stage):
    described = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    parents = {f"artifacts/{parent}" for parent in PARENTS[stage]}
    parents |= {f"artifacts/inputs/{stage}.json"}
    assert described["deps"] == sorted(code_of(stage) | READ.get(stage, set()) | parents)
    assert set(described["params"]) - {"dataset"} == {*SECTIONS[stage], *(() if stage in SEEDLESS else ("seed",))}


def code_of(stage):
    """The files that a stage's code version covers; instead of them the folder where it covers all that a folder holds."""
    files = {ROOT / place for place in module_versions(*_modules_of(stage))}
    return {outermost(file, files).relative_to(ROOT).as_posix() for file in files if file.stat().st_size}


def outermost(file, files):
    whole = [folder for folder in file.parents if ROOT in folder.parents and set(folder.rglob("*.py")) <= files]
    return whole[-1] if whole else file


def test_params_and_default_preset_are_the_defaults(monkeypatch, tmp_path):
    defaults = Settings().model_dump(mode="json")
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert params.pop("dataset").startswith("procedural:")
    assert params == defaults
    # Without weights, `auto` stands for `classical`.
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    defaults["pointcloud"]["backend"] = "classical"
    assert resolve_settings(None, None).model_dump(mode="json") == defaults
