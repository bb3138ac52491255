"""The order of the photos in which the camera path visits them."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from reconx_core.geometry.transforms import in_picture, project
from reconx_core.settings import ConditionSettings
from reconx_core.types import Pointmaps, Views

POINTS = 500  # of a view, evenly subsampled, that tell how much another one sees of it
SEQUENCE = 0.6  # share of the best path's overlap with which the order by name counts as a sequence (docs/decisions.md)


def view_order(inputs: Views, pointmaps: Pointmaps, settings: ConditionSettings) -> Int[Tensor, " n"]:
    """Indices of the views in the order of the path.

    ``auto`` keeps the order by name unless neighbours then overlap clearly less than they could, which it says.
    """
    by_name = torch.arange(len(inputs))
    if settings.order == "name" or len(inputs) < 3:
        return by_name
    overlap = view_overlap(pointmaps)
    best = best_path(overlap)
    if settings.order == "auto" and path_overlap(overlap, by_name) >= SEQUENCE * path_overlap(overlap, best):
        return by_name
    if settings.order == "auto":
        names = ", ".join(inputs.names[i] for i in best.tolist())
        message = "The photos' names are no sequence: frames are generated between those that overlap most"
        warnings.warn(f"{message} ({names}); condition.order=name keeps the order of the names.", stacklevel=2)
    return best


def view_overlap(pointmaps: Pointmaps) -> Float[Tensor, "n n"]:
    """How much views see of each other, in [0, 1]: points inside the picture, times the cosine between the rays to them."""
    cameras = pointmaps.cameras
    centres = cameras.cam_to_world[:, :3, 3]
    seen = torch.zeros(len(cameras), len(cameras))
    for view, (points, confidence) in enumerate(zip(pointmaps.points_world, pointmaps.confidence)):
        good = points[confidence > 0]
        some = good[:: max(1, len(good) // POINTS)]
        if len(some) == 0:
            continue
        pixels, depth = project(some, cameras.intrinsics, cameras.world_to_cam)
        inside = in_picture(pixels, depth, cameras)
        rays = normalize(some - centres[:, None], dim=-1)
        seen[view] = (inside * (rays * rays[view]).sum(-1).clamp(min=0)).mean(-1)
    return (seen + seen.T) / 2


def path_overlap(overlap: Float[Tensor, "n n"], order: Int[Tensor, " n"]) -> float:
    """Sum over the neighbours on a path."""
    return float(overlap[order[:-1], order[1:]].sum())


def best_path(overlap: Float[Tensor, "n n"]) -> Int[Tensor, " n"]:
    """A path through all views with much overlap: the best greedy one, improved by turning stretches of it round.

    Of the two directions that in which the first view's index is the smaller one.
    """
    starts = [_greedy(overlap, start) for start in range(len(overlap))]
    path = max(starts, key=lambda order: path_overlap(overlap, order))
    better = _turned(overlap, path)
    while better is not None:
        path, better = better, _turned(overlap, better)
    return path if path[0] < path[-1] else path.flip(0)


def _greedy(overlap: Float[Tensor, "n n"], start: int) -> Int[Tensor, " n"]:
    order, left = [start], torch.ones(len(overlap), dtype=torch.bool)
    left[start] = False
    while left.any():
        order.append(int(torch.where(left, overlap[order[-1]], -1.0).argmax()))
        left[order[-1]] = False
    return torch.tensor(order)


def _turned(overlap: Float[Tensor, "n n"], path: Int[Tensor, " n"]) -> Int[Tensor, " n"] | None:
    """A path with more overlap, one stretch of which runs the other way; None if there is none (2-opt)."""
    length = path_overlap(overlap, path)
    for start in range(len(path) - 1):
        for end in range(start + 2, len(path) + 1):
            other = torch.cat([path[:start], path[start:end].flip(0), path[end:]])
            if path_overlap(overlap, other) > length + 1e-6:
                return other
    return None
