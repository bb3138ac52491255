"""The training loop: accelerate for devices and precision, EMA weights, checkpoints that resume exactly.

All randomness of step k is derived from (seed, k), so a resumed run draws the same batches and noise as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from reconx_core.errors import UserError
from reconx_core.io.files import write_json
from reconx_core.seeds import generator
from reconx_core.training.batches import Prepared, draw_batch, prepared_clips
from reconx_core.training.objective import Objective, choose_parameters, frozen_components
from reconx_core.training.settings import TrainSettings, current_names
from reconx_core.types import Clip
from reconx_core.video.diffusion.pipeline import ReconXPipeline

LAST = "last"  # folder of the newest checkpoint
PROGRESS = "progress.json"
FREE = {"steps", "checkpoint_every", "sample_every", "sample_steps", "validation"}  # may change when a run is resumed


@dataclass
class Run:
    """The state of a training run."""

    objective: Objective
    accelerator: Accelerator
    wrapped: torch.nn.Module
    optimiser: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler
    ema: EMAModel | None
    parameters: list[torch.nn.Parameter]


def train(
    pipeline: ReconXPipeline,
    clips: Sequence[Callable[[], Clip]],
    settings: TrainSettings,
    out: Path,
    on_step: Callable[[int, float], None],
    on_sample: Callable[[int, ReconXPipeline], None],
) -> ReconXPipeline:
    """Train the pipeline's networks, resuming from a checkpoint in ``out`` if there is one; returns it with EMA weights.

    Each of ``clips`` loads one clip. ``on_step`` is called with the number and loss of every step, ``on_sample`` with the
    pipeline in its EMA weights every ``sample_every`` steps and at the end.

    Raises:
        UserError: no clips, or the checkpoint belongs to other settings.
    """
    if not clips:
        raise UserError("There is no clip to train on; name scenes with true cameras under 'data'.")
    run = start(pipeline, settings)
    first = resume(run, settings, out)
    ready = prepared_clips(clips, settings.points, pipeline.config.sources > 0, run.accelerator.device, settings.clip_cache)
    for step in range(first, settings.steps):
        loss = training_step(run, ready, settings, step)
        on_step(step, loss)
        done = step + 1
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save(run, settings, out, done)
        if done % settings.sample_every == 0 or done == settings.steps:
            with_ema_weights(run, lambda done=done: on_sample(done, pipeline))  # type: ignore[misc]
    if run.ema is not None:
        run.ema.copy_to(run.parameters)
    return pipeline


def start(pipeline: ReconXPipeline, settings: TrainSettings) -> Run:
    """Networks, optimiser, learning rate schedule and EMA, on their device."""
    accelerator = Accelerator(mixed_precision=precision(settings), gradient_accumulation_steps=settings.accumulate)
    objective = Objective(pipeline, settings)
    for frozen in frozen_components(pipeline):
        frozen.to(accelerator.device)
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    parameters = choose_parameters(objective, settings.phase)
    optimiser = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: lr_lambda(step, settings))
    ema = EMAModel(parameters, decay=settings.ema, use_ema_warmup=True, power=3 / 4, foreach=True) if settings.ema else None
    objective.train()
    wrapped, prepared = accelerator.prepare(objective, optimiser)
    if ema is not None:
        ema.to(accelerator.device)
        accelerator.register_for_checkpointing(ema)
    accelerator.register_for_checkpointing(lr_scheduler)
    return Run(objective, accelerator, wrapped, prepared, lr_scheduler, ema, parameters)


def precision(settings: TrainSettings) -> str:
    """accelerate's ``mixed_precision``; none on a CPU, where half precision is slower."""
    return ("bf16" if torch.cuda.is_available() else "no") if settings.precision == "auto" else settings.precision


def lr_lambda(step: int, settings: TrainSettings) -> float:
    """Factor of the learning rate: linear warm-up, then constant or cosine decay to 0.01."""
    updates, warmup = settings.steps / settings.accumulate, settings.warmup / settings.accumulate
    if step < warmup:
        return (step + 1) / warmup
    share = min((step - warmup) / max(updates - warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2 if settings.decay else 1.0


def training_step(run: Run, clips: Sequence[Callable[[], Prepared]], settings: TrainSettings, step: int) -> float:
    """Run one step (forward, backward, and an optimiser update when gradients are synchronised); returns the loss."""
    draw = generator(settings.seed, "train", str(step), str(run.accelerator.process_index))
    batch = draw_batch(clips, settings.batch, settings.frames, settings.crop, settings.augment, draw)
    torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))  # for dropout, which takes no generator
    with run.accelerator.accumulate(run.wrapped):
        loss = run.wrapped(batch, draw)
        run.accelerator.backward(loss)
        if run.accelerator.sync_gradients:
            run.accelerator.clip_grad_norm_(run.parameters, settings.gradient_clip)
        run.optimiser.step()
        run.optimiser.zero_grad(set_to_none=True)
        if run.accelerator.sync_gradients:
            run.lr_scheduler.step()
            if run.ema is not None:
                run.ema.step(run.parameters)
    return loss.item()


def with_ema_weights(run: Run, work: Callable[[], None]) -> None:
    """Call ``work`` with the EMA weights loaded and the networks in evaluation mode."""
    if run.ema is not None:
        run.ema.store(run.parameters)
        run.ema.copy_to(run.parameters)
    run.objective.eval()
    try:
        work()
    finally:
        run.objective.train()
        if run.ema is not None:
            run.ema.restore(run.parameters)


def save(run: Run, settings: TrainSettings, out: Path, done: int) -> None:
    """Write a checkpoint to a temporary folder, then swap it with the previous one."""
    fresh, last, old = (out / name for name in ("new", LAST, "old"))
    if run.accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    run.accelerator.wait_for_everyone()
    run.accelerator.save_state(str(fresh), safe_serialization=True)
    if not run.accelerator.is_main_process:
        return
    write_json(fresh / PROGRESS, {"done": done, "settings": settings.model_dump(mode="json")})
    shutil.rmtree(old, ignore_errors=True)
    if last.exists():
        last.rename(old)
    fresh.rename(last)
    shutil.rmtree(old, ignore_errors=True)


def resume(run: Run, settings: TrainSettings, out: Path) -> int:
    """Load the newest complete checkpoint, if any; returns the number of completed steps.

    Raises:
        UserError: the checkpoint was made with other settings.
    """
    found = next((out / name for name in (LAST, "old") if (out / name / PROGRESS).is_file()), None)
    if found is None:
        return 0
    progress = json.loads((found / PROGRESS).read_text())
    ours = settings.model_dump(mode="json")
    # A checkpoint may be older than a setting; before there was `renders`, every model was trained on them.
    saved = {"renders": True, **current_names(progress["settings"])}
    known = {key: value for key, value in saved.items() if key in TrainSettings.model_fields}
    theirs = TrainSettings.model_validate(known).model_dump(mode="json")
    changed = [key for key in ours if key not in FREE and ours[key] != theirs[key]]
    if changed:
        raise UserError(
            f"The checkpoint in {out} was made with other settings ({', '.join(changed)}); use them, or another folder with -o."
        )
    run.accelerator.load_state(str(found))
    return int(progress["done"])
