"""Stage `video`: photos and condition to generated frames (paper IV-D)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from reconx_core.errors import UserError
from reconx_core.settings import VideoSettings
from reconx_core.types import BackendInfo, Cameras, Condition, Frames, Pointmaps, Views
from reconx_core.video.points import point_frames

BACKENDS: dict[str, BackendInfo] = {
    "points": BackendInfo("video", "points", "renders of the point cloud, masked by visibility; nothing is learned"),
    "none": BackendInfo("video", "none", "no generated frames: the paper's row without video diffusion"),
}
GENERATORS: dict[str, Callable[[Views, Condition, torch.Generator], tuple[torch.Tensor, torch.Tensor]]] = {
    "points": point_frames,
}


def generate_frames(
    inputs: Views, pointmaps: Pointmaps, condition: Condition, settings: VideoSettings, generator: torch.Generator
) -> Frames:
    """The photos, then the generated frames, each with what its generator knows of its reliability as confidence.

    Raises:
        UserError: there is no such backend.
    """
    if settings.backend not in BACKENDS:
        raise UserError(f"There is no video backend '{settings.backend}'; this version has {', '.join(BACKENDS)}.")
    photos = Frames(inputs.images, pointmaps.cameras, inputs.masks.float(), torch.ones(len(inputs), dtype=torch.bool))
    if settings.backend == "none" or len(condition.cameras) == 0:
        return photos
    images, confidence = GENERATORS[settings.backend](inputs, condition, generator)
    return _append(photos, images, confidence, condition.cameras)


def _append(photos: Frames, images: torch.Tensor, confidence: torch.Tensor, cameras: Cameras) -> Frames:
    together = Cameras(
        torch.cat([photos.cameras.intrinsics, cameras.intrinsics]),
        torch.cat([photos.cameras.cam_to_world, cameras.cam_to_world]), cameras.width, cameras.height,
    )  # fmt: skip
    is_photo = torch.arange(len(together)) < len(photos)
    return Frames(torch.cat([photos.images, images]), together, torch.cat([photos.confidence, confidence]), is_photo)
