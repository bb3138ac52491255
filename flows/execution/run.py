"""Runs the stages over scenes: settings, store lock, Prefect server, progress display, then the flow."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from flows.execution.ending import stop_at_once, take_back_signals
from flows.execution.hooks import NO_HOOKS, Hooks
from flows.execution.prefect_server import prefect_server
from flows.execution.workers import ONE_THREAD, Workers, require_scheduler
from reconx_core.errors import UserError, pip_install
from reconx_core.io.files import require_writable
from reconx_core.settings import STAGES, Settings, load_settings, parse_settings, read_yaml
from reconx_core.weights.choice import resolve_geometry

if TYPE_CHECKING:
    from flows.execution.plan import ScenePlan, SceneRun

PRESETS = Path(__file__).parents[1] / "presets"
PARAMS = Path("params.yaml")


def resolve_settings(preset: str | None, overrides: list[str] | None) -> Settings:
    """Settings of a run: a preset's name or a YAML file (default: ``default``), then ``stage.key=value`` overrides.

    Raises:
        UserError: no such preset, or wrong settings.
    """
    name = preset or "default"
    path = next((p for p in (PRESETS / f"{name}.yaml", Path(name)) if p.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"There is no preset '{name}'; there are {names}, or give the path of a YAML file.")
    return resolve_auto(load_settings(path, overrides))


def resolve_auto(settings: Settings) -> Settings:
    """The settings with the backends that ``auto`` stands for here, so that cache keys and records name them.

    A file of cameras is named by its whole path, for workers that were started elsewhere.
    """
    file, condition = settings.condition.path_file, settings.condition
    if file is not None and file.is_file():
        condition = condition.model_copy(update={"path": str(file.absolute())})
    return settings.model_copy(update={"pointcloud": resolve_geometry(settings.pointcloud), "condition": condition})


def load_params(overrides: list[str] | None = None, path: Path = PARAMS) -> tuple[str, Settings]:
    """The dataset and the settings in ``params.yaml``, as `dvc repro` uses them.

    Raises:
        UserError: no such file, or wrong settings.
    """
    try:
        params = read_yaml(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read {path} in this folder ({error}); name a dataset or go to the project's folder.") from None
    dataset = params.pop("dataset", None) if isinstance(params, dict) else None
    if not dataset:
        raise UserError(f"{path} should say 'dataset: ...', a folder or 'procedural:room'.")
    return str(dataset), resolve_auto(parse_settings(params, overrides))


def default_store() -> Path:
    """``RECONX_STORE``, else the user's cache folder; where there is no home that can be written to, ``./store``."""
    if os.environ.get("RECONX_STORE"):
        return Path(os.environ["RECONX_STORE"])
    home = os.environ.get("HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{home}/.cache" if home else None)
    if cache is None or not _can_be_made(Path(cache) / "reconx" / "store"):
        return Path("store")
    return Path(cache) / "reconx" / "store"


def _can_be_made(folder: Path) -> bool:
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return os.access(existing, os.W_OK)


def look_up(make_plans: Callable[[], list[ScenePlan]]) -> Callable[[], list[ScenePlan]]:
    """``make_plans`` called now, before anything heavy is loaded; its warnings come when the plans are asked for."""
    with warnings.catch_warnings(record=True) as noticed:
        warnings.simplefilter("always")
        plans = make_plans()

    def give() -> list[ScenePlan]:
        for notice in noticed:
            warnings.warn_explicit(notice.message, notice.category, notice.filename, notice.lineno)
        return plans

    return give


def run_stages(
    make_plans: Callable[[], list[ScenePlan]], root: Path, console: Console, stages: tuple[str, ...] = STAGES,
    workers: Workers = ONE_THREAD, quiet: bool = False, hooks: Hooks = NO_HOOKS,
) -> list[SceneRun]:  # fmt: skip
    """Run the ``stages``; returns what came of every plan, failures included. ``quiet``: without a line for each.

    Raises:
        UserError: the store cannot be written to, no scenes, weights are missing, or Prefect's server or Dask's workers
            cannot be used.
    """
    if workers.dask is not None:
        require_dask()
        require_scheduler(workers.dask)
    require_writable(root)
    with stop_at_once(console), prefect_server(root) as wait_for_server:
        take_back_signals()
        # Heavy: torch and Prefect load while the server starts.
        from flows.execution.flow import run_scenes
        from flows.execution.progress import Display
        from reconx_core.cache import store
        from reconx_core.cache.lock import in_use
        from tasks.execute import is_own_warning, load_stages, require_cameras, require_weights, route_warnings

        with ExitStack() as stack:
            with warnings.catch_warnings(record=True) as noticed:
                stack.enter_context(in_use(root))
                store.clear_abandoned(root)
                load_stages(stages)
                plans = make_plans()
                stages_of_all = _with_rounds(stages, plans)
            if workers.dask is None:  # else it is the workers that have them
                for settings in distinct_files(plans):
                    require_weights(stages, settings)
                    require_cameras(stages, settings)
            hooks.on_start(plans)
            display = Display(console, root, len(plans), quiet)
            for notice in noticed:
                if is_own_warning(notice.category, notice.filename):
                    display.say(str(notice.message))
            with display.live(), warnings.catch_warnings():
                route_warnings(display.say)
                wait_for_server()
                if workers.dask is None:
                    return run_scenes(plans, root, display, stages, workers, None, hooks)
                from flows.execution.dask_cluster import open_cluster

                with open_cluster(workers, root, display, stages_of_all) as cluster:
                    return run_scenes(plans, root, display, stages, workers, cluster, hooks)


def _with_rounds(stages: tuple[str, ...], plans: Iterable[ScenePlan]) -> tuple[str, ...]:
    """With the stage that only runs in rounds have, loaded like the others."""
    from tasks.execute import load_stages
    from tasks.graph import stages_of

    found = tuple(dict.fromkeys(stage for plan in plans for stage in stages_of(plan.settings, stages)))
    load_stages(stage for stage in found if stage not in stages)
    return (*stages, *(stage for stage in found if stage not in stages))


def distinct_files(plans: Iterable[ScenePlan]) -> Iterable[Settings]:
    """The plans' settings, once for all that ask for the same networks and cameras."""

    def asked(settings: Settings) -> str:
        return "".join(part.model_dump_json() for part in (settings.pointcloud, settings.video, settings.condition))

    return {asked(plan.settings): plan.settings for plan in plans}.values()


def require_dask() -> None:
    """Raise UserError where Dask is not installed."""
    if importlib.util.find_spec("prefect_dask") is None:
        raise UserError(f"--dask needs prefect-dask, which is not installed; install it by: {pip_install('dask')}")
