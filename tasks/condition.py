"""Stage `condition`: point cloud -> cameras of the frames to come, and the points rendered there."""

from typing import Any

from reconx_core import condition
from tasks.execute import Inputs, Job
from tasks.photos import registered_photos


def run(job: Job, read: Inputs) -> dict[str, Any]:
    inputs = registered_photos(read)
    pointmaps = read("pointcloud", "pointmaps")
    return {"condition": condition.build_condition(inputs, pointmaps, job.settings.condition, job.generator())}
