"""The connectivity graph of the views: which pairs are matched and predicted (the edges of eq. 9)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reconx_core.types import Cameras

Mode = Literal["auto", "complete", "window", "star"]

COMPLETE_UP_TO = 8  # views; for more, the quadratic number of pairs costs more than it gains
WINDOW = 3  # neighbours on each side
MIN_MATCHES = 12  # minimum number of verified matches of a pair that overlaps


def pair_graph(
    n: int, mode: Mode = "auto", inlier_counts: Mapping[tuple[int, int], float] | None = None
) -> list[tuple[int, int]]:
    """Sorted pairs (i, j), i < j, that connect n views.

    ``complete`` takes all pairs, ``window`` each view with its next few and the last with the first (a loop), ``star`` the
    first view with every other, ``auto`` all pairs up to a handful of views, else the window. With the numbers of verified
    matches per pair, pairs without overlap are dropped and each view also keeps its best partners, wherever they are
    in the order.
    Raises ValueError for fewer than two views.
    """
    if n < 2:
        raise ValueError(f"A graph needs two views, got {n}")
    every = list(itertools.combinations(range(n), 2))
    if mode == "complete" or (mode == "auto" and n <= COMPLETE_UP_TO):
        chosen = set(every)
    elif mode == "star":
        chosen = {(0, j) for j in range(1, n)}
    else:
        chosen = {(i, j) for i, j in every if j - i <= WINDOW or (i, j) == (0, n - 1)}
    if inlier_counts is None:
        return sorted(chosen)
    counts = {pair: inlier_counts.get(pair, 0) for pair in every}
    for view in range(n):
        mine = [pair for pair in every if view in pair]
        chosen |= set(sorted(mine, key=lambda pair: -counts[pair])[:WINDOW])
    return sorted({pair for pair in chosen if counts[pair] >= MIN_MATCHES} | set(spanning_tree(n, counts)))


def nearest_pairs(cameras: Cameras, neighbours: int = 6) -> list[tuple[int, int]]:
    """Pairs (i, j), i < j, of each posed camera with those nearest to it; all pairs of a few cameras."""
    return sorted(_closest(view_distance(cameras), neighbours))


def view_distance(cameras: Cameras) -> Float[Tensor, "n n"]:
    """How far apart posed cameras are: their centres in units of the spread of all, plus the angle between them (radians)."""
    centres, forward = cameras.cam_to_world[:, :3, 3], cameras.cam_to_world[:, :3, 2]
    spread = (centres - centres.mean(0)).norm(dim=-1).max().clamp(min=1e-9)
    return torch.cdist(centres, centres) / spread + torch.arccos((forward @ forward.T).clamp(-1, 1))


def overlap_pairs(overlap: Float[Tensor, "n n"], neighbours: int = 6) -> list[tuple[int, int]]:
    """Sorted pairs (i, j), i < j, of each view with those that it overlaps most, connected into one component.

    ``overlap``: how much any two views share, symmetric and in any units, such as ``token_overlap`` or counts of matches.
    """
    n = len(overlap)
    tree = spanning_tree(n, {(i, j): float(overlap[i, j]) for i, j in itertools.combinations(range(n), 2)})
    return sorted(_closest(-overlap, neighbours) | set(tree))


def token_overlap(tokens: Float[Tensor, "n t c"]) -> Float[Tensor, "n n"]:
    """Overlap of any two views from their encoder tokens, without a retrieval network or matching all pairs.

    The mean cosine similarity of a view's tokens to their nearest neighbours in the other view, in both directions. The mean
    token is subtracted first.
    """
    unit = F.normalize(tokens - tokens.mean((0, 1)), dim=-1)
    best = torch.stack([torch.stack([(one @ two.T).amax(1).mean() for two in unit]) for one in unit])
    return (best + best.T) / 2


def _closest(distance: Float[Tensor, "n n"], count: int) -> set[tuple[int, int]]:
    """Pairs (i, j), i < j, of each row with the ``count`` others of the smallest distance."""
    n = len(distance)
    distance = distance.clone().fill_diagonal_(float("inf"))
    nearest = distance.argsort(dim=1, stable=True)[:, : min(count, n - 1)]
    return {(min(i, j), max(i, j)) for i in range(n) for j in nearest[i].tolist()}


def spanning_tree(n: int, weight: Mapping[tuple[int, int], float]) -> list[tuple[int, int]]:
    """Maximum spanning tree of n nodes, heaviest edges first; ties are broken by index, so that it is unique."""
    component = list(range(n))
    tree = []
    for i, j in sorted(weight, key=lambda pair: (-weight[pair], pair)):
        if component[i] != component[j]:
            old, new = component[j], component[i]
            component = [new if c == old else c for c in component]
            tree.append((i, j))
    return tree
