"""Global alignment (eq. 9): pairwise pointmaps of any backend into one world.

    P* = argmin_{P,T,sigma}  sum_e sum_{v in e} sum_i  C_i^{v,e} || P_i^v - sigma_e T_e P_i^{v,e} ||

where every world point lies on its pixel's ray. ``start`` computes a closed-form initialisation, ``refine`` minimises from
there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import depth_of, project, transform, unproject
from reconx_core.pointcloud.global_alignment.refine import SOFT, Descent, Held, Schedule, Similarity, State, refine
from reconx_core.pointcloud.global_alignment.start import Known, start_from_cameras, start_from_pointmaps, weighted_median
from reconx_core.types import Cameras

AGREES = 0.03  # relative distance from the fused point at which a prediction has agreement 1/2
HALF = 6e4  # largest number in half precision, about
IN_FRONT = 0.001  # relative distance in front of a surface above which a point is a floater


class Aligned(NamedTuple):
    points_world: Float[Tensor, "n h w 3"]
    confidence: Float[Tensor, "n h w"]  # the highest of a pixel's predictions, times the share of consistent predictions
    cameras: Cameras


class Edges(NamedTuple):
    """Some edges of the graph: pairs of views, and what is predicted of both in the first one's frame."""

    pairs: Int[Tensor, "b 2"]
    points: Float[Tensor, "b 2 h w 3"]
    confidence: Float[Tensor, "b 2 h w"]  # >= 0, and 0 where nothing is known


def align_pointmaps(
    pairs: Int[Tensor, "e 2"],
    points: Float[Tensor, "e 2 h w 3"],
    confidence: Float[Tensor, "e 2 h w"],
    fixed: Cameras | None = None,
    intrinsics: Float[Tensor, "n 3 3"] | None = None,
    iterations: int = 300,
    *,
    weight: Float[Tensor, "e 2 h w"] | None = None,
    principal_points: Float[Tensor, "n 2"] | None = None,
    shared_focal: bool = False,
    refine_focals: bool = False,
    schedule: Schedule = "linear",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Aligned:
    """World pointmaps, their confidence and cameras of n views from predictions on pairs of them.

    Both pointmaps of a pair are in the frame of its first camera, ``confidence`` is >= 0 and 0 where nothing is known;
    ``weight`` is C of eq. 9 if it differs (for DUSt3R it is the logarithm of the network's confidence).

    ``fixed``: known cameras of all or of the first views; they are not changed and define frame and units. ``intrinsics``:
    known intrinsics of all views. Otherwise one focal per view is recovered, the median of the others' for a view that is the
    first of no pair, or one for all (``shared_focal``; that of the fixed views if there are any), around the principal points
    (pixels; by default the middle of the image). Worlds without fixed cameras: first camera = identity, median depth = 1.

    ``iterations`` of Adam; with 0 the initialisation is returned, which for fixed cameras is the minimum with T_e as the first
    camera's pose. Adam optimises focals only with ``refine_focals``; without, their error was two to three times smaller. The
    result does not depend on the order of the pairs. ``progress`` is called with the completed and the total iterations.

    Raises:
        ValueError: shapes do not match, or the pairs do not connect all views.
    """
    n = _count_views(pairs, points, confidence, fixed, intrinsics)
    weight = confidence if weight is None else weight
    pairs, points, confidence, weight = _in_order(pairs.to(points.device), points, confidence, weight)
    known = Known(fixed, intrinsics, principal_points, shared_focal)
    if fixed is not None and len(fixed) == n:
        cameras, edges = fixed, start_from_cameras(pairs, points, confidence, fixed)
    else:
        cameras, edges = _on(points.device, *start_from_pointmaps(pairs, points, confidence, n, known))
    depth, agreed = _on_rays(pairs, edges, points, confidence, cameras)
    if iterations:
        start = State(_in_front(depth), cameras, edges)
        held, descent = _held(known, start, refine_focals), Descent(iterations, schedule=schedule)
        depth, cameras, edges = refine(start, pairs, points, weight, held, shared_focal, descent, progress)
        depth, agreed = _on_rays(pairs, edges, points, confidence, cameras, depth)
    aligned = Aligned(unproject(depth, cameras), agreed, cameras)
    return _canonical(aligned) if fixed is None else aligned


def align_edges(edges: Iterable[Edges], count: int, cameras: Cameras) -> Aligned:
    """What ``align_pointmaps`` gives without iterations for known cameras of all views, from ``count`` edges in turn.

    Of each prediction only its depth in its own view and its confidence are kept, in half precision: 4 bytes a pixel instead
    of 16. ``cameras`` are on the device of the edges.
    """
    pairs, predicted, sure, unit = collect(_reduced(edges, cameras), count)
    depths, fused = [], []
    for view in range(len(cameras)):
        edge, side = (pairs == view).nonzero(as_tuple=True)
        found = predicted[edge, side].float() * unit[edge, None, None]
        depth, agreed = _fuse(found, sure[edge, side].float())
        depths.append(depth)
        fused.append(agreed)
    return Aligned(unproject(torch.stack(depths), cameras), torch.stack(fused), cameras)


def _reduced(edges: Iterable[Edges], cameras: Cameras) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per block of edges: pairs, depths in half precision, confidences in half precision, and the unit of the depths."""
    for part in edges:
        moved = start_from_cameras(*part, cameras)(part.points)
        depth = torch.stack([depth_of(moved[:, side], cameras[part.pairs[:, side]]) for side in (0, 1)], 1)
        unit = depth.abs().median().clamp(min=1e-30)
        relative = (depth / unit).clamp(-HALF, HALF).half()
        yield part.pairs, relative, part.confidence.half(), unit.expand(len(depth))


def collect(parts: Iterable[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """The parts, of ``count`` rows together, one after another as one tensor each.

    Written in place: concatenation would need twice the memory, and many small parts would leave it in pieces.

    Raises:
        ValueError: the parts have another number of rows.
    """
    whole: list[Tensor] = []
    done = 0
    for part in parts:
        whole = whole or [like.new_empty(count, *like.shape[1:]) for like in part]
        for target, values in zip(whole, part):
            target[done : done + len(values)] = values
        done += len(part[0])
    if done != count:
        raise ValueError(f"expected {count} edges, got {done}")
    return whole


def _count_views(pairs: Tensor, points: Tensor, confidence: Tensor, fixed: Cameras | None, intrinsics: Tensor | None) -> int:
    e, n = len(pairs), int(pairs.max()) + 1
    if points.shape[:2] != (e, 2) or points.shape[-1] != 3 or confidence.shape != points.shape[:-1]:
        raise ValueError(
            f"pairs {tuple(pairs.shape)}, points {tuple(points.shape)}, confidence {tuple(confidence.shape)} disagree"
        )
    if intrinsics is not None and len(intrinsics) != n:
        raise ValueError(f"pairs name {n} views, but {len(intrinsics)} intrinsics are given")
    if fixed is not None and not 0 < len(fixed) <= n:
        raise ValueError(f"pairs name {n} views, but {len(fixed)} cameras are given")
    return n


def _in_order(pairs: Tensor, *maps: Tensor) -> list[Tensor]:
    """Sort by pair, so that the rounding of sums does not depend on the order of the input."""
    order = (pairs[:, 0] * (pairs.max() + 1) + pairs[:, 1]).argsort(stable=True)
    ordered = bool((order == torch.arange(len(order), device=order.device)).all())
    return [values if ordered else values[order] for values in (pairs, *maps)]


def _on(device: torch.device, cameras: Cameras, edges: Similarity) -> tuple[Cameras, Similarity]:
    moved = replace(cameras, intrinsics=cameras.intrinsics.to(device), cam_to_world=cameras.cam_to_world.to(device))
    return moved, Similarity(*(part.to(device) for part in edges))


def _held(known: Known, start: State, refine_focals: bool) -> Held:
    """Hold known cameras fixed, and the initial focals, which are estimated from pointmaps in their own camera's frame.

    T_e is free in eq. 9, so it ignores that the first pointmap of a pair is in its camera's frame, and with that most of the
    information about the focal: with isotropic noise, the focals at its minimum have two to three times the initial error.
    """
    fixed = 0 if known.fixed is None else len(known.fixed)
    everything = not refine_focals or known.intrinsics is not None or (fixed > 0 and known.shared_focal)
    focals = torch.arange(len(start.depth), device=start.depth.device) < (len(start.depth) if everything else fixed)
    centres = start.cameras.cam_to_world[:fixed, :3, 3]
    apart = fixed > 1 and bool(torch.pdist(centres).max() > 1e-6 * start.depth.median())
    return Held(fixed, focals, apart)


def _in_front(depth: Float[Tensor, "n h w"]) -> Float[Tensor, "n h w"]:
    """Clamp depths to positive values, for the logarithm."""
    good = depth[depth > 0]
    return depth.clamp(min=1e-3 * float(good.median())) if len(good) else torch.ones_like(depth)


def _on_rays(
    pairs: Int[Tensor, "e 2"],
    edges: Similarity,
    points: Float[Tensor, "e 2 h w 3"],
    confidence: Float[Tensor, "e 2 h w"],
    cameras: Cameras,
    known: Float[Tensor, "n h w"] | None = None,
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Per pixel the depth with the least sum of weighted distances to its predictions, unless known; and their agreement."""
    depths, fused = [], []
    for view in range(len(cameras)):
        edge, side = (pairs == view).nonzero(as_tuple=True)
        moved = Similarity(*(part[edge] for part in edges))(points[edge, side])
        found = depth_of(moved, cameras[[view] * len(edge)])
        depth, agreed = _fuse(found, confidence[edge, side], None if known is None else known[view])
        depths.append(depth)
        fused.append(agreed)
    return torch.stack(depths), torch.stack(fused)


def _fuse(
    found: Float[Tensor, "k h w"], weight: Float[Tensor, "k h w"], known: Float[Tensor, "h w"] | None = None
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """A view's depth from its k predictions, unless known; and the highest weight times their agreement."""
    depth = _soft_median(found, weight) if known is None else known
    off = (found - depth).abs() / depth.abs().clamp(min=1e-9)
    agreement = (weight / (1 + (off / AGREES) ** 2)).sum(0) / weight.sum(0).clamp(min=1e-12)
    # Points behind the camera are ignored.
    return depth, torch.where(depth > 0, weight.amax(0) * agreement, 0.0)


def _soft_median(values: Float[Tensor, "k h w"], weight: Float[Tensor, "k h w"]) -> Float[Tensor, "h w"]:
    """Weighted median over k, averaged with the values within SOFT of it."""
    median = weighted_median(values, weight, dim=0)
    for _ in range(3):
        near = (weight + 1e-9) / (values - median).abs().clamp(min=SOFT * median.abs() + 1e-12)
        median = (near * values).sum(0) / near.sum(0)
    return median


def _canonical(aligned: Aligned) -> Aligned:
    """First camera = identity, median depth of the confident half = 1."""
    cameras, confidence = aligned.cameras, aligned.confidence
    depth = depth_of(aligned.points_world, cameras)
    unit = depth[(confidence > 0) & (confidence >= confidence.median())].median()
    first = cameras.world_to_cam[0]
    poses = first @ cameras.cam_to_world
    poses[:, :3, 3] /= unit
    poses[0] = torch.eye(4)
    points = transform(first, aligned.points_world.flatten(0, 2)).reshape(aligned.points_world.shape) / unit
    return Aligned(points, confidence, replace(cameras, cam_to_world=poses))


def clean_confidence(
    points_world: Float[Tensor, "n h w 3"],
    confidence: Float[Tensor, "n h w"],
    cameras: Cameras,
    tolerance: float = IN_FRONT,
) -> Float[Tensor, "n h w"]:
    """Confidence without floaters: 0 for points in front of a surface of which another view is more confident.

    Views are cleaned one after the other, with the already cleaned confidence of earlier ones. ``tolerance``: minimum
    distance in front of the surface, relative to its depth.
    """
    n, height, width = confidence.shape
    depth, clean = depth_of(points_world, cameras), confidence.clone()
    for view in range(n):
        pixels, z = project(points_world[view].flatten(0, 1), cameras.intrinsics, cameras.world_to_cam)
        x, y = pixels.floor().long().unbind(-1)
        inside = (z > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        for other in (j for j in range(n) if j != view):
            mine = inside[other].nonzero()[:, 0]
            at = (y * width + x)[other, mine]
            before = z[other, mine] < (1 - tolerance) * depth[other].flatten()[at]
            bad = before & (clean[view].flatten()[mine] < clean[other].flatten()[at])
            clean[view].view(-1)[mine[bad]] = 0
    return clean
