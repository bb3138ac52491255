"""Copies of one photo among the inputs: they show nothing new, and a scene of nothing else is none."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from reconx_core.datasets import Photo
from reconx_core.errors import UserError
from reconx_core.names import abbreviate


def without_copies(name: str, photos: Sequence[Photo], inputs: Sequence[int], pixels: Mapping[int, bytes]) -> list[int]:
    """The inputs without those whose pixels (a digest for each) another one has; warnings name them.

    Copies with different known cameras stay: they may both show a bare wall.

    Raises:
        UserError: the inputs of scene ``name`` are copies of one picture.
    """
    alike = len({pixels[i] for i in inputs}) == 1 and not any(_differ(photos[inputs[0]], photos[i]) for i in inputs)
    if len(inputs) > 1 and alike:
        listed = abbreviate([photos[i].name for i in inputs])
        raise UserError(f"The photos of '{name}' are copies of one picture: {listed}; give photos from at least two places.")
    kept: list[int] = []
    for i in inputs:
        original = next((k for k in kept if pixels[k] == pixels[i]), None)
        if original is None or _differ(photos[original], photos[i]):
            kept.append(i)
        if original is not None:
            what = "both are used, since their cameras differ" if kept[-1] == i else "it counts once"
            warnings.warn(f"Photo '{photos[i].name}' is the same picture as '{photos[original].name}'; {what}.", stacklevel=2)
    return kept


def _differ(first: Photo, second: Photo) -> bool:
    """Whether both photos have a known camera, and not the same."""
    a, b = first.cam_to_world, second.cam_to_world
    return a is not None and b is not None and not bool((a == b).all())
