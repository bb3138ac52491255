"""Reads and prepares batches ahead, in processes of their own; the same batches for any number of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.utils.data import DataLoader, Dataset

from reconx_core.training.batches import Batch, Prepared, Reads, draw_batch, prepared_clips
from reconx_core.training.schedule import Schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip


@dataclass
class Batches(Dataset[Batch]):
    """The batches of this process by (update, part of the update)."""

    clips: Sequence[Callable[[], Clip]]
    schedule: Schedule
    settings: TrainSettings
    reads: Reads

    @cached_property  # in the loader's process, where the clips are cached
    def prepared(self) -> list[Callable[[], Prepared]]:
        return prepared_clips(self.clips, self.reads, self.settings.clip_cache)

    def __getitem__(self, place: tuple[int, int]) -> Batch:
        return draw_batch(self.prepared, self.schedule, *place, self.settings, self.reads)


def load_batches(batches: Batches, updates: range) -> Iterator[Batch]:
    """The batches of these updates, in order."""
    workers, parts = batches.settings.loader_workers, batches.schedule.accumulate
    places = [(update, part) for update in updates for part in range(parts)]
    loader = DataLoader(
        batches, batch_size=None, sampler=places, num_workers=workers, pin_memory=torch.cuda.is_available(),
        multiprocessing_context="spawn" if workers else None,  # the kernels do not run in forked processes
    )  # fmt: skip
    return iter(loader)
