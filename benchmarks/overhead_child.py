"""What `benchmarks.overhead` runs in processes of their own; each prints what it measured as one line of JSON, the last.

python -m benchmarks.overhead_child start STORE            Prefect's server and one flow with an empty task
python -m benchmarks.overhead_child cli ARGUMENT...        reconx, and when Prefect's server answered
python -m benchmarks.overhead_child trivial STORE SCENES   the seven stages of many scenes, none of which does anything
"""

from __future__ import annotations

import importlib
import io
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

PROCESS = psutil.Process()


def spent() -> dict[str, float]:
    """Seconds since the process was started, and CPU seconds until now of itself and of the server that it started."""
    ended, own = resource.getrusage(resource.RUSAGE_CHILDREN), PROCESS.cpu_times()
    running = sum(_cpu(child) for child in PROCESS.children())
    return {
        "wall": time.time() - PROCESS.create_time(),
        "cpu": own.user + own.system,
        "server": running + ended.ru_utime + ended.ru_stime,
    }


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


@contextmanager
def server(root: Path) -> Iterator[None]:
    """Prefect's server, as every run of reconx starts it."""
    from flows.execution.prefect_server import prefect_server

    with prefect_server(root) as wait_for_server:
        import prefect  # noqa: F401  while the server starts

        wait_for_server()
        yield


def start(root: str) -> dict[str, Any]:
    with server(Path(root)):
        from prefect import flow, task

        empty = task(lambda: None, name="empty")

        @flow(name="start", validate_parameters=False)
        def one() -> None:
            empty.submit().wait()

        one()
        return spent()


def cli(*arguments: str) -> dict[str, Any]:
    from flows import cli
    from flows.execution import run

    answers: dict[str, Any] = {}
    start = run.prefect_server

    @contextmanager
    def noted(root: Path) -> Iterator[Callable[[], None]]:
        with start(root) as wait:

            def wait_and_note() -> None:
                wait()
                answers.update(spent())

            yield wait_and_note

    run.prefect_server = noted
    sys.argv = ["reconx", *arguments]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    return {"whole": spent(), "answers": answers}


def trivial(root: str, scenes: str) -> dict[str, Any]:
    """Times and memory whenever a scene is done; the stages write a few bytes each."""
    with server(Path(root)):
        from flows.execution.flow import run_scenes
        from flows.execution.plan import ScenePlan
        from flows.execution.progress import Display
        from reconx_core.settings import STAGES, Settings
        from tasks.execute import load_stages

        rows: list[tuple[float, float, float]] = []

        class Watched(Display):
            def finished(self, stage: str, *about: Any, **more: Any) -> None:
                super().finished(stage, *about, **more)
                if stage == STAGES[-1]:
                    now = spent()
                    rows.append((now["wall"], now["cpu"], PROCESS.memory_info().rss / 2**20))

        load_stages(STAGES)
        for stage in STAGES:
            importlib.import_module(f"tasks.{stage}").run = lambda job, read: {"text": f"{job.stage} {job.scene}".encode()}
        plans = [ScenePlan(f"room_{i}", f"procedural:room?seed={i}", Settings()) for i in range(int(scenes))]
        display = Watched(Console(file=io.StringIO()), Path(root), len(plans))
        before = spent()
        with display.live():
            runs = run_scenes(plans, Path(root), display)
        failed = [run.error for run in runs if run.error is not None]
        if failed:
            raise failed[0]
        return {"before": before, "after": spent(), "rows": rows}


if __name__ == "__main__":
    print(json.dumps({"start": start, "cli": cli, "trivial": trivial}[sys.argv[1]](*sys.argv[2:])))
