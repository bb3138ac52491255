"""`--dask`: the stages run in the worker processes of a Dask cluster, on this machine or on many that see the same store.

The workers import this module, which therefore must not import prefect: its settings are read from the environment at import.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
from distributed import Client, Nanny, Scheduler, SpecCluster, WorkerPlugin, get_worker
from distributed.client import FutureCancelledError
from distributed.comm import CommClosedError, connect
from distributed.security import Security

from flows.execution.ending import take_back_signals
from flows.execution.prefect_server import ENVIRONMENT, answers
from flows.execution.reach import ask_local_servers_directly, by_proxy, true_within
from flows.execution.workers import Room, Workers
from reconx_core.cache import store
from reconx_core.cache.digests import verified_from, verify_from
from reconx_core.errors import UserError
from reconx_core.names import one_line
from reconx_core.settings import STAGES, Settings
from tasks.execute import Monitor, code_of, load_stages, require_code, route_warnings, uses_gpu, versions_of

if TYPE_CHECKING:
    from flows.execution.lean_tasks import LeanRunner

CONNECT_SECONDS, WORKER_SECONDS = 8, 60  # to wait for a scheduler, and for the first of its workers
PREPARE_TRIES = 4  # of starting and of preparing all workers, of which one may die meanwhile
LOOK_SECONDS, AHEAD = 2.0, 2  # between two looks at the workers, and tasks for each of their threads
LOST_SECONDS = 600  # without any worker on this machine, until the run ends
RESTART_SECONDS = 30  # to wait for a worker that is started again; it may come later
# What Dask keeps for its pages, which a run's own cluster has not: half of what an idle worker costs, and of each
# connection 1,000 messages, a task's of 50 KB.
UNSEEN = {
    "distributed.admin.low-level-log-length": 50,
    "distributed.worker.profile.enabled": False,
    "distributed.admin.system-monitor.interval": "5s",
}
REVIVE_SECONDS = 10  # without a process, until a worker of this machine gets another nanny


@dataclass(frozen=True)
class Messenger(Monitor):
    """The monitor of jobs in a worker: what the flow cannot see from the outside travels as events of Dask."""

    topic: str

    def started(self, stage: str, scene: str) -> None:
        get_worker().log_event(self.topic, ["started", stage, scene])

    def repaired(self, stage: str, scene: str, damage: str) -> None:
        get_worker().log_event(self.topic, ["repaired", stage, scene, damage])

    def say(self, note: str) -> None:
        get_worker().log_event(self.topic, ["say", note])


@dataclass
class Crew:
    """The workers of this machine, each a process with a nanny, which starts it again when it dies."""

    cluster: SpecCluster
    dead: dict[str, float] = field(default_factory=dict)  # since when a nanny has no process

    def revive(self) -> None:
        """Replace nannies that have given up, as they do where a worker cannot be started again at the first attempt."""
        now, nannies = time.monotonic(), dict(self.cluster.workers)
        self.dead = {name: self.dead.get(name, now) for name, nanny in nannies.items() if not nanny.is_alive()}
        lost = [name for name, since in self.dead.items() if now - since > REVIVE_SECONDS]
        for name in lost:
            assert self.cluster.loop is not None  # it runs as long as the block that opened the cluster
            self.cluster.loop.add_callback(nannies[name].close)
            del self.cluster.workers[name], self.dead[name]
        if lost:
            self.cluster.scale(len(self.cluster.worker_spec))


@dataclass
class Cluster:
    """Dask's workers, prepared for one run."""

    address: str
    client: Client
    messenger: Messenger
    offered: frozenset[str]  # resources that workers declare: GPU for the stages that use one, CPU for the others
    crew: Crew | None = None  # where the workers are of this run, on this machine
    ended: set[str] = field(default_factory=set)  # workers that it has ended itself
    found: Room | None = None  # when it last looked, a monotonic time
    looked: float = 0.0
    seen: float = field(default_factory=time.monotonic)  # a worker

    def runner(self) -> LeanRunner:
        from flows.execution.lean_tasks import LeanRunner

        return LeanRunner(address=self.address)

    @property
    def has_gpus(self) -> bool:
        """Whether there are workers for the stages that use a GPU."""
        return "GPU" in self.offered

    def place(self, stage: str, settings: Settings, number: int) -> AbstractContextManager[Any]:
        """Tasks submitted within go to workers that are fit for the stage, and before those of a higher ``number``."""
        needed = "GPU" if uses_gpu(stage, settings) else "CPU"
        resources = {"resources": {needed: 1}} if needed in self.offered else {}
        return dask.annotate(priority=-number, **resources)

    def room(self) -> Room:
        """For as many tasks as the workers of now have at hand, and the next for each.

        Dask counts the death of a worker against all tasks that are assigned to it, and gives up those that lose four: of a
        thousand in its queue many would be lost that never began.
        """
        if self.found is None or time.monotonic() - self.looked > LOOK_SECONDS:
            # Of a scheduler that is gone the tasks tell.
            with contextlib.suppress(OSError):
                self.found = self._look()
            if self.crew is not None:
                self.crew.revive()
            self.looked = time.monotonic()
        return self.found or Room(1, 1, 2)

    def _look(self) -> Room:
        known = list(self.client.scheduler_info(n_workers=-1)["workers"].values())
        threads = sum(worker["nthreads"] for worker in known)
        gpu, others = (
            int(sum(worker["resources"].get(name, 0) for worker in known)) if name in self.offered else threads
            for name in ("GPU", "CPU")
        )
        return Room(max(1, AHEAD * gpu), max(1, AHEAD * others), max(2, AHEAD * (gpu + others)))

    def restart(self, worker: str) -> None:
        """End the worker's process, whose thread goes on with a stage; its nanny starts another one."""
        self.ended.add(worker)
        self.client.restart_workers([worker], timeout=RESTART_SECONDS, raise_for_error=False)

    def require_workers(self, local: bool) -> None:
        """Raise UserError where the workers of this machine are gone for good, as those are that died while they started."""
        with contextlib.suppress(OSError):
            if not local or self.client.scheduler_info(n_workers=-1)["workers"]:
                self.seen = time.monotonic()
        if time.monotonic() - self.seen > LOST_SECONDS:
            raise UserError("The workers on this machine died and do not start again; run the same command to go on from here.")

    def require_scheduler(self, outcome: Any) -> None:
        """Raise UserError where a task ended because the scheduler did; all the others would end so, too."""
        if isinstance(outcome, FutureCancelledError | CommClosedError):
            raise UserError(
                f"The Dask scheduler at {self.address} is gone; start it and its workers, and run the same command again to go "
                "on from here."
            )


@contextmanager
def open_cluster(workers: Workers, root: Path, monitor: Monitor, stages: tuple[str, ...] = STAGES) -> Iterator[Cluster]:
    """The cluster that ``workers.dask`` names: ``local``, which ends with the block, or that of a scheduler.

    Raises:
        UserError: no scheduler or no worker answers, or a worker cannot do what this run needs.
    """
    with ExitStack() as stack:
        assert workers.dask is not None
        # A worker that dies may take longer to start again than the 15 s after which Dask closes its nanny for good.
        stack.enter_context(dask.config.set({"distributed.deploy.lost-worker-timeout": f"{LOST_SECONDS}s", **UNSEEN}))
        crew = Crew(stack.enter_context(_local(workers))) if workers.dask == "local" else None
        address = crew.cluster.scheduler_address if crew else workers.dask
        client = stack.enter_context(_connect(address))
        token = stack.enter_context(store.token(root))
        messenger = Messenger(token.name)
        ended: set[str] = set()
        stack.enter_context(_relay(client, messenger.topic, monitor, ended))
        stack.enter_context(_prepare(client, token, messenger, stages))
        known = client.scheduler_info(n_workers=-1)["workers"].values()
        offered = frozenset(name for worker in known for name, amount in worker["resources"].items() if amount)
        yield Cluster(address, client, messenger, offered, crew, ended)


def _local(workers: Workers, tries: int = PREPARE_TRIES) -> SpecCluster:
    """A scheduler and processes on this machine: ``count``, and one for each GPU, which the others then do not see.

    Raises:
        UserError: they do not start, again and again.
    """
    without = {"resources": {"CPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": ""}} if workers.gpus else {}
    specs = {f"cpu-{number}": _process(nthreads=1, **without) for number in range(workers.count)}
    for gpu in workers.gpus:
        slots = {"nthreads": workers.slots, "resources": {"GPU": workers.slots}}
        specs[f"gpu-{gpu}"] = _process(**slots, env={"CUDA_VISIBLE_DEVICES": gpu})
    here = {"protocol": "tcp://", "interface": None, "host": "127.0.0.1", "port": 0, "dashboard": False}
    try:
        return SpecCluster(workers=specs, scheduler={"cls": Scheduler, "options": here}, silence_logs=logging.CRITICAL)
    except (RuntimeError, OSError) as error:  # one of them has died meanwhile
        if tries == 1:
            said = _first_cause(error)
            raise UserError(f"Dask's workers on this machine do not start ({said}); run the same command again.") from None
    return _local(workers, tries - 1)


def _first_cause(error: BaseException) -> str:
    """What Dask's error came of: it says itself only that a nanny failed to start."""
    while error.__cause__ is not None:
        error = error.__cause__
    return one_line(f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)


def _process(**options: Any) -> dict[str, Any]:
    # No memory limit: Dask would share the machine's out evenly and kill a worker whose stage needs more than the others.
    return {"cls": Nanny, "options": {"host": "127.0.0.1", "memory_limit": 0, "dashboard": False, **options}}


def _connect(address: str) -> Client:
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # errors are reported in one sentence
    problem: list[BaseException] = []
    if not true_within(2 * CONNECT_SECONDS, lambda: _shakes_hands(address, problem)):
        raise _no_scheduler(address, *problem)
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise _no_scheduler(address, error) from None
    try:
        _wait_for_worker(client)
    except UserError:
        client.close()
        raise
    return client


def _no_scheduler(address: str, *problem: BaseException) -> UserError:
    detail = "".join(f" ({error})" for error in problem)
    return UserError(f"No Dask scheduler answers at {address}{detail}; see docs/scale.md.")


def _shakes_hands(address: str, problem: list[BaseException]) -> bool:
    """Whether what listens there speaks Dask's protocol. A client that finds out itself is not rid of for half a minute."""

    async def connect_once() -> None:
        comm = await connect(address, timeout=CONNECT_SECONDS, **Security().get_connection_args("client"))
        await comm.close()

    try:
        asyncio.run(connect_once())
    except Exception as error:  # of another protocol, anything
        problem.append(error)
    return not problem


def _wait_for_worker(client: Client) -> None:
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except OSError as error:
        raise UserError(
            f"The Dask scheduler at {client.scheduler.address} has no workers ({error}); see docs/scale.md."
        ) from None


@contextmanager
def _relay(client: Client, topic: str, monitor: Monitor, ended: set[str]) -> Iterator[None]:
    """Hand on what workers tell, and tell when one is lost that was not ``ended``."""

    def forward(event: tuple[float, list[str]]) -> None:
        name, *arguments = event[1]
        getattr(monitor, name)(*arguments)

    def happened(event: tuple[float, dict[str, Any]]) -> None:
        about = event[1]
        if about.get("action") == "remove-worker" and not about["expected"] and about["worker"] not in ended:
            monitor.say(f"The worker {about['worker']} is gone; what it was doing is done again.")

    handlers: dict[str, Any] = {topic: forward, "all": happened}
    for name, handler in handlers.items():
        client.subscribe_topic(name, handler)
    try:
        yield
    finally:
        for name in handlers if client.status == "running" else ():
            client.unsubscribe_topic(name)


@contextmanager
def _prepare(client: Client, token: Path, messenger: Messenger, stages: tuple[str, ...]) -> Iterator[None]:
    """Have every worker do what this run needs before its first stage, those that join or start again during the block, too."""
    names = [*ENVIRONMENT, "PREFECT_HOME", "PREFECT_API_URL"]
    environment = {name: os.environ[name] for name in names}
    preparation = Preparation(
        messenger.topic, token, environment, _codes(stages), messenger, verified_from(), versions_of(stages)
    )
    _register(client, preparation)
    try:
        yield
    finally:
        if client.status == "running":
            with contextlib.suppress(OSError):  # of a worker that dies now
                client.unregister_worker_plugin(preparation.name)


def _register(client: Client, preparation: Preparation, tries: int = PREPARE_TRIES) -> None:
    """Prepare all workers that are there; again where one of them dies meanwhile.

    Raises:
        UserError: a worker cannot do what the run needs, or they keep dying.
    """
    try:
        client.register_plugin(preparation)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The Dask workers cannot import reconx ({error}); install the same version there as here.") from None
    except OSError as error:
        if tries == 1:
            raise UserError(
                f"Dask's workers die while they are prepared for the run ({error}); see what they wrote, and run the same "
                "command again."
            ) from None
        _wait_for_worker(client)
        _register(client, preparation, tries - 1)


def _codes(stages: tuple[str, ...]) -> dict[str, str]:
    return {stage: code_of(stage) for stage in stages}


@dataclass
class Preparation(WorkerPlugin):
    """What every worker does before its first stage."""

    name: str  # Dask's for the plugin
    token: Path  # a folder in the store
    environment: dict[str, str]
    codes: dict[str, str]
    messenger: Messenger
    verified_from: float  # see `verify_from`
    versions: dict[str, str]  # of the libraries that compute, where the run was started

    def setup(self, worker: Any) -> None:
        """Raise UserError where the worker cannot do what the run needs."""
        load_stages(self.codes)
        take_back_signals()
        route_warnings(self.messenger.say)
        os.environ.update(self.environment)
        verify_from(self.verified_from)
        ask_local_servers_directly()
        here = f"The Dask worker {worker.address} on {platform.node()}"
        if not self.token.exists():
            root = self.token.parents[1]
            raise UserError(f"{here} does not see the store {root}; give --store a folder that is the same on all machines.")
        url = self.environment["PREFECT_API_URL"]
        if not answers(url):
            at = f"{url}{by_proxy(url)}"
            raise UserError(f"{here} cannot reach the Prefect server at {at}; start one and name it by PREFECT_API_URL.")
        for stage, code in self.codes.items():
            require_code(stage, code)
        self.require_versions(worker.address)
        send_events_to(url)

    def require_versions(self, address: str) -> None:
        """Raise UserError where a library that computes has another version here than where the run was started."""
        here = versions_of(self.codes)
        wrong = [f"{name} {here.get(name, 'none')} instead of {v}" for name, v in self.versions.items() if here.get(name) != v]
        if wrong:
            raise UserError(
                f"The Dask worker {address} on {platform.node()} has {', '.join(wrong)}; results depend on them: install the "
                "same versions everywhere."
            )


def send_events_to(url: str) -> None:
    """Let Prefect have one sender per server: that of an earlier run would pile up all events for a server that is gone."""
    from prefect.events.clients import PrefectEventsClient
    from prefect.events.worker import EventsWorker, emit_events_to_cloud

    if not emit_events_to_cloud():
        EventsWorker.set_client_override(PrefectEventsClient, api_url=url)
