"""Stage `pointcloud`: input views -> pointmaps, cameras, fused point cloud, and which inputs could be registered."""

from typing import Any

from reconx_core import pointcloud
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    inputs = read("views", "views").inputs()
    pointmaps, cloud, kept = pointcloud.estimate(inputs, job.settings.pointcloud, job.generator())
    return {"pointmaps": pointmaps, "pointcloud": cloud, "kept": kept}
