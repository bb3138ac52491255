"""Copies of one photo among the inputs: they show nothing new, and a scene of nothing else is none."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reconx_core.datasets import Photo
from reconx_core.errors import UserError
from reconx_core.names import abbreviate

BLOCK = 8  # pixels; over so many a codec's noise averages out
# Largest difference of two copies' blocks as a share of the picture's range. Photos of eight sets stored anew (JPEG at quality
# 60 and 90, HEIC, WebP, at half size) came to 0.03, at quality 30 to 0.05; neighbouring frames of a slow video at least to 0.2.
ALIKE = 0.06


class Look(NamedTuple):
    """What is compared of a photo."""

    digest: bytes  # of its pixels
    blocks: Float[Tensor, "3 r c"]  # their means


def look_of(image: Float[Tensor, "h w 3"]) -> Look:
    """Of a photo that has been resized."""
    digest = hashlib.sha256(image.numpy().tobytes() + repr(image.shape).encode()).digest()
    return Look(digest, F.avg_pool2d(image.permute(2, 0, 1), BLOCK, ceil_mode=True))


def without_copies(name: str, photos: Sequence[Photo], inputs: Sequence[int], looks: Mapping[int, Look]) -> list[int]:
    """The inputs without those that show what another one shows, be it stored in another format; warnings name them.

    Of photos with different known cameras only exact copies count, and stay: they may both show a bare wall.

    Raises:
        UserError: the inputs of scene ``name`` are copies of one picture.
    """

    def same(i: int, k: int) -> bool:
        return looks[i].digest == looks[k].digest or (not _differ(photos[i], photos[k]) and _alike(looks[i], looks[k]))

    if len(inputs) > 1 and all(same(inputs[0], i) and not _differ(photos[inputs[0]], photos[i]) for i in inputs):
        listed = abbreviate([photos[i].name for i in inputs])
        raise UserError(f"The photos of '{name}' are copies of one picture: {listed}; give photos from at least two places.")
    kept: list[int] = []
    for i in inputs:
        original = next((k for k in kept if same(k, i)), None)
        if original is None or _differ(photos[original], photos[i]):
            kept.append(i)
        if original is not None:
            what = "both are used, since their cameras differ" if kept[-1] == i else "it counts once"
            warnings.warn(f"Photo '{photos[i].name}' is the same picture as '{photos[original].name}'; {what}.", stacklevel=2)
    return kept


def _alike(first: Look, second: Look) -> bool:
    """Whether two photos are the same but for a codec's noise."""
    a, b = first.blocks, second.blocks
    return a.shape == b.shape and float((a - b).abs().max()) <= ALIKE * float(a.max() - a.min())


def _differ(first: Photo, second: Photo) -> bool:
    """Whether both photos have a known camera, and not the same."""
    a, b = first.cam_to_world, second.cam_to_world
    return a is not None and b is not None and not bool((a == b).all())
