"""A dress rehearsal of a whole dataset: `reconx evaluate` over worker processes, one of which is killed every minute.

    python -m benchmarks.rehearsal [--scenes 7289] [--workers 4] [--side 512] [--kill-every 60] [--seconds 0] [--folder FOLDER]

Everything is real but the stages: stand-ins that take no time of their own (or `--seconds` each) and leave artifacts of the
sizes that the `paper` preset leaves at 512 x 512 pixels (docs/scale.md; noise, which does not compress). `--side 64` needs a
hundredth of the disk. Printed are memory over time and what a task costs beyond the stand-in's own time; the exit code is 1
where a scene, an artifact or a line of `scores.csv` is missing, or the memory of the head is not flat.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import random
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from PIL import Image
from rich.console import Console

from reconx_core.cache import store
from reconx_core.io.images import encode
from reconx_core.io.video import write_mp4
from reconx_core.settings import STAGES, Settings
from reconx_core.types import Cameras, Condition, Frames, Gaussians, PointCloud, Pointmaps, Views, ViewScore
from tasks.execute import Inputs, Job

PHOTOS, FRAMES, GAUSSIANS = 3, 32, 274_000
HEAD_MS = 50
GROWTH = 0.20  # of the head's memory after the first tenth of the scenes
SIDE, SECONDS = "RECONX_REHEARSAL_SIDE", "RECONX_REHEARSAL_SECONDS"


def noise(*shape: int) -> torch.Tensor:
    """Values of 8 bits in [0, 1], as photos have."""
    return torch.from_numpy(np.frombuffer(random.randbytes(int(np.prod(shape))), np.uint8).reshape(shape).copy()).float() / 255


def cameras(count: int, side: int) -> Cameras:
    intrinsics = torch.tensor([[side, 0, side / 2], [0, side, side / 2], [0, 0, 1]]).float()
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 0, 3] = torch.arange(count) / 10
    return Cameras(intrinsics.repeat(count, 1, 1), poses, side, side)


def outputs(stage: str, side: int) -> dict[str, Any]:
    """What a stage leaves of a scene."""
    few, many, pixels = PHOTOS, FRAMES + 2, (side, side)
    points = max(100, GAUSSIANS * side**2 // 512**2)
    if stage == "views":
        is_target, whole = torch.arange(few) == few - 1, torch.ones(few, *pixels, dtype=torch.bool)
        focal, names = torch.full((few,), float("nan")), tuple("abc")
        views = Views(noise(few, *pixels, 3), whole, names, is_target, cameras(few, side), focal, "posed")
        return {"views": views, "split.json": b'{"split": "all"}'}
    if stage == "pointcloud":
        cloud = PointCloud(torch.randn(points, 3), noise(points, 3), torch.ones(points))
        maps = Pointmaps(
            torch.randn(2, side // 2, side // 2, 3), torch.ones(2, side // 2, side // 2), cameras(2, side // 2), cloud
        )
        return {"pointmaps": maps, "pointcloud": cloud, "kept": torch.arange(2)}
    if stage == "condition":
        half = (side // 4, side // 4)
        pair, at = torch.tensor([[0, 1]]).repeat(FRAMES, 1), torch.linspace(0, 1, FRAMES)
        return {
            "condition": Condition(cameras(FRAMES, side // 4), noise(FRAMES, *half, 3), torch.rand(FRAMES, *half), pair, at)
        }
    if stage in ("video", "confidence"):
        confidence = torch.ones(many, *pixels) if stage == "video" else noise(many, *pixels)
        frames = Frames(noise(many, *pixels, 3), cameras(many, side), confidence, torch.arange(many) < 2)
        placed = {
            "cameras": "given",
            "frames": FRAMES,
            "moved": 0,
            "turn": None,
            "shift": None,
            "left_out": None,
            "judged": None,
        }
        return {"frames": frames, "placement.json": json.dumps(placed).encode()}
    if stage == "splats":
        return {"gaussians": Gaussians(*(torch.randn(points, *shape) for shape in ((3,), (4,), (3,), (), (4, 3))))}
    return scores(side)


def scores(side: int) -> dict[str, Any]:
    panel = noise(side, side, 3)
    about = {
        "protocol": "posed", "summary": {"psnr": random.gauss(22, 2), "ssim": 0.7, "gaussians": 1.0}, "size": [side, side],
        "pictures": [{"view": "c", "is_target": True, "refined": False, "panels": ["photo"]}], "left_out": [],
        "frames": {"cameras": "given", "moved": 0, "frames": FRAMES, "judged": None},
    }  # fmt: skip
    return {
        "scores": (ViewScore("c", 22.0, 0.7, None, False, True), ViewScore("a", 25.0, 0.8, None, False, False)),
        "metrics.json": json.dumps(about).encode(),
        "video.mp4": lambda path: write_mp4(path, panel.repeat(4, 1, 1, 1)),
        "pictures/000.jpg": encode(panel, "JPEG", quality=92),
        "panels/000/photo.png": encode(panel, "PNG"),
    }


def run(job: Job, read: Inputs) -> dict[str, Any]:
    """In place of a stage."""
    time.sleep(float(os.environ[SECONDS]))
    # A scene's own, so that what is done again comes out the same.
    random.seed(f"{job.stage} {job.scene}")
    torch.manual_seed(random.getrandbits(60))
    return outputs(job.stage, int(os.environ[SIDE]))


def install() -> None:
    for stage in STAGES:
        importlib.import_module(f"tasks.{stage}").run = run


class Witness:
    """Kills a worker every so often, and writes down the memory of the head and of its workers."""

    def __init__(self, out: Path, kill_every: float) -> None:
        self.out, self.kill_every, self.killed = out, kill_every, 0
        self.rows: list[tuple[float, int, float, float]] = []  # seconds, scenes done, MiB of the head, of the largest worker
        self.done = threading.Event()

    def watch(self) -> None:
        head, start, killed_at = psutil.Process(), time.monotonic(), time.monotonic()
        while not self.done.wait(2.0):
            workers = [child for child in head.children(recursive=True) if is_worker(child)]
            now = time.monotonic()
            if not lines_of(self.out):
                killed_at = now  # a run that has not found its first worker yet is refused
            if workers and self.kill_every and now - killed_at > self.kill_every:
                random.SystemRandom().choice(workers).kill()
                self.killed, killed_at = self.killed + 1, now
            largest = max((memory(worker) for worker in workers), default=0.0)
            self.rows.append((now - start, lines_of(self.out), memory(head), largest))


def is_worker(process: psutil.Process) -> bool:
    try:
        return "--multiprocessing-fork" in process.cmdline()
    except psutil.Error:
        return False


def memory(process: psutil.Process) -> float:
    try:
        return process.memory_info().rss / 2**20
    except psutil.Error:
        return 0.0


def lines_of(out: Path) -> int:
    file = out / "scores.csv"
    return file.read_text().count("\n") - 1 if file.exists() else 0


def write_dataset(folder: Path, scenes: int) -> None:
    for number in range(scenes):
        scene = folder / f"{number:05d}"
        scene.mkdir(parents=True, exist_ok=True)
        for name in "ab":
            Image.new("RGB", (8, 8), (number % 256, number // 256, ord(name))).save(scene / f"{name}.png")


def timed(module: Any, name: str) -> list[float]:
    """CPU seconds of every call of a function from now on, in the thread that calls it."""
    seconds, function = [], getattr(module, name)

    def call(*arguments: Any, **more: Any) -> Any:
        start = time.thread_time()
        result = function(*arguments, **more)
        seconds.append(time.thread_time() - start)
        return result

    setattr(module, name, call)
    return seconds


def rehearse(folder: Path, options: argparse.Namespace) -> tuple[Witness, int, float]:
    """The run, how many scenes failed in it, and its seconds."""
    from flows.evaluate import EvaluationRequest, evaluate
    from flows.execution.workers import Workers
    from flows.runs import growing, results

    laid, files = timed(growing.RunFolder, "lay"), timed(results, "write_scene")
    witness = Witness(folder / "out", options.kill_every)
    thread = threading.Thread(target=witness.watch, daemon=True)
    thread.start()
    request, start = EvaluationRequest(str(folder / "data"), Settings()), time.monotonic()
    crew = Workers(options.workers, "local")
    failed = evaluate(request, folder / "out", folder / "store", Console(width=150), crew)
    seconds = time.monotonic() - start
    witness.done.set()
    thread.join()
    own, beyond = 1e3 * sum(files) / len(laid), 1e3 * (sum(laid) - sum(files)) / len(laid)
    print(f"\nresults of a scene: {own:.0f} ms of CPU for its files, {beyond:.1f} ms beyond; wanted: {HEAD_MS}")
    return witness, failed, seconds


def report(folder: Path, options: argparse.Namespace, witness: Witness, seconds: float) -> bool:
    """Print the tables; whether nothing is lost and memory is flat."""
    print(f"\n{'seconds':>8}{'scenes done':>13}{'head (MiB)':>12}{'largest worker (MiB)':>22}")
    for row in witness.rows[:: max(1, len(witness.rows) // 20)]:
        print(f"{row[0]:8.0f}{row[1]:13d}{row[2]:12.0f}{row[3]:22.0f}")
    root, tasks = folder / "store", options.scenes * len(STAGES)
    made = [json.loads(file.read_text()) for file in root.glob("*/*/measured.json")]
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file()) / 2**20
    work = sum(measured["seconds"] for measured in made)
    overhead = (options.workers * seconds - work) / tasks
    print(f"{options.scenes} scenes, {tasks} tasks, {size / options.scenes:.1f} MiB a scene, {witness.killed} workers killed")
    each = f"a task costs {1e3 * overhead:.0f} ms of a worker beyond it"
    print(f"{seconds:.0f} s; the stand-ins took {work:.0f} s of {options.workers} workers, {each}")
    whole = sum(store.find(root, stage, key) is not None for stage, key in store.entries(root))
    left = len(list((root / ".tmp").iterdir()))
    print(f"artifacts: {whole} of {tasks} whole; lines in scores.csv: {lines_of(folder / 'out')}; left over in .tmp: {left}")
    early = next(row[2] for row in witness.rows if row[1] >= options.scenes // 10)
    growth = max(row[2] for row in witness.rows) / early - 1
    print(f"memory of the head: {early:.0f} MiB after a tenth of the scenes, then {growth:+.1%} at most; wanted: {GROWTH:.0%}")
    return whole == tasks and lines_of(folder / "out") == options.scenes and growth < GROWTH


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=7289)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--side", type=int, default=512, help="pixels; a scene of 512 takes 97 MiB in the store")
    parser.add_argument("--kill-every", type=float, default=60.0, help="seconds; 0: never")
    parser.add_argument("--seconds", type=float, default=0.0, help="that every stage takes besides")
    parser.add_argument("--folder", type=Path, help="where to keep store and results; default: a temporary folder")
    options = parser.parse_args()
    os.environ.update({SIDE: str(options.side), SECONDS: str(options.seconds)})
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        write_dataset(folder / "data", options.scenes)
        witness, failed, seconds = rehearse(folder, options)
        whole = report(folder, options, witness, seconds)
    return int(failed > 0 or not whole)


if __name__ == "__mp_main__":  # a worker
    install()

if __name__ == "__main__":
    sys.exit(main())
