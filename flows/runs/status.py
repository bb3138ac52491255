"""`reconx status`: how far a run has come, stage by stage, and what failed, whether it still runs, was killed, or ended."""

from __future__ import annotations

import socket
import statistics
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.execution.forecast import Size, expected_seconds, size_of
from flows.execution.plan import REQUEST
from flows.execution.run import default_store
from flows.runs.alone import is_held, last_beat
from flows.runs.request import RunRequest, newest_run, read_request, shown
from flows.runs.task_states import TaskState, measured_of, states_of_run
from reconx_core.errors import UserError
from reconx_core.names import one_line
from reconx_core.reporting.numbers import format_duration
from tasks.graph import JOIN, ORDER

Measured = tuple[str, float, float]  # stage, when it was done in seconds since the epoch, and the seconds it took
_STATES = ("done", "failed", "not reached", "to do")


def status(out: Path | None, root: Path | None, console: Console) -> None:
    """Print the table and the failures of the run in ``out``, or of the newest with the store ``root`` (default: the user's).

    Raises:
        UserError: there is no such run, or it has only just begun.
    """
    if out is not None and not (out / REQUEST).is_file() and is_held(out):
        raise UserError(f"A run in '{out}' has not said yet what it computes (a training never does); ask again soon.")
    request = newest_run(root or default_store()) if out is None else read_request(out)
    where = root or request.store
    tasks = states_of_run(request, where)
    measured = measurements(tasks, where)
    seconds = seconds_per_stage(measured)
    console.print(one_line(opening(request, tasks)), soft_wrap=True, markup=False)
    console.print(_table(tasks, seconds))
    for task in tasks:
        if task.failure:
            line = f"{task.plan.label} failed in {task.node.name}: {task.failure['error']}"
            console.print(f"[red]{escape(one_line(line))}[/red]", soft_wrap=True)
    for sentence in [*time_left(request, tasks, measured, expected_seconds(where, sizes_of(tasks, where))), *closing(request)]:
        console.print(one_line(sentence), soft_wrap=True, markup=False)


def opening(request: RunRequest, tasks: list[TaskState]) -> str:
    """Which run it is and whether it goes on."""
    scenes, seeds = len({plan.name for plan in request.plans}), len({plan.settings.seed for plan in request.plans})
    rows = len({plan.row for plan in request.plans})
    size = [counted(scenes, "scene"), *([f"{rows} rows"] if rows > 1 else []), *([f"{seeds} seeds"] if seeds > 1 else [])]
    return f"{request.shown}: {request.source}, {', '.join(size)}; {_state(request, tasks)}."


def measurements(tasks: list[TaskState], root: Path) -> list[Measured]:
    """Of the tasks whose artifacts are there and were measured: their stage, when it was done, and the seconds it took."""
    known = [(task.stage, measured_of(root, task.manifest)) for task in tasks if task.manifest]
    return [(stage, measured["made"], measured["seconds"]) for stage, measured in known if "seconds" in measured]


def sizes_of(tasks: list[TaskState], root: Path) -> list[Size]:
    """How large the scenes are, as far as their first stage has told."""
    known = [measured_of(root, task.manifest) for task in tasks if task.stage == "views" and task.manifest]
    return [size for measured in known if (size := size_of(measured))]


def seconds_per_stage(measured: list[Measured]) -> dict[str, float]:
    """Median wall time of the stages."""
    times: dict[str, list[float]] = {}
    for stage, _, seconds in measured:
        times.setdefault(stage, []).append(seconds)
    return {stage: statistics.median(values) for stage, values in times.items()}


def time_left(request: RunRequest, tasks: list[TaskState], measured: list[Measured], expected: dict[str, float]) -> list[str]:
    """How long what is to do will take, in a sentence. ``expected``: seconds of stages of which this run has none."""
    to_do = Counter(task.stage for task in tasks if task.state == "to do")
    if not to_do:
        return []
    seconds = seconds_per_stage(measured)
    left = sum(count * (expected | seconds)[stage] for stage, count in to_do.items())
    side = min(_side_by_side(request, measured), len(request.plans))
    how = f", with {side:.1f} scenes side by side".replace(".0 ", " ") if side >= 1.05 else ""
    guess = (
        "" if set(to_do) <= set(seconds) else f"; no scene of this run has come to {_first_of(set(to_do) - set(seconds))} yet"
    )
    return [f"About {format_duration(left / side)} are left{how}{guess}."]


def _side_by_side(request: RunRequest, measured: list[Measured]) -> float:
    """Stages at a time: as the run has shown while it goes on, whoever its workers are, else as many as it was given."""
    work = sum(seconds for _, made, seconds in measured if made >= request.started)
    since = time.time() - request.started
    if not work or not request.running() or since <= 0:
        return request.workers
    return max(1.0, work / since)


def _first_of(stages: set[str]) -> str:
    return min(stages, key=ORDER.index)


def closing(request: RunRequest) -> list[str]:
    """Where the report is, or what to do to get it."""
    sentences = [f"The report: {shown(report)}" for report in _reports(request)] if request.finished() else []
    if request.place and not Path(request.place).exists():
        sentences.append(f"The dataset {request.place} is gone; nothing more can be computed from it until it is back.")
    elif not request.finished() and not request.running():
        sentences.append("Run the same command again to go on from here.")
    return sentences


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def moment(seconds: float) -> str:
    """A time since the epoch as the user's clock showed it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def _state(request: RunRequest, tasks: list[TaskState]) -> str:
    began = f"started {moment(request.started)}"
    if request.finished():
        return f"{began}, ended"
    if request.running():
        process = request.process
        where = "" if process.host == socket.gethostname() else f" on {process.host}"
        return f"{began}, running for {format_duration(time.time() - request.started)} (process {process.pid}{where})"
    # Who ends by an error takes it away.
    beat = last_beat(request.folder)
    return f"{began}, stopped before its end" + (
        "" if beat is None else f": killed or interrupted, last heard of {moment(beat)}"
    )


def _table(tasks: list[TaskState], seconds: dict[str, float]) -> Table:
    """A row per stage: how many tasks are in each state, and their median time."""
    states = {stage: Counter(task.state for task in tasks if task.stage == stage) for stage in ORDER}
    states = {stage: count for stage, count in states.items() if count or stage != JOIN}
    failed = any(count["failed"] for count in states.values())
    shown = [state for state in _STATES if failed or state != "not reached"]
    table = Table("stage")
    for title in (*shown, "of", "time each"):
        table.add_column(title, justify="right")
    for stage, count in states.items():
        each = f"{seconds[stage]:.1f} s" if stage in seconds else ""
        table.add_row(stage, *(str(count[state]) for state in shown), str(count.total()), each)
    return table


def _reports(request: RunRequest) -> list[Path]:
    return [request.folder / row / "report.html" for row in dict.fromkeys(plan.row for plan in request.plans)]
