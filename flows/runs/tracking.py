"""MLflow observes: one parent run per evaluation, one child per scene, written after the results are safe on disk."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

from reconx_core.io.files import write_json
from reconx_core.reporting.numbers import mean_scores
from reconx_core.settings import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "reconx"
IDS = "mlflow.json"  # in the run's folder: where MLflow has it


def track(record: dict[str, Any], out: Path, console: Console) -> None:
    """Log an evaluation. An error of MLflow is printed and loses no result."""
    try:
        with console.status("Writing to MLflow"):
            _log(record, out)
    except Exception as error:  # MLflow's stores raise anything
        reason = escape(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        console.print(f"[yellow]MLflow did not take the run ({reason}); the results in {out} are complete.[/]")


def load() -> None:
    """Import MLflow, which takes seconds, at a moment that suits; where it cannot be imported, :func:`track` says so."""
    _quieten()
    with contextlib.suppress(Exception):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def tracking_uri(home: Path) -> str:
    """``MLFLOW_TRACKING_URI``, else a SQLite file in ``home``, the folder that holds the runs, so that they share it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve() / 'mlflow.db'}"


def home_of(record: dict[str, Any], out: Path) -> Path:
    """The folder that holds the runs: that of ``out``; a row of the ablation lies a level deeper."""
    return out.resolve().parents[1 if record.get("row") else 0]


def make_client(uri: str) -> MlflowClient:
    """MLflow without telemetry, progress bars and notes on database migrations."""
    _quieten()
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _quieten() -> None:
    """Before MLflow is imported: it reads the environment then."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "1"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
    ):
        os.environ.setdefault(name, value)


def _log(record: dict[str, Any], out: Path) -> None:
    home = home_of(record, out)
    uri = tracking_uri(home)
    client = make_client(uri)
    experiment = open_experiment(client, home, EXPERIMENT)
    tags = {f"reconx.{key}": str(value) for key, value in {**record["facts"], **_place(record)}.items()}
    parent = client.create_run(experiment, run_name=record["title"], tags=tags).info.run_id
    _log_batch(client, parent, _means(record), {"scenes": len(record["scenes"]), **flatten(record["settings"])})
    for name in ("run.json", "settings.yaml", "report.html"):
        client.log_artifact(parent, str(out / name))
    scenes = {name: _log_scene(client, experiment, parent, name, scene, out / name) for name, scene in record["scenes"].items()}
    write_json(out / IDS, {"uri": uri, "run": parent, "scenes": scenes})
    client.set_terminated(parent, "FAILED" if any(scene["error"] for scene in record["scenes"].values()) else "FINISHED")


def _place(record: dict[str, Any]) -> dict[str, Any]:
    """Where in the paper's tables the run belongs."""
    protocol = record.get("protocol") or {}
    place = {"protocol": protocol.get("name"), **{key: protocol.get(key) for key in ("views", "table", "set")}}
    if record.get("row"):
        place |= {"row": record["row"], "table": "ablation"}
    return {key: value for key, value in {**place, "dataset": record.get("dataset")}.items() if value is not None}


def open_experiment(client: MlflowClient, home: Path, name: str) -> str:
    """Id of the experiment, made where it is not there yet, with its artifacts in the folder that holds the runs."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = None if os.environ.get("MLFLOW_TRACKING_URI") else (home.resolve() / "mlartifacts").as_uri()
    return client.create_experiment(name, artifact_location=local)


def _log_scene(client: MlflowClient, experiment: str, parent: str, name: str, scene: dict[str, Any], folder: Path) -> str:
    child = client.create_run(experiment, run_name=name, tags={"mlflow.parentRunId": parent}).info.run_id
    costs = {f"{c['stage']}.{what}": c[what] for c in scene["costs"] for what in ("seconds", "peak_mib")}
    digests = {f"{stage}.digest": artifact["digest"] for stage, artifact in scene["artifacts"].items()}
    facts = {key: scene[key] for key in ("protocol", "split", "error") if scene[key]}
    _log_batch(client, child, {**_named(scene["summary"]), **costs}, {"scene": name, **facts, **digests})
    for pictures in sorted([*folder.glob("pictures"), *folder.glob("seed-*/pictures")]):
        client.log_artifacts(child, str(pictures), pictures.relative_to(folder).as_posix())
    client.set_terminated(child, "FAILED" if scene["error"] else "FINISHED")
    return child


def _log_batch(client: MlflowClient, run: str, metrics: dict[str, float], params: dict[str, Any]) -> None:
    from mlflow.entities import Metric, Param

    now = int(time.time() * 1000)
    client.log_batch(
        run,
        metrics=[Metric(key, float(value), now, 0) for key, value in metrics.items()],
        params=[Param(key, str(value)[:6000]) for key, value in params.items()],
    )


def _means(record: dict[str, Any]) -> dict[str, float]:
    return _named(mean_scores(scene["summary"] for scene in record["scenes"].values() if scene["error"] is None))


def _named(summary: dict[str, float | None]) -> dict[str, float]:
    return {f"metrics.{key}": value for key, value in summary.items() if value is not None}
