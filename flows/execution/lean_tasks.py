"""Prefect's tasks in Dask's workers, without what Prefect makes anew for each.

That are its settings, the flow's run, and clients of its server: more than half of what a task costs a worker, most of the rest
is writing its artifact, and two thirds of what it costs the process that leads. A thread of a worker keeps them from task to
task, as long as what comes with the task is the same.
"""

from __future__ import annotations

import pickle
import threading
from typing import Any
from uuid import UUID, uuid4

import cloudpickle
from prefect import Task
from prefect.client.schemas import State
from prefect.context import SettingsContext, SyncClientContext, serialize_context
from prefect.task_engine import run_task_sync
from prefect.utilities.annotations import quote
from prefect_dask import DaskTaskRunner
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import PrefectDaskFuture


class _Kept(threading.local):
    """Of a thread of a worker."""

    of: bytes | None = None  # as it came with a task
    settings: SettingsContext
    client: SyncClientContext
    context: dict[str, Any]  # what else Prefect wants to know of the flow's run


_kept = _Kept()


def run_kept(shared: bytes, own: bytes, task_run_id: UUID) -> State[Any] | None:
    """In a worker: run a task; its settings, flow's run and client of the server are if possible those of the task before.

    ``shared``: what Prefect's ``serialize_context`` says; ``own``: the task and its parameters. Both are pickled, or Dask would
    look through them.
    """
    if _kept.of != shared:
        _renew(shared)
    task, parameters = pickle.loads(own)
    quoted = {name: quote(value) for name, value in parameters.items()}  # here, for quotes cannot be pickled
    with _kept.settings, _kept.client:
        return run_task_sync(task, task_run_id, parameters=quoted, return_type="state", context=_kept.context)


def _renew(shared: bytes) -> None:
    if _kept.of is not None:
        _kept.of = None
        _kept.client.client.__exit__(None, None, None)
    context = pickle.loads(shared)
    _kept.settings = SettingsContext(**context.pop("settings_context"))
    _kept.context = context
    with _kept.settings:
        _kept.client = SyncClientContext()
        # Once more than each task does, which else would close it.
        _kept.client.client.__enter__()
    _kept.of = shared


class LeanRunner(DaskTaskRunner):  # type: ignore[misc]
    """Prefect's runner of tasks in the workers of the scheduler at ``address``, with the context of the first task for all.

    The tasks' parameters hold no futures, and nobody waits for others.
    """

    _shared: bytes | None = None

    @property
    def client(self) -> PrefectDaskClient:
        """Connected when it is first asked for; it ends with the runner."""
        if not self._client:
            self._client = self._exit_stack.enter_context(PrefectDaskClient(self.address, set_as_default=False))
        return self._client

    def submit(self, task: Task[Any, Any], parameters: dict[str, Any], *_: Any) -> PrefectDaskFuture[Any]:  # type: ignore[override]
        """As Prefect's."""
        if self._shared is None:
            self._shared = cloudpickle.dumps(serialize_context())
        run, own = uuid4(), cloudpickle.dumps((task, parameters))
        # With a key of its own: Dask would find one by the digest of all that is sent.
        future = self.client.submit(run_kept, self._shared, own, run, key=f"{task.name}-{run}")
        return PrefectDaskFuture(task_run_id=run, wrapped_future=future)
