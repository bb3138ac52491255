"""Runs the stages over scenes, with everything around them: store, server, display. Heavy imports happen inside."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from flows.server import prefect_server, wait_for_server
from reconx_core.errors import UserError
from reconx_core.files import require_writable
from reconx_core.settings import STAGES, Settings, load_settings

if TYPE_CHECKING:
    from flows.pipeline import SceneRun

PRESETS = Path(__file__).with_name("presets")


def resolve_settings(preset: str | None, overrides: list[str] | None, base: Path | None = None) -> Settings:
    """Settings of a run: a preset's name or a YAML file, then ``stage.key=value`` overrides.

    Raises:
        UserError: no such preset, or wrong settings.
    """
    if preset is None:
        path = base or PRESETS / "default.yaml"
    else:
        path = next((p for p in (PRESETS / f"{preset}.yaml", Path(preset)) if p.is_file()), None)  # type: ignore[assignment]
    if path is None:
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"There is no preset '{preset}'; there are {names}, or give a path to a YAML file.")
    return load_settings(path, overrides)


def default_store() -> Path:
    """``RECONX_STORE``, else the user's cache folder; where there is no home that can be written to, ``./store``."""
    if os.environ.get("RECONX_STORE"):
        return Path(os.environ["RECONX_STORE"])
    cache = os.environ.get("XDG_CACHE_HOME") or (f"{os.environ['HOME']}/.cache" if os.environ.get("HOME") else "")
    folder = Path(cache) / "reconx" / "store"
    return folder if cache and _can_be_made(folder) else Path("store")


def _can_be_made(folder: Path) -> bool:
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return os.access(existing, os.W_OK)


def run_stages(
    scenes: list[tuple[str, str]], settings: Settings, root: Path, console: Console, last: str = "metrics", workers: int = 1
) -> list[SceneRun]:
    """Run the stages up to ``last`` over (name, source) pairs; failures are inside what is returned.

    Raises:
        UserError: the store cannot be written to, or Prefect's server does not answer.
    """
    require_writable(root)
    with prefect_server(root):
        from flows.pipeline import run_scenes
        from flows.progress import Display
        from reconx_core import store

        store.clear_abandoned(root)
        display = Display(console, root, STAGES[: STAGES.index(last) + 1], [name for name, _ in scenes])
        with display.live(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_: console.print(f"  [yellow]{message}[/yellow]", highlight=False)
            wait_for_server()
            return run_scenes(scenes, settings, root, display, last, workers)


def fail_like(error: BaseException) -> None:
    """Raise what ended the only scene of a run: a UserError as it is, anything else with its traceback."""
    if not isinstance(error, UserError):
        print("This is a defect of reconx; please report it with the traceback below.", file=sys.stderr)
    raise error
