"""The training loop: accelerate for processes, devices and precision, EMA weights, checkpoints that resume exactly.

All randomness of a sample is derived from the seed, the update and the sample's number in it (`schedule`), so a resumed run
draws the same samples and noise as an uninterrupted one, and several processes together the same as one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel

from reconx_core.errors import UserError
from reconx_core.training.batches import Batch, Reads, reads_of
from reconx_core.training.checkpoints import resume, save
from reconx_core.training.loader import Batches, load_batches
from reconx_core.training.objective import Objective, choose_parameters, freeze_unreached, frozen_components
from reconx_core.training.processes import join_processes
from reconx_core.training.schedule import Schedule, make_schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.diffusion.pipeline import ReconXPipeline

NO_CLIP = "There is no clip to train on; name scenes with true cameras under 'data'."


@dataclass(frozen=True)
class EpochClips:
    """The clips to train on."""

    count: int  # of every epoch, as they are drawn: some may be missing of an epoch's
    of_epoch: Callable[[int], Sequence[Callable[[], Clip]]]  # their loaders; with several processes, all call it together


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


class Log(Protocol):
    """Is told how a run gets on."""

    def step(self, number: int, loss: float) -> None:
        """The loss of every optimiser update."""

    def sample(self, number: int, objective: Objective) -> None:
        """The networks in their EMA weights after every ``sample_every`` updates, and at the end."""


def train(
    pipeline: ReconXPipeline,
    clips: EpochClips,
    settings: TrainSettings,
    out: Path,
    log: Log | None = None,
) -> ReconXPipeline:
    """Train the pipeline's networks, resuming from a checkpoint in ``out`` if there is one; returns it with EMA weights.

    ``log`` is told of progress; on the main process only, if there are several.

    Raises:
        UserError: no clips, or the checkpoint belongs to other settings.
    """
    if not clips.count:
        raise UserError(NO_CLIP)
    run = start(pipeline, settings)
    first = resume(run.accelerator, settings, out)
    schedule = make_schedule(settings, clips.count, run.accelerator.num_processes, run.accelerator.process_index)
    for step, batches in updates(clips, schedule, settings, reads_of(pipeline, settings), first):
        loss = training_step(run, batches, settings)
        done = step + 1
        if log is not None:
            log.step(step, loss)
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            save(run.accelerator, settings, out, done)
        if log is not None and (done % settings.sample_every == 0 or done == settings.steps):
            with_ema_weights(run, lambda log=log, done=done: log.sample(done, run.objective))  # type: ignore[misc]
    if run.ema is not None:
        run.ema.copy_to(run.parameters)
    return pipeline


def updates(
    clips: EpochClips, schedule: Schedule, settings: TrainSettings, reads: Reads, first: int
) -> Iterator[tuple[int, Iterator[Batch]]]:
    """The number of every update from ``first`` on, and the iterator that gives its batches next.

    Raises:
        UserError: none of an epoch's clips could be made.
    """
    epochs = schedule.epochs(first, settings.steps) if settings.new_clips else [(0, range(first, settings.steps))]
    for epoch, numbers in epochs:
        loaders = clips.of_epoch(epoch)
        if not loaders:
            raise UserError(NO_CLIP)
        batches = load_batches(Batches(loaders, schedule, settings, reads), numbers)
        yield from ((number, batches) for number in numbers)


def start(pipeline: ReconXPipeline, settings: TrainSettings) -> Run:
    """Networks, optimiser, learning rate schedule and EMA, on their device."""
    join_processes()
    accelerator = Accelerator(mixed_precision=precision(settings))
    objective = Objective(pipeline, settings)
    for frozen in frozen_components(pipeline):
        frozen.to(accelerator.device)
    if settings.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    parameters = choose_parameters(objective, settings.phase)
    freeze_unreached(pipeline)  # after the choice: earlier checkpoints hold all that were chosen
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
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    share = min((step - settings.warmup) / max(settings.steps - settings.warmup, 1), 1.0)
    return 0.01 + 0.99 * (1 + math.cos(math.pi * share)) / 2 if settings.decay else 1.0


def training_step(run: Run, batches: Iterator[Batch], settings: TrainSettings) -> float:
    """One optimiser update, on the mean gradient of the next ``accumulate`` batches; returns the mean loss of all processes."""
    losses = []
    for part in range(settings.accumulate):
        batch = next(batches).to(run.accelerator.device)
        with gradients_stay(run) if part + 1 < settings.accumulate else nullcontext():
            loss = run.wrapped(batch)
            run.accelerator.backward(loss / settings.accumulate)
        losses.append(loss.detach())
    run.accelerator.clip_grad_norm_(run.parameters, settings.gradient_clip)
    run.optimiser.step()
    run.optimiser.zero_grad(set_to_none=True)
    run.lr_scheduler.step()
    if run.ema is not None:
        run.ema.step(run.parameters)
    mean: Any = run.accelerator.reduce(torch.stack(losses).mean(), "mean")
    return mean.item()


def gradients_stay(run: Run) -> AbstractContextManager[Any]:
    """Backward passes within only add to this process's gradients; the next one after it is shared among the processes."""
    return run.accelerator.no_sync(run.wrapped)


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
