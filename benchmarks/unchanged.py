"""What a run that changes nothing reads of the store, and what our own code takes for a scene, beside hashing everything.

One scene is computed; its artifacts are published for many scenes, whose photos are copies of its own. Then each pass, in a
process of its own, looks up the seven stages of every scene as a run does: its source's digest, the keys, the artifacts as
Prefect's records ask for them, and what was measured. Prefect itself is left out (`benchmarks.overhead` has it).

    python -m benchmarks.unchanged PHOTOS [--scenes 500]        PHOTOS: a folder of a few real photos
"""

from __future__ import annotations

import argparse
import importlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from reconx_core.cache import digests, store
from reconx_core.settings import STAGES, Settings, parse_settings
from tasks.execute import PARENTS, Job, Monitor, code_of, execute, key_of, load_stages, source_digest

SHARE, MILLISECONDS = 0.01, 20.0  # wanted: bytes read of those in the store, and time a scene
QUICK = (
    "pointcloud.planes=16", "pointcloud.stereo_size=96", "pointcloud.rounds=1", "pointcloud.iterations=1", "video.steps=1",
    "views.size=256", "confidence.enabled=false", "splats.steps=1", "splats.lpips_weight=0", "metrics.video_frames=4",
)  # fmt: skip


def bytes_read() -> int:
    """Of files by this process until now, whether the disk had to be asked or not."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def size_of(root: Path) -> int:
    folders = (root / stage / key for stage, key in store.entries(root))
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def each_scene(
    root: Path,
    scenes: Iterable[Path],
    settings: Settings,
    look_up: Callable[[Job, dict[str, store.Reference]], store.Reference],
) -> None:
    """Take every scene through the stages."""
    for scene in scenes:
        digest, references = source_digest(str(scene), root), dict[str, store.Reference]()
        for stage in STAGES:
            own = "" if PARENTS[stage] else digest
            job = Job(stage, scene.name, str(scene), own, settings, root, Monitor(), code=code_of(stage))
            references[stage] = look_up(job, {parent: references[parent] for parent in PARENTS[stage]})


def fill(root: Path, data: Path, sample: Path) -> None:
    """Publish the one computed scene's artifacts for every scene."""
    for stage in STAGES:
        (folder,) = (sample / stage).iterdir()
        inside = [p for p in folder.rglob("*") if p.is_file() and p.name not in (store.MANIFEST, store.MEASURED, store.RECORD)]
        writers = {p.relative_to(folder).as_posix(): lambda to, p=p: shutil.copyfile(p, to) for p in inside}
        importlib.import_module(f"tasks.{stage}").run = lambda job, read, writers=writers: writers
    each_scene(root, sorted(data.iterdir()), Settings(), lambda job, parents: execute(job, parents)[0])


def look_up_all(root: Path, data: Path, verify: bool) -> dict[str, float]:
    """What looking everything up took: seconds, and bytes that were read."""
    load_stages(STAGES)
    digests.verify_from(time.time() if verify else 0.0)

    def look_up(job: Job, parents: dict[str, store.Reference]) -> store.Reference:
        found = store.find(root, job.stage, key_of(job, parents))
        assert found is not None, f"{job.stage} of {job.scene} was not found"
        key_of(job, parents)  # as the task does when it reports
        store.measured(root, found)
        return found

    begin, busy, before = time.perf_counter(), time.process_time(), bytes_read()
    each_scene(root, sorted(data.iterdir()), Settings(), look_up)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
    return {"seconds": seconds, "cpu": cpu, "read": bytes_read() - before}


def measure(root: Path, data: Path, verify: bool) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.unchanged", str(root), "--data", str(data), *(["--verify"] if verify else [])]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def report(name: str, measured: dict[str, float], scenes: int, whole: int) -> dict[str, Any]:
    share, each, cpu = measured["read"] / whole, 1e3 * measured["seconds"] / scenes, 1e3 * measured["cpu"] / scenes
    print(f"{name:<36}{measured['read'] / 2**20:14.1f}{share:12.2%}{each:14.1f}{cpu:14.1f}", flush=True)
    return {"share": share, "each": min(each, cpu)}  # others on the machine lengthen what is on the wall


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; default: a temporary folder")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--verify", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data:  # one pass over the store that `photos` names
        print(json.dumps(look_up_all(options.photos, options.data, options.verify)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        root, data, sample = (Path(temporary, name) for name in ("store", "data", "sample"))
        quick = parse_settings({"pointcloud": {"backend": "classical"}}, list(QUICK))
        each_scene(sample, [options.photos.absolute()], quick, lambda job, parents: execute(job, parents)[0])
        for i in range(options.scenes):
            shutil.copytree(options.photos, data / f"scene_{i:04d}")
        time.sleep(digests.RACY_SECONDS)
        fill(root, data, sample)
        whole = size_of(root)
        print(f"{options.scenes} scenes, {whole / 2**20:.0f} MiB in the store, {whole / 2**20 / options.scenes:.1f} a scene")
        print(f"{'':<36}{'read (MiB)':>14}{'of store':>12}{'ms a scene':>14}{'of CPU':>14}")
        report("everything hashed (--verify)", measure(root, data, True), options.scenes, whole)
        reached = report("remembered by size, time and inode", measure(root, data, False), options.scenes, whole)
    print(f"wanted: {SHARE:.0%} of the store, {MILLISECONDS:.0f} ms a scene")
    return int(reached["share"] >= SHARE or reached["each"] > MILLISECONDS)


if __name__ == "__main__":
    sys.exit(main())
