"""Stage `confidence`: frames -> frames with refined cameras and per-pixel confidence."""

from typing import Any

from reconx_core import confidence, pointcloud
from reconx_core.geometry.undistort import registered_photos
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    frames, pointmaps = read("video", "frames"), read("pointcloud", "pointmaps")
    inputs = registered_photos(read("views", "views"), read("pointcloud", "kept"), pointmaps)
    settings, generator = job.settings.confidence, job.generator()
    frames, placement = confidence.place_frames(
        inputs, frames, pointmaps, pointcloud.make_backend(job.settings.pointcloud), settings, generator
    )
    judge = pointcloud.make_backend(job.settings.pointcloud, fast=True)
    judged = confidence.estimate_confidence(inputs, frames, pointmaps, judge, settings, generator)
    return {"frames": judged, "placement.json": placement.as_json()}
