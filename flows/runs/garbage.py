"""`reconx gc`: what no remaining run, branch or experiment refers to is removed from the store."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from rich.console import Console
from rich.markup import escape

from flows.execution.failures import clear_failures
from flows.runs.experiments import artifacts_of_project
from flows.runs.registry import Entries, KnownRun, all_runs, is_store, keep_only
from flows.runs.request import REQUEST, RunRequest, read_request
from flows.runs.status import counted
from flows.runs.task_states import states_of_run
from reconx_core.cache import store
from reconx_core.cache.lock import exclusive
from reconx_core.errors import UserError
from reconx_core.names import one_line
from reconx_core.reporting.numbers import parse_duration

UNWATCHED = 86400.0  # seconds after which what a writer on another machine left unfinished counts as killed


@dataclass
class Garbage:
    """What is removed from a store, or would be."""

    doomed: list[tuple[str, str]] = field(default_factory=list)  # (stage, key)
    kept: int = 0  # artifacts
    young: int = 0  # of those the ones that no run uses, but that are too young to go
    freed: int = 0  # bytes
    notes: list[str] = field(default_factory=list)  # sentences on runs of which something could not be seen


@dataclass
class _Used:
    artifacts: Entries = field(default_factory=set)
    tasks: set[str] = field(default_factory=set)
    makers: list[KnownRun] = field(default_factory=list)  # runs with artifacts that they have not registered yet
    gone: list[KnownRun] = field(default_factory=list)
    projects: list[tuple[KnownRun, Entries]] = field(default_factory=list)  # and what they still use of what they made
    notes: list[str] = field(default_factory=list)


def collect_garbage(root: Path, dry_run: bool = False, older_than: float = 0.0, forget: Iterable[Path] = ()) -> Garbage:
    """Remove every artifact and every recorded failure that no remaining run refers to.

    A run whose folder cannot be seen, because it is not mounted or on another machine, keeps its artifacts unless it is in
    ``forget``. ``dry_run``: only say what would be removed. ``older_than``: seconds since an artifact was made.

    Raises:
        UserError: it is no store, a run is using it now, an index of a run or a DVC project is damaged, or a folder in
            ``forget`` is no run's, or still there.
    """
    if not is_store(root):
        raise UserError(f"{root} is no store of runs, so nothing in it is removed; give the folder that runs had as --store.")
    with exclusive(root, to_read=dry_run):
        used = _used(root, forget)
        garbage = _garbage(root, used, time.time() - older_than)
        if not dry_run:
            _remove(root, garbage, used)
    return garbage


def print_garbage(garbage: Garbage, dry_run: bool, console: Console) -> None:
    """What was removed, or would be, and of which runs something could not be seen."""
    for note in garbage.notes:
        console.print(f"[yellow]{escape(one_line(note))}[/]", soft_wrap=True)
    if dry_run:
        for stage, count in Counter(stage for stage, _ in garbage.doomed).items():
            console.print(f"{stage}: {count}", markup=False)
    done = "Would remove" if dry_run else "Removed"
    young = f", of which {garbage.young} are used by no run but too young" if garbage.young else ""
    console.print(
        f"{done} {len(garbage.doomed)} artifacts ({garbage.freed / 2**20:.1f} MiB), kept {garbage.kept}{young}.", soft_wrap=True
    )


def age_of(text: str) -> float:
    """Seconds of a time such as `30d`.

    Raises:
        UserError: it is none, or in smaller units than hours: a bare number is likely to mean days.
    """
    seconds = parse_duration(text)
    if seconds is None or text.strip()[-1] not in "hdw":
        raise UserError(f"'--older-than {text}' is no time; write hours, days or weeks as in 12h, 30d or 2w.")
    return seconds


def _garbage(root: Path, used: _Used, before: float) -> Garbage:
    garbage = Garbage(notes=used.notes)
    for stage, key in store.entries(root):
        made = store.changed(root, stage, key)
        if (stage, key) in used.artifacts or any(run.makes(stage, made) for run in used.makers):
            garbage.kept += 1
        elif made > before:
            garbage.kept += 1
            garbage.young += 1
        else:
            garbage.doomed.append((stage, key))
            garbage.freed += _size(root / stage / key)
    return garbage


def _remove(root: Path, garbage: Garbage, used: _Used) -> None:
    for stage, key in garbage.doomed:
        store.remove(root, stage, key)
    store.clear_abandoned(root, UNWATCHED)
    clear_failures(root, used.tasks)
    for run in used.gone:
        run.index.unlink(missing_ok=True)
    for run, artifacts in used.projects:
        keep_only(run, artifacts)


def _used(root: Path, forget: Iterable[Path]) -> _Used:
    """What every run uses whose folder is there or cannot be seen, ended or not, and what DVC projects do."""
    used, runs = _Used(), all_runs(root)
    forgotten = _to_forget(runs, forget)
    for run in runs:
        if run.is_gone(root) or run.folder in forgotten:
            used.gone.append(run)
            continue
        used.makers.append(run)
        if not run.is_there():
            used.artifacts |= run.artifacts
            used.notes.append(_unseen(run))
        elif run.is_project:
            _add_project(run, used)
        else:
            used.artifacts |= run.artifacts
            _add_tasks(run.folder, root, used)
    return used


def _to_forget(runs: list[KnownRun], forget: Iterable[Path]) -> set[Path]:
    known, forgotten = {run.folder: run for run in runs}, set()
    for folder in forget:
        place = next((place for place in (folder, folder.absolute(), folder.resolve()) if place in known), None)
        if place is None:
            raise UserError(f"The store knows of no run '{folder}'; give the folder as reconx gc names it.")
        if known[place].is_there():
            raise UserError(f"'{folder}' is there; delete it if the run is no longer wanted, and reconx gc forgets it.")
        forgotten.add(place)
    return forgotten


def _unseen(run: KnownRun) -> str:
    place = run.content.file_system
    where = f"of the machine {place.host} " if place is not None else ""
    return (
        f"The folder {run.folder} {where}cannot be seen from here, so what it uses is kept ({_count(run)}); "
        f"if it is gone for good: reconx gc --forget {quote(str(run.folder))}"
    )


def _add_project(run: KnownRun, used: _Used) -> None:
    found = artifacts_of_project(run.folder)
    used.artifacts |= found.artifacts
    if found.missing:
        used.artifacts |= run.artifacts
        used.notes.append(f"{found.missing} All that was made for {run.folder} is kept ({_count(run)}).")
    else:
        used.projects.append((run, run.artifacts & found.artifacts))


def _count(run: KnownRun) -> str:
    return counted(len(run.artifacts), "artifact")


def _add_tasks(folder: Path, root: Path, used: _Used) -> None:
    """What a run with a request has made so far; what it registered at its end is kept in any case."""
    if not (folder / REQUEST).exists():
        return  # of `reconx train` and DVC's stages
    try:
        _add_request(read_request(folder), root, used)
    except UserError as error:
        used.notes.append(f"{error} Only the artifacts that the run had when it ended are kept.")


def _add_request(request: RunRequest, root: Path, used: _Used) -> None:
    tasks = states_of_run(request, root)
    used.tasks |= {task.name for task in tasks}
    used.artifacts |= {(task.stage, task.manifest["key"]) for task in tasks if task.manifest}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
