"""What the orchestration costs beside the work; prints tables, and ends with exit code 1 where a target is missed.

    python -m benchmarks.overhead [--scenes 20] [--trivial 500] [--repeats 3] [--folder FOLDER]

First `reconx evaluate` over small procedural scenes, in processes of their own: the run that computes everything, runs that
change nothing, and one with another weight in `splats`. Beside it what Prefect takes to start, measured by turns: its
server and a flow with one empty task. Then many scenes through seven stages that do nothing, in threads: time per task and
memory. FOLDER keeps store and results, so that the next call finds the scenes computed.

Other programs on the machine lengthen the seconds on the wall. CPU seconds stand beside them: of the process, and of the
server that it starts and that works at the same time. From the moment on at which the server answers, a run's CPU seconds and
its server's together are what it takes at most on a machine of its own, and the first target is met if they are within it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

RERUN_SECONDS = 3.0  # of a run that changes nothing, beyond Prefect's own start
TASK_SECONDS = 0.012  # of CPU per task in threads
GROWTH = 0.20  # of memory after the first 100 scenes
STEADY = 1.25  # CPU seconds per task of the last 100 scenes, as a multiple of those of the first 100
SPECIFICATION = "procedural:room?seed=0..{last}&views=2&width=64&height=48"
LITTLE_WORK = (
    "pointcloud.planes=16", "pointcloud.stereo_size=64", "pointcloud.rounds=1", "pointcloud.iterations=1",
    "condition.frames_per_pair=1", "video.steps=1", "confidence.size=64", "splats.max_gaussians=100", "splats.steps=2",
    "metrics.video_frames=2",
)  # fmt: skip


def child(*arguments: str) -> dict[str, Any]:
    """What a part of `benchmarks.overhead_child` measured."""
    command = [sys.executable, "-m", "benchmarks.overhead_child", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stdout}")
    return json.loads(done.stdout.splitlines()[-1])


def evaluate(folder: Path, scenes: int, *changed: str) -> dict[str, Any]:
    """Times of one `reconx evaluate`, and its record."""
    settings = [part for setting in (*LITTLE_WORK, *changed) for part in ("-S", setting)]
    places = ["-o", str(folder / "run"), "--store", str(folder / "store")]
    times = child("cli", "evaluate", SPECIFICATION.format(last=scenes - 1), *places, *settings)
    return {**times, "record": json.loads((folder / "run" / "run.json").read_text())}


def beyond(late: dict[str, float], early: dict[str, float]) -> dict[str, float]:
    return {key: late[key] - early[key] for key in late}


def computed(record: dict[str, Any]) -> dict[str, list[float]]:
    """Per stage the seconds of the scenes for which it was computed in this run."""
    seconds: dict[str, list[float]] = {}
    for scene in record["scenes"].values():
        for cost in scene["costs"]:
            seconds.setdefault(cost["stage"], []).extend([] if cost["cached"] else [cost["seconds"]])
    return {stage: times for stage, times in seconds.items() if times}


def print_row(name: str, times: dict[str, float]) -> None:
    print(f"{name:<42}{times['wall']:9.1f}{times['cpu']:9.1f}{times['server']:9.1f}", flush=True)


def rerun(folder: Path, scenes: int, repeats: int) -> tuple[bool, dict[str, float]]:
    """Whether a run that changes nothing is quick enough, and its times."""
    print(f"\n{scenes} scenes, nothing changed; each line the quickest of {repeats}")
    print(f"{'':<42}{'wall (s)':>9}{'CPU (s)':>9}{'server':>9}")
    starts, runs = [], []
    for _ in range(repeats):
        starts.append(child("start", str(folder / "start")))
        runs.append(evaluate(folder, scenes))
    assert all(not computed(run["record"]) for run in runs), "a run that changes nothing has computed something"
    start = min(starts, key=lambda times: times["wall"])
    best = min(runs, key=lambda run: run["whole"]["wall"] - run["answers"]["wall"])
    after = beyond(best["whole"], best["answers"])
    print_row("Prefect's own start", start)
    print_row("the whole run", best["whole"])
    print_row("  until the server answers", best["answers"])
    print_row("  from then on", after)
    print_row("beyond Prefect's own start", beyond(best["whole"], start))
    wall = best["whole"]["wall"] - start["wall"]
    reached = min(wall, after["cpu"] + after["server"])
    print(f"{wall:.1f} s on the wall, {after['cpu'] + after['server']:.1f} CPU seconds; wanted: {RERUN_SECONDS:.0f}")
    return reached <= RERUN_SECONDS, best["whole"]


def change(folder: Path, scenes: int, nothing: dict[str, float]) -> bool:
    """Whether another weight in `splats` costs that stage and `metrics`, and no other."""
    run = evaluate(folder, scenes, f"splats.l1_weight={random.random()}")  # none that the store of an earlier call knows
    done = computed(run["record"])
    print(f"\n{scenes} scenes, splats.l1_weight changed\n{'stage':<12}{'computed':>9}{'seconds':>9}")
    for stage, seconds in done.items():
        print(f"{stage:<12}{len(seconds):9d}{sum(seconds):9.1f}")
    own = sum(sum(seconds) for seconds in done.values())
    extra = run["whole"]["wall"] - nothing["wall"]
    print(
        f"{extra:.1f} s more than with nothing changed: {own:.1f} s in the stages, the rest for keeping and laying out results"
    )
    print("wanted: splats and metrics of every scene, nothing else")
    return {stage: len(seconds) for stage, seconds in done.items()} == {"splats": scenes, "metrics": scenes}


def trivial(folder: Path, scenes: int) -> bool:
    """Whether tasks that do nothing take little time, and many of them no memory."""
    measured = child("trivial", str(folder / "trivial"), str(scenes))
    rows, stages = np.array(measured["rows"]), 7
    spent = beyond(measured["after"], measured["before"])
    print(f"\n{scenes} scenes through {stages} stages that do nothing, one thread")
    print(f"{'scenes':>11}{'wall/task (ms)':>16}{'CPU/task (ms)':>15}{'memory (MiB)':>14}")
    blocks = np.array_split(np.arange(len(rows)), max(1, scenes // 50))
    for block in blocks:
        wall, cpu = per_task(rows, block)
        print(f"{block[0]:5d}–{block[-1]:<5d}{wall:16.1f}{cpu:15.1f}{rows[block[-1], 2]:14.0f}")
    tasks = stages * scenes
    print(
        f"all: {1e3 * spent['wall'] / tasks:.1f} ms on the wall, {1e3 * spent['cpu'] / tasks:.1f} ms of CPU per task; ", end=""
    )
    print(f"the server {1e3 * spent['server'] / tasks:.1f} ms beside it; wanted: {1e3 * TASK_SECONDS:.0f} ms of CPU")
    quick = spent["cpu"] / tasks <= TASK_SECONDS
    return quick and steady(rows, scenes)


def per_task(rows: np.ndarray, block: np.ndarray) -> tuple[float, float]:
    """Milliseconds on the wall and of CPU of a task among these scenes."""
    wall, cpu, _ = 1e3 * (rows[block[-1]] - rows[block[0]]) / (7 * max(1, len(block) - 1))
    return wall, cpu


def steady(rows: np.ndarray, scenes: int) -> bool:
    """Whether memory and time per task stay what they were in the first 100 scenes."""
    if scenes < 300:
        print("too few scenes to tell whether memory is flat")
        return True
    memory = rows[:, 2]
    growth, slope = memory[-1] / memory[99] - 1, np.polyfit(np.arange(100, scenes), memory[100:], 1)[0]
    (_, first), (_, last) = per_task(rows, np.arange(100)), per_task(rows, np.arange(scenes - 100, scenes))
    print(
        f"memory: {memory[0]:.0f} MiB at the first scene, {memory[99]:.0f} at the 100th, {memory[-1]:.0f} at the last; ", end=""
    )
    print(f"{growth:+.1%} after the 100th, {1024 * slope:.0f} KiB per scene; wanted: less than {GROWTH:.0%}")
    print(
        f"CPU per task: {first:.1f} ms in the first 100 scenes, {last:.1f} in the last; wanted: at most {STEADY} times as much"
    )
    return growth < GROWTH and last <= STEADY * first


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=20, help="0: leave these out")
    parser.add_argument("--trivial", type=int, default=500, help="0: leave these out")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to keep store and results; default: a temporary folder")
    options = parser.parse_args()
    reached = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.scenes:
            print_row("the run that computes everything", evaluate(folder, options.scenes)["whole"])
            quick, nothing = rerun(folder, options.scenes, options.repeats)
            reached += [quick, change(folder, options.scenes, nothing)]
        if options.trivial:
            reached.append(trivial(Path(temporary), options.trivial))
    return int(not all(reached))


if __name__ == "__main__":
    sys.exit(main())
