"""Which samples an optimiser update is made of, on all processes together, and the seeds of everything random in them.

A sample is known by the update and by its index among the update's samples. What is drawn for it depends on these two and on
the run's seed alone: the processes, and the steps over which gradients are accumulated, only share the samples out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch

from reconx_core.seeds import derive_seed, generator
from reconx_core.training.settings import TrainSettings


@dataclass(frozen=True)
class Schedule:
    """The samples of a run, and which of them this process has."""

    seed: int
    clips: int  # of an epoch
    batch: int  # samples of a forward pass
    accumulate: int = 1  # forward passes of an update
    processes: int = 1
    process: int = 0

    @property
    def per_update(self) -> int:
        """Samples of an update."""
        return self.batch * self.accumulate * self.processes

    @property
    def updates_per_epoch(self) -> int:
        """Updates until every clip has been seen."""
        return -(-self.clips // self.per_update)

    def epoch(self, update: int) -> int:
        return update // self.updates_per_epoch

    def epochs(self, first: int, end: int) -> Iterator[tuple[int, range]]:
        """The epochs from update ``first`` on, each with its updates up to ``end``."""
        while first < end:
            epoch = self.epoch(first)
            updates = range(first, min((epoch + 1) * self.updates_per_epoch, end))
            yield epoch, updates
            first = updates.stop

    def indices(self, part: int) -> range:
        """Of the update's samples, those of this process in the ``part``-th forward pass."""
        first = (part * self.processes + self.process) * self.batch
        return range(first, first + self.batch)

    def clip(self, update: int, index: int) -> int:
        """The number of the sample's clip: an epoch goes through all clips in a random order."""
        epoch, place = divmod(update, self.updates_per_epoch)
        return _order(self.seed, epoch, self.clips)[(place * self.per_update + index) % self.clips]

    def draw(self, purpose: str, update: int, index: int) -> int:
        """The seed of what is drawn of a sample for a purpose."""
        return derive_seed(self.seed, purpose, str(update), str(index))


def make_schedule(settings: TrainSettings, clips: int, processes: int, process: int) -> Schedule:
    """The schedule of the process with the number ``process``."""
    return Schedule(settings.seed, clips, settings.batch, settings.accumulate, processes, process)


@lru_cache(maxsize=2)  # an update may come before the end of an epoch, the next after it
def _order(seed: int, epoch: int, clips: int) -> list[int]:
    return torch.randperm(clips, generator=generator(seed, "epoch", str(epoch))).tolist()
