"""`reconx reconstruct`: one scene, and what its maker wants to have of it."""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.execution.hooks import Hooks
from flows.execution.plan import ScenePlan, place_of
from flows.execution.run import run_stages
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable
from reconx_core.names import abbreviate
from reconx_core.settings import Settings

if TYPE_CHECKING:
    from flows.execution.sources import Digests


def reconstruct(source: str, out: Path, settings: Settings, root: Path, console: Console) -> None:
    """Run all stages on ``source`` and write scene, clip, cameras, report and settings into ``out``.

    Raises:
        UserError: nothing usable at ``source``, or ``out`` or the store cannot be written to.
    """
    start, started = time.monotonic(), time.time()
    if not source.startswith("procedural:") and not Path(source).exists():
        raise UserError(f"There is no '{source}'; give a folder of photos, a video or a dataset.")
    require_writable(out)
    console.print(f"Reconstructing {source} (geometry by {settings.pointcloud.backend})", soft_wrap=True, markup=False)

    def on_start(plans: list[ScenePlan]) -> None:
        from flows.runs.request import record_request

        record_request(plans, started, source, out, root)

    def on_sources(read: Digests) -> None:
        from flows.runs.request import record_sources

        record_sources(out, read)

    hooks = Hooks(on_start, on_sources)
    (run,) = run_stages(lambda: [ScenePlan(*find_scene(source), settings)], root, console, hooks=hooks)
    if run.error is not None:
        raise run.error

    from flows.evaluation import score_tables as tables
    from flows.execution.notes import notes
    from flows.runs import results
    from flows.runs.registry import register_end

    with notes(console):
        scene = results.lay_scene(run, root, out)
    record = results.write_run(out, run.name, [run], [scene], root, settings, {"started": started})
    register_end(root, out, run.references.values())
    tables.print_made(console, record, out, time.monotonic() - start)


def find_scene(source: str) -> tuple[str, str]:
    """Name and place of the one scene at ``source``.

    Raises:
        UserError: none or several.
    """
    from reconx_core.datasets import detect, scene_names

    path = Path(source)
    if path.is_dir() and not any(path.iterdir()):
        detect(path)
    scenes = [(name, place_of(scene)) for name, scene in scene_names(path)]
    if len(scenes) > 1:
        names = abbreviate([name for name, _ in scenes])
        raise UserError(f"'{source}' holds {len(scenes)} scenes ({names}); name one of them, or run: reconx evaluate {source}")
    if path.is_dir() and path.absolute() / scenes[0][0] == Path(scenes[0][1]):
        warnings.warn(f"The one scene in '{source}' is its folder {scenes[0][0]}, which is used.", stacklevel=1)
    return scenes[0]
