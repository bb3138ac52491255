"""Stage `confidence`: frames -> frames with refined cameras and per-pixel confidence."""

from typing import Any

from reconx_core import confidence, pointcloud
from tasks.execute import Inputs, Job
from tasks.photos import registered_photos


def run(job: Job, read: Inputs) -> dict[str, Any]:
    inputs = registered_photos(read)
    frames, pointmaps = read("video", "frames"), read("pointcloud", "pointmaps")
    settings, generator = job.settings.confidence, job.generator()
    frames, placement = confidence.place_frames(
        inputs, frames, pointmaps, pointcloud.make_backend(job.settings.pointcloud), settings, generator
    )
    judge = pointcloud.make_backend(job.settings.pointcloud, fast=True)
    judged = confidence.estimate_confidence(inputs, frames, pointmaps, judge, settings, generator)
    return {"frames": judged, "placement.json": placement.as_json()}
