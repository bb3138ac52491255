"""`reconx evaluate`: all scenes of a dataset, one table."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from flows.run import Scenes, run_stages
from reconx_core.errors import UserError
from reconx_core.files import require_writable
from reconx_core.settings import Settings


def evaluate(
    dataset: str, out: Path, settings: Settings, root: Path, console: Console, only: list[str] | None = None, workers: int = 1
) -> int:
    """Run all stages on every scene, write results per scene and for the run; returns how many scenes failed.

    Raises:
        UserError: no such dataset or scene, or ``out`` or the store cannot be written to.
    """
    start = time.monotonic()
    if not dataset.startswith("procedural:") and not Path(dataset).exists():
        raise UserError(f"There is no '{dataset}'; give a folder of scenes, or 'procedural:room'.")
    require_writable(out)
    console.print(f"Evaluating {dataset}")
    runs, taken = run_stages(lambda: find_scenes(dataset, only), settings, root, console, workers=workers)

    from flows import results, tables, tracking
    from flows.roots import remember

    remember(root, out, [reference for run in runs for reference in run.references.values()])
    for run in runs:
        if run.error is None:
            results.write_scene(run, root, out / run.name)
    record = results.write_run(out, Path(out).resolve().name, runs, settings, root, taken)
    tracking.track(record, out, console)
    tables.print_made(console, record, out, time.monotonic() - start)
    return sum(run.error is not None for run in runs)


def find_scenes(dataset: str, only: list[str] | None) -> Scenes:
    """(name, source) of the dataset's scenes, or of those named in ``only``, in its order.

    Raises:
        UserError: no scene is there, or none of that name.
    """
    from reconx_core.datasets import scene_names

    scenes = [(name, str(path)) for name, path in scene_names(Path(dataset))]
    known = [name for name, _ in scenes]
    for name in only or []:
        if name not in known:
            raise UserError(f"'{dataset}' has no scene '{name}'; it has {', '.join(known)}.")
    return [scene for scene in scenes if not only or scene[0] in only]


def next_free(folder: Path, name: str) -> Path:
    """``folder/name-1``, or the next number that is not taken."""
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"
