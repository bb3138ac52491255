"""Dense depth of posed views: pairwise sweeps, fusion by eq. 9, slanted-plane refinement, filling of ambiguous pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import depth_of, transform, unproject
from reconx_core.pointcloud.global_alignment.align import align_pointmaps
from reconx_core.pointcloud.stereo.consistency import (
    carve_free_space,
    count_support,
    count_violations,
    drop_speckles,
    splat_depth,
)
from reconx_core.pointcloud.stereo.patchmatch import refine_depth
from reconx_core.pointcloud.stereo.planesweep import (
    OUTSIDE_COST,
    aggregate_cost,
    best_depth,
    inverse_depth_planes,
    matching_cost,
)
from reconx_core.types import Cameras

GOOD_MATCH = 0.3  # minimum photometric agreement of a trusted pixel
PRIOR, TRUSTED_PRIOR = 0.02, 0.05  # cost per plane of deviating from the initial depth of a refinement
SPECKLE = 0.0015  # minimum size of a connected surface, as a share of the image; smaller ones agree by chance
WEAK_MATCH = 0.1  # weight of the photometric cost at untrusted pixels
CARVED = 0.5  # cost of floating in front of a surface that another view trusts


@dataclass(frozen=True)
class Scene:
    """Input of the depth search: views at stereo resolution."""

    images: Float[Tensor, "n h w 3"]
    cameras: Cameras
    sources: list[list[int]]  # source views of each view, best first
    near: Float[Tensor, " n"]
    far: Float[Tensor, " n"]
    planes: int
    iterations: int = 6  # of the slanted-plane search

    def depths(self, view: int) -> Float[Tensor, " d"]:
        return inverse_depth_planes(float(self.near[view]), float(self.far[view]), self.planes)

    def spacing(self, view: int) -> float:
        return float(1 / self.near[view] - 1 / self.far[view]) / (self.planes - 1)


def estimate_depth(
    scene: Scene, pairs: Int[Tensor, "e 2"], rounds: int = 2
) -> tuple[Float[Tensor, "n h w"], Float[Tensor, "n h w"]]:
    """Depth (z) and confidence in [0, 1] of every pixel of every view."""
    depth, volumes = _pairwise(scene, pairs)
    prior = torch.full_like(depth, PRIOR)
    for k in range(rounds):
        depth, photo = _refine(scene, depth, prior, iterations=scene.iterations if k == 0 else 4)
        support = count_support(depth, scene.cameras)
        trusted = (support > 0) & (photo > GOOD_MATCH)
        trusted &= count_violations(depth, trusted, scene.cameras) < support
        trusted = _without_speckles(scene, depth, trusted)
        depth = _fill(scene, volumes, depth, trusted)
        prior = torch.where(trusted, TRUSTED_PRIOR, PRIOR)
    # Filled pixels of two views may agree by chance, so only trusted surfaces count as support.
    support = count_support(depth, scene.cameras, trusted)
    floating = count_violations(depth, trusted & (support > 0), scene.cameras) > support
    return depth, _confidence(photo, support, floating)


def _without_speckles(scene: Scene, depth: Float[Tensor, "n h w"], trusted: Bool[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    least = round(SPECKLE * depth[0].numel())
    return torch.stack([drop_speckles(t, d, scene.spacing(i), least) for i, (t, d) in enumerate(zip(trusted, depth))])


def _confidence(
    photo: Float[Tensor, "n h w"], support: Float[Tensor, "n h w"], floating: Bool[Tensor, "n h w"]
) -> Float[Tensor, "n h w"]:
    """Above 0.5 for pixels that another view confirms, below for others; 0 for pixels that float in free space."""
    agreement = support / (support + 1)
    confidence = torch.where(support > 0, 0.4 + 0.4 * agreement + 0.3 * photo, 0.05 + 0.25 * photo).clamp(max=1.0)
    return torch.where(floating, torch.zeros_like(confidence), confidence)


def _pairwise(scene: Scene, pairs: Int[Tensor, "e 2"]) -> tuple[Float[Tensor, "n h w"], list[Tensor]]:
    """Depth of every view fused from its pairs (eq. 9), and the cost volume of every view over all its sources."""
    maps: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    volumes = []
    for view, sources in enumerate(scene.sources):
        partners = sources + [o for o in _partners(pairs, view) if o not in sources]
        costs = {other: _cost(scene, view, other) for other in partners}
        for other in _partners(pairs, view):
            maps[view, other] = _pair_depth(scene, view, costs[other])
        volumes.append(_combine([costs[other] for other in sources]).half())
    points, confidence = _pair_pointmaps(scene, pairs, maps)
    aligned = align_pointmaps(pairs, points, confidence, fixed=scene.cameras, iterations=0)
    return depth_of(aligned.points_world, scene.cameras), volumes


def _partners(pairs: Int[Tensor, "e 2"], view: int) -> list[int]:
    return [int(a) if int(b) == view else int(b) for a, b in pairs if view in (int(a), int(b))]


def _cost(scene: Scene, view: int, other: int) -> Float[Tensor, "d h w"]:
    cost, seen = matching_cost(
        scene.images[view], scene.images[other], scene.cameras[[view]], scene.cameras[[other]], scene.depths(view)
    )
    return torch.where(seen, cost, OUTSIDE_COST)


def _combine(costs: list[Float[Tensor, "d h w"]]) -> Float[Tensor, "d h w"]:
    """Between the mean over the sources (robust to noise) and the best of them (robust to occlusion)."""
    stacked = torch.stack(costs)
    return 0.5 * stacked.mean(0) + 0.5 * stacked.amin(0)


def _pair_depth(scene: Scene, view: int, cost: Float[Tensor, "d h w"]) -> tuple[Tensor, Tensor]:
    aggregated = aggregate_cost(cost, scene.images[view])
    depth, index = best_depth(aggregated, scene.depths(view))
    chosen = cost.gather(0, index.round().long().clamp(0, len(cost) - 1)[None])[0]
    return depth, (1 - 2 * chosen).clamp(min=0)


def _pair_pointmaps(
    scene: Scene, pairs: Int[Tensor, "e 2"], maps: dict[tuple[int, int], tuple[Tensor, Tensor]]
) -> tuple[Float[Tensor, "e 2 h w 3"], Float[Tensor, "e 2 h w"]]:
    """Both pointmaps of every pair in its first camera's frame; inconsistent pixels have a tenth of the weight."""
    points, confidence = [], []
    for first, second in pairs.tolist():
        both = scene.cameras[[first, second]]
        depth = torch.stack([maps[first, second][0], maps[second, first][0]])
        agree = count_support(depth, both)
        world = unproject(depth, both)
        to_first = both.world_to_cam[:1].expand(2, -1, -1)
        points.append(transform(to_first, world.flatten(1, 2)).reshape(world.shape))
        photo = torch.stack([maps[first, second][1], maps[second, first][1]])
        confidence.append(photo * (0.1 + 0.9 * agree) + 1e-3)
    return torch.stack(points), torch.stack(confidence)


def _refine(scene: Scene, depth: Tensor, prior: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    refined = [
        refine_depth(
            scene.images[i], scene.images[sources], scene.cameras[[i]], scene.cameras[sources], depth[i], prior[i],
            float(scene.near[i]), float(scene.far[i]), scene.spacing(i), iterations,
        )
        for i, sources in enumerate(scene.sources)
    ]  # fmt: skip
    return torch.stack([r[0] for r in refined]), torch.stack([r[1] for r in refined])


def _fill(
    scene: Scene, volumes: list[Tensor], depth: Float[Tensor, "n h w"], trusted: Bool[Tensor, "n h w"]
) -> Float[Tensor, "n h w"]:
    """Keep trusted depths, add those projected from other views, and fill the rest by scanline aggregation."""
    surfaces = torch.where(trusted, depth, torch.zeros_like(depth))
    splatted, filled = splat_depth(depth, trusted, scene.cameras), []
    for i in range(len(depth)):
        depths = scene.depths(i)
        others = [j for j in range(len(depth)) if j != i]
        known = torch.where(trusted[i], depth[i], splatted[i])
        cost = carve_free_space(
            WEAK_MATCH * volumes[i].float(), scene.cameras[[i]], surfaces[others], scene.cameras[others], depths, CARVED
        )
        cost = torch.where(torch.isfinite(known)[None], _distance_cost(known, depths), cost)
        best, _ = best_depth(aggregate_cost(cost, scene.images[i], large=0.4), depths)
        filled.append(torch.where(trusted[i], depth[i], best))
    return torch.stack(filled)


def _distance_cost(depth: Float[Tensor, "h w"], depths: Float[Tensor, " d"]) -> Float[Tensor, "d h w"]:
    """A cost that grows with the distance in planes from a known depth."""
    inverse = 1 / depths
    index = (1 / depth - inverse[0]) / (inverse[-1] - inverse[0]) * (len(depths) - 1)
    planes = torch.arange(len(depths), dtype=torch.float32)
    return (0.1 * (planes[:, None, None] - index).abs()).clamp(max=1.0)
