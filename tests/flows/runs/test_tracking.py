"""MLflow: a parent per evaluation, a child per scene; and nothing lost when it fails. Also `gc`, which keeps what runs use."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import sqlite3
import threading
import time

import pytest
from processes import wait_until
from rich.console import Console
from standins import write_folder

from flows.runs import mlflow_client, tracking
from flows.runs.garbage import collect_garbage
from flows.runs.mlflow_client import make_client
from flows.runs.records import search_mlflow
from flows.runs.registry import register_start
from flows.runs.results import git_revision
from flows.train import Log, resolve_train_settings
from reconx_core.cache import store
from reconx_core.cache.lock import in_use
from reconx_core.errors import UserError


def track(record, out, console):
    """Of a run that has ended."""
    with tracking.open_run(record, out, console, live=False) as run:
        for name, scene in record["scenes"].items():
            run.log_scene(name, scene, out / name)
        run.close(record)


@pytest.fixture
def dataset(tmp_path):
    for name in ("attic", "cellar"):
        write_folder(tmp_path / "data" / name)
    return tmp_path / "data"


def test_evaluation_is_a_parent_with_a_child_per_scene(reconx, tiny, dataset, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = tmp_path / "runs" / "first"
    assert reconx("evaluate", dataset, "-o", out, "--store", tmp_path / "store", "-S", "splats.steps=5").code == 0
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("reconx").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id}
    assert set(children) == {"attic", "cellar"}
    assert parent.data.params["splats.steps"] == "5"
    record = json.loads((out / "run.json").read_text())
    for name, child in children.items():
        assert child.data.metrics["metrics.psnr"] == pytest.approx(record["scenes"][name]["summary"]["psnr"])
        assert child.data.params["splats.digest"] == record["scenes"][name]["artifacts"]["splats"]["digest"]
        assert "metrics.lpips" not in child.data.metrics
        assert len(client.list_artifacts(child.info.run_id, "pictures")) == 2
        assert {a.path for a in client.list_artifacts(child.info.run_id)} == {"pictures", "scene.html", "video.mp4"}
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"report.html", "run.json", "settings.yaml"}
    assert parent.data.tags["reconx.git revision"]
    check_times(parent, children, record)
    check_inputs(parent, children)
    check_compare_reads_mlflow(reconx, out, tmp_path, monkeypatch)


def check_times(parent, children, record):
    """A scene's run lasts from its first stage's start to its last one's end, within its parent's."""
    assert parent.info.start_time == round(record["started"] * 1000)
    for name, child in children.items():
        costs = record["scenes"][name]["costs"]
        span = max(cost["made"] for cost in costs) - min(cost["made"] - cost["seconds"] for cost in costs)
        assert child.info.end_time - child.info.start_time == pytest.approx(1000 * span, abs=2)
        assert span >= sum(cost["seconds"] for cost in costs) > 0
        assert parent.info.start_time <= child.info.start_time <= child.info.end_time <= parent.info.end_time


def check_inputs(parent, children):
    """The photos by name and digest: other photos, another digest."""
    inputs = [run.inputs.dataset_inputs[0].dataset for run in (parent, *children.values())]
    assert {data.name for data in inputs} == {"data", "attic", "cellar"}
    assert len({data.digest for data in inputs}) == 3
    assert json.loads(inputs[1].source)["uri"].endswith(f"data/{inputs[1].name}")


def test_runs_can_be_told_apart_and_traced(reconx, tiny, dataset, tmp_path, monkeypatch):
    """By name, user, source and version, in the experiment that the environment names, which is one of model training."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("LOGNAME", "ada")
    command = ("evaluate", dataset, "-o", tmp_path / "runs" / "first", "--store", tmp_path / "store", "--scenes", "attic")
    assert reconx(*command).code == 0
    time.sleep(1)  # names have seconds, and a run of stand-ins may take less than one
    assert reconx(*command).code == 0
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert client.get_experiment_by_name("reconx") is None
    experiment = client.get_experiment_by_name("mine")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    runs = client.search_runs([experiment.experiment_id])
    names = [run.info.run_name for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"first · data · \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", name) for name in names)
    for run in runs:
        assert run.data.tags["mlflow.user"] == "ada"
        assert run.data.tags["mlflow.source.name"]
        assert run.data.tags.get("mlflow.source.git.commit", "none") == git_revision().partition("-")[0]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    assert {run.info.run_name for run in search_mlflow("tags.`reconx.title` = 'first'")} == set(names)


def a_scene(**more):
    costs = [{"stage": "splats", "seconds": 2.0, "peak_mib": 7, "cached": False, "cuda_peak_mib": 5, "made": 1000.0}]
    scene = {"summary": {"psnr": 20.0}, "costs": costs, "artifacts": {}, "protocol": "posed", "split": "all", "error": None}
    return {**scene, "source": {"place": "/data/attic", "digest": 32 * "a"}, **more}


def shape_of(client, run):
    """What should not differ between a run that was logged bit by bit and one that was logged at its end."""
    tags = {key: value for key, value in run.data.tags.items() if key not in ("mlflow.parentRunId", "mlflow.runName")}
    files = sorted(file.path for file in client.list_artifacts(run.info.run_id))
    inputs = [(each.dataset.name, each.dataset.digest) for each in run.inputs.dataset_inputs]
    return run.info.status, run.data.metrics, run.data.params, tags, files, inputs, run.info.start_time


def test_runs_logged_bit_by_bit_and_at_once_are_the_same(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    scenes = {"attic": a_scene(), "cellar": a_scene(error="It is dark.", failed_at=1003.0)}
    about = record | {"started": 990.0, "dataset": "/data"}
    (out / "attic" / "pictures").mkdir(parents=True)
    (out / "attic" / "pictures" / "a.jpg").write_bytes(b"a")
    track(about | {"scenes": scenes}, out, Console(file=io.StringIO()))
    client, found = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db"), []
    experiment = client.get_experiment_by_name("reconx").experiment_id
    at_once = {run.info.run_id: run for run in client.search_runs([experiment])}
    with tracking.open_run(about, out, Console(file=io.StringIO())) as run:
        for name, scene in scenes.items():
            run.log_scene(name, scene, out / name)
            while len(found) < len(at_once) + 2 + list(scenes).index(name):  # it appears while the run goes on
                time.sleep(0.02)
                found = client.search_runs([experiment])
        (parent,) = [each for each in found if each.info.run_id not in at_once and "mlflow.parentRunId" not in each.data.tags]
        assert parent.info.status == "RUNNING"
        run.close(about | {"scenes": scenes})
    bit_by_bit = [each for each in client.search_runs([experiment]) if each.info.run_id not in at_once]
    shapes = [sorted((shape_of(client, each) for each in runs), key=str) for runs in (at_once.values(), bit_by_bit)]
    assert shapes[0] == shapes[1]
    assert {shape[0] for shape in shapes[0]} == {"FINISHED", "FAILED"}
    (child,) = [each for each in bit_by_bit if each.info.run_name == "cellar"]
    assert (child.info.start_time, child.info.end_time) == (998_000, 1_003_000)


def test_run_that_ends_by_an_error_or_is_killed_does_not_run_for_ever(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    with pytest.raises(UserError), tracking.open_run(record, out, Console(file=io.StringIO())):
        raise UserError("The disk is full.")
    killed = tracking.open_run(record, out, Console(file=io.StringIO()))  # never closed
    while not (out / tracking.RUNNING).exists():
        time.sleep(0.02)
    client, parent = (
        make_client(f"sqlite:///{tmp_path}/runs/mlflow.db"),
        json.loads((out / tracking.RUNNING).read_text())["run"],
    )
    client.create_run(client.get_run(parent).info.experiment_id, tags={"mlflow.parentRunId": parent}, run_name="a scene")
    assert printed_by_track(record, out) == ""
    runs = client.search_runs([client.get_experiment_by_name("reconx").experiment_id], order_by=["start_time ASC"])
    assert sorted(run.info.status for run in runs) == ["FAILED", "FINISHED", "KILLED", "KILLED"]
    assert json.loads((out / tracking.IDS).read_text())["run"] in [r.info.run_id for r in runs if r.info.status == "FINISHED"]
    assert not (out / tracking.RUNNING).exists()
    killed.close(record)


@pytest.fixture
def hanging(monkeypatch):
    """MLflow that no longer answers after its runs are opened."""
    from mlflow import MlflowClient

    back = threading.Event()
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *_, **__: back.wait(60))
    yield
    back.set()


def test_mlflow_that_hangs_in_the_middle_is_told_once_and_costs_seconds(tmp_path, monkeypatch, hanging):
    """The first run waits as long as it may, the others that were open meanwhile (rows of an ablation) not again."""
    monkeypatch.setattr(tracking, "FILE_PATIENCE", 1.5)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    (out / tracking.IDS).write_text("{}")  # of an earlier run, which this one's record would be taken for
    console = Console(file=io.StringIO(), width=300)
    runs = [tracking.open_run(record, out, console) for _ in range(5)]
    started = time.monotonic()
    for run in runs:
        for number in range(50):
            run.log_scene(f"{number}", a_scene(), out)
    assert time.monotonic() - started < 1.2
    for run in runs:
        run.close(record)
    assert time.monotonic() - started < 2 * 1.5 + 2
    assert console.file.getvalue().count("MLflow did not take the run (no answer from sqlite:") == 1
    assert not (out / tracking.IDS).exists()


def test_rows_find_out_once_that_there_is_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_client, "ANSWER_SECONDS", 0.5)
    record, out = a_record(tmp_path)
    console = Console(file=io.StringIO(), width=300)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        runs = [tracking.open_run(record, out, console) for _ in range(7)]
        for run in runs:
            run.close(record)
    assert time.monotonic() - started < 2
    assert console.file.getvalue().count("MLflow did not take the run") == 1


def test_mlflow_that_fails_in_the_middle_is_told_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    console = Console(file=io.StringIO(), width=300)
    with tracking.open_run(record, out, console) as run:
        for _ in range(5):
            run.log_scene("attic", a_scene() | {"costs": [{"cached": True}]}, out)  # which lacks what is logged
        run.close(record)
    assert console.file.getvalue().count("MLflow did not take the run (KeyError: 'stage')") == 1
    assert console.file.getvalue().count("\n") == 1
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("reconx").experiment_id])
    assert {run.info.status for run in found} == {"FAILED"}  # not running for ever
    assert len(found) == 2  # the run and its first scene


@pytest.fixture
def impatient_sqlite():
    """SQLite waits for a locked file for 50 ms, not for the 20 s that MLflow tells it."""
    from sqlalchemy import Engine, event

    def shorter(connection, cursor, statement, parameters, context, executemany):
        return statement.replace("busy_timeout = 20000", "busy_timeout = 50"), parameters

    event.listen(Engine, "before_cursor_execute", shorter, retval=True)
    yield
    event.remove(Engine, "before_cursor_execute", shorter)


def test_a_database_that_others_have_locked_is_waited_for(tmp_path, monkeypatch, impatient_sqlite):
    """Else the run would be shown as running for ever."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    console = Console(file=io.StringIO(), width=300)
    make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    with tracking.open_run(record, out, console, live=False) as run, other_writer(tmp_path / "runs" / "mlflow.db") as other:
        wait_until((out / tracking.RUNNING).exists, seconds=20)
        time.sleep(0.2)  # its settings
        other.execute("begin exclusive")
        run.log_scene("attic", a_scene(), out)
        ending = threading.Thread(target=run.close, args=[record])
        ending.start()
        time.sleep(2)
        assert ending.is_alive()
        other.execute("rollback")
        ending.join()
    assert console.file.getvalue() == ""
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("reconx").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED", "FINISHED"]
    assert {run.info.run_name.partition(" ")[0]: run.data.metrics.get("metrics.psnr") for run in found} == {
        "first": None,
        "attic": 20.0,
    }


def test_a_database_that_stays_locked_is_told_in_a_sentence(tmp_path, monkeypatch, impatient_sqlite, capfd):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(mlflow_client, "LOCKED_SECONDS", 0.5)
    record, out = a_record(tmp_path)
    assert printed_by_track(record, out) == ""
    with other_writer(tmp_path / "runs" / "mlflow.db") as other:
        other.execute("begin exclusive")
        said = printed_by_track(record, out)
    assert "database is locked" in said
    assert said.count("\n") == 1
    assert "Traceback" not in capfd.readouterr().err


def other_writer(database):
    return contextlib.closing(sqlite3.connect(database, isolation_level=None, check_same_thread=False))


def test_load_of_the_machine_is_logged_while_a_run_is_live(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.05")
    record, out = a_record(tmp_path)
    with tracking.open_run(record, out, Console(file=io.StringIO())) as run:
        while not (out / tracking.RUNNING).exists():
            time.sleep(0.02)
        time.sleep(0.5)
        run.close(record)
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    logged = client.get_run(json.loads((out / tracking.IDS).read_text())["run"])
    assert logged.data.metrics["system/cpu_utilization_percentage"] >= 0
    assert logged.data.metrics["system/system_memory_usage_megabytes"] > 0


def check_compare_reads_mlflow(reconx, out, tmp_path, monkeypatch):
    """By name, with the run's own folder gone; the pictures come from MLflow, too."""
    shutil.rmtree(out)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    outcome = reconx("compare", "first", "first", "-o", tmp_path / "compare.html")
    assert outcome.code == 0
    assert "The settings are the same." in outcome.out
    page = (tmp_path / "compare.html").read_text()
    assert page.count('data-name="render"') == 2 * 2 * 2  # runs, scenes, views
    assert "No pictures" not in page
    assert reconx("compare", "first", "second").err.startswith("reconx: There is no run 'second'")


def test_failing_mlflow_loses_nothing(reconx, tiny, dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/no/such/place.db")
    out = tmp_path / "runs" / "first"
    outcome = reconx("evaluate", dataset, "-o", out, "--store", tmp_path / "store")
    assert outcome.code == 0
    assert "MLflow did not take the run" in outcome.out
    assert (out / "run.json").exists()
    assert (out / "attic" / "scene.ply").exists()


def a_record(tmp_path):
    """Of a run without scenes, with its files."""
    out = tmp_path / "runs" / "first"
    out.mkdir(parents=True)
    for name in ("run.json", "settings.yaml", "report.html"):
        (out / name).write_text("{}")
    return {"title": "first", "facts": {}, "settings": {}, "scenes": {}}, out


def printed_by_track(record, out):
    console = Console(file=io.StringIO(), width=300)
    track(record, out, console)
    return console.file.getvalue()


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "https://no.such.host.invalid", "http://[", "postgresql://me:secret@127.0.0.1:9/db"]
)
def test_mlflow_that_is_not_there_is_a_sentence_at_once(tmp_path, monkeypatch, uri):
    monkeypatch.setattr(mlflow_client, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    record, out = a_record(tmp_path)
    started = time.monotonic()
    said = printed_by_track(record, out)
    assert "MLflow did not take the run" in said
    assert "are complete" in said
    assert "secret" not in said
    assert time.monotonic() - started < 10
    with pytest.raises(UserError, match="name folders of runs instead"):
        next(search_mlflow("run_name = 'first'"))


def test_server_that_accepts_and_never_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_client, "ANSWER_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "nothing answers" in printed_by_track(*a_record(tmp_path))


def test_database_that_cannot_be_opened_is_told_soon(tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    started = time.monotonic()
    assert "MLflow did not take the run" in printed_by_track(*a_record(tmp_path))
    assert time.monotonic() - started < 10


def test_folder_whose_name_mlflow_cannot_hold_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    said = printed_by_track(*a_record(tmp_path / os.fsdecode(b"\xfcbung")))
    assert "name is not UTF-8" in said


def test_experiment_deleted_in_its_page_is_restored(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    assert printed_by_track(record, out) == ""
    client = make_client(f"sqlite:///{tmp_path}/runs/mlflow.db")
    experiment = client.get_experiment_by_name("reconx").experiment_id
    client.delete_experiment(experiment)
    assert "'reconx' had been deleted in MLflow; it is restored" in printed_by_track(record, out)
    assert printed_by_track(record, out) == ""
    assert len(client.search_runs([experiment])) == 3


def test_training_goes_on_without_mlflow(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_client, "ANSWER_SECONDS", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    console = Console(file=io.StringIO(), width=300)
    log = Log(tmp_path / "out", resolve_train_settings("tiny", None), console, [])
    for number in range(20):
        log.step(number, 1.0)
    log.finish()
    said = console.file.getvalue()
    assert said.count("training goes on without it") == 1
    assert "step 20 of" in said


def test_training_that_mlflow_loses_in_the_middle_is_not_shown_as_running(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    log = Log(tmp_path / "out", resolve_train_settings("tiny", None), Console(file=io.StringIO()), [])
    monkeypatch.setattr(MlflowClient, "log_metric", lambda *_, **__: 1 / 0)
    for number in range(10):
        log.step(number, 1.0)
    log.finish()
    assert make_client(f"sqlite:///{tmp_path}/mlflow.db").get_run(log.run).info.status == "FAILED"


def test_training_that_raises_or_is_killed_is_not_shown_as_running(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    made = lambda: Log(tmp_path / "out", resolve_train_settings("tiny", None), Console(file=io.StringIO()), [])  # noqa: E731
    killed = made()  # never closed
    with pytest.raises(UserError), made() as failed:
        raise UserError("The disk is full.")
    with made() as whole:
        pass
    client = make_client(f"sqlite:///{tmp_path}/mlflow.db")
    assert [client.get_run(log.run).info.status for log in (killed, failed, whole)] == ["KILLED", "FAILED", "FINISHED"]


def test_a_killed_run_that_was_deleted_in_mlflow_does_not_cost_the_next_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    record, out = a_record(tmp_path)
    (out / tracking.RUNNING).write_text(json.dumps({"uri": f"sqlite:///{tmp_path}/runs/mlflow.db", "run": 32 * "0"}))
    assert printed_by_track(record, out) == ""
    assert (out / tracking.IDS).is_file()


def test_gc_keeps_what_existing_runs_use(reconx, tiny, photos, tmp_path):
    root = tmp_path / "store"
    for out, steps in (("kept", 1), ("deleted", 2)):
        assert reconx("reconstruct", photos, "-o", tmp_path / out, "--store", root, "-S", f"splats.steps={steps}").code == 0
    shutil.rmtree(tmp_path / "deleted")
    assert "Removed 2 artifacts" in reconx("gc", "--store", root).out  # its splats and metrics
    tiny()
    reconx("reconstruct", photos, "-o", tmp_path / "kept", "--store", root, "-S", "splats.steps=1")
    assert tiny() == []


def test_gc_waits_for_runs(tmp_path):
    register_start(tmp_path, tmp_path / "run")
    store.publish(tmp_path, "views", 32 * "0", {}, {"a.txt": b"a"}, {})
    with in_use(tmp_path), pytest.raises(UserError, match="wait until it has ended"):
        collect_garbage(tmp_path)
    assert len(collect_garbage(tmp_path).doomed) == 1


def test_gc_removes_nothing_from_a_folder_that_is_no_store(reconx, tmp_path):
    photo = tmp_path / "photos" / "summer" / "beach" / "a.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a")
    for root in (tmp_path / "photos", tmp_path / "nowhere"):
        outcome = reconx("gc", "--store", root)
        assert outcome.code == 2
        assert "is no store of runs" in outcome.err
    assert photo.is_file()
    assert [path.name for path in tmp_path.iterdir() if path.name != "home"] == ["photos"]


def test_gc_leaves_what_others_put_into_a_store(reconx, tiny, photos, tmp_path):
    root = tmp_path / "store"
    assert reconx("reconstruct", photos, "-o", tmp_path / "out", "--store", root).code == 0
    photo = root / "summer" / "beach" / "a.jpg"
    photo.parent.mkdir(parents=True)
    photo.write_bytes(b"a")
    shutil.rmtree(tmp_path / "out")
    assert "Removed 7 artifacts" in reconx("gc", "--store", root).out
    assert photo.is_file()
