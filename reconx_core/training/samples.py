"""Validation samples during training: generated frames beside the ground truth and the input renders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.metrics.image import psnr
from reconx_core.seeds import generator
from reconx_core.training.objective import takes_renders
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.backends.learned import RECIPES, Recipe, generate_clip
from reconx_core.video.clip import even_indices
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.structure_encoder import normalise_points
from reconx_core.video.hole_filling import fill_holes

SHOWN = 4  # frames per clip in the grid


def sample_grid(
    pipeline: ReconXPipeline, clips: Sequence[Clip], settings: TrainSettings
) -> tuple[Float[Tensor, "h w 3"], dict[str, float]]:
    """An image grid (per clip a row of true, of rendered and of generated frames) and the mean PSNR of renders and samples."""
    recipe = recipe_of(pipeline, settings)
    rows, scores = [], {"points_psnr": [], "psnr": []}  # type: ignore[var-annotated]
    for number, clip in enumerate(clips):
        truth, rendered = clip.images[1:-1], fill_holes(clip.renders, clip.visibility)[0][1:-1]
        made = generate(pipeline, at_rate(recipe, pipeline, clip), clip, generator(settings.seed, "sample", str(number)))
        everywhere = torch.ones(truth.shape[1:3], dtype=torch.bool)
        shown = torch.linspace(0, len(truth) - 1, SHOWN).round().long()
        rows += [torch.cat(list(frames[shown]), 1) for frames in (truth, rendered, made)]
        for name, frames in (("points_psnr", rendered), ("psnr", made)):
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


def generate(pipeline: ReconXPipeline, recipe: Recipe, clip: Clip, draw: torch.Generator) -> Float[Tensor, "f h w 3"]:
    """Generate the frames between a clip's two photos."""
    chosen = even_indices(len(clip.points), recipe.points)
    seen = normalise_points(clip.points[chosen], clip.cameras.cam_to_world[0]), clip.colours[chosen]
    cloud = None if pipeline.structure_encoder is None else seen
    photos, between = clip.images[[0, -1]], slice(1, -1)
    alone = (clip.alone[between], clip.alone_visibility[between]) if pipeline.config.sources else None
    renders = (clip.renders[between], clip.visibility[between], alone)
    return generate_clip(pipeline, recipe, photos, *renders, cloud, draw, lambda step: None)
