"""Who runs the stages: threads, processes here (one per GPU, and others beside them), or the workers of a Dask cluster."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from flows.execution.reach import true_within
from reconx_core.errors import UserError
from reconx_core.reporting.numbers import parse_duration

LISTEN_SECONDS = 5.0  # for a scheduler that is said to be there


@dataclass(frozen=True)
class Workers:
    """Who runs the stages."""

    count: int = 1  # threads; with Dask's `local` the processes that have no GPU of their own
    dask: str | None = None  # `local`, or the address of a scheduler
    gpus: tuple[str, ...] = ()  # for CUDA_VISIBLE_DEVICES: with `local` a process for each
    slots: int = 1  # scenes at a time on a GPU
    limit: float | None = None  # seconds that a stage may take

    @property
    def side_by_side(self) -> int:
        """Scenes that are under way at a time, as far as it is known here."""
        return self.count + self.slots * len(self.gpus)


ONE_THREAD = Workers()


@dataclass(frozen=True)
class Room:
    """How many stages may be under way."""

    gpu: int  # of those that use a GPU
    others: int
    together: int


def choose_workers(
    count: int | None = None, dask: str | None = None, gpus: str | None = None, slots: int = 1, limit: str | None = None
) -> Workers:
    """What `--workers`, `--dask`, `--gpus`, `--gpu-slots` and `--stage-timeout` ask for.

    Raises:
        UserError: there are not as many GPUs, or something cannot be read or does not go together.
    """
    seconds = None if limit is None else parse_duration(limit)
    if limit is not None and seconds is None:
        raise UserError(f"'--stage-timeout {limit}' should be a time such as 90s, 30m or 1.5h.")
    if gpus is not None and dask not in (None, "local"):
        raise UserError(
            "--gpus is for processes on this machine; the workers of a scheduler say themselves what they have, by "
            "--resources GPU=1 (docs/scale.md)."
        )
    if dask is not None:
        scheduler_place(dask)
    chosen = take_gpus(gpus) if gpus is not None else visible_gpus() if dask == "local" else ()
    return Workers(count or max(1, len(chosen)), "local" if gpus is not None else dask, chosen, slots, seconds)


def scheduler_place(address: str) -> tuple[str, int] | None:
    """Host and port of a Dask scheduler's address; None of one that is still to be started here.

    Raises:
        UserError: it has none.
    """
    if address == "local":
        return None
    try:
        parts = urlsplit(address if "://" in address else f"tcp://{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or not port:
        raise UserError(f"'--dask {address}' should be 'local', or a scheduler's address with its port, as tcp://HOST:8786.")
    return host, port


def require_scheduler(address: str) -> None:
    """Return when something takes connections at a Dask scheduler's address.

    Raises:
        UserError: nothing does within seconds.
    """
    place = scheduler_place(address)
    if place is not None and not true_within(LISTEN_SECONDS, lambda: _listens(place)):
        raise UserError(f"Nothing listens at {address}, where --dask says that a Dask scheduler is; see docs/scale.md.")


def _listens(place: tuple[str, int]) -> bool:
    end = time.monotonic() + LISTEN_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(place, timeout=LISTEN_SECONDS):
            return True
        time.sleep(0.2)  # it may be about to
    return False


def take_gpus(wanted: str) -> tuple[str, ...]:
    """The GPUs that `--gpus all|N` means.

    Raises:
        UserError: there are fewer.
    """
    if wanted != "all" and not re.fullmatch("[1-9][0-9]*", wanted):
        raise UserError(f"'--gpus {wanted}' should be a number of GPUs, or 'all'.")
    found = visible_gpus()
    number = max(1, len(found)) if wanted == "all" else int(wanted)
    if len(found) < number:
        there = f"only {len(found)}" if found else "none"
        raise UserError(f"--gpus {wanted}: of GPUs that torch can use there {'are' if len(found) > 1 else 'is'} {there} here.")
    return found[:number]


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that torch can use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in named.split(",")] if named else map(str, range(count))
    return tuple(names)[:count]
