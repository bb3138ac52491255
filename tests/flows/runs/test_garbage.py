"""`reconx gc` removes nothing that someone may need: folders that cannot be seen, projects' experiments, damaged records."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from dvc.repo import Repo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from small_clip import small_clip

from flows.cli import main
from flows.evaluate import make_plans, make_request
from flows.execution.plan import SceneRun
from flows.runs import registry
from flows.runs.garbage import age_of, collect_garbage
from flows.runs.registry import register_end, register_more, register_project, register_stage, register_start
from flows.runs.request import record_request, record_sources
from flows.stage import lay
from flows.train import Studio, resolve_train_settings
from flows.training import clips
from flows.training.clips import Workshop
from reconx_core.cache import store
from reconx_core.cache.lock import in_use
from reconx_core.errors import UserError
from tasks.execute import source_digest

OLD = {"folder", "artifacts"}  # what versions up to 0.1.0 wrote


def make(root, number, stage="views"):
    return store.publish(root, stage, f"{number:032x}", {"scene": str(number)}, {"a.txt": b"a"}, {})


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def ended(root, tmp_path):
    """A run that has ended, with one artifact; beside it an artifact that nobody uses."""
    out = tmp_path / "disk" / "runs" / "a"
    out.mkdir(parents=True)
    reference = make(root, 1)
    make(root, 2)
    register_end(root, out, [reference])
    return out


@pytest.fixture
def reconx(monkeypatch, capsys):
    """The command line in this process; it asks no Prefect server."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["reconx", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return SimpleNamespace(code=code, **capsys.readouterr()._asdict())

    return run


def laid_out(root):
    return {path: path.stat().st_mtime for path in root.rglob("*") if path.is_file() and path.name != ".lock"}


def keys(root):
    return sorted(int(key, 16) for _, key in store.entries(root))


def change_index(root, change):
    (index,) = (root / ".runs").glob("*.json")
    content = json.loads(index.read_text())
    change(content)
    index.write_text(json.dumps(content))


def test_a_deleted_folder_gives_its_artifacts_up_even_with_all_above_it(root, ended):
    shutil.rmtree(ended.parents[1])
    garbage = collect_garbage(root)
    assert (len(garbage.doomed), garbage.kept, garbage.notes) == (2, 0, [])
    assert not list((root / ".runs").glob("*.json"))


UNSEEN = {
    "on another machine": lambda index: index["file_system"].update(host="node7"),
    "on a disk that is not mounted": lambda index: index["file_system"].update(mount="/media/disk"),
    "where another disk is mounted": lambda index: index["file_system"].update(id=7),
    "from before this was written down": lambda index: list(map(index.pop, set(index) - OLD)),
}


@pytest.mark.parametrize("why", UNSEEN)
def test_a_folder_that_cannot_be_seen_is_kept_and_named_until_it_is_forgotten(reconx, root, ended, why):
    change_index(root, lambda index: index.update(beside_store=False))
    change_index(root, UNSEEN[why])
    shutil.rmtree(ended)
    outcome = reconx("gc", "--store", root)
    assert outcome.code == 0
    assert f"The folder {ended} " in outcome.out
    assert f"reconx gc --forget {ended}" in outcome.out
    assert keys(root) == [1]
    assert reconx("gc", "--store", root, "--dry-run", "--forget", ended).code == 0
    assert keys(root) == [1]
    outcome = reconx("gc", "--store", root, "--forget", ended)
    assert "Removed 1 artifacts" in outcome.out
    assert keys(root) == []
    assert str(ended) not in reconx("gc", "--store", root).out


def test_on_the_stores_own_disk_any_machine_sees_what_is_gone(root, ended):
    change_index(root, UNSEEN["on another machine"])
    shutil.rmtree(ended)
    assert len(collect_garbage(root).doomed) == 2


def test_a_folder_whose_server_does_not_answer_is_kept(root, ended, monkeypatch):
    def stale(path):
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(registry.Path, "is_dir", lambda path: stale(path) if path == ended else os.path.isdir(path))
    garbage = collect_garbage(root)
    assert keys(root) == [1]
    assert len(garbage.notes) == 1


def test_what_is_there_or_unknown_cannot_be_forgotten(reconx, root, ended):
    assert "delete it if the run is no longer wanted" in reconx("gc", "--store", root, "--forget", ended).err
    assert "knows of no run" in reconx("gc", "--store", root, "--forget", ended / "b").err
    assert keys(root) == [1, 2]


def test_dry_run_says_what_would_go_and_touches_nothing(reconx, root, ended):
    shutil.rmtree(ended)
    before = laid_out(root)
    outcome = reconx("gc", "--store", root, "--dry-run")
    assert "views: 2" in outcome.out
    assert "Would remove 2 artifacts (0.0 MiB), kept 0." in outcome.out
    assert laid_out(root) == before
    assert "Removed 2 artifacts" in reconx("gc", "--store", root).out


def test_dry_run_asks_for_no_permission_to_write(root, ended, monkeypatch):
    real = open

    def read_only(file, mode="r", *arguments, **options):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, "read-only")
        return real(file, mode, *arguments, **options)

    shutil.rmtree(ended)
    with in_use(root):
        pass
    monkeypatch.setattr("builtins.open", read_only)
    assert len(collect_garbage(root, dry_run=True).doomed) == 2
    with pytest.raises(UserError, match="read-only"):
        collect_garbage(root)
    monkeypatch.undo()
    with in_use(root):
        monkeypatch.setattr("builtins.open", read_only)
        with pytest.raises(UserError, match="Another run is using the store"):
            collect_garbage(root, dry_run=True)
    (root / ".lock").unlink()  # a store that was copied without it
    assert len(collect_garbage(root, dry_run=True).doomed) == 2


def test_older_than_spares_what_is_young(reconx, root, ended):
    shutil.rmtree(ended)
    folder = root / "views" / f"{2:032x}"
    for path in (folder / store.MANIFEST, folder):
        os.utime(path, (time.time() - 40 * 86400,) * 2)
    outcome = reconx("gc", "--store", root, "--older-than", "30d")
    assert "Removed 1 artifacts" in outcome.out
    assert "kept 1, of which 1 are used by no run but too young" in outcome.out
    assert keys(root) == [1]


def test_times_are_hours_days_and_weeks():
    assert [age_of(text) for text in ("12h", "30d", "1.5w")] == [43200, 2592000, 907200]
    for text in ("30", "d", "-1d", "1y", "1e9d"):
        with pytest.raises(UserError, match="is no time"):
            age_of(text)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"folder": 3}', '{"folder": "/a"}', "\xff", '{"folder": "/a", "artifacts": [1]}']
)
def test_a_damaged_index_is_a_sentence_and_nothing_is_removed(reconx, root, ended, content):
    (index,) = (root / ".runs").glob("*.json")
    index.write_text(content, encoding="latin-1")
    outcome = reconx("gc", "--store", root)
    assert outcome.code == 2
    assert f"'{index}' is damaged" in outcome.err
    assert keys(root) == [1, 2]
    assert "knows of no run" in reconx("status", "--store", root).err
    assert register_start(root, ended) == []  # the same run again mends it
    assert len(collect_garbage(root).doomed) == 2


def test_an_old_request_is_skipped_with_a_sentence(reconx, root, ended):
    (ended / "request.json").write_text('{"store": "x", "around": {}}')
    outcome = reconx("gc", "--store", root)
    assert outcome.code == 0
    assert "Only the artifacts that the run had when it ended are kept." in outcome.out
    assert keys(root) == [1]


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def request_of_a_run(tmp_path_factory):
    """The folder and the store of a run that has begun, and its request."""
    folder = tmp_path_factory.mktemp("run")
    request = make_request("procedural:room?seed=0..1", None, [])
    plans = make_plans(request, folder / "out")
    record_request(plans, 1.0, request.dataset, folder / "out", folder / "store")
    record_sources(folder / "out", {plan.source: source_digest(plan.source, folder / "store") for plan in plans})
    content = json.loads((folder / "out" / "request.json").read_text())
    (views,) = content["views"].values()
    references = [make(folder / "store", int(views[scene], 16)) for scene in sorted(views)]
    register_more(folder / "store", folder / "out", references)
    return folder, content


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_request_of_whatever_content_is_a_traceback(request_of_a_run, data):
    folder, content = request_of_a_run
    spoilt = json.loads(json.dumps(content))
    place = spoilt
    while True:  # a random value somewhere in it
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(junk)
    (folder / "out" / "request.json").write_text(json.dumps(spoilt))
    assert collect_garbage(folder / "store").kept == 2


def test_clips_that_a_training_makes_are_kept_before_they_are_registered(root, tmp_path):
    out = tmp_path / "training"
    out.mkdir()
    earlier = make(root, 1, "clip")
    os.utime(root / "clip" / earlier.key, (1, 1))
    os.utime(root / "clip" / earlier.key / store.MANIFEST, (1, 1))
    register_start(root, out, making="clip")
    making = make(root, 2, "clip")  # and then it is killed
    make(root, 3, "views")
    collect_garbage(root)
    assert keys(root) == [2]
    register_start(root, out, making="clip")
    register_more(root, out, [making])
    register_end(root, out, [make(root, 4, "clip")])  # of a later epoch
    collect_garbage(root)
    assert keys(root) == [4]
    shutil.rmtree(out)
    collect_garbage(root)
    assert keys(root) == []


def test_clips_of_a_training_outlive_gc_at_any_moment(root, tmp_path, monkeypatch):
    made = []

    def run_stages(make_plans, *_, **__):
        runs = []
        for plan in make_plans():
            made.append(store.publish(root, "clip", f"{len(made) + 1:032x}", {}, {"clip": small_clip()}, {}))
            runs.append(SceneRun(plan, {"clip": made[-1]}))
            collect_garbage(root)  # as after a kill, or between two epochs
        return runs

    monkeypatch.setattr(clips, "run_stages", run_stages)
    data = "[{path: 'procedural:hall?seed=1&views=2&targets=2&arc=8&width=64&height=48', frames: 4}]"
    small = ["frames=4", "size=64", "crop=[32, 32]", f"data={data}", f"validation={data}", "new_clips=true"]
    studio = Studio(resolve_train_settings("tiny", small), "points", Workshop(root, tmp_path / "out", Console(quiet=True)))
    (tmp_path / "out").mkdir()
    studio.open()
    assert keys(root) == [1]
    studio.clips(0)
    assert keys(root) == [1, 2]
    assert collect_garbage(root).doomed == []
    studio.clips(1)
    assert keys(root) == [1, 2, 3]  # until all of the next epoch are there
    collect_garbage(root)
    assert keys(root) == [1, 3]
    shutil.rmtree(tmp_path / "out")
    collect_garbage(root)
    assert keys(root) == []


# --- projects of DVC ---------------------------------------------------------------------------------------------------


def git(project, *words):
    author = ("-c", "user.name=a", "-c", "user.email=a@b")
    return subprocess.run(["git", *author, *words], cwd=project, check=True, capture_output=True, text=True).stdout.strip()


def commit(project, root, reference):
    """What `dvc repro` leaves behind, committed: the stage's folder in DVC's cache, its digest in dvc.lock."""
    folder = project / "artifacts" / "views"
    shutil.rmtree(folder, ignore_errors=True)
    lay(reference.folder(root), folder / "room")
    with Repo(str(project)) as repo:
        repo.commit(force=True)
    register_end(root, folder, [reference])
    register_project(root, project, [reference])
    git(project, "add", "-A")
    git(project, "commit", "-qm", reference.key)


@pytest.fixture
def project(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-qb", "main")
    Repo.init(str(folder)).close()
    (folder / "dvc.yaml").write_text("stages:\n  views:\n    cmd: 'true'\n    outs:\n      - artifacts/views\n")
    return folder


@pytest.mark.parametrize("where", ["branch", "experiment", "tag", "stash"])
def test_what_another_branch_or_an_experiment_refers_to_is_kept(root, project, where):
    commit(project, root, make(root, 1))
    git(project, "switch", "-qc", "other")
    commit(project, root, make(root, 2))
    there = git(project, "rev-parse", "HEAD")
    if where != "branch":
        name = {"experiment": "refs/exps/ab/cdef/quick", "tag": "refs/tags/v1", "stash": "refs/exps/celery/stash"}[where]
        git(project, "update-ref", name, there)
    git(project, "switch", "-q", "main")
    if where != "branch":
        git(project, "branch", "-qD", "other")
    commit(project, root, make(root, 3))
    git(project, "reset", "-q", "--hard", "HEAD~1")  # 3 is in no branch any more, but still laid out
    make(root, 4)
    garbage = collect_garbage(root)
    assert keys(root) == [1, 2, 3]
    assert garbage.notes == []
    shutil.rmtree(project / "artifacts")
    collect_garbage(root)
    assert keys(root) == [1, 2]
    git(project, *(["branch", "-qD", "other"] if where == "branch" else ["update-ref", "-d", name]))
    collect_garbage(root)
    assert keys(root) == [1]
    shutil.rmtree(project)
    collect_garbage(root)
    assert keys(root) == []


def test_what_a_removed_experiment_made_last_goes_once_its_files_are_laid_out_no_more(root, project):
    """`dvc exp remove`, `git checkout .` and `dvc checkout` tell no stage; the folder says what is wanted."""
    folder = project / "artifacts" / "views"
    commit(project, root, make(root, 1))
    kept = folder.parent / "kept"
    shutil.copytree(folder, kept)
    shutil.rmtree(folder)
    lay(make(root, 2).folder(root), folder / "room")
    register_stage(root, folder, [store.find(root, "views", f"{2:032x}")])
    collect_garbage(root)
    assert keys(root) == [1, 2], "laid out, and its index is not there yet"
    shutil.rmtree(folder)
    kept.rename(folder)
    (folder / "index.json").write_text("{}")
    collect_garbage(root)
    assert keys(root) == [1]


def test_where_dvcs_cache_lacks_it_all_that_was_made_for_the_project_is_kept(root, project):
    for number in (1, 2):
        commit(project, root, make(root, number))
    make(root, 3)
    shutil.rmtree(project / ".dvc" / "cache")
    (note,) = collect_garbage(root).notes
    assert "DVC's cache does not say what belongs to them" in note
    assert keys(root) == [1, 2]


def test_a_dvc_lock_that_is_half_merged_keeps_all(root, project):
    commit(project, root, make(root, 1))
    git(project, "switch", "-qc", "other")
    (project / "dvc.lock").write_text("<<<<<<< HEAD\n")
    git(project, "commit", "-qam", "oh")
    git(project, "switch", "-q", "main")
    shutil.rmtree(project / "artifacts")
    assert len(collect_garbage(root).notes) == 1
    assert keys(root) == [1]


def test_a_project_that_git_cannot_read_is_a_sentence_and_nothing_is_removed(root, project):
    commit(project, root, make(root, 1))
    (project / ".git" / "HEAD").write_text("nonsense")
    make(root, 2)
    with pytest.raises(UserError, match="git cannot read the branches"):
        collect_garbage(root)
    assert keys(root) == [1, 2]
