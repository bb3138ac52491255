"""Stage `video`: input views + condition -> photos and generated frames."""

from typing import Any

from reconx_core import video
from reconx_core.geometry.exposure import registered_photos
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    pointmaps, guide = read("pointcloud", "pointmaps"), read("condition", "condition")
    inputs = registered_photos(read("views", "views"), read("pointcloud", "kept"), pointmaps)
    made = video.generate_frames(inputs, pointmaps, guide, job.settings.video, job.generator(), job.progress)
    return {"frames": made}
