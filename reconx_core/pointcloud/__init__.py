"""Stage `pointcloud`: input views to pointmaps with confidence, cameras and the fused point cloud (paper IV-C, eq. 9)."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.settings import PointcloudSettings
from reconx_core.types import BackendInfo, GeometryBackend, PointCloud, Pointmaps, Views

BACKENDS: dict[str, BackendInfo] = {
    "classical": BackendInfo("pointcloud", "classical", "SIFT, bundle adjustment and plane-sweep stereo on the CPU"),
}
FUSED_CONFIDENCE = 0.5  # pointmap pixels above it go into the fused cloud
MAX_POINTS = 500_000
THRIFTY = {"planes": 48, "rounds": 1, "iterations": 1, "sources": 2, "graph": "window"}


def make_backend(settings: PointcloudSettings, thrifty: bool = False) -> GeometryBackend:
    """The geometry backend that the settings name; ``thrifty`` for the many small frames of the `confidence` stage.

    Raises:
        UserError: there is no such backend.
    """
    if settings.backend not in BACKENDS:
        raise UserError(f"There is no pointcloud backend '{settings.backend}'; this version has {', '.join(BACKENDS)}.")
    from reconx_core.pointcloud.classical import Classical

    return Classical(settings.model_copy(update=THRIFTY) if thrifty else settings)


def estimate(
    inputs: Views, settings: PointcloudSettings, generator: torch.Generator
) -> tuple[Pointmaps, PointCloud, Int[Tensor, " k"]]:
    """Pointmaps and the fused cloud of the input views that could be registered, and those views' indices.

    Raises:
        UserError: the photos do not overlap, or the backend is not there.
    """
    pointmaps, kept = make_backend(settings)(inputs, inputs.given_cameras, generator)
    return pointmaps, fuse(pointmaps, inputs.select(kept)), kept


def fuse(pointmaps: Pointmaps, views: Views) -> PointCloud:
    """All confident pixels as one cloud, thinned evenly to a bounded number."""
    good = pointmaps.confidence > FUSED_CONFIDENCE
    index = good.flatten().nonzero()[:, 0]
    index = index[:: max(1, -(-len(index) // MAX_POINTS))]
    return PointCloud(
        pointmaps.points_world.reshape(-1, 3)[index], views.images.reshape(-1, 3)[index], pointmaps.confidence.flatten()[index]
    )
