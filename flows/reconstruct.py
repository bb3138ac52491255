"""`reconx reconstruct`: one scene, and what its maker wants to have of it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from rich.console import Console

from flows.run import fail_like, run_stages
from reconx_core.errors import UserError
from reconx_core.files import require_writable, write_atomic
from reconx_core.settings import Settings

if TYPE_CHECKING:
    from flows.pipeline import SceneRun


def reconstruct(source: str, out: Path, settings: Settings, root: Path, console: Console) -> None:
    """Run all stages on ``source`` and write scene, clip, cameras, report and settings into ``out``.

    Raises:
        UserError: nothing usable at ``source``, or ``out`` or the store cannot be written to.
    """
    start = time.monotonic()
    if not source.startswith("procedural:") and not Path(source).exists():
        raise UserError(f"There is no '{source}'; give a folder of photos, a video or a dataset.")
    require_writable(out)
    (scene,) = run_stages([(scene_name(source), source)], settings, root, console)
    if scene.error is not None:
        fail_like(scene.error)
    write_results(scene, settings, root, out)
    console.print(f"Made in {time.monotonic() - start:.0f} s: {out}/scene.ply, video.mp4")


def scene_name(source: str) -> str:
    """The name that seeds a scene's random generators and heads its report."""
    return source if source.startswith("procedural:") else Path(source).resolve().stem


def write_results(scene: SceneRun, settings: Settings, root: Path, out: Path) -> None:
    """Everything of one scene that a person takes along."""
    folder = scene.references["metrics"].folder(root)
    shutil.copyfile(folder / "video.mp4", out / "video.mp4")
    write_atomic(out / "settings.yaml", yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False).encode())
