"""Stage `video`: input views + condition -> photos and generated frames."""

from typing import Any

from reconx_core import video
from tasks.execute import Inputs, Job
from tasks.photos import registered_photos


def run(job: Job, read: Inputs) -> dict[str, Any]:
    inputs = registered_photos(read)
    guide = read("condition", "condition")
    pointmaps = read("pointcloud", "pointmaps")
    made = video.generate_frames(inputs, pointmaps, guide, job.settings.video, job.generator(), job.progress)
    return {"frames": made}
