"""Settings of `splats` decided with evidence: variants against the defaults on the same frames, over scenes and paired seeds.

    python -m benchmarks.variants [--variant "splats.max_gaussians=90000"]... [--seeds 3] [--scenes NAME:SPLIT[@SIZE],...]
                                  [--data DIR] [--size 400] [--cache FOLDER] [--out results.json]

A variant is settings of `splats`, several joined by commas. All stages before `splats` run once a scene, with the defaults, and
are kept in ``--cache``; Gaussians are then fitted by the defaults and by every variant with the same seeds. The rule, printed
before anything runs: a variant passes if the mean over scenes of its PSNR is at least 0.03 dB below that of the defaults or
higher, its SSIM at least 0.003 below or higher, and no scene's PSNR falls by more than 0.2 dB (means over the seeds). Whether
a difference is more than chance says the 95 % interval over scenes (t distribution). The exit code is 1 where none passes.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import hashlib
import pickle
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.quality import (
    FAIR,
    PAIRS,
    Entry,
    Geometry,
    Result,
    describe,
    estimate,
    judged_frames,
    parse_scenes,
    posed_folder,
    scene_options,
)
from flows.evaluation.comparison import interval
from reconx_core import metrics, splats
from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic, write_json
from reconx_core.seeds import generator
from reconx_core.settings import Settings, parse_settings
from reconx_core.types import Frames, Views

LOSS, SSIM_LOSS, WORST = 0.03, 0.003, 0.2  # dB, and dB of a single scene
DEFAULTS = "defaults"
RULE = f"passes: mean PSNR not below -{LOSS} dB, mean SSIM not below -{SSIM_LOSS}, no scene below -{WORST} dB"


class Prepared(NamedTuple):
    """What `splats` gets of a scene, and what scores it."""

    views: Views
    geometry: Geometry
    judged: Frames


class Fit(NamedTuple):
    """One fit and its scores on held-out views."""

    scene: str
    variant: str
    seed: int
    psnr: float
    ssim: float
    gaussians: int
    cpu_seconds: float


def prepare(entry: Entry, options: argparse.Namespace) -> Prepared:
    """The stages before `splats`, from the cache where it has them."""
    settings = scene_settings(entry, options)
    before = hashlib.sha256(settings.model_dump_json(exclude={"splats", "metrics"}).encode()).hexdigest()[:12]
    file = options.cache / f"{entry.scene}_{entry.split}_{before}.pickle" if options.cache else None
    if file is not None and file.is_file():
        return pickle.loads(file.read_bytes())
    result = Result(entry.scene, entry.split)
    views = describe(result, options.data / entry.scene, entry, settings)
    geometry = estimate(result, DEFAULTS, views, settings)
    prepared = Prepared(views, geometry, judged_frames(result, DEFAULTS, views, geometry, settings))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, pickle.dumps(prepared))
    return prepared


def scene_settings(entry: Entry, options: argparse.Namespace, variant: str = DEFAULTS) -> Settings:
    base = [f"views.size={entry.size or options.size}", f"views.split={entry.split}", "views.protocol=posed"]
    changes = [] if variant == DEFAULTS else [change.strip() for change in variant.split(",")]
    return parse_settings({}, [*base, *options.settings, *changes])


def fit(entry: Entry, prepared: Prepared, variant: str, seed: int, options: argparse.Namespace) -> Fit:
    settings = scene_settings(entry, options, variant)
    start = time.process_time()
    draw = generator(seed, "splats", entry.scene)
    gaussians = splats.fit_splats(prepared.judged, prepared.geometry.pointmaps, settings.splats, draw)
    seconds = time.process_time() - start
    scores, _ = metrics.score_scene(
        gaussians, prepared.views, prepared.geometry.kept, prepared.geometry.pointmaps, settings.metrics,
        generator(seed, "metrics", entry.scene),
    )  # fmt: skip
    psnr, ssim = scores.summary["psnr"], scores.summary["ssim"]
    if psnr is None or ssim is None:
        raise UserError(f"{entry.scene} {entry.split} has no held-out views to decide by.")
    return Fit(f"{entry.scene} {entry.split}", variant, seed, psnr, ssim, len(gaussians), seconds)


def run(options: argparse.Namespace) -> Iterator[Fit]:
    """Every fit, scene by scene."""
    for entry in parse_scenes(options.scenes):
        prepared = prepare(entry, options)
        for seed in range(options.seeds):
            for variant in (DEFAULTS, *options.variant):
                yield fit(entry, prepared, variant, seed, options)


def differences(fits: list[Fit], variant: str, score: str) -> dict[str, float]:
    """The variant's mean over seeds less that of the defaults, by scene."""
    means = {
        (scene, name): fmean(getattr(f, score) for f in fits if (f.scene, f.variant) == (scene, name))
        for scene in {f.scene for f in fits}
        for name in (DEFAULTS, variant)
    }
    return {scene: means[scene, variant] - means[scene, DEFAULTS] for scene in dict.fromkeys(f.scene for f in fits)}


def passes(fits: list[Fit], variant: str) -> bool:
    """Whether the rule keeps the variant."""
    psnr, ssim = (differences(fits, variant, score).values() for score in ("psnr", "ssim"))
    return fmean(psnr) >= -LOSS and fmean(ssim) >= -SSIM_LOSS and min(psnr) >= -WORST


def report(fits: list[Fit], variants: list[str], console: Console) -> None:
    """Differences of every variant by scene, their means with intervals, and the verdict."""
    table = Table(title=f"PSNR less that of the defaults, dB ({RULE})", title_justify="left")
    table.add_column("scene")
    for variant in variants:
        table.add_column(variant, justify="right")
    found = {variant: differences(fits, variant, "psnr") for variant in variants}
    for scene in dict.fromkeys(f.scene for f in fits):
        table.add_row(scene, *(f"{found[variant][scene]:+.2f}" for variant in variants))
    table.add_section()
    table.add_row("mean, 95 %", *(with_interval(list(found[variant].values())) for variant in variants))
    table.add_row("SSIM", *(f"{fmean(differences(fits, variant, 'ssim').values()):+.4f}" for variant in variants))
    for name in ("cpu_seconds", "gaussians"):
        table.add_row(f"{name.replace('_', ' ')}, ratio", *(f"{ratio(fits, variant, name):.2f}" for variant in variants))
    table.add_row("verdict", *("passes" if passes(fits, variant) else "fails" for variant in variants))
    console.print(table)


def ratio(fits: list[Fit], variant: str, name: str) -> float:
    """The sum over all fits of the variant in that of the defaults."""
    ours, theirs = (sum(getattr(f, name) for f in fits if f.variant == which) for which in (variant, DEFAULTS))
    return ours / theirs


def with_interval(values: list[float]) -> str:
    bounds = interval(np.array(values))
    return f"{fmean(values):+.2f}" + (f" [{bounds[0]:+.2f}, {bounds[1]:+.2f}]" if bounds else "")


def main() -> int:
    parser = scene_options(__doc__, f"{FAIR},{PAIRS}")
    parser.add_argument("--variant", action="append", default=[], metavar="splats.KEY=VALUE[,...]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="folder for what the stages before splats leave, by scene and settings")
    options = parser.parse_args()
    options.data = posed_folder(options.data)
    print(RULE, flush=True)
    fits: list[Fit] = []
    try:
        for found in run(options):
            fits.append(found)
            print(f"{found.scene} {found.variant} seed {found.seed}: {found.psnr:.2f} dB", file=sys.stderr, flush=True)
            if options.out:
                write_json(options.out, [f._asdict() for f in fits])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    report(fits, options.variant, Console(width=None if sys.stdout.isatty() else 160))
    return int(not any(passes(fits, variant) for variant in options.variant))


if __name__ == "__main__":
    sys.exit(main())
