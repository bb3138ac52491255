"""Stage `video`: photos and condition to generated frames (paper IV-D)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import join_cameras
from reconx_core.settings import VideoSettings
from reconx_core.types import BackendInfo, Condition, Frames, Pointmaps, Views
from reconx_core.video.hole_filling import fill_holes

BACKENDS: dict[str, BackendInfo] = {
    "points": BackendInfo("video", "points", "renders of the point cloud, masked by visibility; nothing is learned"),
    "reconx-tiny": BackendInfo(
        "video", "reconx-tiny", "a small model of the same classes on renders of the point cloud, for a CPU",
        weights="in the package (18 MB)",
    ),
    "reconx": BackendInfo(
        "video", "reconx", "the paper's network: the photos interpolated, with the point cloud as structure condition",
        weights="DynamiCrafter layout with a trained structure condition; none are published", needs_gpu=True,
        licence="code Apache-2.0; weights as those that they were trained from",
        cameras_told=False,
    ),
    "viewcrafter": BackendInfo(
        "video", "viewcrafter", "the same network on renders of the point cloud",
        weights="Drexubery/ViewCrafter_25 and others (10.4 GB), by reconx weights convert", needs_gpu=True,
        licence="code Apache-2.0; weights tagged apache-2.0 where they are published",
    ),
    "wan-vace": BackendInfo(
        "video", "wan-vace", "Wan2.1 VACE fills what the point renders leave hidden",
        weights="Wan-AI/Wan2.1-VACE-1.3B-diffusers (4.3 + 11.4 GB)", needs_gpu=True,
    ),
    "none": BackendInfo("video", "none", "no generated frames: the paper's row without video diffusion"),
}  # fmt: skip
Progress = Callable[[int, int], None]


def generate_frames(
    inputs: Views, pointmaps: Pointmaps, condition: Condition, settings: VideoSettings, generator: torch.Generator,
    progress: Progress = lambda done, total: None,
) -> Frames:  # fmt: skip
    """The photos, then the generated frames, with the generator's own estimate of reliability as confidence.

    Raises:
        UserError: there is no such backend, or its weights are missing.
    """
    _require_backend(settings)
    photos = Frames(inputs.images, pointmaps.cameras, inputs.masks.float(), torch.ones(len(inputs), dtype=torch.bool))
    if settings.backend == "none" or len(condition.cameras) == 0:
        return photos
    images, confidence = _generate(inputs, pointmaps, condition, settings, generator, progress)
    return _append(photos, images, confidence, condition, BACKENDS[settings.backend].cameras_told)


def _generate(
    inputs: Views, pointmaps: Pointmaps, condition: Condition, settings: VideoSettings, generator: torch.Generator,
    progress: Progress,
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:  # fmt: skip
    if settings.backend == "points":
        return fill_holes(condition.renders, condition.visibility)
    if settings.backend == "wan-vace":
        from reconx_core.video.backends.wan_vace import vace_frames

        return vace_frames(inputs, condition, settings, generator, progress)
    from reconx_core.video.backends.learned import learned_frames

    return learned_frames(inputs, pointmaps, condition, settings, generator, progress)


def _require_backend(settings: VideoSettings) -> None:
    if settings.backend not in BACKENDS:
        raise UserError(f"There is no video backend '{settings.backend}'; this version has {', '.join(BACKENDS)}.")


def weights_of(settings: VideoSettings) -> Path | None:
    """The folder of the weights that the backend would load; None for a backend without weights.

    Raises:
        UserError: there is no such backend, or its weights are missing.
    """
    _require_backend(settings)
    if settings.backend == "wan-vace":
        from reconx_core.video.backends.wan_vace import find_vace

        return find_vace(settings.weights)
    if settings.backend in ("points", "none"):
        return None
    from reconx_core.video.backends.learned import find_model

    return find_model(settings)


def _append(photos: Frames, images: torch.Tensor, confidence: torch.Tensor, condition: Condition, told: bool) -> Frames:
    together = join_cameras(photos.cameras, condition.cameras)
    is_photo = torch.arange(len(together)) < len(photos)
    pair = torch.cat([torch.arange(len(photos))[:, None].repeat(1, 2), condition.pair])
    images, confidence = torch.cat([photos.images, images]), torch.cat([photos.confidence, confidence])
    return Frames(images, together, confidence, is_photo, pair, told)
