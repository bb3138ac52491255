"""ReconX from Python: photos to Gaussians, rendered, scored and exported (docs/library.md).

Importing it starts no server and writes no file. Mistakes in what is given raise `UserError`, with a sentence for people. What
stages have to say along the way are warnings.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core import metrics, seeds
from reconx_core.cache import store as stored
from reconx_core.cache.lock import in_use
from reconx_core.datasets import is_place, scene_names
from reconx_core.errors import UserError
from reconx_core.export.formats import write_gaussians
from reconx_core.export.origin import NO_ORIGIN, Origin, parse_origin
from reconx_core.rasterize import rasterize
from reconx_core.settings import Settings, load_settings, parse_settings
from reconx_core.types import Cameras, Frames, Gaussians, PointCloud, Pointmaps, Scores, Views
from reconx_core.views import load_views
from reconx_core.weights.choice import resolve_geometry
from tasks.execute import Inputs, Job, Monitor, execute, load_stages, source_digest
from tasks.graph import Node, tasks_of

__all__ = [
    "Cameras", "Frames", "Gaussians", "PointCloud", "Pointmaps", "Reconstruction", "Scores", "Settings", "UserError", "Views",
    "export", "load_photos", "make_settings", "reconstruct", "reconstruct_stored", "render", "score",
]  # fmt: skip

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]  # stage, in rounds from the second on with its number; steps done, steps in all


@dataclass(frozen=True)
class Reconstruction:
    """A scene and what it was made of."""

    gaussians: Gaussians
    views: Views  # the inputs and the held-out targets
    kept: Int[Tensor, " k"]  # which of the inputs have a camera
    pointmaps: Pointmaps  # of these, in their order
    cloud: PointCloud
    frames: Frames  # photos and generated frames, with the confidence by which the Gaussians were fitted to them
    origin: Origin = NO_ORIGIN  # where the scene's zero lies in the frame of cameras that a dataset gave

    @property
    def cameras(self) -> Cameras:
        """The cameras of the inputs that have one; the world is OpenCV's, that of the dataset where it gave cameras."""
        return self.pointmaps.cameras


@dataclass(frozen=True)
class _Held(Inputs):
    """Results of stages in memory, read as the tasks read those of a store."""

    outputs: dict[str, dict[str, Any]]

    def __call__(self, stage: str, name: str) -> Any:
        return self.outputs[stage][name]

    def has(self, stage: str, name: str) -> bool:
        return name in self.outputs[stage]

    def json(self, stage: str, name: str) -> Any:
        return json.loads(self.outputs[stage][name])


class _Told(Monitor):
    def __init__(self, progress: Progress | None) -> None:
        self.progress = progress

    def advanced(self, stage: str, scene: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)


def make_settings(overrides: Iterable[str] = (), file: str | Path | None = None) -> Settings:
    """Settings from ``stage.key=value`` texts, over those of a YAML file (default: the default preset), as ``-S`` takes them.

    Raises:
        UserError: no such file, key or value.
    """
    chosen = parse_settings({}, list(overrides)) if file is None else load_settings(Path(file), list(overrides))
    return chosen.model_copy(update={"pointcloud": resolve_geometry(chosen.pointcloud)})


def load_photos(source: str | Path, settings: Settings | None = None) -> Views:
    """The photos at ``source`` (a folder, a video, a scene of a dataset, ``procedural:room?seed=1``), undistorted and resized:
    the inputs first, then those held out by ``settings.views.split``.

    Raises:
        UserError: nothing readable there, or fewer than two usable photos.
    """  # fmt: skip
    return load_views(source, (settings or make_settings()).views)


def reconstruct(photos: Views, settings: Settings | None = None, progress: Progress | None = None) -> Reconstruction:
    """Gaussians of the input photos, all stages in memory: nothing is written, and nothing is kept for another time.

    The results are those of the command line up to the 8 bits in which a store keeps pictures between stages.

    Raises:
        UserError: the photos do not overlap, or weights that the settings ask for are missing.
    """
    used = make_settings() if settings is None else settings
    outputs: dict[str, dict[str, Any]] = {"views": {"views": photos}}
    _, *making, scoring = tasks_of(used)
    for node in making:
        job = Job(node.stage, "", "", "", used, Path(), _Told(progress), round=node.round)
        outputs[node.name] = importlib.import_module(f"tasks.{node.stage}").run(job, _Held(Path(), {}, _read_by(node, outputs)))
    return _reconstruction(_Held(Path(), {}, _read_by(scoring, outputs)))


def reconstruct_stored(
    source: str | Path, store: str | Path, settings: Settings | None = None, progress: Progress | None = None
) -> Reconstruction:
    """Gaussians of the one scene at ``source``, each stage's result looked up in, or else put into, the store at ``store``.

    It may be the command line's store, whose results count as one's own. Without Prefect: one process, one stage at a time.

    Raises:
        UserError: as :func:`load_photos` and :func:`reconstruct`; several scenes, or the store cannot be written to.
    """
    used, root = make_settings() if settings is None else settings, Path(store)
    scenes = list(scene_names(Path(source)))
    if len(scenes) != 1:
        raise UserError(f"'{source}' holds {len(scenes)} scenes: give the path of one of them.")
    (name, place), references = scenes[0], dict[str, stored.Reference]()
    found = place.absolute() if is_place(place) else place
    *making, scoring = tasks_of(used)
    with in_use(root):
        load_stages(dict.fromkeys(node.stage for node in making))
        digest = source_digest(str(found), root)
        for node in making:
            job = Job(node.stage, name, str(found), digest, used, root, _Told(progress), round=node.round)
            references[node.name], _ = execute(job, _read_by(node, references))
        return _reconstruction(Inputs(root, _read_by(scoring, references)))


def _read_by(node: Node, made: dict[str, Result]) -> dict[str, Result]:
    """What a task reads, by stage, of what the tasks before it ``made``."""
    return {stage: made[task] for stage, task in node.parents.items()}


def _reconstruction(read: Inputs) -> Reconstruction:
    noted = read.json("views", "origin.json")["origin"] if read.has("views", "origin.json") else NO_ORIGIN
    return Reconstruction(
        read("splats", "gaussians"), read("views", "views"), read("pointcloud", "kept"), read("pointcloud", "pointmaps"),
        read("pointcloud", "pointcloud"), read("confidence", "frames"), parse_origin(noted) or NO_ORIGIN,
    )  # fmt: skip


@torch.no_grad()
def render(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, "n h w 3"]:
    """The pictures that the cameras take of the Gaussians, in [0, 1], on black."""
    one = [rasterize(gaussians, cameras[i : i + 1]).rgb.clamp(0, 1) for i in range(len(cameras))]
    return torch.cat(one) if one else torch.zeros(0, cameras.height, cameras.width, 3)


def export(scene: Reconstruction | Gaussians, path: str | Path) -> int:
    """Write the Gaussians in the format that ``path`` ends in (docs/export.md); returns how many: those that can be shown.

    Raises:
        UserError: no such format, or nothing that can be shown.
        OSError: the file cannot be written.
    """
    if isinstance(scene, Reconstruction):
        return write_gaussians(Path(path), scene.gaussians, scene.origin)
    return write_gaussians(Path(path), scene)


def score(scene: Reconstruction, settings: Settings | None = None) -> Scores:
    """PSNR, SSIM and, where its weights are, LPIPS on the held-out views and on the inputs, as `reconx evaluate` takes them.

    Raises:
        UserError: a view's mask leaves nothing to score.
    """
    used = make_settings() if settings is None else settings
    generator = seeds.generator(used.seed, "metrics", "")
    return metrics.score_scene(scene.gaussians, scene.views, scene.kept, scene.pointmaps, used.metrics, generator)[0]
