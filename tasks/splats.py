"""Stage `splats`: frames + confidence + pointmaps -> 3D Gaussians."""

from typing import Any

from reconx_core import splats
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    frames, pointmaps = read("confidence", "frames"), read("pointcloud", "pointmaps")
    return {"gaussians": splats.fit_splats(frames, pointmaps, job.settings.splats, job.generator(), job.progress)}
