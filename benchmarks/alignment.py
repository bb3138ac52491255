"""Speed of global alignment (eq. 9) on one core; prints tables.

    python benchmarks/alignment.py [--views 2,3,4,6,8,12,16,24] [--sizes 64x48,128x96,224x160] [--against 12] [--steps 10]

Complete graphs, both orders of every pair, on random surfaces with noise. First how the time of a step of Adam, of the start
(spanning tree, similarity fits, focals, poses) and of both, with the usual number of steps, grows with the number of edges, and
the straight line that fits it best. Then, in the same run and on the same inputs, a step against the straightforward one: a
loop over the edges that computes the loss as it is written and leaves the gradient to autograd. Both must find the same loss
and the same gradients. CPU seconds of one thread, which other programs on the machine change less than those on the wall.
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

from reconx_core.geometry.transforms import quaternion_to_matrix, rigid, so3_exp, transform, unproject
from reconx_core.pointcloud.global_alignment.refine import (
    Descent,
    Held,
    Similarity,
    State,
    Variables,
    backpropagate,
    descend,
    encode,
    pack,
    slopes,
)
from reconx_core.pointcloud.global_alignment.start import Known, start_from_pointmaps
from reconx_core.types import Cameras

WANTED = 3.0  # times faster than the loop
SAME = 1e-4  # of the largest gradient; float32 sums in another order


def problem(views: int, width: int, height: int) -> tuple[State, Tensor, Tensor]:
    """A state some way off the minimum, the pairs, and what is predicted of them."""
    draw = torch.Generator().manual_seed(views)
    pairs = torch.tensor([(i, j) for i in range(views) for j in range(views) if i != j])
    intrinsics = torch.tensor([[0.8 * width, 0, width / 2], [0, 0.8 * width, height / 2], [0, 0, 1]]).repeat(views, 1, 1)
    turns, centres = 0.1 * torch.randn(views, 3, generator=draw), 0.2 * torch.randn(views, 3, generator=draw)
    cameras = Cameras(intrinsics, rigid(so3_exp(turns), centres), width, height)
    depth = 2 + torch.rand(views, height, width, generator=draw)
    world = unproject(depth, cameras)[pairs]
    points = transform(cameras.world_to_cam[pairs[:, 0]], world.flatten(1, 3)).reshape(world.shape)
    points *= 1 + 0.01 * torch.randn((*points.shape[:-1], 1), generator=draw)
    edges = Similarity(torch.ones(len(pairs)), cameras.cam_to_world[pairs[:, 0], :3, :3], centres[pairs[:, 0]])
    return State(1.05 * depth, cameras, edges), pairs, points


def loop(moving: Variables, slope: Tensor, pairs: list[list[int]], points: Tensor, weight: Tensor) -> Tensor:
    """Eq. 9 edge by edge; its gradient is left at the variables."""
    depth, turn = moving.log_depth.exp(), quaternion_to_matrix(moving.poses[:, :4])
    across = depth[..., None] * slope.mT / (moving.focal / 20).exp()[:, None, None]
    shift = moving.poses[:, 4:].sign() * moving.poses[:, 4:].abs().expm1()
    world = torch.cat([across, depth[..., None]], -1) @ turn.mT + shift[:, None]
    scale = (moving.edges[:, 7] - moving.edges[:, 7].mean()).exp() / 2
    loss = torch.zeros(())
    for e, pair in enumerate(pairs):
        own = moving.edges[e, 4:7]
        rotation, translation = quaternion_to_matrix(moving.edges[e, :4]), own.sign() * own.abs().expm1()
        for side, view in enumerate(pair):
            moved = scale[e] * (points[e, side] @ rotation.T + translation)
            loss = loss + (weight[e, side] * (world[view] - moved).norm(dim=-1)).mean()
    loss = loss / len(pairs)
    loss.backward()
    return loss.detach()


def seconds(function: Callable[[], object], repeats: int) -> float:
    """CPU seconds of one call, the median of several."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return float(np.median(times))


def grow(views: list[int], width: int, height: int, steps: int) -> None:
    """The table of times by number of views, and the straight lines through them."""
    print(f"\n{width}x{height}\n{'views':>6} {'edges':>6} {'step (ms)':>10} {'start (s)':>10} {'whole (s)':>10}")
    rows = np.array([growth(n, width, height, steps) for n in views])
    for name, unit, column in zip(("step", "start", "whole"), ("ms", "s", "s"), rows.T[1:]):
        per_edge, offset = np.polyfit(rows[:, 0], column, 1)
        off = column - per_edge * rows[:, 0] - offset
        explained = 1 - off.var() / column.var()
        print(f"{name}: {offset:.2f} + {per_edge:.4f} per edge ({unit}); the line explains {explained:.2%} of the variance")


def growth(n: int, width: int, height: int, steps: int) -> tuple[int, float, float, float]:
    """Edges, milliseconds of a step, seconds of the start and of an alignment of the usual length."""
    state, pairs, points = problem(n, width, height)
    confidence = torch.ones(points.shape[:-1])
    moving, slope, predictions = encode(state), slopes(state.cameras), pack(pairs, points, confidence)
    descend(moving, slope, predictions, Held(), Descent(2))
    step = seconds(lambda: descend(moving, slope, predictions, Held(), Descent(steps)), 3) / steps
    start = seconds(lambda: start_from_pointmaps(pairs, points, confidence, n, Known()), 1)
    whole = start + Descent().iterations * step
    print(f"{n:6d} {len(pairs):6d} {1e3 * step:10.2f} {start:10.2f} {whole:10.1f}", flush=True)
    return len(pairs), 1e3 * step, start, whole


def compare(n: int, width: int, height: int, repeats: int = 5) -> float:
    """How many times faster a step's loss and gradients are than the loop's, measured by turns."""
    state, pairs, points = problem(n, width, height)
    confidence = torch.ones(points.shape[:-1])
    fast, slow = encode(state), encode(state)
    slope, predictions = slopes(state.cameras), pack(pairs, points, confidence)
    flat, weight, listed = points.flatten(2, 3), confidence.flatten(2), pairs.tolist()
    losses = backpropagate(fast, slope, predictions, Held()), loop(slow, slope, listed, flat, weight)
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for ours, theirs in zip(fast, slow):
        if (ours.grad - theirs.grad).abs().max() > SAME * theirs.grad.abs().max():
            raise SystemExit("the loop over the edges has other gradients than ours")
    times = np.array(
        [
            (
                seconds(lambda: backpropagate(fast, slope, predictions, Held()), 1),
                seconds(lambda: loop(slow, slope, listed, flat, weight), 1),
            )
            for _ in range(repeats)
        ]
    )
    ours, theirs = np.median(times, 0)
    print(f"{width:4d}x{height:<4d} {n:6d} {1e3 * ours:10.1f} {1e3 * theirs:10.1f} {theirs / ours:7.1f}x", flush=True)
    return theirs / ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", default="2,3,4,6,8,12,16,24")
    parser.add_argument("--sizes", default="64x48,128x96,224x160", help="the first is that of the growth's table")
    parser.add_argument("--against", type=int, default=12, help="views of the comparison with the loop")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    grow([int(n) for n in options.views.split(",")], *sizes[0], options.steps)
    print(f"\n{'pixels':>9} {'views':>6} {'ours (ms)':>10} {'loop (ms)':>10} {'faster':>8}")
    slowest = min(compare(options.against, *size) for size in sizes)
    print(f"at least {slowest:.1f} times as fast as the loop; wanted: {WANTED:.0f}")
    if slowest < WANTED:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
