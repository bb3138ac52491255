"""Stage `splats`: frames with confidence to 3D Gaussians (paper IV-E, eq. 14)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.rasterize import BACKENDS as BACKENDS
from reconx_core.rasterize import Backend, resolve_backend
from reconx_core.settings import SplatsSettings
from reconx_core.splats.initial import add_backdrop, fill_holes, from_every_pixel, from_pointmaps, from_random, from_sparse
from reconx_core.splats.optimise import optimise
from reconx_core.types import Frames, Gaussians, Pointmaps


def fit_splats(
    frames: Frames, pointmaps: Pointmaps, settings: SplatsSettings, generator: torch.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Gaussians:  # fmt: skip
    """Gaussians in the world frame of the pointmaps, optimised on all frames. Without densification: their number is constant.

    Raises:
        UserError: the rasteriser cannot run here, or there are no points to initialise from.
    """
    backend = resolve_backend(settings.backend)
    start = initial_gaussians(frames, pointmaps, settings, backend, generator)
    joined = views_of_geometry(frames, pointmaps) & ~frames.is_photo
    return optimise(start, frames, joined, settings, backend, generator, progress)


def views_of_geometry(frames: Frames, pointmaps: Pointmaps) -> Bool[Tensor, " f"]:
    """Photos, and frames that have joined them in rounds of generation: they have pointmaps."""
    return torch.arange(len(frames)) < len(pointmaps.cameras)


def initial_gaussians(
    frames: Frames, pointmaps: Pointmaps, settings: SplatsSettings, backend: Backend, generator: torch.Generator
) -> Gaussians:
    """The initial Gaussians by the method ``settings.init``.

    Frames that have joined the photos in rounds of generation count as photos, but leave no backdrop: all around a scene, what
    is behind it in one view is before it in another.

    Raises:
        UserError: the geometry backend gave no points for it.
    """
    photos = frames
    frames = replace(frames, is_photo=views_of_geometry(frames, pointmaps))
    if settings.init == "sparse":
        if len(pointmaps.sparse) < 4:
            raise UserError("splats.init=sparse needs feature points, and the geometry backend gave none; use pointmaps.")
        return from_sparse(pointmaps.sparse, settings.sh_degree)
    if settings.init == "random":
        return from_random(frames, pointmaps, settings.max_gaussians, settings.sh_degree, generator)
    if settings.pixels == "all":
        start = from_every_pixel(frames, pointmaps, settings.max_gaussians, settings.sh_degree)
    else:
        start = from_pointmaps(frames, pointmaps, settings.max_gaussians, settings.sh_degree, backend)
    if len(start) == 0:
        warnings.warn("No depth of the photos could be trusted; the Gaussians start at random depths.", stacklevel=2)
        return from_random(frames, pointmaps, settings.max_gaussians, settings.sh_degree, generator)
    start = fill_holes(start, frames, backend) if settings.fill else start
    return add_backdrop(start, photos, backend) if settings.backdrop else start
