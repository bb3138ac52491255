"""The project's own dvc.yaml, in a copy of the project, with stand-in stages."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import fork_server
import pytest
import yaml

from flows.execution.run import resolve_settings
from reconx_core.cache.code_version import module_versions
from reconx_core.settings import STAGES, Settings
from tasks.execute import PARENTS, SECTIONS, SEEDLESS, _modules_of

ROOT = Path(__file__).parents[2]
READ = {"video": {"reconx_core/video/reconx-tiny"}}  # what lies in the package and is no code


@pytest.fixture
def project(server, mlflow_tables, tmp_path):
    """A copy of the code and of dvc.yaml, and a `reconx` on the PATH that has stand-in stages and runs that copy."""
    folder = tmp_path / "project"
    for name in ("reconx_core", "tasks", "flows"):
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


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_repro_runs_only_what_changed(project, tmp_path):
    log = tmp_path / "computed.log"
    author = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {**os.environ, **author, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "RECONX_TEST_LOG": str(log)}

    def dvc(*words):
        command = [sys.executable, "-m", "dvc", *words]
        run = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=600)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def repro(*words):
        log.write_text("")
        output = dvc(*(words or ("repro",)))
        return [stage for stage in STAGES if f"Running stage '{stage}'" in output], log.read_text().split()

    ran, computed = repro()
    assert ran == list(STAGES)
    assert sorted(computed) == sorted(2 * STAGES)  # two scenes
    assert repro() == ([], [])
    # An experiment writes the setting into params.yaml, as a user would do by hand, and starts `dvc repro`.
    ran, computed = repro("exp", "run", "-n", "longer", "-S", "splats.steps=4")
    assert yaml.safe_load((project / "params.yaml").read_text())["splats"]["steps"] == 4
    assert ran == ["splats", "metrics"]
    assert sorted(computed) == ["metrics", "metrics", "splats", "splats"]
    check_view(project)
    scores = json.loads((project / "artifacts" / "metrics" / "scores.json").read_text())
    shown = json.loads(dvc("exp", "show", "--json"))
    assert any(f'"psnr": {scores["psnr"]}' in json.dumps(part) and '"longer"' in json.dumps(part) for part in shown)


def check_view(project):
    """artifacts/<stage>/ shows the store's files, without copying them and without what was measured."""
    index = json.loads((project / "artifacts" / "splats" / "index.json").read_text())
    assert list(index["scenes"]) == ["room_0", "room_1"]
    assert index["failed"] == {}
    view = project / "artifacts" / "splats" / "room_0"
    key = json.loads((view / "manifest.json").read_text())["key"]
    entry = project / "store" / "splats" / key
    names = {p.relative_to(view).as_posix() for p in view.rglob("*") if p.is_file()}
    kept = {p.relative_to(entry).as_posix() for p in entry.rglob("*") if p.is_file()}
    assert kept - names == {"measured.json", "prefect.json"}


def test_pulled_artifacts_are_taken_into_an_empty_store(tmp_path):
    from flows.stage import adopt, lay
    from reconx_core.cache import store

    reference = store.publish(tmp_path / "a", "views", "k1", {}, {"note.txt": b"kept"}, {"seconds": 1})
    lay(reference.folder(tmp_path / "a"), tmp_path / "artifacts" / "views" / "room")
    adopt(tmp_path / "artifacts", tmp_path / "b")
    assert store.find(tmp_path / "b", "views", "k1") == reference
    damaged = tmp_path / "artifacts" / "views" / "room" / "note.txt"
    damaged.unlink()
    damaged.write_bytes(b"Kept")
    adopt(tmp_path / "artifacts", tmp_path / "c")
    assert store.find(tmp_path / "c", "views", "k1") is None


@pytest.mark.parametrize("stage", STAGES)
def test_stage_depends_on_its_code_settings_and_parents(stage):
    described = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    parents = {f"artifacts/{parent}" for parent in PARENTS[stage]}
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
