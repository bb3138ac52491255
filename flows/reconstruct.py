"""`reconx reconstruct`: one scene, and what its maker wants to have of it."""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.execution.hooks import Hooks
from flows.execution.plan import REQUEST, ScenePlan, SceneRun, apart_from_store, place_of, require_apart
from flows.execution.run import look_up, run_stages
from flows.runs.alone import alone_in
from reconx_core.errors import UserError
from reconx_core.io.files import as_it_was
from reconx_core.names import abbreviate, one_line
from reconx_core.settings import Settings

if TYPE_CHECKING:
    from flows.execution.sources import Digests


def reconstruct(source: str, out: Path, settings: Settings, root: Path, console: Console) -> None:
    """Run all stages on ``source``, see :func:`source_of`, and write scene, clip, cameras, report and settings into ``out``.

    Where nothing can be computed, ``out`` stays as it was.

    Raises:
        UserError: nothing usable at ``source``, ``out`` or the store cannot be written to, or another run is writing into
            ``out``.
    """
    start, started = time.monotonic(), time.time()
    plans = look_up(lambda: apart_from_store(_plan(source, settings, out), root))
    with alone_in(out), as_it_was(out, (REQUEST,)) as keep:
        from reconx_core.datasets import describe

        geometry = settings.pointcloud.backend
        console.print(f"Reconstructing {one_line(describe(source))} (geometry by {geometry})", soft_wrap=True, markup=False)
        run = _run(source, plans, out, root, console, started)
        if run.references:
            keep()
        if run.error is not None:
            _put_failure(run, out, root)
            raise run.error
        _lay(run, out, settings, root, console, start, started)


def _plan(source: str, settings: Settings, out: Path) -> list[ScenePlan]:
    plans = [ScenePlan(*find_scene(source), settings)]
    require_apart(plans, out, source)
    return plans


def _put_failure(run: SceneRun, out: Path, root: Path) -> None:
    """Put aside what an earlier run left in ``out``, where this one has come far enough to have results of its own."""
    from flows.runs import results
    from flows.runs.earlier import RUN_FILES, put_results_aside

    if run.references:
        with contextlib.suppress(UserError):  # that it cannot be written is not why the run failed
            put_results_aside(out, Path(), RUN_FILES)
            results.lay_scene(run, root, out)


def _lay(run: SceneRun, out: Path, settings: Settings, root: Path, console: Console, start: float, started: float) -> None:
    """The scene's results in ``out``, and what was made told."""
    from flows.evaluation import score_tables as tables
    from flows.execution.notes import notes
    from flows.runs import results
    from flows.runs.earlier import EARLIER, forget_earlier, put_derived_aside
    from flows.runs.registry import end_run

    with notes(console):
        scene = results.lay_scene(run, root, out)
    forget_earlier(out, Path())
    if put_derived_aside(out, Path()):
        told = f"What was rendered and exported of the scene that lay here before is now in {one_line(str(out / EARLIER))}."
        console.print(told, soft_wrap=True, markup=False)
    record = results.write_run(out, run.name, [run], [scene], root, settings, {"started": started})
    end_run(root, out, run.references.values(), lambda note: console.print(note, soft_wrap=True, markup=False))
    tables.print_made(console, record, out, time.monotonic() - start)


def _run(
    source: str, plans: Callable[[], list[ScenePlan]], out: Path, root: Path, console: Console, started: float
) -> SceneRun:
    """The stages of the one scene, on record in ``out``."""

    def on_start(plans: list[ScenePlan]) -> None:
        from flows.runs.request import record_request

        record_request(plans, started, source, out, root)

    def on_sources(read: Digests) -> None:
        from flows.runs.request import record_sources

        record_sources(out, read)

    (run,) = run_stages(plans, root, console, hooks=Hooks(on_start, on_sources))
    return run


def source_of(paths: Sequence[str]) -> str:
    """What the user gave, as the source of a scene: a path, the text of a procedure, or a text for several photo files.

    Raises:
        UserError: nothing is there, it is a single photo, or several paths of which not all are photos.
    """
    from reconx_core.datasets import is_place, picked

    if len(paths) > 1:
        return picked.spec_of(paths)
    (source,) = paths
    if is_place(source) and not Path(source).exists():
        raise UserError(f"There is no '{source}'; {picked.ADVICE}.")
    if Path(source).is_file():
        picked.refuse_single_photo(Path(source))
    return source


def find_scene(source: str) -> tuple[str, str]:
    """Name and place of the one scene at ``source``.

    Raises:
        UserError: none or several, or a folder with a single photo.
    """
    from reconx_core.datasets import detect, is_place, photos, scene_names

    path = Path(source)
    if is_place(source) and path.is_dir() and not any(path.iterdir()):
        detect(path)
    scenes = [(name, place_of(scene)) for name, scene in scene_names(path)]
    if len(scenes) > 1:
        names = abbreviate([name for name, _ in scenes])
        raise UserError(f"'{source}' holds {len(scenes)} scenes ({names}); name one of them, or run: reconx evaluate {source}")
    (scene,) = scenes
    if is_place(source) and path.is_dir() and path.absolute() / scene[0] == Path(scene[1]):
        warnings.warn(f"The one scene in '{source}' is its folder {scene[0]}, which is used.", stacklevel=1)
    if is_place(scene[1]) and detect(Path(scene[1])).name == "photos":
        photos.require_two(Path(scene[1]))
    return scene
