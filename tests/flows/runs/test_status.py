"""`reconx status`: counts and errors of runs that ended, run, were killed; and what keeps and removes failures."""

import json
import os
import re
import signal
import time
from contextlib import nullcontext

import pytest
from fork_server import Started, run
from processes import wait_until
from standins import write_folder

from flows.evaluate import make_plans, make_request
from flows.execution.background import repeated
from flows.execution.forecast import expected_seconds
from flows.runs import alone
from flows.runs.garbage import collect_garbage
from flows.runs.request import RunRequest, read_request, record_request, record_sources
from reconx_core import splats
from reconx_core.settings import STAGES
from tasks import execute


@pytest.fixture
def status(reconx, tmp_path, monkeypatch):
    """``status("out")``: the numbers of the table by stage, and all that is printed, in lines."""
    monkeypatch.chdir(tmp_path)

    def ask(*arguments):
        outcome = reconx("status", *arguments)
        assert outcome.code == 0, outcome.err
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in outcome.out.splitlines() if line.startswith("│")]
        return {stage: [int(n) for n in numbers[:-1]] for stage, *numbers in rows}, outcome.out.splitlines()

    return ask


@pytest.fixture
def data(tmp_path):
    for name in ("attic", "broken"):
        write_folder(tmp_path / "data" / name)
    return tmp_path / "data"


def test_an_ended_run_with_its_failure_and_report(reconx, tiny, status, data, monkeypatch):
    reconx("evaluate", data, "-o", "out", "--store", "store")
    table, lines = status("out")
    assert table == {"views": [1, 1, 0, 0, 2]} | {stage: [1, 0, 1, 0, 2] for stage in STAGES[1:]}
    assert re.fullmatch(r"out: .*data, 2 scenes; started 20\S+ \S+, ended\.", lines[0])
    assert lines[-2:] == ["broken failed in views: This scene is broken; take another one.", "The report: out/report.html"]
    assert status("--store", "store")[0] == table  # the newest
    monkeypatch.setattr(execute, "code_version", lambda *modules: "edited since")
    monkeypatch.setattr(execute, "device_class", lambda: "cuda")
    assert status("out")[0] == table


@pytest.mark.slow
def test_a_failure_lasts_until_the_task_succeeds_and_as_long_as_its_run(reconx, tiny, status, photos, tmp_path, monkeypatch):
    command = ("evaluate", photos, "-o", "out", "--store", "store")
    whole = splats.fit_splats
    monkeypatch.setattr(splats, "fit_splats", lambda *_: 1 / 0)
    assert reconx(*command).code == 1
    table, lines = status("out")
    assert (table["splats"], table["metrics"]) == ([0, 1, 0, 0, 1], [0, 0, 1, 0, 1])
    assert "garden failed in splats: ZeroDivisionError: division by zero" in lines
    assert collect_garbage(tmp_path / "store").doomed == []
    (note,) = (tmp_path / "store" / ".failed").glob("*/*.json")
    assert json.loads(note.read_text())["scene"] == "garden"
    monkeypatch.setattr(splats, "fit_splats", whole)
    assert reconx(*command).code == 0
    assert not note.exists()
    assert all(numbers == [1, 0, 0, 1] for numbers in status("out")[0].values())

    note.write_text("{}")  # as of a task of no run
    (note.parent / "unknown.json").write_text("{}")
    collect_garbage(tmp_path / "store")
    assert [path.name for path in note.parent.iterdir()] == [note.name]
    (tmp_path / "out").rename(tmp_path / "moved")
    collect_garbage(tmp_path / "store")
    assert not list(note.parent.iterdir())


def test_weights_taken_away_during_a_run_are_told_although_there_is_no_key(reconx, tiny, status, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "none"))
    monkeypatch.setattr("tasks.execute.require_weights", lambda stages, settings: None)  # there when it began
    reconx("evaluate", photos, "-o", "out", "--store", "store", "-S", "video.backend=viewcrafter")
    table, lines = status("out")
    assert (table["condition"], table["video"], table["splats"]) == ([1, 0, 0, 0, 1], [0, 1, 0, 0, 1], [0, 0, 1, 0, 1])
    assert any(line.startswith("garden failed in video: ") for line in lines)


def test_a_run_that_is_refused_leaves_no_request_and_nothing_in_mlflow(reconx, tiny, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "none"))
    outcome = reconx("evaluate", photos, "-o", "out", "--store", "store", "-S", "video.backend=viewcrafter")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert tiny() == []
    assert not list(tmp_path.rglob("request.json")) + list(tmp_path.rglob("mlflow*"))


@pytest.mark.slow  # what follows a kill: test_flow.py
def test_a_run_before_during_and_after_kill_9(forks, reconx, tiny, status, data, tmp_path):
    """A real process. What status and gc find of it is what it had finished."""
    log = tmp_path / "killed.log"
    command = ["evaluate", data, "-o", tmp_path / "out", "--store", tmp_path / "store"]
    environment = {**os.environ, "RECONX_TEST_LOG": str(log)}
    paused = {**environment, "RECONX_TEST_PAUSE": "confidence"}
    with open(os.devnull, "r+") as nothing:
        process = Started(forks, command, paused, 3 * [nothing.fileno()])
    wait_until(lambda: log.exists() and "confidence" in log.read_text(), process)
    counts = {stage: [1, 0, 1, 2] for stage in STAGES[:4]} | {stage: [0, 0, 2, 2] for stage in STAGES[4:]}
    table, lines = status("out")
    assert table == counts
    assert f"(process {process.pid})" in lines[0]
    process.send_signal(signal.SIGKILL)
    process.wait()
    table, lines = status("out")
    assert table == counts
    assert re.search(
        r", stopped before its end: killed or interrupted, last heard of 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.$", lines[0]
    )
    assert lines[-1] == "Run the same command again to go on from here."
    output = reconx("why", "attic", "splats", "--run", "out").out
    assert "was not reached: the run out stopped before its end; the same command goes on with confidence." in output
    garbage = collect_garbage(tmp_path / "store")
    assert (garbage.doomed, garbage.kept) == ([], 4)
    assert "splats" not in log.read_text()

    assert run(forks, *command, environment=environment).returncode == 1
    assert status("out")[0]["metrics"] == [1, 0, 1, 0, 2]


@pytest.mark.parametrize("beats", [True, False])
def test_a_run_on_another_machine_is_known_by_its_heartbeat(status, data, tmp_path, monkeypatch, beats):
    monkeypatch.setattr(alone, "WATCH_SECONDS", 1.0)
    monkeypatch.setattr(alone, "BEAT_SECONDS", 0.1)
    out = tmp_path / "out"
    record_request(make_plans(make_request(str(data), None, []), out), 1.0, str(data), out, tmp_path / "store")
    content = json.loads((out / "request.json").read_text())
    content["process"]["host"] = "elsewhere"
    (out / "request.json").write_text(json.dumps(content))
    assert status("out")[1][0].endswith(", stopped before its end.")
    (out / alone.HOLDER).write_text("{}")
    with repeated((out / alone.HOLDER).touch, 0.1) if beats else nullcontext():
        line = status("out")[1][0]
    assert re.search(
        r", running for .* \(process \d+ on elsewhere\)\.$" if beats else r"interrupted, last heard of 20", line
    ), line


def test_tasks_that_rows_and_seeds_share_count_once(status, data, tmp_path):
    request = make_request(str(data), None, [], seeds=2, ablation=True)
    record_request(make_plans(request, tmp_path / "out"), 1.0, str(data), tmp_path / "out", tmp_path / "store")
    table, lines = status("out")
    per_seed = {"pointcloud": 1, "condition": 1, "video": 3, "confidence": 5, "splats": 7, "metrics": 7}
    assert table == {"views": [0, 0, 2, 2]} | {stage: [0, 0, 4 * n, 4 * n] for stage, n in per_seed.items()}
    assert "2 scenes, 7 rows, 2 seeds; started" in lines[0]
    assert "running for" in lines[0]


def test_plans_are_made_again_as_they_were(data, tmp_path):
    request = make_request(str(data), None, ["splats.steps=7"], seeds=2, ablation=True)
    plans = make_plans(request, tmp_path)
    record_request(plans, 1.0, str(data), tmp_path, tmp_path / "store")
    assert list(read_request(tmp_path).plans) == plans


def test_time_left_is_a_guess_until_every_stage_has_been_measured(reconx, tiny, status, tmp_path, monkeypatch):
    monkeypatch.setattr(RunRequest, "running", lambda self: False)
    data, store = tmp_path / "data", tmp_path / "store"
    for name in ("attic", "cellar", "den"):
        write_folder(data / name)
    plans = make_plans(make_request(str(data), None, []), tmp_path)
    record_request(plans, 1.0, str(data), tmp_path / "next", store, workers=2)
    record_sources(tmp_path / "next", {plan.source: execute.source_digest(plan.source, store) for plan in plans})
    (guess,) = [line for line in status("next")[1] if " are left" in line]
    assert guess.endswith(", with 2 scenes side by side; no scene of this run has come to views yet.")
    reconx("reconstruct", data / "attic", "-o", "one", "--store", store)
    for measured in store.glob("*/*/measured.json"):
        measured.write_text(json.dumps(json.loads(measured.read_text()) | {"seconds": 600.0}))
    table, lines = status("next")
    assert table == {stage: [1, 0, 2, 3] for stage in STAGES}
    assert lines[-2] == "About 1 h 10 min are left, with 2 scenes side by side."


def test_time_left_of_a_running_run_goes_by_how_many_stages_it_has_done_at_a_time(reconx, tiny, status, tmp_path):
    data, store = tmp_path / "data", tmp_path / "store"
    for name in ("attic", "cellar", "den"):
        write_folder(data / name)
    started = time.time() - 100
    plans = make_plans(make_request(str(data), None, []), tmp_path)
    record_request(plans, started, str(data), tmp_path / "next", store)
    record_sources(tmp_path / "next", {plan.source: execute.source_digest(plan.source, store) for plan in plans})
    reconx("reconstruct", data / "attic", "-o", "one", "--store", store)
    for measured in store.glob("*/*/measured.json"):
        measured.write_text(json.dumps(json.loads(measured.read_text()) | {"seconds": 30.0}))
    # Seven stages of 30 s in 100 s, and 14 to do: 420 s / 2.1, the seconds that this test takes aside.
    (line,) = [line for line in status("next")[1] if " are left" in line]
    assert re.fullmatch(r"About (3 min [234]\d s|4 min \d\d s) are left, with (2|1\.\d|2\.1) scenes side by side\.", line), line


def test_what_is_no_run_and_a_dataset_that_is_gone(reconx, status, photos, tmp_path, monkeypatch):
    outcome = reconx("status", photos)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "There is no request.json in" in outcome.err
    monkeypatch.setattr(alone, "BEAT_SECONDS", 0.05)
    with alone.alone_in(photos):
        assert "has not said yet what it computes" in reconx("status", photos).err
    assert "knows of no run" in reconx("status", "--store", "nowhere").err
    plans = make_plans(make_request(str(photos), None, []), tmp_path / "out")
    record_request(plans, 1.0, str(photos), tmp_path / "out", tmp_path / "store")
    photos.rename(tmp_path / "away")
    assert status("out")[1][-1] == f"The dataset {photos} is gone; nothing more can be computed from it until it is back."


@pytest.mark.parametrize("content", [b"[1]", b'{"started": 1', b"", b"\x80\x00", b'{"scenes": 5}'])
def test_a_damaged_request_is_called_so(reconx, tmp_path, content):
    (tmp_path / "request.json").write_bytes(content)
    for command in (("status", tmp_path), ("why", "u", "splats", "--run", tmp_path)):
        outcome = reconx(*command)
        assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
        assert f"'{tmp_path / 'request.json'}' is damaged" in outcome.err


def test_a_damaged_record_is_no_end_of_a_run(photos, tmp_path):
    plans = make_plans(make_request(str(photos), None, []), tmp_path / "out")
    record_request(plans, 1.0, str(photos), tmp_path / "out", tmp_path / "store")
    for content in ("[1]", "{"):
        (tmp_path / "out" / "run.json").write_text(content)
        assert not read_request(tmp_path / "out").finished()


def test_damaged_measurements_and_failures_are_none(reconx, tiny, status, data, tmp_path):
    reconx("evaluate", data, "-o", "out", "--store", "store")
    for content in ("{", "[1]", "{}"):
        for file in (*(tmp_path / "store").glob("*/*/measured.json"), *(tmp_path / "store" / ".failed").glob("*/*.json")):
            file.write_text(content)
        table, _ = status("out")
        assert table["views"] == [1, 0, 1, 2]  # done, failed, to do, of
        assert reconx("why", "attic", "views", "--run", "out").code == 0
        assert expected_seconds(tmp_path / "store")["views"] > 0
