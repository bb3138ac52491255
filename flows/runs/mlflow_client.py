"""Reaching MLflow: where it is, whether it answers, a client of it without its noise, and the experiment of the runs."""

from __future__ import annotations

import contextlib
import functools
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
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from flows.execution.reach import ask_local_servers_directly, by_proxy, true_within, without_password
from reconx_core.cache.lock import one_at_a_time
from reconx_core.names import shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

ANSWER_SECONDS = 5.0
LOCKED_SECONDS, LOCKED_PAUSE = 90.0, 0.2  # that a call is made again for, while others have the database file locked
PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
# Without it MLflow 3 guesses from the first run, and may show the page of an application with a language model.
KIND = {"mlflow.experimentKind": "custom_model_development"}


def reason_of(error: Exception) -> str:
    """An error of MLflow in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def load() -> None:
    """Import MLflow, which takes seconds, at a moment that suits; where it cannot be imported, the first call says so."""
    _quieten()
    with contextlib.suppress(Exception):
        importlib.import_module("mlflow.store.tracking.sqlalchemy_store")


def tracking_uri(home: Path) -> str:
    """``MLFLOW_TRACKING_URI``, else a SQLite file in ``home``, the folder that holds the runs, so that they share it."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home.resolve() / 'mlflow.db'}"


def is_file(uri: str) -> bool:
    """Whether MLflow's data are in a SQLite file, which no server has to answer for."""
    return uri.startswith("sqlite:///")


def experiment_name(default: str = "reconx") -> str:
    """``MLFLOW_EXPERIMENT_NAME``, else ``default``."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or default


def home_of(record: dict[str, Any], out: Path) -> Path:
    """The folder that holds the runs: that of ``out``; a row of the ablation lies a level deeper."""
    return out.resolve().parents[1 if record.get("row") else 0]


def make_client(uri: str) -> MlflowClient:
    """MLflow without telemetry, progress bars and notes on database migrations, which waits for a locked database file.

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
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # it prints the stack of every error that it raises
    with _made_alone(uri):
        return cast("MlflowClient", _Patient(once_unlocked(MlflowClient, tracking_uri=uri, registry_uri=uri)))


class _Patient:
    """A client of MLflow each of whose calls is :func:`once_unlocked`."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        return functools.partial(once_unlocked, found) if callable(found) else found


def once_unlocked(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What the call returns; made again where another process has the database file locked for longer than SQLite waits.

    MLflow undoes what an attempt has done that ends so.
    """
    end = time.monotonic() + LOCKED_SECONDS
    while True:
        try:
            return call(*arguments, **named)
        except Exception as error:  # of MLflow or of SQLAlchemy
            if "database is locked" not in str(error) or time.monotonic() > end:
                raise
        time.sleep(LOCKED_PAUSE)


def _made_alone(uri: str) -> contextlib.AbstractContextManager[None]:
    """Keeps others from making the tables of the same new file; they would stumble over each other's."""
    file = Path(uri.removeprefix("sqlite:///"))
    if not is_file(uri) or not file.parent.is_dir():
        return contextlib.nullcontext()
    return one_at_a_time(file.with_name(f".{file.name}.lock"))


def open_experiment(client: MlflowClient, home: Path, name: str, say: Callable[[str], None] = print) -> str:
    """Id of the experiment, made where it is not there yet, with its artifacts in the folder that holds the runs.

    One that was deleted in MLflow's page is restored, since MLflow keeps its name, and ``say`` is told so.
    """
    found = client.get_experiment_by_name(name)
    if found is None:
        local = None if os.environ.get("MLFLOW_TRACKING_URI") else (home.resolve() / "mlartifacts").as_uri()
        return _create_experiment(client, name, local)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
        say(f"The experiment '{name}' had been deleted in MLflow; it is restored, with its earlier runs.")
    for key, value in KIND.items():
        if key not in found.tags:  # made by an earlier version, or in MLflow's page without a choice
            client.set_experiment_tag(found.experiment_id, key, value)
    return found.experiment_id


def _create_experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return client.create_experiment(name, artifact_location=artifacts, tags=dict(KIND))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another run has made it in the meantime
            return found.experiment_id
        raise


def require_answer(uri: str) -> None:
    """Raise OSError where ``uri`` names a server that does not answer within seconds, or a file that MLflow cannot name."""
    if shown(uri) != uri:
        raise OSError(f"its folder's name is not UTF-8: {shown(uri)}")
    if not true_within(ANSWER_SECONDS, lambda: _answers(uri)):
        raise ConnectionError(f"nothing answers at {without_password(uri)}{by_proxy(uri)}")


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


def _quieten() -> None:
    """Before MLflow is imported: it reads the environment then."""
    for name, value in (
        ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ("DO_NOT_TRACK", "1"),
        ("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false"),
        ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),  # seconds; its seven take four minutes
        ("MLFLOW_HTTP_REQUEST_TIMEOUT", "30"),
        ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),  # two lines for every scene
    ):
        os.environ.setdefault(name, value)
