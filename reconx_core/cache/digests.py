"""Digests of files, remembered beside the store, so that a file that has not changed is not read again.

A file is known by its name in its group (an artifact, a scene, a folder of weights), its size, its time of change and its
inode; then a `stat` is all it takes. Each group has a file of its own under ``<store>/.digests/``, which is replaced whole and
holds its own checksum: writers need no lock, on any file system, the last one wins and all of them are right, and a file that
is torn, damaged or gone only costs the time to hash again.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from reconx_core.io.files import write_atomic

FOLDER = ".digests"
# A file that was changed this shortly before it was hashed may change again without another time: file systems round.
RACY_SECONDS = 2.0
_read_since = 0.0  # what was hashed before this time does not count


class Stamp(NamedTuple):
    """By what a file is known."""

    size: int  # bytes
    modified: int  # nanoseconds since the epoch
    inode: int


class Entry(NamedTuple):
    """What is known of a file."""

    stamp: Stamp
    digest: str  # SHA-256 in hex
    read: float  # when it was hashed, in seconds since the epoch


def verify_from(moment: float) -> None:
    """Let this process trust no digest that was taken before ``moment`` (seconds since the epoch; 0 trusts them all)."""
    global _read_since  # of the process: another run in it that also reads everything loses time, nothing else
    _read_since = moment


def verified_from() -> float:
    """The moment that :func:`verify_from` was given last."""
    return _read_since


def digests_of(root: Path, group: str, files: Mapping[str, Path]) -> dict[str, str]:
    """SHA-256 of every file, by its name; only those are read whose stamp is not known. They are then remembered in ``root``.

    Raises:
        OSError: a file cannot be read.
    """
    known = recall(root, group)
    found = {name: entry for name, file in files.items() if (entry := known.get(name)) and entry.stamp == stamp_of(file)}
    missing = {name: file for name, file in files.items() if name not in found}
    if missing:
        read = hash_files(missing)
        remember(root, group, found | read)
        found |= read
    return {name: found[name].digest for name in files}


def hash_files(files: Mapping[str, Path]) -> dict[str, Entry]:
    """Every file as it is now, read on all cores.

    Raises:
        OSError: a file cannot be read.
    """
    with ThreadPoolExecutor(max(1, min(len(files), len(os.sched_getaffinity(0))))) as pool:  # hashlib releases the GIL
        return dict(zip(files, pool.map(_hash, files.values())))


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def stamp_of(path: Path) -> Stamp:
    about = os.stat(path)
    return Stamp(about.st_size, about.st_mtime_ns, about.st_ino)


def backdate(files: Iterable[Path]) -> None:
    """Set the times of change of files that are finished so far back that any later change shows in them."""
    moment = time.time() - 2 * RACY_SECONDS
    for file in files:
        os.utime(file, (moment, moment))


def recall(root: Path, group: str) -> dict[str, Entry]:
    """What is known of the files of ``group``; nothing where that is damaged."""
    try:
        checksum, body = _place(root, group).read_bytes().split(b"\n", 1)
        if hashlib.sha256(body).hexdigest().encode() != checksum:
            return {}
        entries = {name: Entry(Stamp(*stamp), digest, read) for name, (stamp, digest, read) in json.loads(body).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return {name: entry for name, entry in entries.items() if entry.read >= _read_since}


def remember(root: Path, group: str, entries: Mapping[str, Entry]) -> None:
    """Keep what is known of the files of ``group``, but of those that were changed just before; where that cannot be
    written, it is not kept."""
    body = json.dumps({name: entry for name, entry in entries.items() if not _is_racy(entry)}).encode()
    with suppress(OSError):
        write_atomic(_place(root, group), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)


def forget(root: Path, group: str) -> None:
    """Keep nothing of the files of ``group``."""
    with suppress(OSError):
        _place(root, group).unlink()


def group_of(path: Path) -> str:
    """The group of files that lie at ``path``, outside of the store."""
    return f"files/{hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()[:32]}"


def _place(root: Path, group: str) -> Path:
    return root / FOLDER / f"{group}.json"


def _is_racy(entry: Entry) -> bool:
    return entry.stamp.modified > (entry.read - RACY_SECONDS) * 1e9


def _hash(path: Path) -> Entry:
    moment, stamp = time.time(), stamp_of(path)
    digest = file_digest(path)
    return Entry(stamp, digest, moment if stamp_of(path) == stamp else 0.0)  # of a file that changes meanwhile nothing is kept
