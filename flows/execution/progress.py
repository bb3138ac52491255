"""What a person sees while the stages run: a bar with the time left, and a line with time and memory per finished stage."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from flows.execution.background import repeated
from flows.execution.forecast import Forecast, expected_seconds, size_of
from reconx_core.reporting.numbers import format_duration
from tasks.execute import Monitor

MANY = 8  # scenes; of more the screen shows a summary and the last stages, not a line for each of them
SILENT_SECONDS = 30.0  # at most, where the output is no terminal
_LAST = 5  # stages on the screen where there are many scenes
_ALIKE = 3  # notes that differ in names and numbers only, of which many scenes would print thousands
_RUNNING = 4  # stages that are named as running


class TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{clock(max(0.0, (task.total or 0) - task.completed))} left", style="progress.remaining")


class Bar(Progress):
    """The bar, below the last finished stages where those are not printed for good."""

    def __init__(self, console: Console) -> None:
        self.last: deque[str] = deque(maxlen=_LAST)
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeLeft()
        super().__init__(*columns, console=console, transient=True, auto_refresh=False)

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from (Text(line, overflow="ellipsis", no_wrap=True) for line in list(self.last))
        yield self.make_tasks_table(self.tasks)


class Display(Monitor):
    """What a person sees of a run of ``plans`` scenes. Expected times come from what the store and the run measured.

    ``quiet``: the bar, how far it is, and what goes wrong in the store only.
    """

    def __init__(self, console: Console, root: Path, plans: int, quiet: bool = False) -> None:
        self.console, self.plans, self.quiet = console, plans, quiet
        self.forecast = Forecast(expected_seconds(root))
        self.running: dict[tuple[str, str], tuple[float, float]] = {}  # start, and share done as far as it is known
        self.failures: set[str] = set()
        self.alike: Counter[str] = Counter()
        self.spoke = time.monotonic()
        self.lock = threading.Lock()
        self.progress = Bar(console)
        self.bar = self.progress.add_task("starting", total=None)

    def planned(self, stage: str, scene: str) -> None:
        with self.lock:
            self.forecast.plan(stage, scene)

    def started(self, stage: str, scene: str) -> None:
        with self.lock:
            self.forecast.begin()
            self.running[stage, scene] = (time.monotonic(), 0.0)

    def advanced(self, stage: str, scene: str, done: int, total: int) -> None:
        with self.lock:
            self.running[stage, scene] = (self.running[stage, scene][0], done / max(total, 1))

    def finished(self, stage: str, scene: str, measured: dict[str, Any] | None, cached: bool) -> None:
        with self.lock:
            self.running.pop((stage, scene), None)
            self.forecast.learn(scene, size_of(measured or {}))
            if not self.forecast.end(stage, scene, None if cached or measured is None else measured["seconds"]):
                return  # reported before
        if self.quiet:
            return
        where = f"{scene}  " if self.plans > 1 else ""
        line = f"  {where}{stage:<11}{describe(measured, cached)}"
        if self.plans > MANY:
            self.progress.last.append(line)
        else:
            self._print(line, markup=False, soft_wrap=True)
        for note in (measured or {}).get("notes", []) if cached else []:
            self.say(note)

    def say(self, note: str) -> None:
        """A sentence that the user should read; where there are many scenes, a few of those that are alike."""
        kind = re.sub(r"'[^']*'|\S*\d\S*", "", note)
        with self.lock:
            self.alike[kind] += 1
            count = self.alike[kind]
        if self.plans <= MANY or count <= _ALIKE:
            self._print(f"  [yellow]{escape(note)}[/yellow]", soft_wrap=True)
        elif count == _ALIKE + 1:
            self._print("  [yellow]More notes like this one are not shown; those of scenes are in the report.[/yellow]")

    def failed(self, scenes: Sequence[str], stage: str, error: str) -> None:
        """The other stages of the scenes, which share this one, will not run."""
        with self.lock:
            self.failures.update(scenes)
            for scene in scenes:
                self.forecast.give_up(scene)
            for pair in [pair for pair in self.running if pair[1] in scenes]:
                del self.running[pair]
        if self.plans > 1 and not self.quiet:
            others = f" (and {len(scenes) - 1} other rows or seeds)" if len(scenes) > 1 else ""
            self._print(f"  [red]{escape(scenes[0])}{others} failed in {stage}:[/red] {escape(error)}", soft_wrap=True)

    def repaired(self, stage: str, scene: str, damage: str) -> None:
        self.say(f"The store entry {damage}; it is removed and computed again.")

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the bar up to date until the block ends."""
        with self.progress:
            try:
                with repeated(self._update, 0.25):
                    yield
            finally:
                self.progress.last.clear()

    def _update(self) -> None:
        with self.lock:
            names = [f"{stage} {scene}" if self.plans > 1 else stage for stage, scene in self.running]
            left = self.forecast.left(self.running)
            far = f"{self.forecast.done:,} of {self.forecast.scenes:,} scenes done"
            far += f", {len(self.failures):,} failed" if self.failures else ""
        now = ", ".join(names[:_RUNNING]) + (f" and {len(names) - _RUNNING} more" if len(names) > _RUNNING else "")
        if self.console.is_terminal:
            elapsed = self.progress.tasks[0].elapsed or 0.0
            told = " · ".join([far, now] if self.plans > MANY else [now or "starting"])
            self.progress.update(self.bar, description=told, completed=elapsed, total=elapsed + left)
            self.progress.refresh()
        elif time.monotonic() - self.spoke >= SILENT_SECONDS:
            far = f"{far}, about {clock(left)} left{f'; now {now}' if now else ''}" if self.forecast.scenes else "starting"
            self._print(f"  {far}", markup=False, soft_wrap=True)

    def _print(self, line: str, **how: Any) -> None:
        self.spoke = time.monotonic()
        self.console.print(line, highlight=False, **how)


def clock(seconds: float) -> str:
    """A time that is left: `0:07`, `12:30` or `3 h 12 min`."""
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}" if seconds < 3600 else format_duration(seconds)


def describe(measured: dict[str, Any] | None, cached: bool) -> str:
    """Time and memory of a stage in words."""
    if measured is None or cached:
        return "       in the store already"
    cuda = f"  {measured['cuda_peak_mib'] / 1024:.1f} GiB on the GPU" if measured.get("cuda_peak_mib") else ""
    return f"{measured['seconds']:7.1f} s  {measured['peak_mib'] / 1024:5.2f} GiB{cuda}"
