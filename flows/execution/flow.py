"""The one Prefect flow: a task per (stage, scene); scenes run in parallel, the stages of a scene one after another.

Import this only inside ``prefect_server``: Prefect reads its settings at import.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from copy import copy
from dataclasses import asdict, dataclass, field
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from httpx import TransportError
from prefect import flow, task
from prefect.client.schemas import State
from prefect.context import TaskRunContext
from prefect.events.clients import NullEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import PrefectHTTPStatusError
from prefect.filesystems import WritableFileSystem
from prefect.futures import PrefectWrappedFuture
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.annotations import quote
from pydantic import PrivateAttr

from flows.execution.attempts import PAUSE, RETRIES, StageOverran, passes_by_itself, with_memory, within
from flows.execution.ending import sigterm_undisturbed
from flows.execution.failures import forget_failure, keep_failure, task_id
from flows.execution.hooks import NO_HOOKS, Hooks
from flows.execution.plan import ScenePlan, SceneRun
from flows.execution.prefect_server import has_own_server
from flows.execution.sources import read_ahead
from flows.execution.workers import ONE_THREAD, Room, Workers, visible_gpus
from reconx_core.cache import store
from reconx_core.cache.store import RECORD, DamagedEntry, Reference
from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic
from reconx_core.names import one_line, shown
from reconx_core.settings import STAGES
from tasks.execute import Job, Monitor, code_of, device_class, execute, key_of, uses_gpu
from tasks.graph import Node, tasks_of

if TYPE_CHECKING:
    from flows.execution.dask_cluster import Cluster

UNWRITTEN = 20  # scenes whose results are still to be written, of which one is told
WAIT_SECONDS = 30.0  # for the end of a step, before the workers are looked for
Future = PrefectWrappedFuture[Any, Any]  # of Prefect, around one of the threads' or of Dask's


class WorkerError(Exception):
    """An error of another process, as text from ``describe_error``: not every error can be pickled."""


class MistakeError(WorkerError):
    """A user's mistake, a UserError there."""


class PassingError(WorkerError):
    """One that passes by itself."""


class OverranError(WorkerError):
    """A stage that took too long, in a worker whose thread goes on with it."""

    def __init__(self, description: str, worker: str) -> None:
        super().__init__(description, worker)
        self.worker = worker

    def __str__(self) -> str:
        return self.args[0]


def describe_error(error: BaseException) -> str:
    """An error in one line; the type is given unless it is a user's mistake."""
    text = one_line(" ".join(str(error).split()))
    return text if isinstance(error, UserError | WorkerError) else f"{type(error).__name__}: {text}"


def is_mistake(error: BaseException | None) -> bool:
    """Whether it is a user's mistake, wherever that was found."""
    return isinstance(error, UserError | MistakeError)


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
    with sigterm_undisturbed():
        _work.get()()


# The one flow of a run; `run_scenes` sets its work and its task runner. Not a decorator: the function would be sent to Dask's
# workers in full, since what has its name is the flow.
reconx = flow(name="reconx", validate_parameters=False, persist_result=False)(_run_work)


def run_scenes(
    plans: Iterable[ScenePlan], root: Path, monitor: Monitor, stages: tuple[str, ...] = STAGES,
    workers: Workers = ONE_THREAD, cluster: Cluster | None = None, hooks: Hooks = NO_HOOKS,
) -> list[SceneRun]:  # fmt: skip
    """Run the ``stages`` for every scene, in threads or in the cluster; one that fails does not stop the others.

    Where plans agree in all that a stage depends on, they share its task. Where Prefect's server fails once all of them have
    ended, as on a full disk, that is told and costs nothing.

    Raises:
        UserError: Prefect's server refuses the run.
    """
    runs = [SceneRun(plan) for plan in plans]
    steps = make_steps(runs, stages)
    runner: Any = cluster.runner() if cluster else ThreadPoolTaskRunner(max_workers=workers.count)
    with ThreadPoolExecutor(1) as writer:
        told: list[futures.Future[None]] = []
        tell = lambda run: told.append(writer.submit(hooks.on_scene, run))  # noqa: E731
        root = root.resolve()
        order = Order(root, StoreRecords(root=str(root)), monitor, cluster, workers.limit, workers.dask == "local", tell)
        room = cluster.room if cluster else _room_of(workers)
        ended = threading.Event()
        token = _work.set(lambda: _read_and_run(steps, order, Ready(room), hooks, ended))
        try:
            # Its thread would hold the end of a run up by a second, and only a server with services reads what it sends.
            with temporary_settings(set_defaults={PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}), _few_events():
                reconx.with_options(task_runner=runner, flow_run_name=_run_name(runs))()
        except (PrefectHTTPStatusError, TransportError) as error:
            if not ended.is_set():
                raise _refused(error) from None
            monitor.say(f"Prefect did not take the end of the run, whose results are complete: {_refused(error)}")
        finally:
            _work.reset(token)
        if (left := sum(not done.done() for done in told)) > UNWRITTEN:
            monitor.say(f"All stages have ended; the results of {left:,} scenes are still being written.")
        for done in told:
            done.result()
    return runs


@contextmanager
def _few_events() -> Iterator[None]:
    """No events for a server of the run's own: it has no services to record them, and sending them takes 4 ms a task."""
    EventsWorker.set_client_override(NullEventsClient if has_own_server() else None)
    try:
        yield
    finally:
        EventsWorker.set_client_override(None)


def _refused(error: PrefectHTTPStatusError | TransportError) -> UserError:
    if isinstance(error, TransportError):
        return UserError(f"Prefect's server does not answer any more ({type(error).__name__}: {error}).")
    answer = error.response
    closed = answer.status_code in (401, 403)
    means = "set PREFECT_API_AUTH_STRING or PREFECT_API_KEY as it wants them" if closed else "see its log"
    at = answer.request.url.copy_with(path="/api", query=None, userinfo=b"")
    return UserError(f"Prefect's server at {at} refuses the run ({answer.status_code} {answer.reason_phrase}); {means}.")


def _run_name(runs: list[SceneRun]) -> str:
    return runs[0].plan.label if len(runs) == 1 else f"{len(runs)} scenes from {runs[0].plan.label}" if runs else "no scenes"


@dataclass(eq=False)
class Step:
    """One stage of one scene, for all runs that agree in what it depends on."""

    name: str  # see `task_id`
    node: Node
    plan: ScenePlan  # the first of those that need it
    parents: dict[str, Step]  # by the stage whose results they give
    number: int  # of all steps
    children: list[Step] = field(default_factory=list)
    runs: list[SceneRun] = field(default_factory=list)
    future: Future | None = None  # while it waits or runs
    result: dict[str, Any] | None = None  # of its task, once that has ended
    failed: bool = False
    awaited: int = 0  # parents that have not ended

    @property
    def stage(self) -> str:
        return self.node.stage

    @property
    def uses_gpu(self) -> bool:
        return uses_gpu(self.stage, self.plan.settings)


def make_steps(runs: list[SceneRun], wanted: tuple[str, ...]) -> list[Step]:
    """All steps of the runs, each once and after its parents."""
    steps: dict[str, Step] = {}
    for run in runs:
        of_scene: dict[str, Step] = {}
        for node in tasks_of(run.plan.settings, wanted):
            name = task_id(node.stage, run.plan.name, run.plan.source, run.plan.settings, node.round)
            if name not in steps:
                parents = {stage: of_scene[task] for stage, task in node.parents.items()}
                different = dict.fromkeys(parents.values())
                steps[name] = Step(name, node, run.plan, parents, len(steps), awaited=len(different))
                for parent in different:
                    parent.children.append(steps[name])
            of_scene[node.name] = steps[name]
            steps[name].runs.append(run)
            run.to_do += 1
    return list(steps.values())


@dataclass
class Ready:
    """The steps whose parents have ended; those of earlier scenes go first, so that scenes are finished one after another."""

    room: Callable[[], Room]  # for steps under way, now
    waiting: dict[bool, list[tuple[int, Step]]] = field(default_factory=lambda: {False: [], True: []})  # heaps, by uses_gpu
    under_way: Counter[bool] = field(default_factory=Counter)  # by uses_gpu

    def add(self, step: Step) -> None:
        heappush(self.waiting[step.uses_gpu], (step.number, step))

    def take(self) -> Step | None:
        """The next step, for which there is room now."""
        room = self.room()
        heaps = [
            heap for gpu, heap in self.waiting.items() if heap and self.under_way[gpu] < (room.gpu if gpu else room.others)
        ]
        if not heaps or self.under_way.total() >= room.together:
            return None
        _, step = heappop(min(heaps))
        self.under_way[step.uses_gpu] += 1
        return step

    def give_back(self, step: Step) -> None:
        """The step has ended."""
        self.under_way[step.uses_gpu] -= 1


def _room_of(workers: Workers) -> Callable[[], Room]:
    """For threads: they get what they can do at once."""
    slots = workers.slots if visible_gpus() else workers.count
    room = Room(gpu=slots, others=workers.count, together=workers.count)
    return lambda: room


@dataclass(frozen=True)
class Order:
    """What all steps of a run have in common."""

    root: Path
    records: StoreRecords
    monitor: Monitor
    cluster: Cluster | None
    limit: float | None  # seconds for a stage
    local: bool  # the cluster's workers are of this run, on this machine
    on_scene: Callable[[SceneRun], None]


def _read_and_run(steps: list[Step], order: Order, ready: Ready, hooks: Hooks, ended: threading.Event) -> None:
    sources = [step.plan.source for step in steps if not step.parents]
    with read_ahead(sources, order.root, hooks.on_sources) as digest_of:
        _run_steps(steps, order, ready, digest_of)
    ended.set()


def _run_steps(steps: list[Step], order: Order, ready: Ready, digest_of: Callable[[str], str]) -> None:
    for step in steps:
        order.monitor.planned(step.node.name, step.plan.label)
        if not step.parents:
            ready.add(step)
    ended: SimpleQueue[Step] = SimpleQueue()
    while True:
        while (chosen := ready.take()) is not None:
            chosen.future = _submit(chosen, order, digest_of)
            if chosen.future is None:
                ended.put(chosen)
            else:
                chosen.future.add_done_callback(lambda _, step=chosen: ended.put(step))  # type: ignore[misc]
        if not ready.under_way.total():
            return
        over = _next_end(ended, order)
        ready.give_back(over)
        _settle(over, order)
        for child in over.children:
            child.awaited -= 1
            if not child.awaited:
                ready.add(child)


def _next_end(ended: SimpleQueue[Step], order: Order) -> Step:
    """The next step to end; raises UserError where none will, because the workers are gone."""
    while True:
        try:
            return ended.get(timeout=WAIT_SECONDS)
        except Empty:
            if order.cluster:
                order.cluster.require_workers(order.local)


def _submit(step: Step, order: Order, digest_of: Callable[[str], str]) -> Future | None:
    """The step's task; None where it cannot be, because the source cannot be read or a step before it has failed."""
    plan, cluster = step.plan, order.cluster
    step.failed = any(parent.failed for parent in step.parents.values())
    try:
        digest = "" if step.parents else digest_of(plan.source)
    except Exception as error:
        _fail(step, error, order)
    if step.failed:
        return None
    remote: Monitor = cluster.messenger if cluster else order.monitor
    job = Job(
        step.stage,
        plan.name,
        plan.source,
        digest,
        plan.settings,
        order.root,
        remote,
        plan.label,
        code_of(step.stage),
        step.node.round,
    )
    parents = {stage: parent.result for stage, parent in step.parents.items()}
    with cluster.place(step.stage, plan.settings, step.number) if cluster else nullcontext():
        # Quoted, or Prefect looks for futures in every setting several times per task, at a millisecond each; workers do it.
        return _task_of(step, order).submit(
            job if cluster else quote(job), parents, remote=cluster is not None, limit=order.limit
        )


def _task_of(step: Step, order: Order) -> Any:
    """:func:`run_stage` under the step's name; Prefect's own ``with_options`` reads the source code again each time."""
    own: Any = copy(run_stage)
    own.name, own.task_run_name = step.stage, f"{step.node.name} {step.plan.label}"
    own.tags, own.result_storage = tags_of(step, order.cluster), order.records
    return own


def tags_of(step: Step, cluster: Cluster | None = None) -> set[str]:
    """The task's tags in Prefect, where a limit can be set for each: its stage, its scene, and ``gpu`` if it computes on one.

    None at all with a server of the run's own: its client asks for the limits of every task with tags, which takes 5 ms.
    """
    if has_own_server():
        return set()
    on_gpu = cluster.has_gpus if cluster else device_class() != "cpu"
    return {step.stage, step.plan.label} | ({"gpu"} if on_gpu and step.uses_gpu else set())


def _settle(step: Step, order: Order) -> None:
    """Record the outcome of a step that has ended, report it, and release its task."""
    if step.future is not None:
        outcome = _outcome(step.future)
        step.future = None
        if order.cluster:
            order.cluster.require_scheduler(outcome)
            if isinstance(outcome, OverranError):
                order.cluster.restart(outcome.worker)
        if isinstance(outcome, BaseException):
            _fail(step, outcome, order)
        else:
            _succeed(step, outcome, order)
    for run in step.runs:
        run.to_do -= 1
        if not run.to_do:
            order.on_scene(run)


def _succeed(step: Step, outcome: dict[str, Any], order: Order) -> None:
    step.result = outcome
    reference = _reference(outcome)
    for run in step.runs:
        run.references[step.node.name] = reference
        run.computed |= {step.node.name} if outcome["computed"] else set()
    if order.cluster or outcome["cached"]:  # else the thread has reported it
        measured = store.measured(order.root, reference)
        order.monitor.finished(step.node.name, step.plan.label, measured, cached=not outcome["computed"])


def _outcome(future: Future) -> dict[str, Any] | BaseException:
    """The result of a task, or the error that ended it."""
    try:
        state = future.wrapped_future.result()
        result = state.result(raise_on_failure=False)
    except Exception as error:
        # Not the task's own error: its workers died, or its result cannot be read here.
        return error
    if not state.is_completed():
        return result
    cached = state.name == "Cached"
    return {**result, "cached": cached, "computed": result["computed"] and not cached}


def _fail(step: Step, error: BaseException, order: Order) -> None:
    step.failed = True
    # Again, since a source that cannot be read and a worker that died have failed without their task.
    keep_failure(order.root, step.stage, step.name, step.plan.label, describe_error(error))
    for run in step.runs:
        run.failed_stage, run.error = step.node.name, error
    order.monitor.failed([run.plan.label for run in step.runs], step.node.name, describe_error(error))


def _record_path(context: Any, parameters: dict[str, Any]) -> str:
    job = parameters["job"]
    return f"{job.stage}/{key_of(job, _references(parameters['parents']))}/{RECORD}"


def _tries() -> int:
    """How often Prefect has begun this task."""
    context = TaskRunContext.get()
    return context.task_run.run_count if context else 1


def worker_address() -> str:
    """Of the Dask worker that this is."""
    from distributed import get_worker

    return get_worker().address


def _references(parents: dict[str, dict[str, Any]]) -> dict[str, Reference]:
    return {stage: _reference(result) for stage, result in parents.items()}


def _reference(result: dict[str, Any]) -> Reference:
    return Reference(result["stage"], result["key"], result["digest"])


def _may_pass(_task: Any, _run: Any, state: State) -> bool:
    """Whether Prefect should try the task again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, PassingError) or (isinstance(error, Exception) and passes_by_itself(error))


def result_of(job: Job, parents: dict[str, dict[str, Any]], remote: bool = False, limit: float | None = None) -> dict[str, Any]:
    """One stage of one scene; returns a reference, never arrays, and whether it was computed."""
    name = task_id(job.stage, job.scene, job.source, job.settings, job.round)
    try:
        attempt = partial(within, limit, job.stage, partial(execute, job, _references(parents)))
        reference, computed = with_memory(job.stage, attempt)
    except Exception as error:
        description, overran = describe_error(error), isinstance(error, StageOverran)
        passing, mistake = passes_by_itself(error), is_mistake(error)
        keep_failure(job.root, job.stage, name, job.shown, description)
        if passing and _tries() <= RETRIES:
            job.monitor.say(f"{job.name} of {job.shown} is tried again in {PAUSE:.0f} s: {description}")
        if not remote and shown(str(error)) == str(error):  # else Prefect could not send it to its server
            raise
    else:
        forget_failure(job.root, job.stage, name)
        return {**asdict(reference), "computed": computed}
    # Outside of the except block, or the original error would be pickled with these.
    if overran and remote:
        raise OverranError(description, worker_address())
    raise (PassingError if passing else MistakeError if mistake else WorkerError)(description)


run_stage = task(
    cache_key_fn=_record_path, persist_result=True, result_serializer="json", cache_result_in_memory=False,
    retries=RETRIES, retry_delay_seconds=PAUSE, retry_condition_fn=_may_pass,
)(result_of)  # fmt: skip
