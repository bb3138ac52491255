"""The clips of a training run: drawn from the scenes, and each made by a cached task, on any number of workers."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import torch
from rich.console import Console

from flows.execution.plan import ScenePlan, place_of
from flows.execution.run import run_stages
from flows.execution.workers import Workers
from flows.runs.registry import register_more, register_start
from reconx_core import datasets
from reconx_core.cache import store
from reconx_core.cache.store import Reference
from reconx_core.errors import UserError
from reconx_core.names import shown
from reconx_core.seeds import generator
from reconx_core.settings import ClipSection, ClipSettings, Contents, PointcloudSettings, ViewsSettings
from reconx_core.training.settings import ClipSource, TrainSettings
from reconx_core.types import Clip

Loaders = list[Callable[[], Clip]]
STAGES = ("clip",)


@dataclass
class Wanted:
    """The clips of an epoch as they are drawn, and of how many scenes there are none, by reason."""

    crop: tuple[int, int]  # height and width that a step needs of every frame
    plans: list[ScenePlan] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)  # frames a second of each
    left_out: Counter[str] = field(default_factory=Counter)
    example: str = ""  # of what is left out

    def only(self, count: int) -> Wanted:
        """The first clips."""
        return Wanted(self.crop, self.plans[:count], self.rates[:count])

    def leave_out(self, reason: str, example: str) -> None:
        self.left_out[reason] += 1
        self.example = self.example or example


@dataclass(frozen=True)
class Workshop:
    """Where and by whom clips are made."""

    root: Path  # of the store
    out: Path  # of the run, for which they are kept
    console: Console
    workers: int = 1
    dask: str | None = None


def make_clips(wanted: Wanted, shop: Workshop, kept: list[Reference]) -> Loaders:
    """Loaders of the clips, computed or found in the store; ``kept`` grows by their artifacts, which `reconx gc` spares.

    Clips that cannot be made, because their two photos do not overlap, or whose photos are smaller than the crop, are left out;
    a line says how many clips there are and why others are not.
    """
    if not wanted.plans:
        report(wanted, 0, shop.console)
        return []
    register_start(shop.root, shop.out, making="clip")  # else `reconx gc` would remove what is made before a kill
    runs = run_stages(
        lambda: wanted.plans, shop.root, shop.console, stages=STAGES, workers=Workers(shop.workers, shop.dask), quiet=True
    )
    register_more(shop.root, shop.out, [run.references["clip"] for run in runs if run.error is None])
    loaders: Loaders = []
    for run, rate in zip(runs, wanted.rates):
        if run.error is not None:
            _require_user_error(run.error)
            wanted.leave_out("could not be made", f"{run.plan.name}: {run.error}")
            continue
        folder = run.references["clip"].folder(shop.root)
        height, width = store.shape_of(folder, "clip", "images")[1:3]
        if height < wanted.crop[0] or width < wanted.crop[1]:
            crop = " x ".join(map(str, wanted.crop))
            wanted.leave_out("smaller than the crop", f"{run.plan.name} has {height} x {width} pixels, the crop {crop}")
            continue
        kept.append(run.references["clip"])
        loaders.append(partial(load_clip, folder, rate))
    report(wanted, len(loaders), shop.console)
    return loaders


def _require_user_error(error: BaseException) -> None:
    """Raise what is no trouble of a clip's own, but an error in the program; from a Dask worker all come as text."""
    from flows.execution.flow import WorkerError

    if not isinstance(error, UserError | WorkerError):
        raise error


def report(wanted: Wanted, count: int, console: Console) -> None:
    """One line: how many clips there are, and how many are left out for which reason."""
    reasons = ", ".join(f"{number} {reason}" for reason, number in sorted(wanted.left_out.items()))
    example = f" ({reasons}; for example {wanted.example})" if reasons else ""
    console.print(f"{count} clips; left out: {sum(wanted.left_out.values())}{example}", soft_wrap=True, markup=False)


def load_clip(folder: Path, fps: float) -> Clip:
    """A stored clip and its frame rate."""
    return replace(store.load(folder, "clip"), fps=fps)


def draw_clips(sources: list[ClipSource], settings: TrainSettings, contents: Contents, epoch: int = 0) -> Wanted:
    """The clips of an epoch: start, skip and (where it is random) the second photo are drawn from (seed, epoch, scene).

    There are as many in every epoch. Scenes that are too short for a clip, or cannot be read, are counted.

    Raises:
        UserError: a source is not there.
    """
    wanted = Wanted(settings.crop)
    for number, source in enumerate(sources):
        for name, path in datasets.scene_names(Path(_expand(source.path))):
            try:
                photos = _photo_count(path)
            except UserError as error:
                wanted.leave_out("scenes cannot be read", f"{name}: {error}")
                continue
            if source.skip[0] * (source.frames - 1) >= photos:
                wanted.leave_out("scenes are too short", f"'{name}' has {photos} photos, too few for {source.frames} frames")
                continue
            names = ("clips", str(number), name, *([str(epoch)] if epoch else []))
            draw = generator(settings.seed, *names)
            for start, skip, second in _draws(source, photos, settings.second_photo, draw):
                wanted.plans.append(_plan(name, path, source.frames, start, skip, second, settings, contents))
                wanted.rates.append(source.fps / skip)
    return wanted


def _expand(path: str) -> str:
    expanded = os.path.expandvars(path)
    if "$" in expanded:
        raise UserError(f"The data '{expanded}' names an environment variable that is not set.")
    return expanded


@cache
def _photo_count(scene: Path) -> int:
    return len(datasets.read(scene).photos)


def _draws(source: ClipSource, photos: int, second_photo: str, draw: torch.Generator) -> Iterator[tuple[int, int, int | None]]:
    """Start, skip and the number of the frame that is the second photo (None: the last), of each clip of a scene.

    A second photo within the clip lies in its middle half, so that there is something to interpolate and to extrapolate.
    """
    last = source.frames - 1
    skips = [skip for skip in range(source.skip[0], source.skip[1] + 1) if skip * last < photos]
    for _ in range(source.clips):
        skip = skips[int(torch.randint(len(skips), (), generator=draw))]
        start = int(torch.randint(photos - skip * last, (), generator=draw))
        second = None
        if second_photo == "random":
            second = int(torch.randint(max(1, -(-last // 4)), 3 * last // 4 + 1, (), generator=draw))
        yield start, skip, second


def _plan(
    name: str, path: Path, frames: int, start: int, skip: int, second: int | None, settings: TrainSettings, contents: Contents
) -> ScenePlan:
    clip, split = f"{name} {start}:{skip}:{frames}", f"clip:{start}:{skip}:{frames}"
    if second is not None:
        numbers = [start + skip * k for k in range(frames)]
        others = [number for k, number in enumerate(numbers) if k not in (0, second)]
        clip, split = f"{clip}:{second}", f"views:{start},{numbers[second]}:{','.join(map(str, others))}"
    # Frames alone do not depend on the geometry, nor should their keys.
    geometry = PointcloudSettings() if contents == "frames" else settings.pointcloud
    views = ViewsSettings(size=settings.size, crop=settings.clip_size, split=split, protocol="posed")
    section = ClipSection(contents=contents, second=second)
    job = ClipSettings(seed=settings.seed, views=views, pointcloud=geometry, clip=section)
    return ScenePlan(shown(clip), place_of(path), job)
