"""Stage `confidence`: frames -> frames with refined cameras and per-pixel confidence."""

from typing import Any

from reconx_core import confidence, pointcloud
from reconx_core.geometry.exposure import registered_photos
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    frames, pointmaps = read("video", "frames"), read("pointcloud", "pointmaps")
    inputs = registered_photos(read("views", "views"), read("pointcloud", "kept"), pointmaps)
    geometry = job.settings.pointcloud
    find, match = pointcloud.make_backend(geometry), pointcloud.make_backend(geometry, fast=True, known=pointmaps)
    judged, placement = confidence.trusted_frames(
        inputs, frames, pointmaps, confidence.Backends(find, match), job.settings.confidence, job.generator()
    )
    return {"frames": judged, "placement.json": placement.as_json()}
