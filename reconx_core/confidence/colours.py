"""The colours of frames against the photos': a map per frame where all of it is shifted, and regions where that is not it.

Both are compared as means over cells of some pixels, which neither sharpness nor a small error of depth changes much.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.confidence.agreement import Expected
from reconx_core.geometry.exposure import STEPS, robust_weights
from reconx_core.geometry.point_renders import OCCLUDER_CONFIDENCE

CELL = 16  # pixels of the compared frames on a cell's side
SEEN_OF_CELL = 0.5  # share of a cell on which the points must be sure
FEWEST_SEEN = 0.2  # share of a frame's cells from which its colours can be judged
STIFF = 1e-3  # variance of colours at which a gain is half believed


class ColourMap(NamedTuple):
    """What turns a frame's colours into the photos': ``gain * colour + offset``, channel by channel."""

    gain: Float[Tensor, " 3"]
    offset: Float[Tensor, " 3"]

    def apply(self, image: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return self.gain * image + self.offset


IDENTITY = ColourMap(torch.ones(3), torch.zeros(3))


class Cells(NamedTuple):
    """Mean colours of a frame and of the photos' points in the cells of a frame."""

    frame: Float[Tensor, "y x 3"]
    points: Float[Tensor, "y x 3"]
    counts: Bool[Tensor, "y x"]  # where enough of the points is seen


def cells_of(beside: Expected) -> list[Cells]:
    """The cells of each frame."""
    sure = (beside.visibility >= OCCLUDER_CONFIDENCE).float()[..., None]
    share = _means(sure)
    frames, points = (_means(images * sure) / share.clamp(min=1e-6) for images in (beside.frames, beside.renders))
    return [Cells(*parts) for parts in zip(frames, points, share[..., 0] >= SEEN_OF_CELL)]


def _means(images: Float[Tensor, "m h w c"]) -> Float[Tensor, "m y x c"]:
    height, width = (max(1, round(side / CELL)) for side in images.shape[1:3])
    return F.adaptive_avg_pool2d(images.movedim(-1, 1), (height, width)).movedim(1, -1)


def enough(cells: Cells) -> bool:
    return float(cells.counts.float().mean()) >= FEWEST_SEEN


def fit_colours(cells: Cells) -> ColourMap:
    """The map from the frame's colours to the photos' that most cells agree on; cells that do not have little say.

    Robust least squares, with gains held near 1 where there is too little contrast to tell them from offsets.
    """
    frame, points = (colours[cells.counts].double() for colours in (cells.frame, cells.points))
    found = ColourMap(*(part.double() for part in IDENTITY))
    for _ in range(STEPS):
        residual = (found.apply(frame) - points).abs().amax(-1)
        found = _least_squares(frame, points, robust_weights(residual))
    return ColourMap(found.gain.float(), found.offset.float())


def _least_squares(frame: Float[Tensor, "k 3"], points: Float[Tensor, "k 3"], weight: Float[Tensor, " k"]) -> ColourMap:
    share = (weight / weight.sum())[:, None]
    middle, wanted = (share * frame).sum(0), (share * points).sum(0)
    together = (share * (frame - middle) * (points - wanted)).sum(0)
    gain = (together + STIFF) / ((share * (frame - middle).square()).sum(0) + STIFF)
    return ColourMap(gain, wanted - gain * middle)


def shift_of(cells: Cells, by: ColourMap) -> float:
    """By how much the map changes the colours of what is seen: mean over the cells, of the channel that changes most."""
    frame = cells.frame[cells.counts]
    return float((by.apply(frame) - frame).abs().mean(0).max())


def apart(cells: Cells, by: ColourMap) -> Float[Tensor, "y x"]:
    """Largest difference of a channel from the photos' colours after the map; 0 where too little is seen."""
    return (by.apply(cells.frame) - cells.points).abs().amax(-1) * cells.counts
