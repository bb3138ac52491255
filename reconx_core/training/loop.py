"""The training loop: accelerate for devices and precision, averaged weights, checkpoints that resume exactly.

Everything random of step k comes from (seed, k), so a run that goes on from a checkpoint sees what it would have seen.
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
from reconx_core.training.objective import Objective, choose_parameters
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.diffusion.pipeline import ReconXPipeline

LAST = "last"  # folder of the newest checkpoint
PROGRESS = "progress.json"


@dataclass
class Run:
    """What a training run holds beside its settings."""

    objective: Objective
    accelerator: Accelerator
    wrapped: torch.nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: EMAModel | None
    parameters: list[torch.nn.Parameter]


def train(
    pipeline: ReconXPipeline,
    clips: Sequence[Callable[[], Clip]],
    settings: TrainSettings,
    out: Path,
    on_step: Callable[[int, float], None],
    on_sample: Callable[[int, ReconXPipeline], None],
) -> ReconXPipeline:
    """Train the pipeline's networks, from the newest checkpoint in ``out`` where there is one; returns it, averaged.

    ``clips`` load one clip each. ``on_step`` is told every step's number and loss, ``on_sample`` gets the pipeline with
    its averaged weights every ``sample_every`` steps and at the end.

    Raises:
        UserError: no clips, or the checkpoint belongs to other settings.
    """
    if not clips:
        raise UserError("There is no clip to train on; name scenes with true cameras under 'data'.")
    run = start(pipeline, settings)
    first = resume(run, settings, out)
    ready = prepared_clips(clips, settings.points, pipeline.config.sources > 0, run.accelerator.device, settings.kept_clips)
    for step in range(first, settings.steps):
        loss = advance(run, ready, settings, step)
        on_step(step, loss)
        done = step + 1
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save(run, settings, out, done)
        if done % settings.sample_every == 0 or done == settings.steps:
            with_average(run, lambda done=done: on_sample(done, pipeline))  # type: ignore[misc]
    if run.average is not None:
        run.average.copy_to(run.parameters)
    return pipeline


def start(pipeline: ReconXPipeline, settings: TrainSettings) -> Run:
    """Everything on its device, nothing learned yet."""
    accelerator = Accelerator(mixed_precision=precision(settings), gradient_accumulation_steps=settings.accumulate)
    objective = Objective(pipeline, settings)
    pipeline.vae.to(accelerator.device)
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    parameters = choose_parameters(objective, settings.phase)
    optimiser = torch.optim.AdamW(parameters, settings.learning_rate, weight_decay=settings.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: pace(step, settings))
    average = EMAModel(parameters, decay=settings.ema, use_ema_warmup=True, power=3 / 4, foreach=True) if settings.ema else None
    objective.train()
    wrapped, prepared = accelerator.prepare(objective, optimiser)
    if average is not None:
        average.to(accelerator.device)
        accelerator.register_for_checkpointing(average)
    accelerator.register_for_checkpointing(schedule)
    return Run(objective, accelerator, wrapped, prepared, schedule, average, parameters)


def precision(settings: TrainSettings) -> str:
    """What accelerate is told: on a CPU half precision is slower, not faster."""
    return ("bf16" if torch.cuda.is_available() else "no") if settings.precision == "auto" else settings.precision


def pace(step: int, settings: TrainSettings) -> float:
    """The learning rate's factor: a linear rise, then constant or half a cosine down to a hundredth."""
    updates, warmup = settings.steps / settings.accumulate, settings.warmup / settings.accumulate
    if step < warmup:
        return (step + 1) / warmup
    share = min((step - warmup) / max(updates - warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2 if settings.decay else 1.0


def advance(run: Run, clips: Sequence[Callable[[], Prepared]], settings: TrainSettings, step: int) -> float:
    """One step; its loss."""
    draw = generator(settings.seed, "train", str(step), str(run.accelerator.process_index))
    batch = draw_batch(clips, settings.batch, settings.frames, settings.crop, settings.vary, draw)
    torch.manual_seed(int(torch.randint(2**31, (), generator=draw)))  # dropout has no generator of its own
    with run.accelerator.accumulate(run.wrapped):
        loss = run.wrapped(batch, draw)
        run.accelerator.backward(loss)
        if run.accelerator.sync_gradients:
            run.accelerator.clip_grad_norm_(run.parameters, settings.gradient_clip)
        run.optimiser.step()
        run.optimiser.zero_grad(set_to_none=True)
        if run.accelerator.sync_gradients:
            run.schedule.step()
            if run.average is not None:
                run.average.step(run.parameters)
    return loss.item()


def with_average(run: Run, work: Callable[[], None]) -> None:
    """Do something with the averaged weights in place, in evaluation mode."""
    if run.average is not None:
        run.average.store(run.parameters)
        run.average.copy_to(run.parameters)
    run.objective.eval()
    try:
        work()
    finally:
        run.objective.train()
        if run.average is not None:
            run.average.restore(run.parameters)


def save(run: Run, settings: TrainSettings, out: Path, done: int) -> None:
    """Write the checkpoint beside the old one, then put it in its place."""
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
    """Load the newest whole checkpoint; the number of steps that are done.

    Raises:
        UserError: it was made with other settings.
    """
    found = next((out / name for name in (LAST, "old") if (out / name / PROGRESS).is_file()), None)
    if found is None:
        return 0
    progress = json.loads((found / PROGRESS).read_text())
    ours, theirs = settings.model_dump(mode="json"), progress["settings"]
    changed = [
        key
        for key in ours
        if key not in ("steps", "checkpoint_every", "sample_every", "validation") and ours[key] != theirs.get(key)
    ]
    if changed:
        raise UserError(
            f"The checkpoint in {out} was made with other settings ({', '.join(changed)}); use them, or another folder with -o."
        )
    run.accelerator.load_state(str(found))
    return int(progress["done"])
