"""Pose accuracy without being given the cameras: consecutive photos of every set.

    python benchmarks/poses.py [--data DIR] [--sets posed,posefree] [--views 3] [--places 3] [--only NAME] [--drawn SEED]

For each set a few runs of neighbouring photos, or with --drawn those of `drawn`, on which no limit was set: how many were
registered, errors of relative rotations and of translation directions and AUC@5/10/20/30 over all pairs (a pair with a photo
that was not registered counts as failed), focal over the true one, seconds; and how many results are right (no pair off by more
than 5 degrees of rotation or 15 of direction), warned of, or wrong without a word.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
import warnings
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from reconx_core.errors import UserError
from reconx_core.metrics.pose import AUC_THRESHOLDS, pose_errors, relative_pose_errors
from reconx_core.pointcloud.sfm.solve import Sfm, solve_cameras
from reconx_core.seeds import generator
from reconx_core.settings import ViewsSettings
from reconx_core.types import Cameras, Views
from reconx_core.views import load_views

RIGHT_ROTATION, RIGHT_DIRECTION = 5.0, 15.0  # degrees that no pair of a right result exceeds
DRAWN = ((2, 2), (2, 3), (3, 5), (6, 8), (9, 12))  # photos, and the run of neighbours of which they are drawn
COLUMNS = ("rot", "trans", *(f"auc{t}" for t in AUC_THRESHOLDS), "f/true")


def neighbours(views: Views, count: int, places: int) -> list[list[int]]:
    """Runs of ``count`` consecutive photos spread over the set."""
    starts = torch.linspace(0, len(views) - min(count, len(views)), places).round().long().unique().tolist()
    return [list(range(start, start + min(count, len(views)))) for start in starts]


def drawn(name: str, count: int, seed: int) -> list[list[int]]:
    """Photos drawn at random from runs of neighbours, the first and the last of a pair: the same for the same seed."""
    rng, found = random.Random(f"{seed} {name}"), []
    for photos, length in DRAWN:
        if length <= count:
            start = rng.randrange(count - length + 1)
            inner = range(start + 1, start + length - 1)
            found.append([start, *sorted(rng.sample(inner, photos - 2)), start + length - 1])
    return found


def verdict(sfm: Sfm, truth: Cameras, told: bool) -> str:
    """Whether the registered cameras are right, and whether their being doubtful was said."""
    rotation, direction = relative_pose_errors(sfm.cameras, truth[sfm.registered])
    right = float(rotation.max()) < RIGHT_ROTATION and float(direction.max()) < RIGHT_DIRECTION
    return f"{'right' if right else 'wrong'} {'with a warning' if told else 'without a word'}"


def accuracy(sfm: Sfm, truth: Cameras) -> list[float]:
    """The row of COLUMNS."""
    known = truth[sfm.registered]
    errors = pose_errors(sfm.cameras, known)
    n, m = len(truth), len(sfm.cameras)
    share = m * (m - 1) / (n * (n - 1))
    focal = float((sfm.cameras.intrinsics[:, 0, 0] / known.intrinsics[:, 0, 0]).mean())
    return [errors["rotation_error"], errors["translation_error"], *(share * errors[f"auc_{t}"] for t in AUC_THRESHOLDS), focal]


def run(name: str, views: Views, truth: Cameras | None, verdicts: Counter[str]) -> list[float]:
    """Print a line of the table, count its verdict, and return its figures, where the truth is known."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            sfm = solve_cameras(views, None, generator(0, "pointcloud", name))
        except UserError as error:
            print(f"{name:28s} {error}", flush=True)
            verdicts["refused"] += truth is not None
            return [math.nan] * 2 + [0.0] * len(AUC_THRESHOLDS) + [math.nan]
    row = [] if truth is None else accuracy(sfm, truth)
    found = "" if truth is None else verdict(sfm, truth, any("may be wrong" in str(w.message) for w in told))
    verdicts[found] += truth is not None
    figures = " ".join(f"{x:6.2f}" for x in row) if row else " " * (7 * len(COLUMNS) - 1)
    seconds = time.perf_counter() - start
    print(
        f"{name:28s} {int(sfm.registered.sum())}/{len(views)} {len(sfm.sparse):6d} {figures} {seconds:6.1f} {found}", flush=True
    )
    return row


def load_set(path: Path, size: int) -> tuple[Views, Cameras | None]:
    """The photos as a user has them, not undistorted, and the true cameras where the set has them."""
    settings = ViewsSettings(size=size, split="all", max_inputs=100)
    views = load_views(path / "images", settings)
    if not (path / "transforms.json").is_file():
        return views, None
    calibrated = load_views(path, settings)
    order = [calibrated.names.index(name) for name in views.names if name in calibrated.names]
    kept = [i for i, name in enumerate(views.names) if name in calibrated.names]
    return views.select(torch.tensor(kept)), calibrated.cameras[order]  # type: ignore[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("RECONX_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--sets", default="posed,posefree")
    parser.add_argument("--only", default="", help="part of a set's name")
    parser.add_argument("--views", type=int, default=3)
    parser.add_argument("--places", type=int, default=3)
    parser.add_argument("--size", type=int, default=512, help="long side, pixels")
    parser.add_argument("--drawn", type=int, help="a seed: photos drawn at random, pairs to nines")
    args = parser.parse_args()
    print(f"{'set':28s} reg points " + " ".join(f"{c:>6s}" for c in COLUMNS) + "      s")
    for kind in args.sets.split(","):
        rows, verdicts = [], Counter[str]()
        for path in sorted(p for p in (args.data / kind).iterdir() if args.only in p.name):
            views, truth = load_set(path, args.size)
            spread = neighbours(views, args.views, args.places)
            for index in spread if args.drawn is None else drawn(path.name, len(views), args.drawn):
                name = f"{path.name} {index[0]}-{index[-1]}"
                row = run(name, views.select(torch.tensor(index)), None if truth is None else truth[index], verdicts)
                rows += [row] if truth is not None else []
        if rows:
            mean = torch.tensor(rows, dtype=torch.float64).nanmean(0)
            print(f"{f'{kind}, mean of {len(rows)}':28s}            " + " ".join(f"{x:6.2f}" for x in mean.tolist()))
            print(", ".join(f"{count} {what}" for what, count in sorted(verdicts.items()) if count))


if __name__ == "__main__":
    main()
