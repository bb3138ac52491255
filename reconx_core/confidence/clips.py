"""Which frames belong together: those between two photos, with these."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from reconx_core.types import Frames


class Clip(NamedTuple):
    photos: Int[Tensor, " p"]  # ascending; two, or all where it is not known which frame lies between which
    frames: Int[Tensor, " k"]  # in their order

    @property
    def members(self) -> Int[Tensor, " n"]:
        """The photos, then the frames."""
        return torch.cat([self.photos, self.frames])


def clips_of(frames: Frames) -> list[Clip]:
    """The clips in the order of their first frame; every generated frame is in one of them."""
    generated = (~frames.is_photo).nonzero()[:, 0]
    if frames.pair is None:
        return [Clip(frames.is_photo.nonzero()[:, 0], generated)] if len(generated) else []
    between: dict[tuple[int, int], list[int]] = {}
    for frame, (first, second) in zip(generated.tolist(), frames.pair[generated].tolist()):
        between.setdefault((min(first, second), max(first, second)), []).append(frame)
    return [Clip(torch.tensor(pair), torch.tensor(members)) for pair, members in between.items()]
