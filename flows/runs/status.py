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
from flows.runs.request import Asked, newest_run, read_request, shown
from flows.runs.task_states import Task, measured_of, tasks_of
from reconx_core.settings import STAGES

_STATES = ("done", "failed", "not reached", "to do")


def status(out: Path | None, root: Path | None, console: Console) -> None:
    """Print the table and the failures of the run in ``out``, or of the newest with the store ``root`` (default: the user's).

    Raises:
        UserError: there is no such run.
    """
    asked = newest_run(root or default_store()) if out is None else read_request(out)
    where = root or asked.store
    tasks = tasks_of(asked, where)
    seconds = seconds_per_stage(tasks, where)
    console.print(opening(asked, tasks), soft_wrap=True)
    console.print(_table(tasks, seconds))
    for task in tasks:
        if task.failure:
            told = f"{task.plan.label} failed in {task.stage}: {task.failure['error']}"
            console.print(f"[red]{escape(told)}[/red]", soft_wrap=True)
    for sentence in closing(asked, tasks, seconds):
        console.print(escape(sentence), soft_wrap=True)


def opening(asked: Asked, tasks: list[Task]) -> str:
    """Which run it is and whether it goes on."""
    scenes, seeds = len({plan.name for plan in asked.plans}), len({plan.settings.seed for plan in asked.plans})
    rows = len({plan.row for plan in asked.plans})
    size = [counted(scenes, "scene"), *([f"{rows} rows"] if rows > 1 else []), *([f"{seeds} seeds"] if seeds > 1 else [])]
    return f"{asked.shown}: {escape(asked.source)}, {', '.join(size)}; {_state(asked, tasks)}."


def seconds_per_stage(tasks: list[Task], root: Path) -> dict[str, float]:
    """Median wall time of the stages, as far as artifacts are there that were measured."""
    times: dict[str, list[float]] = {}
    for task in tasks:
        measured = measured_of(root, task.manifest) if task.manifest else {}
        if "seconds" in measured:
            times.setdefault(task.stage, []).append(measured["seconds"])
    return {stage: statistics.median(values) for stage, values in times.items()}


def closing(asked: Asked, tasks: list[Task], seconds: dict[str, float]) -> list[str]:
    """Where the report is; or how much is left, and what to do about it."""
    told = [f"The report: {shown(report)}" for report in _reports(asked)] if asked.finished() else []
    to_do = Counter(task.stage for task in tasks if task.state == "to do")
    if to_do and set(to_do) <= set(seconds):
        left = sum(count * seconds[stage] for stage, count in to_do.items())
        side = min(asked.workers, len(asked.plans))
        told.append(f"About {duration(left / side)} are left{f', with {side} scenes side by side' if side > 1 else ''}.")
    if asked.place and not Path(asked.place).exists():
        told.append(f"The dataset {asked.place} is gone; nothing more can be computed from it until it is back.")
    elif not asked.finished() and asked.running() is False:
        told.append("Run the same command again to go on from here.")
    return told


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def moment(seconds: float) -> str:
    """A time since the epoch as the user's clock showed it."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def duration(seconds: float) -> str:
    """A length of time in its two largest units."""
    if seconds < 60:
        return f"{seconds:.{0 if seconds >= 10 else 1}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _state(asked: Asked, tasks: list[Task]) -> str:
    began = f"started {moment(asked.started)}"
    if asked.finished():
        return f"{began}, ended"
    running = asked.running()
    if running:
        return f"{began}, running for {duration(time.time() - asked.started)} (process {asked.process['pid']})"
    if running is None:
        return f"{began} on {asked.process['host']}, not ended; whether it still runs cannot be told from this machine"
    return f"{began}, stopped before its end"


def _table(tasks: list[Task], seconds: dict[str, float]) -> Table:
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


def _reports(asked: Asked) -> list[Path]:
    return [asked.folder / row / "report.html" for row in dict.fromkeys(plan.row for plan in asked.plans)]
