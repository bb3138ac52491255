"""Speed of farthest point sampling on one core; prints a table.

    python benchmarks/farthest_points.py [--counts 10000,30000,100000] [--plain-until 30000] [--repeats 3]

An eighth of the points is chosen, as the structure encoder does (eq. 10), from noisy surfaces. Times are the best of several
in CPU seconds of one thread, which other programs on the machine hardly change, after compiling. "plain" is the textbook loop
that computes every distance, in torch and in numpy; it is quadratic, so it is run up to ``--plain-until`` points. All three
must choose the same points.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from reconx_core.video.diffusion.structure_points import farthest_point_sample


def scene(count: int) -> Tensor:
    """Half on the walls of a room, half on a ball in it, with a little noise."""
    draw = torch.Generator().manual_seed(count)
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=draw), dim=-1)
    walls = 3 * directions / directions.abs().amax(-1, keepdim=True)
    surface = torch.where(torch.arange(count)[:, None] % 2 == 0, walls, directions)
    return surface + 0.005 * torch.randn(count, 3, generator=draw)


def plain_torch(points: Tensor, count: int) -> list[int]:
    offsets = points - points.double().mean(0).float()
    picked, nearest = [int(offsets.square().sum(1).argmax())], torch.full((len(points),), torch.inf)
    while len(picked) < count:
        nearest = torch.minimum(nearest, (points - points[picked[-1]]).square().sum(1))
        picked.append(int(nearest.argmax()))
    return picked


def plain_numpy(points: Tensor, count: int) -> list[int]:
    values = points.numpy()
    offsets = values - values.mean(0, dtype=np.float64).astype(np.float32)
    picked, nearest = [int(np.square(offsets).sum(1).argmax())], np.full(len(values), np.inf, np.float32)
    while len(picked) < count:
        nearest = np.minimum(nearest, np.square(values - values[picked[-1]]).sum(1))
        picked.append(int(nearest.argmax()))
    return picked


def seconds(function: Callable, points: Tensor, count: int, repeats: int) -> tuple[float, list[int]]:
    """The best time and the points chosen."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        picked = function(points, count)
        times.append(time.process_time() - start)
    return min(times), sorted(int(index) for index in picked)


def row(count: int, plain: bool, repeats: int) -> str:
    points, chosen = scene(count), count // 8
    ours, expected = seconds(farthest_point_sample, points, chosen, repeats)
    cells = f"{count:9,d} {chosen:9,d} {ours:9.3f}"
    if not plain:
        return cells + f" {'-':>12} {'-':>12} {'-':>8}"
    others = []
    for function in (plain_torch, plain_numpy):
        duration, picked = seconds(function, points, chosen, 1)
        if picked != expected:
            raise SystemExit(f"{function.__name__} chose other points than ours")
        others.append(duration)
    return cells + f" {others[0]:12.2f} {others[1]:12.2f} {min(others) / ours:7.0f}x"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="10000,30000,100000")
    parser.add_argument("--plain-until", type=int, default=30_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    farthest_point_sample(scene(1000), 10)
    print(f"{'points':>9} {'chosen':>9} {'ours':>9} {'plain torch':>12} {'plain numpy':>12} {'faster':>8}")
    for count in map(int, options.counts.split(",")):
        print(row(count, count <= options.plain_until, options.repeats), flush=True)


if __name__ == "__main__":
    main()
