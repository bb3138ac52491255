"""The one Prefect flow: a task per (stage, scene), scenes side by side, each scene's stages in a chain.

Import this only inside ``prefect_server``: Prefect reads its settings at import.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.filesystems import WritableFileSystem
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import PrivateAttr

from flows.plan import Planned
from reconx_core import store
from reconx_core.errors import UserError
from reconx_core.files import write_atomic
from reconx_core.settings import STAGES
from reconx_core.store import RECORD, DamagedEntry, Reference
from tasks.execute import PARENTS, Job, Monitor, execute, key_of, resolved_settings, source_digest

Shared = dict[tuple[Any, ...], PrefectFuture]  # tasks by all that they depend on


@dataclass
class SceneRun:
    """What came of a scene: references of the stages that were reached, and the error that ended it, if any."""

    plan: Planned
    references: dict[str, Reference] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)  # stages that were not in the store before
    failed_stage: str | None = None
    error: BaseException | None = None

    @property
    def name(self) -> str:
        """The scene's."""
        return self.plan.name


def describe_error(error: BaseException) -> str:
    """An error in one line; what is not the user's mistake carries its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"


class StoreRecords(WritableFileSystem):
    """Prefect's cache records, kept inside the artifacts' folders and valid only while the artifact is whole."""

    _block_type_name = "ReconX store"
    root: str
    _whole: set[str] = PrivateAttr(default_factory=set)  # records of artifacts that were found whole a moment ago

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The record; raises (which Prefect takes for a miss) where the artifact is absent or damaged."""
        content = (Path(self.root) / path).read_bytes()
        # Prefect asks whether there is a record and then reads it: the artifact's files are hashed the first time only.
        if path in self._whole:
            self._whole.remove(path)
            return content
        stage, key, _ = path.split("/")
        if store.find(Path(self.root), stage, key) is None:
            raise DamagedEntry(path)
        self._whole.add(path)
        return content

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        write_atomic(Path(self.root) / path, content)

    def _resolve_path(self, path: str) -> None:
        # Keys stay relative, so that a store can be moved.
        return None


def run_scenes(
    plans: Iterable[Planned], root: Path, monitor: Monitor, last: str = "metrics", workers: int = 1
) -> list[SceneRun]:
    """Run the stages up to ``last`` for every scene; one that fails does not stop the others.

    Where plans agree in all that a stage depends on, they share its task.
    """
    wanted = STAGES[: STAGES.index(last) + 1]
    runs = [SceneRun(plan) for plan in plans]
    runner: Any = ThreadPoolTaskRunner(max_workers=workers)

    @flow(name="reconx", task_runner=runner, validate_parameters=False, persist_result=False)
    def reconx() -> None:
        shared: Shared = {}
        chains = [(run, _submit(run, wanted, root, monitor, shared)) for run in runs]
        for run, chain in chains:
            _collect(run, chain, root, monitor)

    reconx()
    return runs


def _submit(run: SceneRun, wanted: tuple[str, ...], root: Path, monitor: Monitor, shared: Shared) -> dict[str, PrefectFuture]:
    plan = run.plan
    try:
        digest = source_digest(plan.source)
    except Exception as error:
        run.failed_stage, run.error = "views", error
        return {}
    records = StoreRecords(root=str(root))
    futures: dict[str, PrefectFuture] = {}
    for stage in wanted:
        parents: dict[str, Any] = {parent: futures[parent] for parent in PARENTS[stage]}
        settings = json.dumps(resolved_settings(stage, plan.settings), sort_keys=True)
        same = (stage, plan.name, plan.source, settings, *map(id, parents.values()))
        if same not in shared:
            job = Job(stage, plan.name, plan.source, digest, plan.settings, root, monitor, plan.label)
            stage_task: Any = run_stage.with_options(name=stage, task_run_name=f"{stage} {plan.label}")
            # Set afterwards: Prefect wants a storage block that is registered with the server, which this one need not be.
            stage_task.result_storage = records
            monitor.planned(stage, plan.label)
            # Quoted, or Prefect looks for futures in every setting several times per task, a millisecond each.
            shared[same] = stage_task.submit(quote(job), parents)
        futures[stage] = shared[same]
    return futures


def _collect(run: SceneRun, futures: dict[str, PrefectFuture], root: Path, monitor: Monitor) -> None:
    for stage, future in futures.items():
        future.wait()
        if not future.state.is_final():
            continue  # never started, because a stage before it failed
        result: Any = future.state.result(raise_on_failure=False)
        if future.state.is_completed():
            run.references[stage] = _reference(result)
            cached = future.state.name == "Cached"
            if result["computed"] and not cached:
                run.computed.add(stage)
            if cached:
                monitor.finished(stage, run.plan.label, store.measured(root, run.references[stage]), cached=True)
        elif run.error is None:
            run.failed_stage, run.error = stage, result
            monitor.failed(run.plan.label)


def _record_path(context: Any, parameters: dict[str, Any]) -> str:
    job = parameters["job"]
    return f"{job.stage}/{key_of(job, _references(parameters['parents']))}/{RECORD}"


def _references(parents: dict[str, dict[str, Any]]) -> dict[str, Reference]:
    return {stage: _reference(told) for stage, told in parents.items()}


def _reference(told: dict[str, Any]) -> Reference:
    return Reference(told["stage"], told["key"], told["digest"])


@task(cache_key_fn=_record_path, persist_result=True, result_serializer="json", cache_result_in_memory=False)
def run_stage(job: Job, parents: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One stage of one scene; hands on a reference, never arrays, and whether it was computed."""
    reference, computed = execute(job, _references(parents))
    return {**asdict(reference), "computed": computed}
