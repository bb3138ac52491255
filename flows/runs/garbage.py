"""`reconx gc`: what no remaining run refers to is removed from the store."""

from __future__ import annotations

from pathlib import Path

from flows.execution.failures import clear_failures
from flows.runs.registry import forget_gone, is_store, known_runs
from flows.runs.request import find_request
from flows.runs.task_states import states_of_run
from reconx_core.cache import store
from reconx_core.cache.lock import exclusive
from reconx_core.errors import UserError


def collect_garbage(root: Path) -> tuple[int, int, int]:
    """Remove every artifact and every recorded failure that no remaining run refers to; returns (removed, kept, bytes freed).

    Raises:
        UserError: it is no store, or a run is using it now.
    """
    if not is_store(root):
        raise UserError(f"{root} is no store of runs, so nothing in it is removed; give the folder that runs had as --store.")
    with exclusive(root):
        used, names = _used(root)
        doomed = [entry for entry in store.entries(root) if entry not in used]
        freed = sum(_size(root / stage / key) for stage, key in doomed)
        for stage, key in doomed:
            store.remove(root, stage, key)
        store.clear_abandoned(root)
        clear_failures(root, names)
        forget_gone(root)
    return len(doomed), len(used), freed


def _used(root: Path) -> tuple[set[tuple[str, str]], set[str]]:
    """(stage, key) of the artifacts and the names of the tasks of every run whose folder is there, ended or not."""
    artifacts, names = set(), set()
    for folder, kept, _ in known_runs(root):
        artifacts |= kept
        request = find_request(folder)
        if request is None:
            continue  # the artifacts that it registered at its end are kept nevertheless
        tasks = states_of_run(request, root)
        names |= {task.name for task in tasks}
        artifacts |= {(task.stage, task.manifest["key"]) for task in tasks if task.manifest}
    return artifacts, names


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
