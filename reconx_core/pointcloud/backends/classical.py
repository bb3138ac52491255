"""The `classical` backend: SIFT and bundle adjustment (pycolmap) for the cameras, stereo for the pointmaps. No weights."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import in_picture, project, resize_cameras, size_for, unproject
from reconx_core.geometry.undistort import straighten
from reconx_core.io.images import resize_images
from reconx_core.pointcloud.global_alignment.graph import pair_graph, view_distance
from reconx_core.pointcloud.sfm.locate import locate_frames
from reconx_core.pointcloud.sfm.solve import Sfm, solve_cameras
from reconx_core.pointcloud.stereo.dense import Scene, estimate_depth
from reconx_core.pointcloud.stereo.ranges import depth_ranges
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Located, PointCloud, Pointmaps, Views

SURE = 0.5  # confidence from which a known pixel's point counts
KNOWN_POINTS = 4000  # most of them that are looked at


@dataclass(frozen=True)
class Classical:
    """The backend with its settings; calling it runs it."""

    settings: PointcloudSettings
    doubt_given: bool = True  # whether to compare given cameras with the photos; frames of a video model are no evidence
    known: Pointmaps | None = None  # of other views of the scene; given cameras of all views then need no features

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of the views that could be registered.

        Raises:
            UserError: fewer than two photos, or no two that overlap.
        """
        if self.known is not None and fixed is not None and len(fixed) == len(views):
            sfm = known_geometry(fixed, self.known)
        else:
            sfm = solve_cameras(views, fixed, generator, self.doubt_given)
        kept = sfm.registered.nonzero()[:, 0]
        photos = straighten(views.select(kept), sfm.cameras, sfm.radial)
        scene, pairs = stereo_scene(photos, sfm, self.settings)
        depth, confidence = estimate_depth(scene, pairs, self.settings.rounds)
        return lift(depth, confidence, photos.masks, sfm), kept

    def locate(
        self, photos: Views, known: Pointmaps, frames: Views, near: Cameras | None, generator: torch.Generator
    ) -> Located:
        """Cameras of frames among photos with known points, by feature matches."""
        return locate_frames(photos, known, frames, near, generator)


def known_geometry(cameras: Cameras, known: Pointmaps) -> Sfm:
    """What matches would say of views of a scene whose points are known: those before each view, and pairs that share them."""
    points = known.points_world[known.confidence > SURE]
    points = points[:: max(1, -(-len(points) // KNOWN_POINTS))]
    pixels, depth = project(points, cameras.intrinsics, cameras.world_to_cam)
    inside = in_picture(pixels, depth, cameras)
    pairs = list(itertools.combinations(range(len(cameras)), 2))
    shared = torch.stack([(inside[i] & inside[j]).sum() for i, j in pairs])
    cloud = PointCloud(points, torch.zeros_like(points), torch.ones(len(points)))
    return Sfm(cameras, torch.ones(len(cameras), dtype=torch.bool), cloud, inside, torch.tensor(pairs), shared)


def stereo_scene(views: Views, sfm: Sfm, settings: PointcloudSettings) -> tuple[Scene, Int[Tensor, "e 2"]]:
    """Images and cameras at stereo resolution, depth ranges from the feature points, source views from the matches."""
    n, height, width = views.masks.shape
    size = size_for(min(settings.stereo_size, max(height, width)), height, width)
    weights = pair_weights(sfm)
    pairs = pair_graph(n, settings.graph, weights)
    sources = [_sources(view, pairs, weights)[: settings.sources] for view in range(n)]
    near, far = depth_ranges(sfm.cameras, sfm.sparse, sfm.observations)
    scene = Scene(
        images=resize_images(views.images, *size), cameras=resize_cameras(sfm.cameras, *size),
        sources=sources, near=near, far=far, planes=settings.planes,
        iterations=settings.iterations,
    )  # fmt: skip
    edges = {(min(i, j), max(i, j)) for i in range(n) for j in sources[i]}
    return scene, torch.tensor(sorted(edges))


def pair_weights(sfm: Sfm) -> dict[tuple[int, int], float]:
    """How well each pair of views suits stereo: by verified matches; where they are equal or missing, by nearness."""
    nearness = 1 / (2 + view_distance(sfm.cameras))  # below 1, so that one match outweighs it
    weights = {(i, j): float(nearness[i, j]) for i, j in itertools.combinations(range(len(sfm.cameras)), 2)}
    for (i, j), count in zip(sfm.pairs.tolist(), sfm.inlier_counts.tolist()):
        weights[min(i, j), max(i, j)] += count
    return weights


def _sources(view: int, pairs: list[tuple[int, int]], weights: dict[tuple[int, int], float]) -> list[int]:
    mine = sorted((p for p in pairs if view in p), key=lambda p: (-weights[p], p))
    return [p[0] if p[1] == view else p[1] for p in mine]


def lift(depth: Float[Tensor, "n h w"], confidence: Float[Tensor, "n h w"], masks: Tensor, sfm: Sfm) -> Pointmaps:
    """Pointmaps at image resolution; masked pixels have confidence 0."""
    height, width = masks.shape[1:]
    depth = upsample_depth(depth, height, width)
    confidence = F.interpolate(confidence[:, None], (height, width), mode="nearest-exact")[:, 0]
    return Pointmaps(
        unproject(depth, sfm.cameras),
        torch.where(masks, confidence, 0.0),
        sfm.cameras,
        sfm.sparse,
        sfm.camera_confidence,
        sfm.radial,
        sfm.tracks,
    )


def upsample_depth(depth: Float[Tensor, "n h w"], height: int, width: int) -> Float[Tensor, "n h w"]:
    """Bilinear in inverse depth on surfaces, nearest neighbour at depth edges, so that no points lie between two surfaces."""
    inverse = 1 / depth[:, None]
    smooth = F.interpolate(inverse, (height, width), mode="bilinear", align_corners=False)
    nearest = F.interpolate(inverse, (height, width), mode="nearest-exact")
    return 1 / torch.where((smooth / nearest - 1).abs() < 0.02, smooth, nearest)[:, 0]
