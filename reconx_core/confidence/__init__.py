"""Stage `confidence`: per-pixel confidence of every frame (paper IV-E, eq. 13).

First the frames' cameras are found where the generator was not told them (`place_frames`), and frames that would hurt are left
out or corrected (`judge_frames`). Then the geometry backend matches each frame against the others of its clip, its two photos
among them, with all cameras fixed; consistent pixels get a high confidence, generated content that contradicts the other frames
a low one, and a frame that all of them contradict goes (`judge_by_neighbours`). The result is the geometric mean of this
confidence and the generator's own (0 in a filled hole), or this confidence alone (`confidence.generator`). Not the product:
both depend on the same depth, so it would count an error twice.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reconx_core.confidence.cameras import Placement as Placement
from reconx_core.confidence.cameras import place_frames as place_frames
from reconx_core.confidence.clips import clips_of
from reconx_core.confidence.judging import judge_by_neighbours, judge_frames
from reconx_core.geometry.transforms import resize_cameras, size_for
from reconx_core.io.images import resize_images
from reconx_core.settings import ConfidenceSettings
from reconx_core.types import BackendInfo, Frames, GeometryBackend, Pointmaps, Views

BACKENDS: dict[str, BackendInfo] = {
    "geometry": BackendInfo("confidence", "geometry", "the chosen pointcloud backend, run on all frames"),
}


class Backends(NamedTuple):
    """Geometry backends: one that finds cameras, and one that only matches."""

    locate: GeometryBackend
    match: GeometryBackend


def trusted_frames(
    inputs: Views, frames: Frames, pointmaps: Pointmaps, backends: Backends, settings: ConfidenceSettings,
    generator: torch.Generator,
) -> tuple[Frames, Placement]:  # fmt: skip
    """All of the stage: the frames that count, each with its camera and confidence, and what became of every one."""
    frames, placement = place_frames(inputs, frames, pointmaps, backends.locate, settings, generator)
    if settings.judge:
        frames, placement = judge_frames(inputs, frames, pointmaps, placement)
    frames = estimate_confidence(inputs, frames, pointmaps, backends.match, settings, generator)
    if settings.judge and settings.enabled:  # otherwise nothing was matched
        frames, placement = judge_by_neighbours(frames, placement)
    return frames, placement


def estimate_confidence(
    inputs: Views, frames: Frames, pointmaps: Pointmaps, backend: GeometryBackend, settings: ConfidenceSettings,
    generator: torch.Generator,
) -> Frames:  # fmt: skip
    """The frames with a confidence in [0, 1] for every pixel; valid pixels of photos have confidence 1."""
    photos = inputs.masks.float()
    if not settings.enabled:
        return replace(frames, confidence=torch.cat([photos, torch.ones_like(frames.confidence[len(photos) :])]))
    if bool(frames.is_photo.all()):
        return replace(frames, confidence=photos)
    confidence = torch.cat([photos, frames.confidence[len(photos) :]])
    for clip in clips_of(frames):
        agreement = match_frames(frames.select(clip.members), backend, settings.size, generator)[len(clip.photos) :]
        confidence[clip.frames] = (confidence[clip.frames] * agreement).sqrt() if settings.generator else agreement
    return replace(frames, confidence=confidence)


def match_frames(
    frames: Frames, backend: GeometryBackend, long_side: int, generator: torch.Generator
) -> Float[Tensor, "f h w"]:
    """Confidence from the geometry backend, run on all frames at a smaller size with fixed cameras."""
    height, width = frames.images.shape[1:3]
    size = size_for(min(long_side, max(height, width)), height, width)
    usable = F.interpolate(frames.confidence[:, None], size, mode="nearest-exact")[:, 0] > 0
    n = len(frames)
    views = Views(
        resize_images(frames.images, *size), usable, tuple(f"frame_{i:04d}" for i in range(n)),
        torch.zeros(n, dtype=torch.bool), resize_cameras(frames.cameras, *size), torch.full((n,), float("nan")), "posed",
    )  # fmt: skip
    matched, kept = backend(views, views.cameras, generator)
    confidence = torch.zeros(n, *size)
    confidence[kept] = matched.confidence
    return F.interpolate(confidence[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
