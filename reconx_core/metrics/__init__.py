"""Stage `metrics`: scores of a scene on held-out views and on its photos, and the pictures that go with them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.exposure import in_own_light, straight_photos
from reconx_core.geometry.transforms import resize_cameras, size_for
from reconx_core.io.images import resize, resize_mask
from reconx_core.losses.lpips import load_nets
from reconx_core.metrics.image import Background, score_view
from reconx_core.metrics.pictures import Picture, confidence_colours, depth_colours, error_heat
from reconx_core.metrics.pose import pose_errors
from reconx_core.metrics.refine import map_targets, refine_camera
from reconx_core.rasterize import rasterize
from reconx_core.settings import MetricsSettings
from reconx_core.types import Cameras, Gaussians, Pointmaps, Scores, Views, ViewScore

IMAGE_METRICS = ("psnr", "ssim", "lpips", "lpips_alex")


def score_scene(
    gaussians: Gaussians,
    views: Views,
    kept: Int[Tensor, " k"],
    pointmaps: Pointmaps,
    settings: MetricsSettings,
    generator: torch.Generator,
) -> tuple[Scores, list[Picture]]:
    """Scores and pictures of a scene, under the protocol of ``views``.

    ``kept``: indices of the input views that ``pointmaps`` (and so the reconstruction) contains. Held-out views are
    scored only if their true cameras are known. Nothing here is random.

    Raises:
        UserError: a view's mask leaves nothing to score, or damaged LPIPS weights.
    """
    photos = resized_views(straight_photos(views, kept, pointmaps), settings.size)
    targets = resized_views(views.targets(), settings.size)
    size = photos.images.shape[1:3]
    cameras = resize_cameras(pointmaps.cameras, *size)
    confidence = _at_size(pointmaps.confidence, *size)
    results = score_views(gaussians, photos, cameras, settings.background, confidence, exposures=pointmaps.exposures)
    truth = photos.true_cameras
    if len(targets) and targets.true_cameras is not None and truth is not None:
        posed = views.protocol == "posed"
        target_cameras = targets.true_cameras if posed else map_targets(targets.true_cameras, cameras, truth)
        steps = 0 if posed else settings.refine_steps
        results += _score_targets(gaussians, targets, target_cameras, settings.background, steps)
    scores = [score for score, _ in results]
    summary = summarise(scores) | {"gaussians": float(len(gaussians)), "registered": len(kept) / len(views.inputs())}
    if pointmaps.camera_confidence is not None:
        summary["camera_confidence"] = pointmaps.camera_confidence
    if truth is not None and views.protocol != "posed":
        summary |= pose_errors(cameras, truth)
    # Pictures with refined cameras come later and replace the unrefined ones of the same views.
    pictures = {(picture.is_target, picture.name): picture for _, picture in results}
    return Scores(tuple(scores), summary, views.protocol), list(pictures.values())


def summarise(scores: list[ViewScore]) -> dict[str, float | None]:
    """Means over views: held-out ones (`psnr`; where cameras were refined also `psnr_unrefined`) and photos (`photo_psnr`)."""
    targets = [s for s in scores if s.is_target]
    final = [s for s in targets if s.refined] or targets
    groups = {"": final, "photo_": [s for s in scores if not s.is_target]}
    summary = {prefix + m: _mean(group, m) for prefix, group in groups.items() if group for m in IMAGE_METRICS}
    if final is not targets:
        unrefined = [s for s in targets if not s.refined]
        summary |= {f"{m}_unrefined": _mean(unrefined, m) for m in IMAGE_METRICS}
    return summary


def _mean(scores: list[ViewScore], metric: str) -> float | None:
    values = [getattr(score, metric) for score in scores]
    return None if None in values else math.fsum(values) / len(values)


def _score_targets(
    gaussians: Gaussians, targets: Views, cameras: Cameras, background: Background, steps: int
) -> list[tuple[ViewScore, Picture]]:
    """Held-out views at the given cameras and, where ``steps`` is not 0, again at the refined ones."""
    results = score_views(gaussians, targets, cameras, background)
    if not steps:
        return results
    refined = [
        refine_camera(gaussians, cameras[i : i + 1], targets.images[i], targets.masks[i], steps) for i in range(len(targets))
    ]
    poses = torch.cat([camera.cam_to_world for camera in refined])
    return results + score_views(gaussians, targets, replace(cameras, cam_to_world=poses), background, refined=True)


@torch.no_grad()
def score_views(
    gaussians: Gaussians,
    views: Views,
    cameras: Cameras,
    background: Background,
    confidence: Tensor | None = None,
    refined: bool = False,
    exposures: Float[Tensor, "n 3"] | None = None,
) -> list[tuple[ViewScore, Picture]]:
    """Score and picture of each view seen by its camera; where views have ``exposures``, by the render in their own light."""
    lpips = load_nets("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for i, name in enumerate(views.names):
        rendering = rasterize(gaussians, cameras[i : i + 1])
        render, photo, mask = rendering.rgb[0], views.images[i], views.masks[i]
        render = render if exposures is None else in_own_light(render, exposures[i].to(render.device))
        target = bool(views.is_target[i])
        score = score_view(name, render, photo, mask, lpips, refined=refined, is_target=target, background=background)
        panels = {"photo": photo, "render": render.clamp(0, 1), "error": error_heat(render, photo, mask)}
        if confidence is not None:
            panels["confidence"] = confidence_colours(confidence[i])
        panels["depth"] = depth_colours(rendering.depth[0], rendering.alpha[0])
        results.append((score, Picture(name, target, refined, panels)))
    return results


def resized_views(views: Views, long_side: int) -> Views:
    """The views at the size at which they are scored; 0 leaves them unchanged."""
    height, width = views.masks.shape[1:]
    if long_side in (0, max(height, width)):
        return views
    size = size_for(long_side, height, width)
    images = torch.stack([resize(image, *size) for image in views.images])
    masks = torch.stack([resize_mask(mask, *size) for mask in views.masks])
    cameras = None if views.cameras is None else resize_cameras(views.cameras, *size)
    return replace(views, images=images, masks=masks, cameras=cameras, focal_prior=views.focal_prior * size[1] / width)


def _at_size(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps [n h w] at another size, averaged where they shrink."""
    if maps.shape[1:] == (height, width):
        return maps
    return F.interpolate(maps[:, None], (height, width), mode="bilinear", antialias=True, align_corners=False)[:, 0]
