"""The one Prefect flow: a task per (stage, scene); scenes run in parallel, the stages of a scene one after another.

Import this only inside ``prefect_server``: Prefect reads its settings at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.filesystems import WritableFileSystem
from prefect.futures import PrefectWrappedFuture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import PrivateAttr

from flows.execution.failures import forget_failure, keep_failure, task_id
from flows.execution.plan import ScenePlan
from flows.execution.prefect_server import has_own_server
from flows.execution.sources import Digests, read_ahead
from reconx_core.cache import store
from reconx_core.cache.store import RECORD, DamagedEntry, Reference
from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic
from reconx_core.names import shown
from reconx_core.settings import STAGES
from tasks.execute import PARENTS, Job, Monitor, code_of, device_class, execute, key_of, stages_before, uses_gpu

if TYPE_CHECKING:
    from flows.execution.dask_cluster import Cluster

Future = PrefectWrappedFuture[Any, Any]  # of Prefect, around one of the threads' or of Dask's
WAITING = 1000  # tasks submitted and not yet ended; those of a large dataset would fill the memory


@dataclass
class SceneRun:
    """The result of a scene: references of the stages that were reached, and the error that ended it, if any."""

    plan: ScenePlan
    references: dict[str, Reference] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)  # stages that were not in the store
    failed_stage: str | None = None
    error: BaseException | None = None

    @property
    def name(self) -> str:
        """The scene's."""
        return self.plan.name


class WorkerError(Exception):
    """An error of another process, as text from ``describe_error``: not every error can be pickled."""


def describe_error(error: BaseException) -> str:
    """An error in one line; the type is given unless it is a user's mistake."""
    text = shown(" ".join(str(error).split()))
    return text if isinstance(error, UserError | WorkerError) else f"{type(error).__name__}: {text}"


class StoreRecords(WritableFileSystem):
    """Prefect's cache records, kept inside the artifacts' folders and valid only while the artifact is whole."""

    _block_type_name = "ReconX store"
    root: str
    _whole: set[str] = PrivateAttr(default_factory=set)  # records of artifacts that were found whole a moment ago

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The record; raises (which Prefect takes for a miss) where the artifact is absent or damaged."""
        content = (Path(self.root) / path).read_bytes()
        # Prefect asks whether there is a record and then reads it: the artifact's files are looked at the first time only.
        if path in self._whole:
            self._whole.remove(path)
            return content
        stage, key, _ = path.split("/")
        if store.find(Path(self.root), stage, key) is None:
            raise DamagedEntry(path)
        self._whole.add(path)
        return content

    def write_path(self, path: str, content: bytes, _sync: bool = True) -> None:  # type: ignore[override]
        if "/" not in path:
            return  # the record of a failure, which has no artifact and is never read
        write_atomic(Path(self.root) / path, content)

    def _resolve_path(self, path: str) -> None:
        # Keys stay relative, so that a store can be moved.
        return None


# The flow's work. Not a parameter or a closure: Prefect pickles the flow with every task that it sends to Dask.
_work: ContextVar[Callable[[], None]] = ContextVar("work")


def _run_work() -> None:
    _work.get()()


@flow(name="reconx", validate_parameters=False, persist_result=False)
def reconx() -> None:
    """The one flow of a run; :func:`run_scenes` sets its work and its task runner."""
    _run_work()


def run_scenes(
    plans: Iterable[ScenePlan], root: Path, monitor: Monitor, stages: tuple[str, ...] = STAGES, workers: int = 1,
    cluster: Cluster | None = None, tell_sources: Callable[[Digests], None] = lambda read: None,
) -> list[SceneRun]:  # fmt: skip
    """Run the ``stages`` for every scene, in threads or in the cluster; one that fails does not stop the others.

    Where plans agree in all that a stage depends on, they share its task. ``tell_sources``: see `read_ahead`.
    """
    runs = [SceneRun(plan) for plan in plans]
    steps = make_steps(runs, stages)
    runner: Any = cluster.runner() if cluster else ThreadPoolTaskRunner(max_workers=workers)
    token = _work.set(lambda: _read_and_submit(steps, root.resolve(), monitor, cluster, tell_sources))
    try:
        # Its thread would hold the end of a run up by a second, and only a server with services reads what it sends.
        with temporary_settings(set_defaults={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
            reconx.with_options(task_runner=runner, flow_run_name=_run_name(runs))()
    finally:
        _work.reset(token)
    for run in runs:
        run.references = {stage: run.references[stage] for stage in stages if stage in run.references}
    return runs


def _run_name(runs: list[SceneRun]) -> str:
    return runs[0].plan.label if len(runs) == 1 else f"{len(runs)} scenes from {runs[0].plan.label}" if runs else "no scenes"


@dataclass(eq=False)
class Step:
    """One stage of one scene, for all runs that agree in what it depends on."""

    name: str  # see `task_id`
    stage: str
    plan: ScenePlan  # the first of those that need it
    parents: dict[str, Step]
    runs: list[SceneRun] = field(default_factory=list)
    future: Future | None = None  # while it waits or runs
    result: dict[str, Any] | None = None  # of its task, once that has ended
    failed: bool = False


def make_steps(runs: list[SceneRun], wanted: tuple[str, ...]) -> list[Step]:
    """All steps of the runs, each once and after its parents."""
    steps: dict[str, Step] = {}
    for run in runs:
        by_stage: dict[str, Step] = {}
        for stage in wanted:
            name, parents = task_id(stage, run.plan.name, run.plan.source, run.plan.settings), PARENTS[stage]
            step = Step(name, stage, run.plan, {parent: by_stage[parent] for parent in parents})
            by_stage[stage] = steps.setdefault(name, step)
            by_stage[stage].runs.append(run)
    return list(steps.values())


def _read_and_submit(
    steps: list[Step], root: Path, monitor: Monitor, cluster: Cluster | None, tell_sources: Callable[[Digests], None]
) -> None:
    sources = [step.plan.source for step in steps if not PARENTS[step.stage]]
    with read_ahead(sources, root, tell_sources) as digest_of:
        _submit_all(steps, root, monitor, cluster, digest_of)


def _submit_all(
    steps: list[Step], root: Path, monitor: Monitor, cluster: Cluster | None, digest_of: Callable[[str], str]
) -> None:
    for step in steps:
        monitor.planned(step.stage, step.plan.label)
    ended: SimpleQueue[Step] = SimpleQueue()
    waiting = 0
    for step in steps:
        while waiting >= WAITING:
            _settle(ended.get(), root, monitor, cluster)
            waiting -= 1
        step.future = _submit(step, root, monitor, cluster, digest_of)
        if step.future is not None:
            step.future.add_done_callback(lambda _, step=step: ended.put(step))  # type: ignore[misc]
            waiting += 1
    for _ in range(waiting):
        _settle(ended.get(), root, monitor, cluster)


def _submit(
    step: Step, root: Path, monitor: Monitor, cluster: Cluster | None, digest_of: Callable[[str], str]
) -> Future | None:
    """The step's task; None where it cannot be, because the source cannot be read or a step before it has failed."""
    plan = step.plan
    step.failed = any(parent.failed for parent in step.parents.values())
    try:
        digest = "" if PARENTS[step.stage] else digest_of(plan.source)
    except Exception as error:
        _fail(step, error, root, monitor)
    if step.failed:
        return None
    remote: Monitor = cluster.messenger if cluster else monitor
    job = Job(step.stage, plan.name, plan.source, digest, plan.settings, root, remote, plan.label, code_of(step.stage))
    stage_task: Any = run_stage.with_options(
        name=step.stage, task_run_name=f"{step.stage} {plan.label}", tags=tags_of(step, cluster)
    )
    # Set afterwards: Prefect wants a storage block that is registered with the server, which this one need not be.
    stage_task.result_storage = StoreRecords(root=str(root))
    with cluster.place(step.stage, plan.settings) if cluster else nullcontext():
        # Quoted, or Prefect looks for futures in every setting several times per task, at a millisecond each; not for Dask.
        parents = {stage: parent.future or parent.result for stage, parent in step.parents.items()}
        return stage_task.submit(job if cluster else quote(job), parents, remote=cluster is not None)


def tags_of(step: Step, cluster: Cluster | None = None) -> set[str] | None:
    """The task's tags in Prefect, where a limit can be set for each: its stage, its scene, and ``gpu`` if it computes on one.

    None with a server of the run's own: its client asks for the limits of every task with tags, which takes 5 ms.
    """
    if has_own_server():
        return None
    on_gpu = cluster.has_gpus if cluster else device_class() == "cuda"
    return {step.stage, step.plan.label} | ({"gpu"} if on_gpu and uses_gpu(step.stage, step.plan.settings) else set())


def _settle(step: Step, root: Path, monitor: Monitor, cluster: Cluster | None) -> None:
    """Record the outcome of a step whose task has ended, report it to the monitor, and release the task."""
    assert step.future is not None
    outcome = _outcome(step.future)
    step.future = None
    if cluster:
        cluster.require_scheduler(outcome)
    if any(parent.failed for parent in step.parents.values()):
        outcome = None  # Dask reports the death of a parent as that of all its children
    if isinstance(outcome, BaseException):
        _fail(step, outcome, root, monitor)
        return
    step.result, step.failed = outcome, outcome is None
    if outcome is None:
        return
    reference = _reference(outcome)
    for run in step.runs:
        run.references[step.stage] = reference
        run.computed |= {step.stage} if outcome["computed"] else set()
    if cluster or outcome["cached"]:  # else the thread has reported it
        measured = store.measured(root, reference)
        monitor.finished(step.stage, step.plan.label, measured, cached=not outcome["computed"])


def _outcome(future: Future) -> dict[str, Any] | BaseException | None:
    """The result of a task, or the error that ended it; None if it never started because a task before it failed."""
    try:
        state = future.wrapped_future.result()
        if not state.is_final():
            return None
        result = state.result(raise_on_failure=False)
    except Exception as error:
        # Not the task's own error: its workers died, or its result cannot be read here.
        return error
    if not state.is_completed():
        return result
    cached = state.name == "Cached"
    return {**result, "cached": cached, "computed": result["computed"] and not cached}


def _fail(step: Step, error: BaseException, root: Path, monitor: Monitor) -> None:
    step.failed = True
    # Again, since a source that cannot be read and a worker that died have failed without their task.
    keep_failure(root, step.stage, step.name, step.plan.label, describe_error(error))
    for run in step.runs:
        if run.failed_stage is None or run.failed_stage not in stages_before(step.stage):
            run.failed_stage, run.error = step.stage, error
            monitor.failed(run.plan.label, step.stage, describe_error(error))


def _record_path(context: Any, parameters: dict[str, Any]) -> str:
    job = parameters["job"]
    return f"{job.stage}/{key_of(job, _references(parameters['parents']))}/{RECORD}"


def _references(parents: dict[str, dict[str, Any]]) -> dict[str, Reference]:
    return {stage: _reference(result) for stage, result in parents.items()}


def _reference(result: dict[str, Any]) -> Reference:
    return Reference(result["stage"], result["key"], result["digest"])


@task(cache_key_fn=_record_path, persist_result=True, result_serializer="json", cache_result_in_memory=False)
def run_stage(job: Job, parents: dict[str, dict[str, Any]], remote: bool = False) -> dict[str, Any]:
    """One stage of one scene; returns a reference, never arrays, and whether it was computed."""
    name = task_id(job.stage, job.scene, job.source, job.settings)
    try:
        reference, computed = execute(job, _references(parents))
    except Exception as error:
        description = describe_error(error)
        keep_failure(job.root, job.stage, name, job.shown, description)
        if not remote and shown(str(error)) == str(error):  # else Prefect could not send it to its server
            raise
    else:
        forget_failure(job.root, job.stage, name)
        return {**asdict(reference), "computed": computed}
    raise WorkerError(description)  # outside of the except block, or the original error would be pickled with it
