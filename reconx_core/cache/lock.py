"""The lock on the store: shared by any number of runs, exclusive for garbage collection."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reconx_core.errors import UserError


@contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Keep garbage collection out of the store ``root`` while a run is going on; any number of runs may share it."""
    with _lock(root, fcntl.LOCK_SH):
        yield


@contextmanager
def exclusive(root: Path) -> Iterator[None]:
    """Keep runs out of the store ``root``.

    Raises:
        UserError: a run is using it now.
    """
    with _lock(root, fcntl.LOCK_EX):
        yield


@contextmanager
def _lock(root: Path, mode: int) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        try:
            # The kernel releases the lock when the process ends, so a killed run leaves no stale lock.
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another run is using the store {root}; wait until it has ended.") from None
        yield
