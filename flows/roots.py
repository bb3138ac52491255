"""Which runs there are and what they use: each leaves an index of its references in the store; `reconx gc` removes the rest."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from reconx_core import store
from reconx_core.errors import UserError
from reconx_core.files import write_json
from reconx_core.store import Reference


def remember(root: Path, out: Path, references: Iterable[Reference]) -> None:
    """Keep these artifacts for as long as the folder ``out`` exists; replaces what an earlier run into ``out`` kept."""
    entries = sorted({(reference.stage, reference.key) for reference in references})
    write_json(_index(root, out), {"folder": str(out.resolve()), "artifacts": entries})


def announce(root: Path, out: Path) -> list[tuple[str, str]]:
    """Let the store know of a run from its start on. What an earlier run into ``out`` kept stays kept until the end.

    Returns:
        (stage, key) of those artifacts of the earlier run that are no longer there.
    """
    index = _index(root, out)
    kept = json.loads(index.read_text())["artifacts"] if index.exists() else []
    write_json(index, {"folder": str(out.resolve()), "artifacts": kept})
    return [(stage, key) for stage, key in kept if not (root / stage / key).is_dir()]


def known_runs(root: Path) -> list[tuple[Path, set[tuple[str, str]], float]]:
    """Folder, artifacts and time of the last start or end of every run whose folder is there, the newest first."""
    runs = []
    for index in (root / ".runs").glob("*.json"):
        run = json.loads(index.read_text())
        if Path(run["folder"]).is_dir():
            runs.append((Path(run["folder"]), {(stage, key) for stage, key in run["artifacts"]}, index.stat().st_mtime))
    return sorted(runs, key=lambda run: run[2], reverse=True)


def collect_garbage(root: Path) -> tuple[int, int, int]:
    """Remove every artifact and every noted failure that no remaining run refers to; returns (removed, kept, bytes freed).

    Raises:
        UserError: a run is using the store now.
    """
    from flows.failures import clear_failures

    with _lock(root, fcntl.LOCK_EX):
        used, names = _used(root)
        doomed = [entry for entry in store.entries(root) if entry not in used]
        freed = sum(_size(root / stage / key) for stage, key in doomed)
        for stage, key in doomed:
            store.remove(root, stage, key)
        store.clear_abandoned(root)
        clear_failures(root, names)
        _forget_gone(root)
    return len(doomed), len(used), freed


@contextmanager
def in_use(root: Path) -> Iterator[None]:
    """Keep `gc` out while a run is going on; any number of runs may."""
    with _lock(root, fcntl.LOCK_SH):
        yield


def _index(root: Path, out: Path) -> Path:
    return root / ".runs" / f"{hashlib.sha256(str(out.resolve()).encode()).hexdigest()[:16]}.json"


def _used(root: Path) -> tuple[set[tuple[str, str]], set[str]]:
    """(stage, key) of the artifacts and the names of the tasks of every run whose folder is there, ended or not."""
    from flows.asked import REQUEST, read_request
    from flows.chain import tasks_of

    artifacts, names = set(), set()
    for folder, kept, _ in known_runs(root):
        artifacts |= kept
        if not (folder / REQUEST).is_file():
            continue
        with suppress(UserError):  # a request that this version cannot read still has the artifacts that it kept at its end
            tasks = tasks_of(read_request(folder), root)
            names |= {task.name for task in tasks}
            artifacts |= {(task.stage, task.manifest["key"]) for task in tasks if task.manifest}
    return artifacts, names


def _forget_gone(root: Path) -> None:
    for index in (root / ".runs").glob("*.json"):
        if not Path(json.loads(index.read_text())["folder"]).is_dir():
            index.unlink()


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
