"""MLflow observes: one parent run per evaluation, one child per scene, which appears when the scene is done.

    with open_run(about, out, console) as run:      # `about`: what is known at the start of the run's record (run.json)
        run.log_scene(name, scene, folder)          # a scene is done: its part of the record, and the folder of its results
        run.close(record)                           # the whole record; waits until MLflow has everything

The first two return at once: a thread makes MLflow's calls one after another. An error of MLflow, or a server that no longer
answers, is told once and loses no result; it costs :meth:`LiveRun.close` at most ten seconds, or thirty where a server answers
that it is well and nothing else. A database file that others keep locked is waited for. A block that is left by an error
leaves a failed run, and so does an error of MLflow, where it still takes that.
"""

from __future__ import annotations

import contextlib
import functools
import getpass
import hashlib
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import psutil
from rich.console import Console
from rich.markup import escape

from flows.execution.reach import without_password
from flows.runs import mlflow_client
from flows.runs.mlflow_client import (
    experiment_name,
    home_of,
    is_file,
    make_client,
    open_experiment,
    reason_of,
    require_answer,
    tracking_uri,
)
from reconx_core.io.checked import find_object
from reconx_core.io.files import write_json
from reconx_core.names import one_line, shown
from reconx_core.reporting.numbers import mean_scores
from reconx_core.settings import flatten

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

IDS = "mlflow.json"  # in the run's folder: where MLflow has it
RUNNING = ".mlflow-running.json"  # the same while it runs; one that is found there was killed
PATIENCE = 30.0  # seconds for one call, while the server answers that it is well
FILE_PATIENCE = 120.0  # the same of a database file, which no server can be asked for: others may have it locked
SHOWN = ("pictures", "video.mp4", "scene.html")  # of a scene's results, what MLflow's page can show
DIGEST_LENGTH = 32  # MLflow takes 36


def open_run(about: dict[str, Any], out: Path, console: Console, live: bool = True) -> LiveRun:
    """A run in MLflow, which is opened there while the caller goes on.

    ``about`` has ``title``, ``settings`` and ``facts`` as the record has them, and where they are known ``started``,
    ``dataset``, ``protocol`` and ``row``. ``live``: it begins now, so that the machine's load is logged, too.
    """
    return LiveRun(about, out, console, live)


class LiveRun:
    """A run that MLflow shows as running until :meth:`close`."""

    def __init__(self, about: dict[str, Any], out: Path, console: Console, live: bool) -> None:
        self._about, self._out, self._console, self._live = about, out, console, live
        self._uri = tracking_uri(home_of(about, out))
        self._caller = _caller_of(self._uri)
        self._lost = False  # MLflow, after its first error
        self._closed = False
        self._telling = threading.Lock()
        self._client: MlflowClient | None = None
        self._load: SystemMetricsMonitor | None = None
        self._experiment = self._parent = ""
        self._tags: dict[str, str] = {}  # of every run
        self._scenes: dict[str, str] = {}
        self._running: set[str] = set()  # runs that MLflow shows so
        self._inputs: dict[str, str] = {}  # of the scenes: digest by name
        self._later(self._open)

    def __enter__(self) -> LiveRun:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._closed:
            self._finish(lambda: self._end("FAILED"))

    def log_scene(self, name: str, scene: dict[str, Any], folder: Path) -> None:
        """A child for a scene that is done or has failed, all its seeds included.

        ``scene``: its entry in the record's ``scenes``; ``folder``: what has its ``pictures/``, clip and page, or ``seed-N/``
        with these.
        """
        began, ended = span_of(scene)
        self._later(lambda: self._open_scene(name, scene, began, ended))
        for made in sorted(path for what in SHOWN for path in (*folder.glob(what), *folder.glob(f"seed-*/{what}"))):
            self._later(functools.partial(self._log_made, name, made, made.relative_to(folder).as_posix()))
        self._later(lambda: self._terminate(self._scenes[name], _status(scene["error"]), ended))

    def close(self, record: dict[str, Any]) -> None:
        """Log what is known at the end, and wait until MLflow has everything or has been given up."""
        self._finish(lambda: self._log_end(record))
        if self._lost:
            (self._out / IDS).unlink(missing_ok=True)  # of an earlier run into the folder

    def _later(self, call: Callable[[], object]) -> None:
        self._caller.add(lambda: self._try(call))

    def _try(self, call: Callable[[], object]) -> None:
        if self._caller.gone:
            self._lose(self._caller.gone)
        if self._lost:
            return
        try:
            call()
        except Exception as error:  # MLflow's stores raise anything
            self._lose(reason_of(error))

    def _lose(self, reason: str) -> None:
        with self._telling:
            lost, self._lost = self._lost, True
        if not lost and self._caller.is_new(reason):
            self._say(f"MLflow did not take the run ({reason}); the results in {self._out} are complete without it.")

    def _say(self, note: str) -> None:
        self._console.print(f"[yellow]{escape(one_line(note))}[/]", soft_wrap=True)

    def _finish(self, last: Callable[[], object]) -> None:
        self._closed, done = True, threading.Event()
        self._later(last)
        self._caller.add(self._abandon)
        self._caller.add(done.set)
        with self._console.status("Writing to MLflow"):
            self._caller.wait_for(done)
        if self._caller.gone:
            self._lose(self._caller.gone)

    def _abandon(self) -> None:
        """Of a lost run: what MLflow shows as running has failed, as far as MLflow can still be told."""
        if not self._lost or self._caller.gone or not self._running:
            return
        with contextlib.suppress(Exception):  # MLflow's stores raise anything, and the user knows already
            for run in self._running - {self._parent}:
                self._terminate(run, "FAILED")
            self._end("FAILED")

    def _terminate(self, run: str, status: str, when: int | None = None) -> None:
        self._live_client().set_terminated(run, status, when)
        self._running.discard(run)

    def _live_client(self) -> MlflowClient:
        assert self._client is not None  # else the run is lost
        return self._client

    def _open(self) -> None:
        home = home_of(self._about, self._out)
        try:
            self._client = make_client(self._uri)
        except OSError as error:
            self._caller.gone = reason_of(error)  # the ablation's other rows need not find out for themselves
            raise
        self._experiment = open_experiment(self._client, home, experiment_name(), self._say)
        end_killed(self._client, self._uri, self._out)
        started = _milliseconds(self._about.get("started") or time.time())
        self._tags = source_tags(self._about["facts"])
        tags = {**self._tags, **_about_tags(self._about)}
        self._parent = self._client.create_run(self._experiment, started, tags, run_name_of(self._about)).info.run_id
        self._running.add(self._parent)
        write_json(self._out / RUNNING, {"uri": self._uri, "run": self._parent})
        _log_batch(self._client, self._parent, {}, flatten(self._about["settings"]))
        if self._live:
            self._load = watch_load(self._uri, self._parent)

    def _open_scene(self, name: str, scene: dict[str, Any], began: int, ended: int) -> None:
        client = self._live_client()
        tags = {"mlflow.parentRunId": self._parent, **self._tags}
        child = client.create_run(self._experiment, began, tags, name).info.run_id
        self._scenes[name] = child
        self._running.add(child)
        costs = {
            f"{cost['stage']}.{what}": cost[what]
            for cost in scene["costs"]
            for what in ("seconds", "peak_mib", "cuda_peak_mib")
            if what != "cuda_peak_mib" or cost.get(what)
        }
        digests = {f"{stage}.digest": artifact["digest"] for stage, artifact in scene["artifacts"].items()}
        facts = {key: scene[key] for key in ("protocol", "split", "error") if scene[key]}
        _log_batch(client, child, {**_named(scene["summary"]), **costs}, {"scene": name, **facts, **digests}, ended)
        if source := scene.get("source"):
            self._inputs[name] = source["digest"]
            client.log_inputs(child, [dataset_input(name, source["place"], source["digest"])])

    def _log_made(self, name: str, made: Path, place: str) -> None:
        """A folder, or a file, of a scene's results."""
        client, run = self._live_client(), self._scenes[name]
        if made.is_dir():
            client.log_artifacts(run, str(made), place)
        else:
            client.log_artifact(run, str(made), str(Path(place).parent) if "/" in place else None)

    def _log_end(self, record: dict[str, Any]) -> None:
        client = self._live_client()
        _log_batch(client, self._parent, {**_means(record), **_peaks(record)}, {"scenes": len(record["scenes"])})
        for key, value in _gpus().items():
            client.set_tag(self._parent, f"reconx.{key}", value)
        if record.get("dataset") and self._inputs:
            digest = hashlib.sha256(json.dumps(self._inputs, sort_keys=True).encode()).hexdigest()
            client.log_inputs(self._parent, [dataset_input(short_name(record["dataset"]), record["dataset"], digest)])
        for name in ("run.json", "settings.yaml", "report.html"):
            client.log_artifact(self._parent, str(self._out / name))
        write_json(self._out / IDS, {"uri": self._uri, "run": self._parent, "scenes": self._scenes})
        self._end(_status(any(scene["error"] for scene in record["scenes"].values())))

    def _end(self, status: str) -> None:
        if self._load is not None:
            self._load.finish()
        self._terminate(self._parent, status)
        (self._out / RUNNING).unlink(missing_ok=True)


class _Caller:
    """Makes calls one after another in a thread: a slow server delays nobody, and SQLite has one writer."""

    def __init__(self, uri: str) -> None:
        self._uri, self._moved = uri, time.monotonic()
        self.gone = ""  # why nothing can be asked any more
        self._told: set[str] = set()
        self._calls: SimpleQueue[Callable[[], object]] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True, name="MLflow").start()

    def add(self, call: Callable[[], object]) -> None:
        self._calls.put(call)

    def is_new(self, reason: str) -> bool:
        """Whether the user has not been told it yet; the next run of this process gets a thread of its own."""
        _caller_of.cache_clear()
        told = reason in self._told
        self._told.add(reason)
        return not told

    def wait_for(self, done: threading.Event) -> None:
        """Wait until ``done`` or ``gone``: where a call lasts long and nothing answers, or for longer than our patience."""
        start, patience = time.monotonic(), FILE_PATIENCE if is_file(self._uri) else PATIENCE
        while not self.gone and not done.wait(0.2):
            silent = time.monotonic() - max(start, self._moved)
            if silent > patience or (silent > mlflow_client.ANSWER_SECONDS and not _answers(self._uri)):
                self.gone = f"no answer from {without_password(self._uri)} for {silent:.0f} s"

    def _work(self) -> None:
        while True:
            self._calls.get()()
            self._moved = time.monotonic()


@functools.cache
def _caller_of(uri: str) -> _Caller:
    """One for all runs of this process, such as the rows of an ablation."""
    return _Caller(uri)


def _answers(uri: str) -> bool:
    try:
        require_answer(uri)
    except OSError:
        return False
    return True


def end_killed(client: MlflowClient, uri: str, out: Path) -> None:
    """Mark an earlier run into the folder that never came to its end, and that MLflow would show as running for ever."""
    from mlflow.exceptions import MlflowException

    earlier = find_object(out / RUNNING)
    if earlier.get("uri") != uri:
        return
    with contextlib.suppress(MlflowException):  # it has been deleted there, or all of MLflow's file
        parent = client.get_run(earlier["run"])
        running = f"tags.`mlflow.parentRunId` = '{earlier['run']}' and attributes.status = 'RUNNING'"
        scenes = client.search_runs([parent.info.experiment_id], running)
        for run in (*scenes, parent):
            if run.info.status == "RUNNING":
                client.set_terminated(run.info.run_id, "KILLED")


def watch_load(uri: str, run: str) -> SystemMetricsMonitor | None:
    """MLflow's log of the machine's load, every ten seconds; none where ``MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING`` is false."""
    if os.environ.get("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "").lower() in ("false", "0"):
        return None
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

    monitor = SystemMetricsMonitor(run, tracking_uri=uri)
    monitor.start()
    return monitor


def run_name_of(about: dict[str, Any]) -> str:
    """Folder, dataset, protocol and time: ``re10k-1 · re10k · easy-re10k · 2026-11-30 09:12:44``."""
    title, dataset, protocol = about["title"], short_name(about.get("dataset") or ""), (about.get("protocol") or {}).get("name")
    parts = [title, "" if dataset in title else dataset, protocol]
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(about.get("started")))
    return " · ".join([shown(part) for part in parts if part] + [when])


def short_name(dataset: str) -> str:
    """The last part of a dataset's path, or the text of a procedure."""
    return dataset if dataset.startswith("procedural:") else Path(dataset).resolve().name


def span_of(scene: dict[str, Any]) -> tuple[int, int]:
    """When this run worked on a scene, first and last, in milliseconds since the epoch; now where all was in the store."""
    computed = [cost for cost in scene["costs"] if not cost["cached"] and cost.get("made")]
    times = [moment for cost in computed for moment in (cost["made"] - cost["seconds"], cost["made"])]
    times += [scene["failed_at"]] if scene.get("failed_at") else []
    times = times or [time.time()]
    return _milliseconds(min(times)), _milliseconds(max(times))


def source_tags(facts: dict[str, Any]) -> dict[str, str]:
    """What MLflow's page shows as user, source and version: of the checkout that the code runs from, where there is one."""
    from mlflow.tracking.context.registry import resolve_tags

    # MLflow would look for a checkout around the script: for an installed one, that of whoever made the environment.
    tags = {key: value for key, value in resolve_tags().items() if not key.startswith("mlflow.source.git.")}
    commit, _, dirty = str(facts.get("git revision", "none")).partition("-")
    if commit != "none":
        tags |= {"mlflow.source.git.commit": commit, "mlflow.source.git.dirty": str(bool(dirty)).lower()}
    return {"mlflow.user": _user(), **tags}


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return str(os.getuid())


def _about_tags(about: dict[str, Any]) -> dict[str, str]:
    memory = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    own = {"title": about["title"], "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), "memory": memory}
    return {f"reconx.{key}": shown(str(value)) for key, value in {**own, **about["facts"], **_place(about)}.items()}


def _gpus() -> dict[str, str]:
    """The GPUs, if this process has used any: to ask for their names takes some of a GPU's memory."""
    import torch

    if not torch.cuda.is_initialized():
        return {}
    return {"gpu": ", ".join(torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))}


def _place(record: dict[str, Any]) -> dict[str, Any]:
    """Where in the paper's tables the run belongs."""
    protocol = record.get("protocol") or {}
    place = {"protocol": protocol.get("name"), **{key: protocol.get(key) for key in ("views", "table", "set")}}
    if record.get("row"):
        place |= {"row": record["row"], "table": "ablation"}
    return {key: value for key, value in {**place, "dataset": record.get("dataset")}.items() if value is not None}


def dataset_input(name: str, place: str, digest: str) -> DatasetInput:
    """What a run was made of, by the digest of its photos."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    procedural = place.startswith("procedural:")
    local = {"uri": shown(str(Path(place).absolute()))}
    kind, source = ("code", {"tags": {"procedure": place}}) if procedural else ("local", local)
    dataset = Dataset(shown(name)[:500], digest[:DIGEST_LENGTH], kind, json.dumps(source))
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "evaluation")])


def _log_batch(
    client: MlflowClient, run: str, metrics: dict[str, float], params: dict[str, Any], when: int | None = None
) -> None:
    from mlflow.entities import Metric, Param

    when = _milliseconds(time.time()) if when is None else when
    client.log_batch(
        run,
        metrics=[Metric(key, float(value), when, 0) for key, value in metrics.items()],
        params=[Param(key, shown(str(value))[:6000]) for key, value in params.items()],
    )


def _means(record: dict[str, Any]) -> dict[str, float]:
    return _named(mean_scores(scene["summary"] for scene in record["scenes"].values() if scene["error"] is None))


def _peaks(record: dict[str, Any]) -> dict[str, float]:
    """The largest of all stages of all scenes."""
    costs = [cost for scene in record["scenes"].values() for cost in scene["costs"]]
    return {what: peak for what in ("peak_mib", "cuda_peak_mib") if (peak := _largest(cost.get(what) for cost in costs))}


def _largest(values: Iterable[float | None]) -> float:
    return max((value or 0.0 for value in values), default=0.0)


def _named(summary: dict[str, float | None]) -> dict[str, float]:
    return {f"metrics.{key}": value for key, value in summary.items() if value is not None}


def _status(failed: object) -> str:
    return "FAILED" if failed else "FINISHED"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
