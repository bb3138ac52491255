"""What frames past the photos are worth past the photos: procedural rooms, two photos, targets up to a baseline outside.

    python -m benchmarks.extrapolation [--scene room] [--seeds 10] [--size 192] [--arc 12] [--steps 300]
                                       [-S stage.key=value]... [--pictures DIR] [--out results.json] [--markdown]

Per seed PSNR without video, with frames between the photos, and with frames past them too (`condition.path=extrapolate`), of
  seen    pixels of surfaces that one of the photos sees, by true depth,
  unseen  all others,
  whole   images,
each over the pixels of all four targets together: half a baseline (the step of an arc) and a whole one past either photo. The
photos' cameras are given. Then the differences of `extrapolate` to `between`, paired by seed, with 95 % bootstrap intervals.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from rich.console import Console
from torch import Tensor

from benchmarks.quality_tables import Grid, format_figure, markdown, print_grid
from benchmarks.video_models import generate, judge
from flows.evaluation.comparison import interval
from reconx_core import pointcloud, splats
from reconx_core.datasets import procedural
from reconx_core.datasets.procedural_spec import parse
from reconx_core.datasets.raycast import render
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import unproject
from reconx_core.io.files import write_json
from reconx_core.io.images import write_png
from reconx_core.rasterize import rasterize
from reconx_core.seeds import generator
from reconx_core.settings import Settings, parse_settings
from reconx_core.types import Cameras, Frames, Gaussians, Pointmaps, Views
from reconx_core.views import load_views

ROWS = {
    "no video": ["video.backend=none", "condition.frames_per_pair=0"],
    "between": ["condition.path=between"],
    "extrapolate": ["condition.path=extrapolate"],
}
REGIONS = ("seen", "unseen", "whole")
SPLIT = "views:2,4:0,1,5,6"  # of four places on the arc and one between each two: the two in the middle, and what lies outside
MOST_LOSS = 0.05  # dB in seen regions
SAME_SURFACE = 0.02  # relative depth within which two cameras see the same surface
RULE = (
    f"The rule: in seen regions `extrapolate` is worse than `between` by at most {MOST_LOSS} dB in the mean, and on whole "
    "images it is better in the mean, with an interval above 0."
)
Score = dict[str, float]


def source_of(options: argparse.Namespace, seed: int) -> str:
    size = f"width={options.size}&height={options.size * 3 // 4}"
    return f"procedural:{options.scene}?seed={seed}&views=4&targets=1&arc={options.arc:g}&{size}"


def measure_seed(options: argparse.Namespace, seed: int) -> dict[str, Score]:
    """The scores of every row; geometry is shared."""
    source = source_of(options, seed)
    base = [f"views.size={options.size}", f"views.split={SPLIT}", "views.protocol=posed", f"splats.steps={options.steps}"]
    base += options.settings
    settings = parse_settings({}, base)
    views = load_views(source, settings.views)
    name, seen = Path(source).name, seen_by_photos(source, views)
    inputs = views.inputs()
    pointmaps, _, kept = pointcloud.estimate(inputs, settings.pointcloud, generator(settings.seed, "pointcloud", name))
    inputs, scores, shown = inputs.select(kept), {}, [views.targets().images]
    for row, changes in ROWS.items():
        start, chosen = time.perf_counter(), parse_settings({}, base + changes)
        frames = judge(name, inputs, generate(name, inputs, pointmaps, chosen), pointmaps, chosen, True)
        shown.append(fitted(name, frames, pointmaps, views.targets(), chosen))
        scores[row] = score(shown[-1], shown[0], seen)
        figures = ", ".join(f"{region} {scores[row][region]:.2f}" for region in REGIONS)
        print(f"{source} {row}: {figures} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    if options.pictures:
        options.pictures.mkdir(parents=True, exist_ok=True)
        write_png(options.pictures / f"{seed:03d}.png", picture(shown, seen))
    return scores


def seen_by_photos(source: str, views: Views) -> Bool[Tensor, "t h w"]:
    """Pixels of the targets whose surface one of the photos sees."""
    photos, targets = cameras_of(views.inputs()), cameras_of(views.targets())
    of_photos, of_targets = true_depth(source, photos), true_depth(source, targets)
    points = unproject(of_targets, targets)
    return torch.stack([shows(photos[[i]], of_photos[i], points) for i in range(len(photos))]).any(0)


def shows(camera: Cameras, depth: Float[Tensor, "h w"], points: Float[Tensor, "t h w 3"]) -> Bool[Tensor, "t h w"]:
    """Which world points a camera sees, whose pixels have that depth."""
    local = points @ camera.world_to_cam[0, :3, :3].mT + camera.world_to_cam[0, :3, 3]
    on_image = local @ camera.intrinsics[0].mT
    x, y = (torch.floor(on_image[..., i] / local[..., 2].clamp(min=1e-6)).long() for i in (0, 1))
    inside = (local[..., 2] > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    there = depth[y.clamp(0, camera.height - 1), x.clamp(0, camera.width - 1)]
    return inside & (local[..., 2] < (1 + SAME_SURFACE) * there)


def true_depth(source: str, cameras: Cameras) -> Float[Tensor, "n h w"]:
    spec = parse(source)
    scene, shots = procedural.build(spec.scene, spec.seed), zip(cameras.intrinsics, cameras.cam_to_world)
    return torch.stack([render(scene, k, pose, cameras.height, cameras.width)[1] for k, pose in shots])


def cameras_of(views: Views) -> Cameras:
    """The true ones, which procedural scenes have."""
    assert views.cameras is not None
    return views.cameras


@torch.no_grad()
def rendered(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, "t h w 3"]:
    return torch.cat([rasterize(gaussians, cameras[[i]]).rgb.clamp(0, 1) for i in range(len(cameras))])


def fitted(name: str, frames: Frames, pointmaps: Pointmaps, targets: Views, settings: Settings) -> Float[Tensor, "t h w 3"]:
    """The stage `splats`, seen by the targets' cameras."""
    gaussians = splats.fit_splats(frames, pointmaps, settings.splats, generator(settings.seed, "splats", name))
    return rendered(gaussians, cameras_of(targets))


def score(renders: Float[Tensor, "t h w 3"], photos: Float[Tensor, "t h w 3"], seen: Bool[Tensor, "t h w"]) -> Score:
    """PSNR in dB over the pixels of each region in all targets together, and the share of seen ones."""
    masks = {"seen": seen, "unseen": ~seen, "whole": torch.ones_like(seen)}
    errors = {region: (renders - photos)[mask].double().square().mean().item() for region, mask in masks.items()}
    return {region: -10 * math.log10(error) for region, error in errors.items()} | {"share": seen.float().mean().item()}


def picture(shown: list[Float[Tensor, "t h w 3"]], seen: Bool[Tensor, "t h w"]) -> Float[Tensor, "y x 3"]:
    """A row of targets for the truth, the truth where photos see it, and every row of the table."""
    rows = [shown[0], shown[0] * seen[..., None], *shown[1:]]
    return torch.cat([torch.cat(list(row), 1) for row in rows])


def grids(results: dict[str, dict[str, Score]], options: argparse.Namespace) -> list[Grid]:
    """Means per row, and the differences that the rule is about."""
    mean = lambda row, key: float(np.mean([scores[row][key] for scores in results.values()]))  # noqa: E731
    lines = [[row, *(format_figure(mean(row, region), "psnr") for region in REGIONS)] for row in ROWS]
    share = f"{mean('between', 'share'):.0%} of the targets' pixels are seen by a photo."
    title = f"PSNR past the photos, dB, mean of {len(results)} {options.scene}s, {options.size} px, {options.steps} steps"
    table = Grid(title, ["frames", *REGIONS], [lines], [share])
    lines = [[region, *difference(results, region)] for region in REGIONS]
    paired = Grid("`extrapolate` minus `between`, paired by seed", ["region", "dB", "95 % interval", "wins"], [lines])
    paired.notes.append(verdict(results))
    return [table, paired]


def differences(results: dict[str, dict[str, Score]], region: str) -> np.ndarray:
    return np.array([scores["extrapolate"][region] - scores["between"][region] for scores in results.values()])


def difference(results: dict[str, dict[str, Score]], region: str) -> list[str]:
    change = differences(results, region)
    bounds = interval(change)
    spread = f"{bounds[0]:+.2f} … {bounds[1]:+.2f}" if bounds else "needs three seeds"
    return [f"{change.mean():+.2f}", spread, f"{(change > 0).sum()} of {len(change)}"]


def verdict(results: dict[str, dict[str, Score]]) -> str:
    """Whether the rule holds."""
    bounds = interval(differences(results, "whole"))
    kept, better = differences(results, "seen").mean() >= -MOST_LOSS, bounds is not None and bounds[0] > 0
    return f"Seen regions: {'kept' if kept else 'not kept'}. Whole images: {'better' if better else 'not shown to be better'}."


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", choices=("room", "hall"), default="room")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from --first on")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--size", type=int, default=192, help="long side, pixels")
    parser.add_argument("--arc", type=float, default=12.0, help="degrees between the photos")
    parser.add_argument("--steps", type=int, default=300, help="of the optimisation")
    parser.add_argument("-S", dest="settings", action="append", default=[], metavar="stage.key=value")
    parser.add_argument("--pictures", type=Path, help="folder for a picture of every seed")
    parser.add_argument("--out", type=Path, help="JSON file of the scores; seeds that are in it are not computed again")
    parser.add_argument("--markdown", action="store_true", help="print the tables as Markdown")
    return parser.parse_args()


def main() -> int:
    options = read_options()
    print(RULE, flush=True)
    results = json.loads(options.out.read_text()) if options.out and options.out.is_file() else {}
    try:
        for seed in range(options.first, options.first + options.seeds):
            if str(seed) in results:
                continue
            results[str(seed)] = measure_seed(options, seed)
            if options.out:
                write_json(options.out, results)
    except UserError as error:
        print(f"reconx: {error}", file=sys.stderr)
        return 2
    for grid in grids(results, options):
        print(markdown(grid)) if options.markdown else print_grid(Console(width=None if sys.stdout.isatty() else 160), grid)
    return 0


if __name__ == "__main__":
    sys.exit(main())
