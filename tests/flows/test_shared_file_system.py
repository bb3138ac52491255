"""Many processes at one store and in one folder, and names of every kind that file systems take."""

import html
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from fork_server import Started
from standins import write_folder

from flows.evaluate import make_next, results_folder
from flows.runs.mlflow_client import make_client
from reconx_core.errors import UserError
from reconx_core.io.files import short_name, temporary_beside, write_json
from reconx_core.names import one_line

LONGEST = "ä" * 127 + "x"  # 255 bytes
NOT_UTF8 = os.fsdecode(b"caf\xe9 \x1b[2J :smile:\n [red]<b>&")


def test_names_are_cut_between_letters():
    assert short_name("ä" * 120) == "ä" * 100
    assert short_name(LONGEST[:50]) == LONGEST[:50]
    assert os.fsencode(short_name(NOT_UTF8 * 20)) == os.fsencode(NOT_UTF8 * 20)[:200]


@pytest.mark.parametrize("name", [LONGEST, NOT_UTF8, "." * 255])
def test_files_of_the_longest_names_are_written(tmp_path, name):
    write_json(tmp_path / name, {"a": 1})
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [name]
    assert len(os.fsencode(temporary_beside(tmp_path / name).name)) <= 255


def test_folders_asked_for_at_one_moment_differ(tmp_path):
    barrier = Barrier(12)

    def ask(_):
        barrier.wait()
        return make_next(tmp_path / "runs", LONGEST)

    with ThreadPoolExecutor(12) as pool:
        assert len(set(pool.map(ask, range(12)))) == 12


def test_a_run_into_whose_folder_nothing_came_leaves_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with results_folder(None, "procedural:room?seed=0..1") as folder:
        assert (folder.as_posix(), folder.is_dir()) == ("runs/room-1", True)
    assert list((tmp_path / "runs").iterdir()) == []
    with results_folder(None, ".") as folder:
        (folder / "a").touch()
    assert (tmp_path / "runs" / f"{tmp_path.name}-1" / "a").exists()


def test_a_file_in_the_place_of_the_folder_is_a_sentence(tmp_path):
    (tmp_path / "runs").touch()
    with pytest.raises(UserError, match="there is a file where a folder is needed"):
        make_next(tmp_path / "runs", "a")


def test_tables_of_a_new_mlflow_file_are_made_by_one_at_a_time(tmp_path, monkeypatch):
    active, most = [], []

    def slow_client(**_):
        active.append(1)
        most.append(len(active))
        time.sleep(0.05)
        active.pop()

    monkeypatch.setattr("mlflow.MlflowClient", slow_client)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make_client, 4 * [f"sqlite:///{tmp_path}/mlflow.db"]))
    assert most == [1, 1, 1, 1]


@pytest.mark.slow  # in part: folders asked for at one moment, tables made by one at a time
def test_evaluations_started_at_one_moment_have_folders_and_runs_of_their_own(forks, tmp_path, monkeypatch):
    write_folder(tmp_path / "data" / "attic")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open(os.devnull, "r+") as nothing, open("said", "w+") as said:
        command = ["evaluate", "data", "--store", "store"]
        runs = [Started(forks, command, dict(os.environ), [nothing.fileno(), said.fileno(), said.fileno()]) for _ in range(3)]
        assert [run.wait() for run in runs] == [0, 0, 0], said.seek(0) or said.read()
    assert sorted(path.name for path in (tmp_path / "runs").glob("data-*")) == ["data-1", "data-2", "data-3"]
    assert all((folder / "attic" / "scene.ply").exists() for folder in (tmp_path / "runs").glob("data-*"))
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("reconx").experiment_id])
    assert len([run for run in found if "mlflow.parentRunId" not in run.data.tags]) == 3
    assert {run.info.status for run in found} == {"FINISHED"}


@pytest.mark.parametrize("name", [LONGEST, NOT_UTF8])
def test_scenes_photos_and_folders_of_any_name_go_through(reconx, tiny, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = write_folder(tmp_path / name / name)
    shutil.move(next(folder.iterdir()), folder / f"{os.fsdecode(os.fsencode(name)[-251:])}.png")
    outcome = reconx("evaluate", name, "--store", "store")
    assert outcome.code == 0, outcome.err
    assert name == LONGEST or one_line(name) in outcome.out
    assert "\x1b[2J" not in outcome.out + reconx("evaluate", f"{name}/none").err
    (out,) = (tmp_path / "runs").glob("*-1")
    page = (out / "report.html").read_text()
    assert name == LONGEST or html.escape(one_line(name)) in page
    assert "<b>&" not in page
    assert reconx("status", out).code == 0
    assert reconx("gc", "--store", "store").code == 0
    again = time.time()
    assert reconx("evaluate", name, "-o", out, "--store", "store").code == 0
    assert all(path.stat().st_mtime < again for path in out.rglob("scene.ply"))
