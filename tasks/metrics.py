"""Stage `metrics`: Gaussians + held-out views -> scores, pictures and a clip along the camera path."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

from reconx_core import metrics
from reconx_core.geometry.transforms import resize_cameras
from reconx_core.io import video as video_io
from reconx_core.io.images import encode
from reconx_core.metrics.depth import score_geometry
from reconx_core.metrics.pictures import Picture, render_loop, side_by_side
from reconx_core.metrics.speed import frames_a_second
from reconx_core.types import Scores
from tasks.execute import Inputs, Job, also_measured


def run(job: Job, read: Inputs) -> dict[str, Any]:
    gaussians, pointmaps = read("splats", "gaussians"), read("pointcloud", "pointmaps")
    views, kept, settings = read("views", "views"), read("pointcloud", "kept"), job.settings.metrics
    scores, pictures = metrics.score_scene(gaussians, views, kept, pointmaps, settings, job.generator())
    if read.has("views", "depth"):
        depth, cloud = read("views", "depth"), read("pointcloud", "pointcloud")
        geometry = score_geometry(gaussians, views, depth, kept, pointmaps, cloud)
        scores = replace(scores, summary={**scores.summary, **geometry})
    left_out = sorted(set(range(len(views.inputs()))) - set(kept.tolist()))
    placement = read.json("confidence", "placement.json")
    size = pictures[0].panels["photo"].shape[:2]
    also_measured(fps=frames_a_second(gaussians, resize_cameras(pointmaps.cameras, *size)))
    clip = render_loop(gaussians, pointmaps.cameras, settings.video_frames)
    return {
        "scores": scores.views,
        "metrics.json": summary(scores, pictures, [views.inputs().names[i] for i in left_out], placement),
        "video.mp4": partial(video_io.write_mp4, frames=clip),
        **{f"pictures/{i:03d}.jpg": encode(side_by_side(p), "JPEG", quality=92) for i, p in enumerate(pictures)},
        **{
            f"panels/{i:03d}/{name}.png": encode(panel, "PNG", compress_level=1)
            for i, picture in enumerate(pictures)
            for name, panel in picture.panels.items()
        },
    }


def summary(scores: Scores, pictures: list[Picture], left_out: list[str], placement: dict[str, Any]) -> bytes:
    """`metrics.json`: means, protocol, resolution, which picture shows which view, and what became of the frames' cameras."""
    height, width = pictures[0].panels["photo"].shape[:2]
    shown = [{"view": p.name, "is_target": p.is_target, "refined": p.refined, "panels": list(p.panels)} for p in pictures]
    content = {
        "protocol": scores.protocol,
        "summary": scores.summary | placed_share(placement),
        "size": [width, height],
        "pictures": shown,
        "left_out": left_out,  # input photos whose camera could not be found
        "frames": placement,
    }
    return json.dumps(content, indent=1, sort_keys=True).encode()


def placed_share(placement: dict[str, Any]) -> dict[str, float]:
    """Share of the generated frames whose camera was found; nothing where none had to be."""
    found = placement["cameras"] == "find" and placement["frames"] > 0
    return {"frames_placed": placement["moved"] / placement["frames"]} if found else {}
