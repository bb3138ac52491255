"""One run at a time in a folder of results.

The holder has a lock on a file there, which the kernel drops when its process ends, however it does, and touches the file every
few seconds: where there are no locks, or they hold on one machine only (some mounts of NFS), others see by that that it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

from flows.execution.background import repeated
from reconx_core.cache.lock import lock_file
from reconx_core.errors import UserError
from reconx_core.io.checked import find_object
from reconx_core.io.files import explain_disk, require_writable

HOLDER = ".running.json"
LENGTH = 512  # of its content, with blanks: a host's name has at most 255 characters
BEAT_SECONDS, WATCH_SECONDS, SETTLE_SECONDS = 2.0, 10.0, 1.0


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder ``out``, which is made, and taken back with those above it where nothing came into it.

    Raises:
        UserError: another run is writing there, on whatever machine, or ``out`` cannot be written to.
    """
    new = [place for place in (out, *out.parents) if not place.exists()]
    require_writable(out)
    try:
        file, locked = _take(out)
        with file, _held(file, locked, out):
            yield
    finally:
        with contextlib.suppress(OSError):
            for place in new:
                place.rmdir()


def last_beat(out: Path) -> float | None:
    """When whoever has the folder ``out``, or was killed in it, last gave a sign of life, in seconds since the epoch."""
    stamp = _stamp(out / HOLDER)
    return None if stamp is None else stamp / 1e9


def is_held(out: Path) -> bool:
    """Whether somebody on any machine is at work in the folder ``out``; takes ten seconds to say no where one was killed."""
    return (out / HOLDER).exists() and _beats(out / HOLDER)


def _take(out: Path) -> tuple[IO[str], bool]:
    """The open file, and whether it could be locked."""
    while True:
        try:
            file = open(out / HOLDER, "r+", opener=_open_or_make)  # noqa: SIM115
        except OSError as error:
            raise explain_disk(error, out) from error
        try:
            locked = lock_file(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise _refusal(out) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(out / HOLDER)):
                return file, locked
        file.close()  # the one before has ended meanwhile, and removed it


@contextmanager
def _held(file: IO[str], locked: bool, out: Path) -> Iterator[None]:
    holder, own = find_object(out / HOLDER), {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
    if holder and not (locked and holder.get("host") == own["host"]) and _beats(out / HOLDER):
        raise _refusal(out)
    _write(file, own, out)
    if not locked:
        time.sleep(SETTLE_SECONDS)  # of several that came at once the last to write has it
        if find_object(out / HOLDER) != own:
            raise _refusal(out)
    try:
        with repeated(partial(_beat, file), BEAT_SECONDS):
            yield
    finally:
        (out / HOLDER).unlink(missing_ok=True)


def _open_or_make(path: str, _: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _write(file: IO[str], own: dict[str, Any], out: Path) -> None:
    try:
        # At once and always as long: of several that come together the last has the file, not a mixture, which is nobody's.
        os.pwrite(file.fileno(), json.dumps(own).ljust(LENGTH).encode(), 0)
        os.truncate(file.fileno(), LENGTH)
    except OSError as error:
        raise explain_disk(error, out) from error


def _beat(file: IO[str]) -> None:
    with contextlib.suppress(OSError):  # of a server that is away for a moment
        os.utime(file.fileno())


def _beats(file: Path) -> bool:
    """Whether somebody touches the file."""
    end, first = time.monotonic() + WATCH_SECONDS, _stamp(file)
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 4)
        if _stamp(file) != first:
            return True
    return False


def _stamp(file: Path) -> int | None:
    # Opened anew: NFS asks its server again only then.
    try:
        with open(file) as opened:
            return os.fstat(opened.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _refusal(out: Path) -> UserError:
    holder = find_object(out / HOLDER)
    who = f" (process {holder['pid']} on {holder['host']})" if {"pid", "host"} <= holder.keys() else ""
    return UserError(f"Another run{who} is writing into '{out}'; wait until it has ended, or choose another folder by -o.")
