"""MLflow observes: one parent run per evaluation, one child per scene, written after the results are safe on disk."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape

from flows.execution.reach import ask_local_servers_directly, true_within
from reconx_core.cache.lock import one_at_a_time
from reconx_core.io.files import write_json
from reconx_core.names import shown
from reconx_core.reporting.numbers import mean_scores
from reconx_core.settings import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "reconx"
IDS = "mlflow.json"  # in the run's folder: where MLflow has it
ANSWER_SECONDS = 5.0
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def track(record: dict[str, Any], out: Path, console: Console) -> None:
    """Log an evaluation. An error of MLflow is printed and loses no result."""
    try:
        with console.status("Writing to MLflow"):
            _log(record, out, lambda note: console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True))
    except Exception as error:  # MLflow's stores raise anything
        reason = escape(reason_of(error))
        console.print(f"[yellow]MLflow did not take the run ({reason}); the results in {escape(str(out))} are complete.[/]")


def reason_of(error: Exception) -> str:
    """An error of MLflow in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


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
    """MLflow without telemetry, progress bars and notes on database migrations.

    Raises:
        OSError: nothing answers at ``uri``; MLflow itself would go on trying for minutes.
    """
    ask_local_servers_directly()
    require_answer(uri)
    _quieten()
    from mlflow import MlflowClient
    from mlflow.store.db import utils

    utils.MAX_RETRY_COUNT = 3  # not ten, which take two minutes to say that a file cannot be opened
    for name in ("mlflow", "alembic", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _made_alone(uri):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _made_alone(uri: str) -> contextlib.AbstractContextManager[None]:
    """Keeps others from making the tables of the same new file; they would stumble over each other's."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not uri.startswith("sqlite:///") or not file.parent.is_dir():
        return contextlib.nullcontext()
    return one_at_a_time(file.with_name(f".{file.name}.lock"))


def require_answer(uri: str) -> None:
    """Raise OSError where ``uri`` names a server that does not answer within seconds, or a file that MLflow cannot name."""
    if shown(uri) != uri:
        raise OSError(f"its folder's name is not UTF-8: {shown(uri)}")
    if not true_within(ANSWER_SECONDS, lambda: _answers(uri)):
        raise ConnectionError(f"nothing answers at {_without_password(uri)}")


def _answers(uri: str) -> bool:
    try:
        place = urlsplit(uri)
        if place.scheme in ("http", "https"):
            return _answers_http(f"{uri.rstrip('/')}/health")
        port = place.port or PORTS.get(place.scheme.partition("+")[0])
        if place.hostname and port:  # else a file, or a service that MLflow knows how to find
            socket.create_connection((place.hostname, port), ANSWER_SECONDS).close()
        return True
    except (OSError, ValueError, HTTPException):
        return False


def _answers_http(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
        return True
    except urllib.error.HTTPError:
        return True  # it wants a password, or has no such page
    except urllib.error.URLError as error:
        return isinstance(error.reason, ssl.SSLError)  # MLflow may be told to trust it nevertheless


def _without_password(uri: str) -> str:
    user, at, rest = uri.rpartition("@")
    return f"{user.partition('://')[0]}://{rest}" if at else uri


def _quieten() -> None:
    """Before MLflow is imported: it reads the environment then."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "1"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # seconds; its seven take four minutes
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
    ):
        os.environ.setdefault(name, value)


def _log(record: dict[str, Any], out: Path, say: Callable[[str], None]) -> None:
    home = home_of(record, out)
    uri = tracking_uri(home)
    client = make_client(uri)
    experiment = open_experiment(client, home, EXPERIMENT, say)
    tags = {f"reconx.{key}": shown(str(value)) for key, value in {**record["facts"], **_place(record)}.items()}
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


def open_experiment(client: MlflowClient, home: Path, name: str, say: Callable[[str], None] = print) -> str:
    """Id of the experiment, made where it is not there yet, with its artifacts in the folder that holds the runs.

    One that was deleted in MLflow's page is restored, since MLflow keeps its name, and ``say`` is told so.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else (home.resolve() / "mlartifacts").as_uri()
        return client.create_experiment(name, artifact_location=local)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        say(f"The experiment '{name}' had been deleted in MLflow; it is restored, with its earlier runs.")
    return found.experiment_id


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
        params=[Param(key, shown(str(value))[:6000]) for key, value in params.items()],
    )


def _means(record: dict[str, Any]) -> dict[str, float]:
    return _named(mean_scores(scene["summary"] for scene in record["scenes"].values() if scene["error"] is None))


def _named(summary: dict[str, float | None]) -> dict[str, float]:
    return {f"metrics.{key}": value for key, value in summary.items() if value is not None}
