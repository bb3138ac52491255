"""Shared by the video backends: which frames form a clip, at which size, and the points that condition them."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.types import Condition, Pointmaps

POINTS = 8192  # points for the structure encoder, which makes one token of eight points
SURE = 0.35  # confidence above which a point counts as surface
# Confidence of a generated pixel that no photo shows. It is plausible but not measured: more than the minimum confidence in the
# splats stage (0.05), less than that of a surface on which two photos agree (0.4). `wan-vace` regenerates pixels below it.
PLAUSIBLE = 0.2


def network_dtype(name: str) -> torch.dtype:
    """The numbers that ``video.dtype`` names; ``auto`` is bfloat16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return getattr(torch, name)


def structure_points(
    images: Float[Tensor, "n h w 3"], pointmaps: Pointmaps, count: int = POINTS
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, "p 3"]]:
    """``count`` world points, evenly subsampled from the confident pixels, and their colours.

    If there are fewer confident pixels, points are repeated; if there are none, all pixels with confidence > 0 are used.
    """
    sure = pointmaps.confidence > SURE
    known = sure if bool(sure.any()) else pointmaps.confidence > 0
    points, colours = pointmaps.points_world[known], images[known]
    chosen = even_indices(len(points), count)
    return points[chosen], colours[chosen]


def even_indices(length: int, count: int) -> Int[Tensor, " c"]:
    """``count`` evenly spaced indices of ``length`` items, with repetitions if there are fewer items."""
    return torch.linspace(0, length - 1, count).round().long()


class Through(NamedTuple):
    """A clip from the first photo of a pair through the second one and beyond."""

    pair: Int[Tensor, " 2"]
    frames: Int[Tensor, " k"]  # in the clip's order, without the photos
    second: int | None  # the clip's frame that is the second photo, counted with the photos from 0; None: the last
    own: Bool[Tensor, " k"]  # False: another clip's frame, there to lead from the first photo to the second


def clips_through(condition: Condition) -> list[Through]:
    """A clip per pair of views, for models that take both photos. Every frame is some clip's own."""
    return [_through(condition, pair) for pair in condition.pair.unique(dim=0)]


def _through(condition: Condition, pair: Int[Tensor, " 2"]) -> Through:
    frames = _in_order(condition, pair)
    beyond = condition.position[frames] > 1
    between, beyond = frames[~beyond], frames[beyond]
    if len(beyond) == 0:
        return Through(pair, between, None, torch.ones(len(between), dtype=torch.bool))
    own = len(between) > 0
    if not own:  # the frames between the same photos are those of the pair the other way round
        back = _in_order(condition, pair.flip(0)).flip(0)
        between = back[condition.position[back] <= 1]
    owned = torch.cat([torch.full((len(between),), own), torch.ones(len(beyond), dtype=torch.bool)])
    return Through(pair, torch.cat([between, beyond]), len(between) + 1, owned)


def clips_from_photos(condition: Condition) -> list[tuple[Int[Tensor, " p"], Int[Tensor, " k"]]]:
    """Clips for models that fill renders: from photo to photo, and from a photo on; each one's photos and its own frames.

    Two photos are the first and the last image of a clip; a single one is the first.
    """
    clips = []
    for pair in condition.pair.unique(dim=0):
        frames = _in_order(condition, pair)
        beyond = condition.position[frames] > 1
        clips += [(pair, frames[~beyond])] if not beyond.all() else []
        clips += [(pair[1:], frames[beyond])] if beyond.any() else []
    return clips


def _in_order(condition: Condition, pair: Int[Tensor, " 2"]) -> Int[Tensor, " k"]:
    """A pair's frames, from its first view through its second."""
    frames = (condition.pair == pair).all(-1).nonzero()[:, 0]
    return frames[condition.position[frames].argsort(stable=True)]


def model_size(height: int, width: int, pixels: int, multiple: int) -> tuple[int, int]:
    """(height, width) in multiples of ``multiple`` with about the same aspect ratio and an area of about ``pixels``."""
    scale = math.sqrt(pixels / (height * width)) / multiple
    return max(1, round(height * scale)) * multiple, max(1, round(width * scale)) * multiple
