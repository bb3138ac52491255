"""The end of a round of generation: frames that are confident enough become views of the geometry."""

import json
from typing import Any

import torch

from reconx_core import pointcloud
from reconx_core.confidence.joining import Joined, join_round, photos_alone
from reconx_core.geometry.exposure import registered_photos
from tasks.execute import Inputs, Job


def run(job: Job, read: Inputs) -> dict[str, Any]:
    before, made, guide = scene_before(job, read), read("confidence", "frames"), read("condition", "condition")
    placement = read.json("confidence", "placement.json")
    left_out = {int(frame) for frame in placement["left_out"] or {}}
    kept = [frame for frame in range(len(guide.cameras)) if frame not in left_out]
    backend = pointcloud.make_backend(
        job.settings.pointcloud, fast=True
    )  # many frames; the full settings take ten times as long
    joined = join_round(before, guide, made, kept, backend, job.last_round, job.generator())
    first = job.round == 1
    return {
        "views": joined.views,
        "pointmaps": joined.pointmaps,
        "kept": torch.arange(len(joined.views)),
        "frames": joined.frames,
        "path": joined.path,
        "rounds.json": encoded({
            "photos": joined.photos, "pair": joined.pair, "rounds": joined.rounds,
            "reached": None if joined.reached is None else joined.reached.tolist(),
        }),
        "placement.json": encoded(placement if first else together(read.json("pointcloud", "placement.json"), placement)),
    }  # fmt: skip


def scene_before(job: Job, read: Inputs) -> Joined:
    """The scene that the round began with."""
    pointmaps = read("pointcloud", "pointmaps")
    if job.round == 1:
        return photos_alone(registered_photos(read("views", "views"), read("pointcloud", "kept"), pointmaps), pointmaps)
    left = read.json("pointcloud", "rounds.json")
    reached = None if left["reached"] is None else torch.tensor(left["reached"])
    frames, path = read("pointcloud", "frames"), read("pointcloud", "path")
    pair = left["pair"] and tuple(left["pair"])
    return Joined(read("views", "views"), pointmaps, frames, left["photos"], path, pair, reached, left["rounds"])


def together(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What became of the frames' cameras in all rounds; the medians are those of the rounds with the larger ones."""
    left_out = {**(before["left_out"] or {})}
    left_out |= {str(before["frames"] + int(frame)): why for frame, why in (now["left_out"] or {}).items()}
    most = {
        name: max((part[name] for part in (before, now) if part[name] is not None), default=None) for name in ("turn", "shift")
    }
    counts = {name: before[name] + now[name] for name in ("frames", "moved")}
    later = [{**one, "frame": before["frames"] + one["frame"]} for one in now["judged"] or []]
    return {**now, **counts, **most, "left_out": left_out or None, "judged": [*(before["judged"] or []), *later] or None}


def encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode()
