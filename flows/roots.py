"""Which artifacts are in use: every run leaves an index of its references in the store; `reconx gc` removes the rest."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reconx_core import store
from reconx_core.errors import UserError
from reconx_core.files import write_json
from reconx_core.store import Reference


def remember(root: Path, out: Path, references: Iterable[Reference]) -> None:
    """Keep these artifacts for as long as the folder ``out`` exists; replaces what an earlier run into ``out`` kept."""
    folder = out.resolve()
    name = hashlib.sha256(str(folder).encode()).hexdigest()[:16]
    entries = sorted({(reference.stage, reference.key) for reference in references})
    write_json(root / ".runs" / f"{name}.json", {"folder": str(folder), "artifacts": entries})


def collect_garbage(root: Path) -> tuple[int, int, int]:
    """Remove every artifact that no remaining run refers to; returns (removed, kept, bytes freed).

    Raises:
        UserError: a run is using the store now.
    """
    with _lock(root, fcntl.LOCK_EX):
        used = _used(root)
        doomed = [entry for entry in store.entries(root) if entry not in used]
        freed = sum(_size(root / stage / key) for stage, key in doomed)
        for stage, key in doomed:
            store.remove(root, stage, key)
        store.clear_abandoned(root)
    return len(doomed), len(used), freed


@contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Keep `gc` out while a run is going on; any number of runs may."""
    with _lock(root, fcntl.LOCK_SH):
        yield


def _used(root: Path) -> set[tuple[str, str]]:
    used = set()
    for index in (root / ".runs").glob("*.json"):
        run = json.loads(index.read_text())
        if Path(run["folder"]).is_dir():
            used |= {(stage, key) for stage, key in run["artifacts"]}
        else:
            index.unlink()
    return used


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _lock(root: Path, mode: int) -> Iterator[None]:
    root.mkdir(parents=True, exist_ok=True)
    with open(root / ".lock", "w") as file:
        try:
            # The kernel drops the lock with its process, so a killed run never leaves one behind.
            fcntl.flock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another run is using the store {root}; wait until it has ended.") from None
        yield
