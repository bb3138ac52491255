"""Stage `confidence`: frames -> frames with refined cameras and per-pixel confidence."""

from typing import Any

from reconx_core import confidence, pointcloud
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    inputs = read("views", "views").inputs().select(read("pointcloud", "kept"))
    frames, pointmaps = read("video", "frames"), read("pointcloud", "pointmaps")
    backend = pointcloud.make_backend(job.settings.pointcloud, fast=True)
    settings = job.settings.confidence
    return {"frames": confidence.estimate_confidence(inputs, frames, pointmaps, backend, settings, job.generator())}
