"""Checkpoints of a training run: written whole or not at all, the newest ones kept, and the newest whole one resumed from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from reconx_core.errors import UserError
from reconx_core.io.files import write_json
from reconx_core.training.settings import TrainSettings, current_names

FOLDER = "checkpoints"  # in the run's; a checkpoint is named by its number of updates
PROGRESS = "progress.json"  # of a checkpoint, which is whole if it has one
EARLIER = ("last", "old")  # where versions before 0.3 kept theirs, the newer one first
# May change when a run is resumed; batch and accumulate as long as updates are of as many clips.
FREE = {
    "steps", "batch", "accumulate", "checkpoint_every", "checkpoints", "sample_every", "sample_steps", "validation",
    "loader_workers", "clip_cache",
}  # fmt: skip


def save(accelerator: Accelerator, settings: TrainSettings, out: Path, updates: int) -> None:
    """Write a checkpoint to a temporary folder, rename it, and only then remove those beyond the newest ``checkpoints``."""
    folder, fresh = out / FOLDER / f"{updates:06d}", out / FOLDER / ".new"
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(fresh), safe_serialization=True)
    accelerator.wait_for_everyone()
    if not accelerator.is_main_process:
        return
    progress = {"updates": updates, "clips_per_update": clips_per_update(settings, accelerator.num_processes)}
    write_json(fresh / PROGRESS, {**progress, "settings": settings.model_dump(mode="json")})
    if folder.exists():  # what is left of a checkpoint that was being removed
        remove(folder)
    fresh.rename(folder)
    for surplus in whole_checkpoints(out)[settings.checkpoints :]:
        remove(surplus)


def remove(folder: Path) -> None:
    """Remove a checkpoint; its progress goes first, so that what a killed process leaves is not taken for a whole one."""
    (folder / PROGRESS).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def whole_checkpoints(out: Path) -> list[Path]:
    """The folders of all whole checkpoints, the newest first."""
    named = sorted((out / FOLDER).glob("[0-9]*"), key=lambda folder: int(folder.name), reverse=True)
    return [folder for folder in [*named, *(out / name for name in EARLIER)] if (folder / PROGRESS).is_file()]


def clips_per_update(settings: TrainSettings, processes: int) -> int:
    return settings.batch * settings.accumulate * processes


def find_checkpoint(settings: TrainSettings, out: Path, processes: int) -> tuple[Path, int] | None:
    """The newest whole checkpoint, if any, and its number of completed updates.

    Raises:
        UserError: it was made with other settings.
    """
    found = next(iter(whole_checkpoints(out)), None)
    if found is None:
        return None
    progress = json.loads((found / PROGRESS).read_text())
    theirs = earlier_settings(progress["settings"])
    ours, saved = (chosen.model_dump(mode="json") for chosen in (settings, theirs))
    changed = [key for key in ours if key not in FREE and ours[key] != saved[key]]
    before, now = progress.get("clips_per_update", theirs.batch * theirs.accumulate), clips_per_update(settings, processes)
    changed += [f"{before} clips per update, here {now}"] if before != now else []
    if changed:
        raise UserError(
            f"The checkpoint in {out} was made with other settings ({', '.join(changed)}); use them, or another folder with -o."
        )
    # Before there was `updates`, the steps over which gradients are accumulated were counted, too.
    return found, int(progress.get("updates", progress.get("done", 0) // theirs.accumulate))


def resume(accelerator: Accelerator, settings: TrainSettings, out: Path) -> int:
    """Load the newest whole checkpoint, if any; returns the number of completed updates.

    Raises:
        UserError: the checkpoint was made with other settings.
    """
    checkpoint = find_checkpoint(settings, out, accelerator.num_processes)
    if checkpoint is None:
        return 0
    accelerator.load_state(str(checkpoint[0]))
    return checkpoint[1]


def earlier_settings(saved: dict[str, Any]) -> TrainSettings:
    """The settings in a checkpoint, which may be older than some; before there was `renders`, models were trained on them."""
    values = {"renders": True, **current_names(saved)}
    return TrainSettings.model_validate({key: value for key, value in values.items() if key in TrainSettings.model_fields})
