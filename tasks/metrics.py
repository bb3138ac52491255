"""Stage `metrics`: Gaussians + held-out views -> scores, pictures and a clip along the camera path."""

from pathlib import Path
from typing import Any

from reconx_core import images, metrics, video_io
from reconx_core.files import write_json
from reconx_core.metrics import pictures
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    gaussians, pointmaps = read("splats", "gaussians"), read("pointcloud", "pointmaps")
    views, kept, settings = read("views", "views"), read("pointcloud", "kept"), job.settings.metrics
    scores, shots = metrics.score_scene(gaussians, views, kept, pointmaps, settings, job.generator())
    clip = pictures.render_path(gaussians, pointmaps.cameras, settings.video_frames)
    summary = {"protocol": scores.protocol, **scores.summary}

    def write_video(path: Path) -> None:
        video_io.write_mp4(path, clip)

    def write_summary(path: Path) -> None:
        write_json(path, summary)

    strips = {f"pictures/{shot.name}.png": images.encode(pictures.side_by_side(shot), "PNG") for shot in shots}
    return {"scores": scores.views, "metrics.json": write_summary, "video.mp4": write_video, **strips}
