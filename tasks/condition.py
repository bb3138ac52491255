"""Stage `condition`: point cloud -> cameras of the frames to come, and the points rendered there."""

from pathlib import Path
from typing import Any

import torch

from reconx_core import condition
from reconx_core.condition.camera_files import cameras_on_path, read_path
from reconx_core.condition.rounds import Turn, build_round
from reconx_core.geometry.exposure import registered_photos
from reconx_core.types import Cameras, Pointmaps
from tasks.execute import Inputs, Job

NO_ORIGIN = (0.0, 0.0, 0.0)


def run(job: Job, read: Inputs) -> dict[str, Any]:
    settings, pointmaps = job.settings.condition, read("pointcloud", "pointmaps")
    inputs = registered_photos(read("views", "views"), read("pointcloud", "kept"), pointmaps)
    if job.round:
        return {"condition": build_round(inputs, pointmaps, settings, turn_of(job, read, pointmaps))}
    given = None if settings.path_file is None else given_cameras(settings.path_file, pointmaps.cameras, read)
    return {"condition": condition.build_condition(inputs, pointmaps, settings, job.generator(), given)}


def turn_of(job: Job, read: Inputs, pointmaps: Pointmaps) -> Turn:
    """The round, and what the one before it has left."""
    if job.round == 1:
        return Turn(1, job.last_round, len(pointmaps.cameras))
    left = read.json("pointcloud", "rounds.json")
    reached = None if left["reached"] is None else torch.tensor(left["reached"])
    closed = any("closed" in one for one in left["rounds"])
    return Turn(job.round, job.last_round, left["photos"], left["pair"] and tuple(left["pair"]), reached, closed)


def given_cameras(file: Path, photos: Cameras, read: Inputs) -> Cameras:
    """The cameras of a file, which is in the frame of the given cameras, in the scene's."""
    noted = read.has("views", "origin.json")
    return cameras_on_path(read_path(file), photos, read.json("views", "origin.json")["origin"] if noted else NO_ORIGIN)
