"""MLflow: a parent per evaluation, a child per scene; and nothing lost when it fails. Also `gc`, which keeps what runs use."""

import io
import json
import os
import shutil
import socket
import time

import pytest
from rich.console import Console
from standins import write_folder

from flows.runs import mlflow_client, tracking
from flows.runs.garbage import collect_garbage
from flows.runs.mlflow_client import make_client
from flows.runs.records import search_mlflow
from flows.runs.registry import register_start
from flows.train import Log, resolve_train_settings
from reconx_core.cache import store
from reconx_core.cache.lock import in_use
from reconx_core.errors import UserError


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
    assert {a.path for a in client.list_artifacts(parent.info.run_id)} == {"report.html", "run.json", "settings.yaml"}
    assert parent.data.tags["reconx.git revision"]
    check_compare_reads_mlflow(reconx, out, tmp_path, monkeypatch)


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
    tracking.track(record, out, console)
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
    assert collect_garbage(tmp_path)[0] == 1


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
