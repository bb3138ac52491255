"""`reconx status`: how far a run has come, stage by stage, and what failed, whether it still runs, was killed, or ended."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.execution.run import default_store
from flows.runs.request import RunRequest, newest_run, read_request, shown
from flows.runs.task_states import TaskState, measured_of, states_of_run
from reconx_core.reporting.numbers import format_duration
from reconx_core.settings import STAGES

_STATES = ("done", "failed", "not reached", "to do")


def status(out: Path | None, root: Path | None, console: Console) -> None:
    """Print the table and the failures of the run in ``out``, or of the newest with the store ``root`` (default: the user's).

    Raises:
        UserError: there is no such run.
    """
    request = newest_run(root or default_store()) if out is None else read_request(out)
    where = root or request.store
    tasks = states_of_run(request, where)
    seconds = seconds_per_stage(tasks, where)
    console.print(opening(request, tasks), soft_wrap=True, markup=False)
    console.print(_table(tasks, seconds))
    for task in tasks:
        if task.failure:
            line = f"{task.plan.label} failed in {task.stage}: {task.failure['error']}"
            console.print(f"[red]{escape(line)}[/red]", soft_wrap=True)
    for sentence in closing(request, tasks, seconds):
        console.print(sentence, soft_wrap=True, markup=False)


def opening(request: RunRequest, tasks: list[TaskState]) -> str:
    """Which run it is and whether it goes on."""
    scenes, seeds = len({plan.name for plan in request.plans}), len({plan.settings.seed for plan in request.plans})
    rows = len({plan.row for plan in request.plans})
    size = [counted(scenes, "scene"), *([f"{rows} rows"] if rows > 1 else []), *([f"{seeds} seeds"] if seeds > 1 else [])]
    return f"{request.shown}: {request.source}, {', '.join(size)}; {_state(request, tasks)}."


def seconds_per_stage(tasks: list[TaskState], root: Path) -> dict[str, float]:
    """Median wall time of the stages, as far as artifacts are there that were measured."""
    times: dict[str, list[float]] = {}
    for task in tasks:
        measured = measured_of(root, task.manifest) if task.manifest else {}
        if "seconds" in measured:
            times.setdefault(task.stage, []).append(measured["seconds"])
    return {stage: statistics.median(values) for stage, values in times.items()}


def closing(request: RunRequest, tasks: list[TaskState], seconds: dict[str, float]) -> list[str]:
    """Where the report is; or how much is left, and what to do about it."""
    sentences = [f"The report: {shown(report)}" for report in _reports(request)] if request.finished() else []
    to_do = Counter(task.stage for task in tasks if task.state == "to do")
    if to_do and set(to_do) <= set(seconds):
        left = sum(count * seconds[stage] for stage, count in to_do.items())
        side = min(request.workers, len(request.plans))
        sentences.append(
            f"About {format_duration(left / side)} are left{f', with {side} scenes side by side' if side > 1 else ''}."
        )
    if request.place and not Path(request.place).exists():
        sentences.append(f"The dataset {request.place} is gone; nothing more can be computed from it until it is back.")
    elif not request.finished() and request.running() is False:
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
    running = request.running()
    if running:
        return f"{began}, running for {format_duration(time.time() - request.started)} (process {request.process.pid})"
    if running is None:
        return f"{began} on {request.process.host}, not ended; whether it still runs cannot be seen from this machine"
    return f"{began}, stopped before its end"


def _table(tasks: list[TaskState], seconds: dict[str, float]) -> Table:
    """A row per stage: how many tasks are in each state, and their median time."""
    states = {stage: Counter(task.state for task in tasks if task.stage == stage) for stage in STAGES}
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
