"""The lock on the store: shared by any number of runs, exclusive for garbage collection."""

from __future__ import annotations

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk


@contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Keep garbage collection out of the store ``root`` while a run is going on; any number of runs may share it.

    Where the file system has no locks (NFS without its lock daemon), a warning says so and the run goes on.
    """
    with _lock(root, fcntl.LOCK_SH) as locked:
        if not locked:
            warnings.warn(
                f"The file system of the store {root} has no locks: do not run reconx gc from another machine during a run.",
                stacklevel=1,
            )
        yield


@contextmanager
def exclusive(root: Path, to_read: bool = False) -> Iterator[None]:
    """Keep runs out of the store ``root``. ``to_read``: as far as is possible, where it cannot be written to or has no locks.

    Raises:
        UserError: a run is using it now, or its file system has no locks, so that a run may.
    """
    with _lock(root, fcntl.LOCK_EX, to_read) as locked:
        if not locked and not to_read:
            raise UserError(
                f"The file system of the store {root} has no locks, so a run may be using it unseen; collect garbage on the "
                "machine on whose disk the store lies."
            )
        yield


def has_locks(root: Path) -> bool:
    """Whether the file system of the store ``root`` has locks."""
    try:
        with _lock(root, fcntl.LOCK_SH) as locked:
            return locked
    except UserError:  # another has it
        return True


def lock_file(file: IO[Any], mode: int) -> bool:
    """`flock`; False where the file system has no locks. The kernel releases a lock when its process ends, however it does.

    Raises:
        BlockingIOError: with LOCK_NB in ``mode``, where another process has the lock.
    """
    try:
        fcntl.flock(file, mode)
    except BlockingIOError:
        raise
    except OSError:  # ENOLCK and EBADF of NFS, ENOSYS of Lustre, EOPNOTSUPP and EINVAL of file systems in user space
        return False
    return True


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Wait until no other process is in this block for ``file``; where the file system has no locks, do not wait."""
    with open(file, "a+") as opened:
        lock_file(opened, fcntl.LOCK_EX)
        yield


@contextmanager
def _lock(root: Path, mode: int, to_read: bool = False) -> Iterator[bool]:
    opened = _open(root, to_read)
    if opened is None:
        yield False
        return
    with opened as file:
        try:
            locked = lock_file(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another run is using the store {root}; wait until it has ended.") from None
        yield locked


def _open(root: Path, to_read: bool) -> IO[str] | None:
    """For reading and writing: NFS refuses a shared lock on a file that is open for writing only, and the reverse."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        return open(root / ".lock", "a+")
    except OSError as error:
        if to_read and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            return open(root / ".lock") if (root / ".lock").exists() else None
        raise explain_disk(error, root) from error
