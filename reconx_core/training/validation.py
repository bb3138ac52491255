"""The loss on validation clips: the same crops, noise and timesteps every time, so that only the networks make a difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import mean

import torch

from reconx_core.seeds import derive_seed, generator
from reconx_core.training.batches import Prepared, draw_sample, join, reads_of
from reconx_core.training.objective import Objective
from reconx_core.training.settings import TrainSettings

DRAWS = 4  # of noise and timestep per clip


@torch.no_grad()
def validation_loss(objective: Objective, clips: Sequence[Callable[[], Prepared]], settings: TrainSettings) -> float:
    """The mean loss over the clips, each ``DRAWS`` times, without augmentation.

    The objective is in evaluation mode, so that nothing is dropped. A clip with fewer frames or smaller pictures than
    those of a training step is taken as it is.
    """
    losses, reads = [], reads_of(objective.pipeline, settings)
    for number, load in enumerate(clips):
        clip, multiple = load(), objective.pipeline.pixels_per_step
        frames = min(settings.frames, len(clip.pictures))
        sides = [min(side, room // multiple * multiple) for side, room in zip(settings.crop, clip.pictures.shape[-2:])]
        for draw in range(DRAWS):
            names = ("validation", str(number), str(draw))
            sample = draw_sample(clip, frames, (sides[0], sides[1]), False, generator(settings.seed, *names))
            batch = join([sample], [derive_seed(settings.seed, *names)], reads)
            losses.append(objective(batch.to(objective.pipeline.device)).item())
    return mean(losses)
