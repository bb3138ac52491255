"""Stage `pointcloud`: input views to pointmaps with confidence, cameras and the fused point cloud (paper IV-C, eq. 9)."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.geometry.exposure import estimate_exposures, in_common_light, straight_photos
from reconx_core.settings import PointcloudSettings
from reconx_core.types import BackendInfo, GeometryBackend, PointCloud, Pointmaps, Views
from reconx_core.weights.choice import DA3_WEIGHTS, resolve_geometry

BACKENDS: dict[str, BackendInfo] = {
    "classical": BackendInfo("pointcloud", "classical", "SIFT, bundle adjustment and plane-sweep stereo on the CPU"),
    "dust3r": BackendInfo(
        "pointcloud", "dust3r", "a network's pointmaps of all pairs, aligned (the paper's choice); no cameras needed",
        weights="naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt (2.3 GB), by reconx weights fetch dust3r",
        licence="CC BY-NC-SA 4.0", needs_gpu=True,
    ),
    "vggt": BackendInfo(
        "pointcloud", "vggt", "a network's cameras and depth of all photos in one pass",
        weights="facebook/VGGT-1B or VGGT-1B-Commercial (5 GB), by reconx weights fetch vggt",
        licence="CC BY-NC 4.0, or VGGT's own (Commercial)", needs_gpu=True,
    ),
    "da3": BackendInfo(
        "pointcloud", "da3", "a smaller network's cameras and depth, the cameras adjusted to feature matches; CPU or GPU",
        weights="depth-anything/DA3-BASE or DA3-SMALL (0.5 or 0.1 GB), by reconx weights fetch da3-base",
    ),
}  # fmt: skip
FUSED_CONFIDENCE = 0.5  # minimum confidence of the pointmap pixels in the fused cloud
MAX_POINTS = 500_000
# Settings for the many small frames of the `confidence` stage.
FAST = {"planes": 48, "rounds": 1, "iterations": 1, "sources": 2, "graph": "window"}


def make_backend(settings: PointcloudSettings, fast: bool = False, known: Pointmaps | None = None) -> GeometryBackend:
    """The geometry backend that the settings name; ``fast`` uses cheaper settings, for the many small frames of `confidence`.

    ``known``: pointmaps of the photos, which tell a fast `classical` how deep the scene is; without, it looks for features.

    Raises:
        UserError: there is no such backend.
    """
    settings = _resolved(settings)
    if settings.backend == "dust3r":
        from reconx_core.pointcloud.backends.dust3r import Dust3r

        return Dust3r(settings)
    if settings.backend == "vggt":
        from reconx_core.pointcloud.backends.vggt import Vggt

        return Vggt(settings)
    if settings.backend == "da3":
        from reconx_core.pointcloud.backends.da3 import Da3

        return Da3(settings, enlarge=not fast)
    assert settings.backend == "classical", settings.backend
    from reconx_core.pointcloud.backends.classical import Classical

    return Classical(settings.model_copy(update=FAST), doubt_given=False, known=known) if fast else Classical(settings)


def _resolved(settings: PointcloudSettings) -> PointcloudSettings:
    """With a backend that exists, which `auto` has become."""
    settings = resolve_geometry(settings)
    if settings.backend not in BACKENDS:
        raise UserError(f"There is no pointcloud backend '{settings.backend}'; this version has auto, {', '.join(BACKENDS)}.")
    return settings


def weights_of(settings: PointcloudSettings) -> Path | None:
    """The file or folder of weights that the backend would load; None for a backend without weights.

    Raises:
        UserError: there is no such backend, or its weights are missing.
    """
    settings = _resolved(settings)
    if settings.backend == "classical":
        return None
    from reconx_core.pointcloud.backends import dust3r, predictions, vggt

    defaults = {"dust3r": dust3r.WEIGHTS, "vggt": vggt.WEIGHTS, "da3": DA3_WEIGHTS}
    fetched = "da3-base" if settings.backend == "da3" else ""
    return predictions.find_weights(settings.backend, settings.weights, defaults[settings.backend], fetched)


def estimate(
    inputs: Views, settings: PointcloudSettings, generator: torch.Generator
) -> tuple[Pointmaps, PointCloud, Int[Tensor, " k"]]:
    """Pointmaps and the fused cloud of the input views that could be registered, and those views' indices.

    Raises:
        UserError: the photos do not overlap, there is no such backend, or its weights are missing.
    """
    pointmaps, kept = make_backend(settings)(inputs, inputs.given_cameras, generator)
    photos = straight_photos(inputs, kept, pointmaps)
    if settings.exposure == "auto":
        pointmaps = replace(pointmaps, exposures=told_exposures(photos, pointmaps))
    return pointmaps, fuse(pointmaps, in_common_light(photos, pointmaps.exposures)), kept


def told_exposures(photos: Views, pointmaps: Pointmaps) -> Float[Tensor, "n 3"] | None:
    """As :func:`estimate_exposures`; that photos are changed is said."""
    exposures = estimate_exposures(photos, pointmaps)
    if exposures is not None:
        warnings.warn(
            "The photos differ in exposure or white balance; they are brought to one light, in which the scene is shown "
            "(pointcloud.exposure=off leaves them as they are).",
            stacklevel=2,
        )
    return exposures


def fuse(pointmaps: Pointmaps, views: Views) -> PointCloud:
    """All confident pixels as one point cloud, subsampled evenly to at most MAX_POINTS."""
    good = pointmaps.confidence > FUSED_CONFIDENCE
    index = good.flatten().nonzero()[:, 0]
    index = index[:: max(1, -(-len(index) // MAX_POINTS))]
    return PointCloud(
        pointmaps.points_world.reshape(-1, 3)[index], views.images.reshape(-1, 3)[index], pointmaps.confidence.flatten()[index]
    )
