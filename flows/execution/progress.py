"""What a person sees while the stages run: a bar with the time left, and a line with time and memory per finished stage."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.text import Text

from reconx_core.cache.store import MEASURED
from reconx_core.io.checked import find_object
from reconx_core.settings import STAGES
from tasks.execute import Monitor

# Seconds per stage of three 800x600 photos on two cores, until the store has measured its own.
_FIRST_GUESS = {"views": 1, "pointcloud": 30, "condition": 5, "video": 1, "confidence": 15, "splats": 60, "metrics": 20}
CLIP_GUESS = 3.0  # seconds of a training clip, which is no stage of a run
_RECENT = 5


class TimeLeft(ProgressColumn):
    def render(self, task: Task) -> Text:
        seconds = max(0.0, (task.total or 0) - task.completed)
        return Text(f"{int(seconds // 60)}:{int(seconds % 60):02d} left", style="progress.remaining")


class Display(Monitor):
    """What a person sees of a run. Expected times come from the store's recent measurements."""

    def __init__(self, console: Console, root: Path, many: bool, quiet: bool = False) -> None:
        self.console, self.many, self.quiet = console, many, quiet  # quiet: the bar and what goes wrong in the store only
        self.expected = expected_seconds(root)
        self.left: dict[tuple[str, str], float] = {}
        self.running: dict[tuple[str, str], tuple[float, float]] = {}  # start, and share done as far as it is known
        self.reported: set[tuple[str, str]] = set()
        self.failures: set[str] = set()
        self.lock = threading.Lock()
        columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeElapsedColumn(), TimeLeft()
        self.progress = Progress(*columns, console=console, transient=True, auto_refresh=False)
        self.bar = self.progress.add_task("starting", total=None)

    def planned(self, stage: str, scene: str) -> None:
        with self.lock:
            self.left[stage, scene] = self.expected.get(stage, CLIP_GUESS)

    def started(self, stage: str, scene: str) -> None:
        with self.lock:
            self.running[stage, scene] = (time.monotonic(), 0.0)

    def advanced(self, stage: str, scene: str, done: int, total: int) -> None:
        with self.lock:
            self.running[stage, scene] = (self.running[stage, scene][0], done / max(total, 1))

    def finished(self, stage: str, scene: str, measured: dict[str, Any] | None, cached: bool) -> None:
        with self.lock:
            self.running.pop((stage, scene), None)
            self.left.pop((stage, scene), None)
            if (stage, scene) in self.reported:
                return
            self.reported.add((stage, scene))
        if self.quiet:
            return
        where = f"{scene}  " if self.many else ""
        self.console.print(f"  {where}{stage:<11}{describe(measured, cached)}", highlight=False, markup=False)
        for note in (measured or {}).get("notes", []) if cached else []:
            self.say(note)

    def say(self, note: str) -> None:
        """A sentence that the user should read."""
        self.console.print(f"  [yellow]{escape(note)}[/yellow]", highlight=False, soft_wrap=True)

    def failed(self, scene: str, stage: str, error: str) -> None:
        """The scene's other stages will not run."""
        with self.lock:
            known = scene in self.failures
            self.failures.add(scene)
            for pair in [pair for pair in (*self.left, *self.running) if pair[1] == scene]:
                self.left.pop(pair, None)
                self.running.pop(pair, None)
        if self.many and not known and not self.quiet:
            self.console.print(
                f"  [red]{escape(scene)} failed in {stage}:[/red] {escape(error)}", highlight=False, soft_wrap=True
            )

    def repaired(self, stage: str, scene: str, damage: str) -> None:
        self.say(f"The store entry {damage}; it is removed and computed again.")

    @contextmanager
    def live(self) -> Iterator[None]:
        """Keep the bar up to date until the block ends."""
        done = threading.Event()

        def refresh() -> None:
            while not done.wait(0.25):
                self._update()

        thread = threading.Thread(target=refresh, daemon=True)
        with self.progress:
            thread.start()
            try:
                yield
            finally:
                done.set()
                thread.join()

    def _update(self) -> None:
        with self.lock:
            waiting = sum(seconds for pair, seconds in self.left.items() if pair not in self.running)
            active = {
                pair: _remaining(time.monotonic() - start, share, self.left.get(pair, 0.0))
                for pair, (start, share) in self.running.items()
            }
        names = ", ".join(f"{stage} {scene}" if self.many else stage for stage, scene in active) or "starting"
        elapsed = self.progress.tasks[0].elapsed or 0.0
        total = elapsed + waiting + sum(active.values())
        self.progress.update(self.bar, description=names, completed=elapsed, total=total)
        self.progress.refresh()


def _remaining(elapsed: float, share: float, expected: float) -> float:
    """Seconds left of a stage: by its own progress where it reports any, else by how long such stages took."""
    return elapsed * (1 - share) / share if share > 0.02 else max(expected - elapsed, 0.1 * elapsed)


def describe(measured: dict[str, Any] | None, cached: bool) -> str:
    """Time and memory of a stage in words."""
    if measured is None or cached:
        return "       in the store already"
    cuda = f"  {measured['cuda_peak_mib'] / 1024:.1f} GiB on the GPU" if measured.get("cuda_peak_mib") else ""
    return f"{measured['seconds']:7.1f} s  {measured['peak_mib'] / 1024:5.2f} GiB{cuda}"


def expected_seconds(root: Path) -> dict[str, float]:
    """Per stage the median wall time of the store's most recent entries, or a first guess."""
    expected = {stage: float(seconds) for stage, seconds in _FIRST_GUESS.items()}
    for stage in STAGES:
        files = sorted((root / stage).glob(f"*/{MEASURED}"), key=lambda p: p.stat().st_mtime)[-_RECENT:]
        times = [seconds for file in files if (seconds := find_object(file).get("seconds")) is not None]
        if times:
            expected[stage] = statistics.median(times)
    return expected
