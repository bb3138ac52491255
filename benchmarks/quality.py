"""Quality on held-out views of real photo sets, beside the floor and beside Gaussians fitted to the photos alone.

    python -m benchmarks.quality [--data DIR] [--scenes NAME:SPLIT[@SIZE],...] [--size 400] [--protocol posed]
                                 [--unposed] [--skip photos-only,image-based,poses] [-S stage.key=value]...
                                 [--out results.json] [--markdown]

Per scene PSNR and SSIM over at most 12 held-out views of
  default      the default settings (and what -S changes),
  photos only  Gaussians fitted to the photos alone, started from the SfM points,
  image-based  plane-sweep image-based rendering with the true cameras, nothing optimised;
with --unposed also the default settings without any camera given, each target camera refined. Then the accuracy of the input
cameras found without being given, and what each scene cost. A scene with @SIZE has that long side and counts in no mean.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Int
from rich.console import Console
from torch import Tensor

from benchmarks.image_based import depth_bounds, render_views
from benchmarks.poses import COLUMNS, accuracy
from benchmarks.quality_tables import grids, markdown, print_grid
from reconx_core import condition, confidence, metrics, pointcloud, splats, video
from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic, write_json
from reconx_core.io.json_files import read_json
from reconx_core.metrics.image import psnr, ssim
from reconx_core.pointcloud.sfm.solve import solve_cameras
from reconx_core.seeds import generator
from reconx_core.settings import Settings, parse_settings
from reconx_core.types import Frames, Pointmaps, Views
from reconx_core.views import load_views
from tasks.execute import measure
from tasks.machine import machine

T = TypeVar("T")

FAIR = "fountain_p11:train_3,fox:train_3,llff_fern:train_3,real_room:train_3"
PAIRS = "fountain_p11:pair_easy,fox:pair_easy,llff_fern:pair_easy,monstree:pair_easy,real_room:pair_easy"
NINE = "kitchen360:train_9,fox:train_9,llff_fern:train_9,monstree:train_9,hololens_room:train_9"
SCENES = f"{FAIR},{PAIRS},{NINE},llff_fern:train_3@504"
MOST_TARGETS = 12
SKIPPABLE = ("photos-only", "image-based", "poses")
FEWEST_MATCHES = 10  # of the worst-connected input view: with no more a split is no fair test
PHOTOS_ONLY = ["condition.frames_per_pair=0", "video.backend=none", "splats.init=sparse", "splats.fill=false"]


class Entry(NamedTuple):
    """A line of the table."""

    scene: str
    split: str
    size: int  # 0: that of the table


@dataclass
class Result:
    """What is known of one line."""

    scene: str
    split: str
    size: str = ""  # "504x378" where it is not that of the table
    fair: bool = False
    inputs: int = 0
    targets: int = 0
    scores: dict[str, dict[str, float | None]] = field(default_factory=dict)  # by method
    pose: dict[str, float] = field(default_factory=dict)
    costs: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)  # by method and stage: seconds, MiB
    errors: dict[str, str] = field(default_factory=dict)  # by what failed


class Geometry(NamedTuple):
    """Output of `pointcloud`, which several methods share."""

    pointmaps: Pointmaps
    kept: Int[Tensor, " k"]


def parse_scenes(text: str) -> list[Entry]:
    """``name:split[@size],...``; raises UserError where that is not what it says."""
    entries = []
    for item in text.split(","):
        name, _, rest = item.strip().partition(":")
        split, _, size = rest.partition("@")
        if not name or not split or (size and not size.isdigit()):
            raise UserError(f"'{item}' in --scenes should look like name:split or name:split@size, for example fox:train_3.")
        entries.append(Entry(name, split, int(size or 0)))
    return entries


def measure_entry(entry: Entry, options: argparse.Namespace) -> Result:
    """One line of the table; what fails is named in it."""
    result = Result(entry.scene, entry.split)
    base = [f"views.size={entry.size or options.size}", f"views.split={entry.split}", "views.protocol=posed"]
    settings = parse_settings({}, base + options.settings)
    views = attempt(result, "photos", lambda: describe(result, options.data / entry.scene, entry, settings))
    if views is None:
        return result
    photos_only = None if "photos-only" in options.skip else parse_settings({}, base + options.settings + PHOTOS_ONLY)
    run_methods(result, replace(views, protocol=options.protocol), settings, photos_only)
    if options.unposed:
        own = replace(views, protocol="unposed")
        attempt(result, "unposed", lambda: fit_and_score(result, "unposed", own, None, settings))
    if "image-based" not in options.skip:
        attempt(result, "image-based", lambda: image_based(result, options.data / entry.scene, views))
    if "poses" not in options.skip:
        attempt(result, "poses", lambda: find_poses(result, views.inputs(), settings))
    return result


def attempt(result: Result, what: str, work: Callable[[], T]) -> T | None:
    """The work's result; None, the error noted, where it fails: the rest of the table is worth having."""
    try:
        return work()
    except Exception as error:
        if not isinstance(error, UserError):
            traceback.print_exc()
        result.errors[what] = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return None


def describe(result: Result, scene: Path, entry: Entry, settings: Settings) -> Views:
    """The inputs and the first few targets, and what is to be said of them."""
    views = few_targets(load_views(scene, settings.views))
    result.fair = is_fair(scene, entry.split)
    result.inputs, result.targets = int((~views.is_target).sum()), int(views.is_target.sum())
    if entry.size:
        result.size = f"{views.images.shape[2]}x{views.images.shape[1]}"
    return views


def few_targets(views: Views) -> Views:
    """All inputs and the first few targets."""
    few = torch.cat([(~views.is_target).nonzero()[:, 0], views.is_target.nonzero()[:MOST_TARGETS, 0]])
    return views.select(few)


def is_fair(scene: Path, split: str) -> bool:
    """Whether the split is among those on which the default has to be above image-based rendering: its photos overlap."""
    file = scene / "split.json"
    overlap = read_json(file).get("overlap", {}).get(split, {}) if file.is_file() else {}
    return split == "pair_easy" or (split == "train_3" and overlap.get("weakest_link", 0) > FEWEST_MATCHES)


def run_methods(result: Result, views: Views, settings: Settings, photos_only: Settings | None) -> None:
    """The two methods that share one point cloud."""
    geometry = attempt(result, "default", lambda: estimate(result, "default", views, settings))
    if geometry is not None:
        attempt(result, "default", lambda: fit_and_score(result, "default", views, geometry, settings))
        if photos_only is not None:
            attempt(result, "photos only", lambda: fit_and_score(result, "photos only", views, geometry, photos_only))


def timed(result: Result, method: str, stage: str, work: Callable[[], T]) -> T:
    """The work's result, its time and the peak memory noted."""
    value, measured = measure(work)
    result.costs.setdefault(method, {})[stage] = {"seconds": measured["seconds"], "peak_mib": measured["peak_mib"]}
    return value


def estimate(result: Result, method: str, views: Views, settings: Settings) -> Geometry:
    """Stage `pointcloud`."""
    draw = generator(settings.seed, "pointcloud", result.scene)
    work = partial(pointcloud.estimate, views.inputs(), settings.pointcloud, draw)
    pointmaps, _, kept = timed(result, method, "pointcloud", work)
    return Geometry(pointmaps, kept)


def fit_and_score(result: Result, method: str, views: Views, geometry: Geometry | None, settings: Settings) -> None:
    """The stages from `condition` to `metrics`, in memory."""
    geometry = geometry or estimate(result, method, views, settings)
    (pointmaps, kept), run = geometry, partial(timed, result, method)
    judged = judged_frames(result, method, views, geometry, settings)
    draw = {stage: generator(settings.seed, stage, result.scene) for stage in ("splats", "metrics")}
    gaussians = run("splats", lambda: splats.fit_splats(judged, pointmaps, settings.splats, draw["splats"]))
    score = partial(metrics.score_scene, gaussians, views, kept, pointmaps, settings.metrics)
    scores, _ = run("metrics", lambda: score(draw["metrics"]))
    result.scores[method] = scores.summary


def judged_frames(result: Result, method: str, views: Views, geometry: Geometry, settings: Settings) -> Frames:
    """The stages from `condition` to `confidence`, in memory."""
    (pointmaps, kept), run = geometry, partial(timed, result, method)
    inputs = views.inputs().select(kept)
    draw = {stage: generator(settings.seed, stage, result.scene) for stage in ("condition", "video", "confidence")}
    guide = run("condition", lambda: condition.build_condition(inputs, pointmaps, settings.condition, draw["condition"]))
    frames = run("video", lambda: video.generate_frames(inputs, pointmaps, guide, settings.video, draw["video"]))
    return run("confidence", lambda: judge(inputs, frames, pointmaps, settings, draw["confidence"]))


def judge(inputs: Views, frames: Frames, pointmaps: Pointmaps, settings: Settings, draw: torch.Generator) -> Frames:
    """The stage `confidence`."""
    geometry = settings.pointcloud
    match = pointcloud.make_backend(geometry, fast=True, known=pointmaps)
    backends = confidence.Backends(pointcloud.make_backend(geometry), match)
    return confidence.trusted_frames(inputs, frames, pointmaps, backends, settings.confidence, draw)[0]


def image_based(result: Result, scene: Path, views: Views) -> None:
    """Plane-sweep image-based rendering of the targets."""
    inputs, targets = views.inputs(), views.targets()
    assert inputs.cameras is not None
    assert targets.cameras is not None
    if not len(targets):
        return
    bounds = depth_bounds(scene, inputs.cameras)
    renders = timed(result, "image-based", "metrics", lambda: render_views(inputs, targets.cameras, *bounds))  # type: ignore[arg-type]
    scores = [(psnr(*view), ssim(*view)) for view in zip(renders, targets.images, targets.masks)]
    mean = torch.tensor(scores, dtype=torch.float64).mean(0).tolist()
    result.scores["image-based"] = dict(zip(("psnr", "ssim"), mean))


def find_poses(result: Result, inputs: Views, settings: Settings) -> None:
    """The input cameras found from the photos alone, against the true ones."""
    assert inputs.cameras is not None
    draw = generator(settings.seed, "pointcloud", result.scene)
    sfm = solve_cameras(replace(inputs, protocol="unposed"), None, draw)
    registered = {"registered": float(sfm.registered.sum()) / len(inputs)}
    result.pose = registered | dict(zip(COLUMNS, accuracy(sfm, inputs.cameras)))


def summary_line(result: Result, seconds: float) -> str:
    scores = [f"{method} {s['psnr']:.2f}" for method, s in result.scores.items() if s.get("psnr") is not None]
    failed = [f"{what}: {error}" for what, error in result.errors.items()]
    return f"{result.scene} {result.split} {result.size}: {', '.join(scores + failed)} ({seconds:.0f} s)"


def save(out: Path, results: list[Result], options: argparse.Namespace) -> None:
    """The results as JSON, and beside them the tables as Markdown."""
    record: dict[str, Any] = {
        "size": options.size, "protocol": options.protocol, "settings": options.settings, "machine": machine(),
        "results": [asdict(result) for result in results],
    }  # fmt: skip
    write_json(out, record)
    tables = grids(record["results"], options.size, options.protocol)
    write_atomic(out.with_suffix(".md"), "\n".join(markdown(grid) for grid in tables).encode())


def scene_options(about: str | None, scenes: str) -> argparse.ArgumentParser:
    """The options of every benchmark over scenes; the namespace's ``data`` goes through :func:`posed_folder`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("RECONX_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="folder of scenes, or one that holds posed/")
    parser.add_argument("--scenes", default=scenes, help="name:split or name:split@size, by commas")
    parser.add_argument("--size", type=int, default=400, help="long side, pixels")
    parser.add_argument("-S", dest="settings", action="append", default=[], metavar="stage.key=value")
    parser.add_argument("--out", type=Path, help="JSON file for the results, written after every scene")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser


def posed_folder(data: Path) -> Path:
    """The folder of scenes: ``data``, or its posed/."""
    return data / "posed" if (data / "posed").is_dir() else data


def read_options() -> argparse.Namespace:
    parser = scene_options(__doc__, SCENES)
    parser.add_argument("--protocol", choices=("posed", "intrinsics", "unposed"), default="posed")
    parser.add_argument("--unposed", action="store_true", help="also score the default settings with nothing given")
    parser.add_argument("--skip", default="", help=f"any of {','.join(SKIPPABLE)}")
    options = parser.parse_args()
    options.skip = [name for name in options.skip.split(",") if name]
    options.data = posed_folder(options.data)
    return options


def run(options: argparse.Namespace) -> list[Result]:
    """Every scene in turn.

    Raises:
        UserError: wrong --scenes, --skip or -S, or no such folder of scenes.
    """
    if unknown := sorted(set(options.skip) - set(SKIPPABLE)):
        raise UserError(f"--skip knows {', '.join(SKIPPABLE)}, not '{unknown[0]}'.")
    entries = parse_scenes(options.scenes)
    parse_settings({}, options.settings + PHOTOS_ONLY)
    if not options.data.is_dir():
        raise UserError(f"There is no folder of scenes {options.data}; give it by --data or RECONX_DATA.")
    results: list[Result] = []
    for entry in entries:
        start = time.perf_counter()
        results.append(measure_entry(entry, options))
        print(summary_line(results[-1], time.perf_counter() - start), file=sys.stderr, flush=True)
        if options.out:
            save(options.out, results, options)
    return results


def main() -> int:
    options = read_options()
    try:
        results = run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for grid in grids([asdict(result) for result in results], options.size, options.protocol):
        if options.markdown:
            print(markdown(grid))
        else:
            print_grid(Console(width=None if sys.stdout.isatty() else 160), grid)
    return int(any(result.errors for result in results))


if __name__ == "__main__":
    sys.exit(main())
