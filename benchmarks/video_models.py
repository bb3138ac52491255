"""The paper's Table V in our setting: what generated frames, the structure condition and confidence are worth.

    python -m benchmarks.video_models [--data DIR] [--scenes NAME:SPLIT[@SIZE],...] [--size 320] [--model reconx-tiny]
                                      [--look plain] [-S stage.key=value]... [--out results.json] [--markdown]

Per scene PSNR and SSIM of the finished Gaussians on held-out views (posed protocol) without video, with the renders of the
point cloud as frames (`points`), and with the model's frames without and with its structure condition; each with and
without confidence-aware optimisation, and without being judged where that changes any. Then the differences to `points`, paired
by scene, with 95 % bootstrap intervals. The default scenes are none that reconx-tiny was trained on. Each is fitted eight
times, so by default smaller and in fewer steps than in a run: about five minutes a scene on two cores.

Last, what frames do where the scene was right without them, and where it was not: the change of the mean absolute error, in
1/255, on pixels of held-out views around which the error without video is at most RIGHT, and on the others. As pixels
are chosen by one fit's error, any other fit is a little worse on the former and better on the latter; how much that is, the
row of another seed says. With --look the frames are spoiled first, as video models do (`coloured`, `generated`: each frame
in its own way; `tinted`: all alike; see benchmarks.frame_cameras).
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import sys
import time
from dataclasses import replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from benchmarks.frame_cameras import LOOKS, with_look
from benchmarks.quality import Entry, few_targets, parse_scenes, posed_folder, scene_options
from benchmarks.quality_tables import Grid, format_figure, markdown, print_grid
from flows.evaluation.comparison import interval
from reconx_core import condition, confidence, metrics, pointcloud, splats, video
from reconx_core.errors import UserError
from reconx_core.io.files import write_json
from reconx_core.seeds import generator
from reconx_core.settings import Settings, parse_settings
from reconx_core.types import Frames, Pointmaps, Views
from reconx_core.views import load_views

SCENES = (
    "fountain_p11:train_3,fox:train_3,llff_fern:train_3,"
    "fountain_p11:pair_easy,fox:pair_easy,llff_fern:pair_easy,monstree:pair_easy"
)
SIZE, STEPS = 320, 600
BASE = "points, confidence"  # what differences are taken to
ALONE, AGAIN = "no video", "no video, another seed"  # what errors are compared with, and how much they change by chance
RIGHT, AROUND = 10 / 255, 15  # mean absolute error up to which a place is right, and the pixels on the side of the mean
UNJUDGED = ["confidence.judge=false"]
Score = dict[str, float]
Errors = list[Float[Tensor, "h w"]]  # of each held-out view


def rows(model: str) -> dict[str, list[str]]:
    """The settings of each generator."""
    return {
        ALONE: ["video.backend=none", "condition.frames_per_pair=0"],
        AGAIN: ["video.backend=none", "condition.frames_per_pair=0", "seed=1"],
        "points": ["video.backend=points"],
        f"{model}, no structure": [f"video.backend={model}", "video.structure=false"],
        model: [f"video.backend={model}"],
    }


def measure_scene(entry: Entry, options: argparse.Namespace) -> dict[str, Score]:
    """The scores of every row; geometry is shared, and frames by the rows that differ in confidence alone."""
    shown = [f"views.size={entry.size or options.size}", f"views.split={entry.split}", "views.protocol=posed"]
    base = [*shown, f"splats.steps={STEPS}", *options.settings]
    settings = parse_settings({}, base)
    views = few_targets(load_views(options.data / entry.scene, settings.views))
    inputs = views.inputs()
    draw = generator(settings.seed, "pointcloud", entry.scene)
    pointmaps, _, kept = pointcloud.estimate(inputs, settings.pointcloud, draw)
    inputs = inputs.select(kept)
    scores: dict[str, Score] = {}
    alone: Errors = []
    before = None
    for name, changes in rows(options.model).items():
        frames = spoiled(generate(entry.scene, inputs, pointmaps, parse_settings({}, base + changes)), options.look)
        for label, more in variants(name, len(frames) > len(inputs)).items():
            chosen, start = parse_settings({}, base + changes + more), time.perf_counter()
            judged = judge(entry.scene, inputs, frames, pointmaps, chosen, chosen.confidence.enabled)
            if before is not None and more == UNJUDGED and same(judged, before):
                scores[label] = scores[f"{name}, confidence"]
                continue
            before = judged
            scores[label], errors = fit(entry.scene, views, kept, judged, pointmaps, chosen)
            alone = alone or errors
            scores[label] |= harm(errors, alone)
            report = f"{entry.scene} {entry.split} {label}: {scores[label]['psnr']:.2f} ({time.perf_counter() - start:.0f} s)"
            print(report, file=sys.stderr, flush=True)
    return scores


def variants(name: str, generated: bool) -> dict[str, list[str]]:
    """The rows of one generator's frames, and their settings."""
    if not generated:
        return {name: []}
    off = {name: ["confidence.enabled=false"]}
    return off | {f"{name}, confidence": [], f"{name}, confidence, not judged": UNJUDGED}


def spoiled(frames: Frames, look: str) -> Frames:
    """The generated frames with a look of their own."""
    images, made = frames.images.clone(), ~frames.is_photo
    images[made] = with_look(images[made], look)
    return replace(frames, images=images)


def same(one: Frames, other: Frames) -> bool:
    """Whether both fit the same Gaussians."""
    return len(one) == len(other) and torch.equal(one.images, other.images) and torch.equal(one.confidence, other.confidence)


def generate(scene: str, inputs: Views, pointmaps: Pointmaps, settings: Settings) -> Frames:
    """The stages `condition` and `video`."""
    draw = partial(generator, settings.seed)
    guide = condition.build_condition(inputs, pointmaps, settings.condition, draw("condition", scene))
    return video.generate_frames(inputs, pointmaps, guide, settings.video, draw("video", scene))


def judge(scene: str, inputs: Views, frames: Frames, pointmaps: Pointmaps, settings: Settings, weighed: bool) -> Frames:
    """The stage `confidence`, or without it every pixel alike."""
    chosen = settings.confidence.model_copy(update={"enabled": weighed})
    draw = generator(settings.seed, "confidence", scene)
    geometry = settings.pointcloud
    match = pointcloud.make_backend(geometry, fast=True, known=pointmaps)
    backends = confidence.Backends(pointcloud.make_backend(geometry), match)
    return confidence.trusted_frames(inputs, frames, pointmaps, backends, chosen, draw)[0]


def fit(
    scene: str, views: Views, kept: object, frames: Frames, pointmaps: Pointmaps, settings: Settings
) -> tuple[Score, Errors]:
    """The stages `splats` and `metrics`, and the errors of every held-out view; 0 outside its mask."""
    gaussians = splats.fit_splats(frames, pointmaps, settings.splats, generator(settings.seed, "splats", scene))
    draw = generator(settings.seed, "metrics", scene)
    scores, pictures = metrics.score_scene(gaussians, views, kept, pointmaps, settings.metrics, draw)  # type: ignore[arg-type]
    panels = [picture.panels for picture in pictures if picture.is_target]
    masks = views.targets().masks
    errors = [(shot["render"] - shot["photo"]).abs().mean(-1) * mask for shot, mask in zip(panels, masks)]
    return {key: scores.summary[key] for key in ("psnr", "ssim")}, errors  # type: ignore[misc]


def harm(errors: Errors, alone: Errors) -> Score:
    """Change of the mean error, in 1/255, where the scene was ``right`` without video and where it was ``wrong``."""
    around = [F.avg_pool2d(error[None], AROUND, 1, AROUND // 2, count_include_pad=False)[0] for error in alone]
    right = torch.stack(around) <= RIGHT
    change = 255 * (torch.stack(errors) - torch.stack(alone))
    return {"right": float(change[right].mean()), "wrong": float(change[~right].mean()), "share": float(right.float().mean())}


def grids(results: dict[str, dict[str, Score]], size: int) -> list[Grid]:
    """Scores per scene and in the mean, and differences to the base."""
    labels = list(next(iter(results.values())))
    figures = {label: [format_figure(r[label]["psnr"], "psnr") for r in results.values()] for label in labels}
    lines = [[label, *figures[label], *means(results, label)] for label in labels]
    table = Grid(f"PSNR on held-out views, posed protocol, {size} px", ["frames", *results, "mean PSNR", "mean SSIM"], [lines])
    lines = [[label, *difference(results, label, "psnr")] for label in labels if label != BASE]
    paired = Grid(f"Difference to '{BASE}', paired by scene", ["frames", "dB", "95 % interval", "wins"], [lines])
    return [table, paired, harm_grid(results, labels)]


def harm_grid(results: dict[str, dict[str, Score]], labels: list[str]) -> Grid:
    """What frames do where the scene was right without them and where it was not."""
    lines = []
    for label in labels[1:]:
        changes = [np.array([r[label][part] for r in results.values()]) for part in ("right", "wrong")]
        lines.append([label, *(cell for change in changes for cell in (f"{np.nanmean(change):+.2f}", bounds_of(change)))])
    share = float(np.mean([r[ALONE]["share"] for r in results.values()]))
    title = f"Do no harm: change of the mean absolute error against '{ALONE}', 1/255"
    header = ["frames", "where it was right", "95 % interval", "where it was not", "95 % interval"]
    return Grid(title, header, [lines], [f"It was right on {share:.0%} of the held-out pixels; below 0 is better."])


def bounds_of(differences: np.ndarray) -> str:
    bounds = interval(differences)
    return f"{bounds[0]:+.2f} … {bounds[1]:+.2f}" if bounds else "needs three scenes"


def means(results: dict[str, dict[str, Score]], label: str) -> list[str]:
    return [format_figure(float(np.mean([r[label][key] for r in results.values()])), key) for key in ("psnr", "ssim")]


def difference(results: dict[str, dict[str, Score]], label: str, key: str) -> list[str]:
    """Mean difference to the base, its interval, and on how many scenes it is positive."""
    differences = np.array([r[label][key] - r[BASE][key] for r in results.values()])
    return [f"{differences.mean():+.2f}", bounds_of(differences), f"{(differences > 0).sum()} of {len(differences)}"]


def read_options() -> argparse.Namespace:
    parser = scene_options(__doc__, SCENES)
    parser.set_defaults(size=SIZE)
    parser.add_argument("--model", default="reconx-tiny", help="the video backend to compare")
    parser.add_argument("--look", choices=(*LOOKS, "tinted"), default="plain", help="how the frames are spoiled first")
    options = parser.parse_args()
    options.data = posed_folder(options.data)
    return options


def main() -> int:
    options = read_options()
    results = {}
    try:
        if options.model not in video.BACKENDS:  # refused before an hour of work on the rows that need no model
            raise UserError(f"There is no video backend '{options.model}'; this version has {', '.join(video.BACKENDS)}.")
        for entry in parse_scenes(options.scenes):
            results[f"{entry.scene} {entry.split}"] = measure_scene(entry, options)
            if options.out:
                write_json(options.out, results)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    for grid in grids(results, options.size):
        print(markdown(grid)) if options.markdown else print_grid(Console(width=None if sys.stdout.isatty() else 160), grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
