"""Prefect's tasks in Dask's workers, without what Prefect makes anew for each: its settings, and clients of its server.

These took more than half of what a task costs a worker, most of the rest is writing its artifact, and of what it costs the
process that leads. A thread of a worker keeps them from task to task, as long as the settings that come with the task are the
same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from distributed import Client, Future
from prefect.context import SettingsContext, SyncClientContext
from prefect_dask import DaskTaskRunner
from prefect_dask.client import PrefectDaskClient
from prefect_dask.task_runners import PrefectDaskFuture
from pydantic import PrivateAttr


class _Kept(threading.local):
    """Of a thread of a worker."""

    of: dict[str, Any] | None = None  # as the settings came with a task
    settings: SettingsContext
    client: SyncClientContext


_kept = _Kept()


def run_kept(call: Callable[..., Any], context: dict[str, Any], **arguments: Any) -> Any:
    """In a worker: ``call``, a task, with its settings and a client of the server, if possible those of the task before."""
    wanted = context["settings_context"]
    if _kept.of != wanted:
        _renew(wanted)
    rest = {name: part for name, part in context.items() if name != "settings_context"}
    with _kept.settings, _kept.client:
        return call(context=rest, **arguments)


def _renew(wanted: dict[str, Any]) -> None:
    if _kept.of is not None:
        _kept.of = None
        _kept.client.client.__exit__(None, None, None)
    _kept.settings = SettingsContext(**wanted)
    with _kept.settings:
        _kept.client = SyncClientContext()
        # Once more than each task does, which else would close it.
        _kept.client.client.__enter__()
    _kept.of = wanted


class _Sender(Client):
    """What is below Prefect's own client of Dask, and gets from it what a worker is to call."""

    def submit(self, func: Callable[..., Any], *arguments: Any, key: str | None = None, **more: Any) -> Future:
        """As Dask's; of a task of Prefect the function is :func:`run_kept`."""
        if "task_run_id" in more and more["context"].get("settings_context"):
            # With a key of its own: Dask would find one by the digest of all that is sent.
            key = f"{more['task'].name}-{more['task_run_id']}"
            func = partial(run_kept, func)
        return super().submit(func, *arguments, key=key, **more)


class LeanClient(PrefectDaskClient, _Sender):
    """Prefect's client of Dask."""


class _SameSettings(SettingsContext):
    """Settings that do not change, and are put into words for the workers once."""

    _words: dict[str, Any] | None = PrivateAttr(None)

    def serialize(self, include_secrets: bool = True) -> dict[str, Any]:
        """As Prefect's, which goes through all of them each time."""
        if self._words is None:
            self._words = super().serialize(include_secrets)
        return self._words


class LeanRunner(DaskTaskRunner):  # type: ignore[misc]
    """Prefect's runner of tasks in the workers of the scheduler at ``address``, with the settings of the first task for all."""

    _settings: _SameSettings | None = None

    @property
    def client(self) -> PrefectDaskClient:
        """Connected when it is first asked for; it ends with the runner."""
        if not self._client:
            self._client = self._exit_stack.enter_context(LeanClient(self.address, set_as_default=False))
        return self._client

    def submit(self, *arguments: Any, **more: Any) -> PrefectDaskFuture[Any]:  # type: ignore[override]
        """As Prefect's."""
        if self._settings is None:
            now = SettingsContext.get()
            assert now is not None  # as it is while Prefect is being imported
            self._settings = _SameSettings(profile=now.profile, settings=now.settings)
        with self._settings:
            return super().submit(*arguments, **more)
