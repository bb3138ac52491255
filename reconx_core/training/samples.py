"""Validation samples during training: generated frames beside the ground truth and the input renders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.metrics.image import psnr
from reconx_core.seeds import generator
from reconx_core.training.batches import takes_renders
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.backends.learned import RECIPES, Recipe, generate_clip
from reconx_core.video.clip import even_indices
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.structure_points import normalise_points
from reconx_core.video.hole_filling import fill_holes

SHOWN = 4  # frames per clip in the grid


def sample_grid(
    pipeline: ReconXPipeline, clips: Sequence[Clip], settings: TrainSettings
) -> tuple[Float[Tensor, "h w 3"], dict[str, float]]:
    """An image grid (per clip a row of true, of rendered and of generated frames) and the mean PSNR of renders and samples.

    Without the renders of clips that have none.
    """
    recipe = recipe_of(pipeline, settings)
    rows, scores = [], defaultdict[str, list[float]](list)
    for number, clip in enumerate(clips):
        others = [frame for frame in range(len(clip)) if frame not in clip.ends]
        truth, images = clip.images[others], dict[str, Tensor]()
        if clip.renders is not None and clip.visibility is not None:
            images["points_psnr"] = fill_holes(clip.renders, clip.visibility)[0][others]
        draw = generator(settings.seed, "sample", str(number))
        images["psnr"] = generate(pipeline, at_rate(recipe, pipeline, clip), clip, draw)
        everywhere = torch.ones(truth.shape[1:3], dtype=torch.bool)
        shown = torch.linspace(0, len(truth) - 1, SHOWN).round().long()
        rows += [torch.cat(list(frames[shown]), 1) for frames in (truth, *images.values())]
        for name, frames in images.items():
            scores[name] += [psnr(frame, true, everywhere) for frame, true in zip(frames, truth)]
    width = min(row.shape[1] for row in rows)
    return torch.cat([row[:, :width] for row in rows]), {name: float(torch.tensor(s).mean()) for name, s in scores.items()}


def recipe_of(pipeline: ReconXPipeline, settings: TrainSettings) -> Recipe:
    """How the model is sampled: as it is trained, at the size of a training step."""
    if settings.model == "tiny" or pipeline.config.sources:
        return RECIPES["reconx-tiny"]
    return replace(
        RECIPES["reconx"], renders=takes_renders(pipeline, settings), steps=settings.sample_steps,
        pixels=settings.crop[0] * settings.crop[1], points=settings.points,
    )  # fmt: skip


def at_rate(recipe: Recipe, pipeline: ReconXPipeline, clip: Clip) -> Recipe:
    """The recipe at the clip's frame rate, which a model that blends does not know."""
    return recipe if clip.fps is None or pipeline.config.sources else replace(recipe, fps=round(clip.fps))


def generate(pipeline: ReconXPipeline, recipe: Recipe, clip: Clip, draw: torch.Generator) -> Float[Tensor, "k h w 3"]:
    """Generate the frames of a clip that are not its photos."""
    others = [frame for frame in range(len(clip)) if frame not in clip.ends]
    renders, visibility, alone, alone_visibility = (
        None if part is None else part[others] for part in (clip.renders, clip.visibility, clip.alone, clip.alone_visibility)
    )
    beside = None if alone is None or alone_visibility is None or not pipeline.config.sources else (alone, alone_visibility)
    cloud = None
    if pipeline.structure_encoder is not None and clip.points is not None and clip.colours is not None:
        chosen = even_indices(len(clip.points), recipe.points)
        cloud = normalise_points(clip.points[chosen], clip.cameras.cam_to_world[0]), clip.colours[chosen]
    return generate_clip(
        pipeline, recipe, clip.images[list(clip.ends)], len(others), renders, visibility, beside, cloud, draw, clip.ends[1]
    )
