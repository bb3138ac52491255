"""The `classical` backend: SIFT and bundle adjustment (pycolmap) for the cameras, stereo for the pointmaps. No weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import resize_cameras, size_for, transform, unproject
from reconx_core.io.images import resize_images
from reconx_core.pointcloud.global_alignment.graph import pair_graph
from reconx_core.pointcloud.sfm.solve import Sfm, solve_cameras
from reconx_core.pointcloud.stereo.dense import Scene, estimate_depth
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Pointmaps, Views

NEAR_MARGIN, FAR_MARGIN = 0.7, 2.0  # factors on the nearest and farthest feature point's depth that bound the depth search
FEWEST_POINTS = 12  # a view that observes fewer points takes its depth range from all points


@dataclass(frozen=True)
class Classical:
    """The backend with its settings; calling it runs it."""

    settings: PointcloudSettings

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of the views that could be registered.

        Raises:
            UserError: fewer than two photos, or no two that overlap.
        """
        sfm = solve_cameras(views, fixed, generator)
        kept = sfm.registered.nonzero()[:, 0]
        scene, pairs = stereo_scene(views.select(kept), sfm, self.settings)
        depth, confidence = estimate_depth(scene, pairs, self.settings.rounds)
        return lift(depth, confidence, views.masks[kept], sfm), kept


def stereo_scene(views: Views, sfm: Sfm, settings: PointcloudSettings) -> tuple[Scene, Int[Tensor, "e 2"]]:
    """Images and cameras at stereo resolution, depth ranges from the feature points, source views from the matches."""
    n, height, width = views.masks.shape
    size = size_for(min(settings.stereo_size, max(height, width)), height, width)
    counts = {(min(i, j), max(i, j)): int(c) for (i, j), c in zip(sfm.pairs.tolist(), sfm.inlier_counts)}
    pairs = pair_graph(n, settings.graph, counts)
    sources = [_sources(view, pairs, counts)[: settings.sources] for view in range(n)]
    near, far = depth_ranges(sfm)
    scene = Scene(
        images=resize_images(views.images, *size), cameras=resize_cameras(sfm.cameras, *size),
        sources=sources, near=near, far=far, planes=settings.planes,
        iterations=settings.iterations,
    )  # fmt: skip
    edges = {(min(i, j), max(i, j)) for i in range(n) for j in sources[i]}
    return scene, torch.tensor(sorted(edges))


def _sources(view: int, pairs: list[tuple[int, int]], counts: dict[tuple[int, int], int]) -> list[int]:
    mine = sorted((p for p in pairs if view in p), key=lambda p: (-counts.get(p, 0), p))
    return [p[0] if p[1] == view else p[1] for p in mine]


def depth_ranges(sfm: Sfm) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Nearest and farthest depth of every view: a margin beyond the feature points that it observes."""
    depth = transform(sfm.cameras.world_to_cam, sfm.sparse.xyz.expand(len(sfm.cameras), -1, -1))[..., 2]
    near, far = [], []
    for z, seen in zip(depth, sfm.observations):
        own = z[seen & (z > 0)]
        own = own if len(own) >= FEWEST_POINTS else z[z > 0]
        low, high = torch.quantile(own, own.new_tensor([0.005, 0.995])).tolist()
        near.append(NEAR_MARGIN * low)
        far.append(FAR_MARGIN * high)
    return torch.tensor(near), torch.tensor(far)


def lift(depth: Float[Tensor, "n h w"], confidence: Float[Tensor, "n h w"], masks: Tensor, sfm: Sfm) -> Pointmaps:
    """Pointmaps at image resolution; masked pixels have confidence 0."""
    height, width = masks.shape[1:]
    depth = upsample_depth(depth, height, width)
    confidence = F.interpolate(confidence[:, None], (height, width), mode="nearest-exact")[:, 0]
    return Pointmaps(unproject(depth, sfm.cameras), torch.where(masks, confidence, 0.0), sfm.cameras, sfm.sparse)


def upsample_depth(depth: Float[Tensor, "n h w"], height: int, width: int) -> Float[Tensor, "n h w"]:
    """Bilinear in inverse depth on surfaces, nearest neighbour at depth edges, so that no points lie between two surfaces."""
    inverse = 1 / depth[:, None]
    smooth = F.interpolate(inverse, (height, width), mode="bilinear", align_corners=False)
    nearest = F.interpolate(inverse, (height, width), mode="nearest-exact")
    return 1 / torch.where((smooth / nearest - 1).abs() < 0.02, smooth, nearest)[:, 0]
