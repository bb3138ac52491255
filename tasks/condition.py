"""Stage `condition`: point cloud -> cameras of the frames to come, and the points rendered there."""

from typing import Any

from reconx_core import condition
from reconx_core.geometry.undistort import registered_photos
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    pointmaps = read("pointcloud", "pointmaps")
    inputs = registered_photos(read("views", "views"), read("pointcloud", "kept"), pointmaps)
    return {"condition": condition.build_condition(inputs, pointmaps, job.settings.condition, job.generator())}
