"""The one Prefect flow: a task per (stage, scene), scenes side by side, each scene's stages in a chain.

Import this only inside ``prefect_server``: Prefect reads its settings at import.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from prefect import flow, task
from prefect.filesystems import WritableFileSystem
from prefect.futures import PrefectWrappedFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import PrivateAttr

from flows.execution.failures import forget_failure, keep_failure, task_id
from flows.execution.plan import Planned
from reconx_core.cache import store
from reconx_core.cache.store import RECORD, DamagedEntry, Reference
from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic
from reconx_core.settings import STAGES
from tasks.execute import PARENTS, Job, Monitor, code_of, execute, key_of, source_digest

if TYPE_CHECKING:
    from flows.execution.dask_cluster import Cluster

Future = PrefectWrappedFuture[Any, Any]  # of Prefect, around one of the threads' or of Dask's
WAITING = 1000  # tasks that are submitted and have not ended; all of a large dataset's would fill the memory


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


class WorkerError(Exception):
    """What ended a stage in another process, in the words of ``describe_error``: not every error can be pickled."""


def describe_error(error: BaseException) -> str:
    """An error in one line; what is not the user's mistake carries its type."""
    text = " ".join(str(error).split())
    return text if isinstance(error, UserError | WorkerError) else f"{type(error).__name__}: {text}"


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
        if "/" not in path:
            return  # of a failure, which has no artifact and is never looked up
        write_atomic(Path(self.root) / path, content)

    def _resolve_path(self, path: str) -> None:
        # Keys stay relative, so that a store can be moved.
        return None


class Stay:
    """A function that stays in this process: Prefect sends the flow along with every task, and no worker calls it."""

    def __init__(self, work: Callable[[], None] | None = None) -> None:
        self.work = work

    def __call__(self) -> None:
        assert self.work is not None
        self.work()

    def __reduce__(self) -> tuple[type[Stay], tuple[()]]:
        return Stay, ()


def run_scenes(
    plans: Iterable[Planned], root: Path, monitor: Monitor, last: str = "metrics", workers: int = 1,
    cluster: Cluster | None = None,
) -> list[SceneRun]:  # fmt: skip
    """Run the stages up to ``last`` for every scene, in threads or in the cluster; one that fails does not stop the others.

    Where plans agree in all that a stage depends on, they share its task.
    """
    wanted = STAGES[: STAGES.index(last) + 1]
    runs = [SceneRun(plan) for plan in plans]
    steps = lay_out(runs, wanted)
    work = Stay(lambda: _work(steps, root.resolve(), monitor, cluster))
    runner: Any = cluster.runner() if cluster else ThreadPoolTaskRunner(max_workers=workers)

    @flow(name="reconx", task_runner=runner, validate_parameters=False, persist_result=False)
    def reconx() -> None:
        work()

    reconx()
    for run in runs:
        run.references = {stage: run.references[stage] for stage in wanted if stage in run.references}
    return runs


@dataclass(eq=False)
class Step:
    """One stage of one scene, for all runs that agree in what it depends on."""

    name: str  # see `task_id`
    stage: str
    plan: Planned  # the first of those that need it
    parents: dict[str, Step]
    runs: list[SceneRun] = field(default_factory=list)
    future: Future | None = None  # while it waits or runs
    told: dict[str, Any] | None = None  # by its task, once that has ended
    failed: bool = False


def lay_out(runs: list[SceneRun], wanted: tuple[str, ...]) -> list[Step]:
    """All the steps of the runs, each once and after those that it depends on."""
    steps: dict[str, Step] = {}
    for run in runs:
        chain: dict[str, Step] = {}
        for stage in wanted:
            name, parents = task_id(stage, run.plan.name, run.plan.source, run.plan.settings), PARENTS[stage]
            step = Step(name, stage, run.plan, {parent: chain[parent] for parent in parents})
            chain[stage] = steps.setdefault(name, step)
            chain[stage].runs.append(run)
    return list(steps.values())


def _work(steps: list[Step], root: Path, monitor: Monitor, cluster: Cluster | None) -> None:
    for step in steps:
        monitor.planned(step.stage, step.plan.label)
    ended: SimpleQueue[Step] = SimpleQueue()
    waiting = 0
    for step in steps:
        while waiting >= WAITING:
            _settle(ended.get(), root, monitor, cluster)
            waiting -= 1
        step.future = _submit(step, root, monitor, cluster)
        if step.future is not None:
            step.future.add_done_callback(lambda _, step=step: ended.put(step))  # type: ignore[misc]
            waiting += 1
    for _ in range(waiting):
        _settle(ended.get(), root, monitor, cluster)


def _submit(step: Step, root: Path, monitor: Monitor, cluster: Cluster | None) -> Future | None:
    """The step's task; None where it cannot be, because the source cannot be read or a step before it has failed."""
    plan = step.plan
    step.failed = any(parent.failed for parent in step.parents.values())
    try:
        digest = source_digest(plan.source) if step.stage == "views" else ""
    except Exception as error:
        _fail(step, error, root, monitor)
    if step.failed:
        return None
    remote: Monitor = cluster.messenger if cluster else monitor
    job = Job(step.stage, plan.name, plan.source, digest, plan.settings, root, remote, plan.label, code_of(step.stage))
    stage_task: Any = run_stage.with_options(name=step.stage, task_run_name=f"{step.stage} {plan.label}")
    # Set afterwards: Prefect wants a storage block that is registered with the server, which this one need not be.
    stage_task.result_storage = StoreRecords(root=str(root))
    with cluster.place(step.stage, plan.settings) if cluster else nullcontext():
        # Quoted, or Prefect looks for futures in every setting several times per task, at a millisecond each; not for Dask.
        parents = {stage: parent.future or parent.told for stage, parent in step.parents.items()}
        return stage_task.submit(job if cluster else quote(job), parents, remote=cluster is not None)


def _settle(step: Step, root: Path, monitor: Monitor, cluster: Cluster | None) -> None:
    """Keep what came of a step whose task has ended, tell the monitor, and let go of the task."""
    assert step.future is not None
    outcome = _outcome(step.future)
    step.future = None
    if cluster:
        cluster.require_scheduler(outcome)
    if any(parent.failed for parent in step.parents.values()):
        outcome = None  # Dask tells a parent's death as that of all that follow
    if isinstance(outcome, BaseException):
        _fail(step, outcome, root, monitor)
        return
    step.told, step.failed = outcome, outcome is None
    if outcome is None:
        return
    reference = _reference(outcome)
    for run in step.runs:
        run.references[step.stage] = reference
        run.computed |= {step.stage} if outcome["computed"] else set()
    if cluster or outcome["cached"]:  # else the thread has told it
        measured = store.measured(root, reference)
        monitor.finished(step.stage, step.plan.label, measured, cached=not outcome["computed"])


def _outcome(future: Future) -> dict[str, Any] | BaseException | None:
    """What a task told, or the error that ended it; None where it never started, because one before it failed."""
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
        if run.failed_stage is None or STAGES.index(step.stage) < STAGES.index(run.failed_stage):
            run.failed_stage, run.error = step.stage, error
            monitor.failed(run.plan.label, step.stage, describe_error(error))


def _record_path(context: Any, parameters: dict[str, Any]) -> str:
    job = parameters["job"]
    return f"{job.stage}/{key_of(job, _references(parameters['parents']))}/{RECORD}"


def _references(parents: dict[str, dict[str, Any]]) -> dict[str, Reference]:
    return {stage: _reference(told) for stage, told in parents.items()}


def _reference(told: dict[str, Any]) -> Reference:
    return Reference(told["stage"], told["key"], told["digest"])


@task(cache_key_fn=_record_path, persist_result=True, result_serializer="json", cache_result_in_memory=False)
def run_stage(job: Job, parents: dict[str, dict[str, Any]], remote: bool = False) -> dict[str, Any]:
    """One stage of one scene; hands on a reference, never arrays, and whether it was computed."""
    name = task_id(job.stage, job.scene, job.source, job.settings)
    try:
        reference, computed = execute(job, _references(parents))
    except Exception as error:
        told = describe_error(error)
        keep_failure(job.root, job.stage, name, job.shown, told)
        if not remote:
            raise
    else:
        forget_failure(job.root, job.stage, name)
        return {**asdict(reference), "computed": computed}
    raise WorkerError(told)  # not where it is caught, or the caught one would travel along
