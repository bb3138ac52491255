"""The `dust3r` backend: a network's pointmaps of pairs of photos, aligned into one world (paper IV-C, eq. 9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.pointcloud.backends.predictions import (
    Window,
    align,
    align_known,
    align_poses,
    both_orders,
    choose_window,
    crop_to_window,
    find_weights,
    judged,
    lift,
    load_network,
    pixel_step,
    thin,
)
from reconx_core.pointcloud.global_alignment.align import Edges, collect
from reconx_core.pointcloud.global_alignment.graph import (
    COMPLETE_UP_TO,
    nearest_pairs,
    overlap_pairs,
    pair_graph,
    token_overlap,
)
from reconx_core.pointcloud.networks.checkpoints import load_dust3r
from reconx_core.pointcloud.networks.dust3r import PATCH, DUSt3R, Encoded
from reconx_core.pointcloud.sfm.locate import join_views, locate_frames
from reconx_core.pointcloud.sfm.solve import SAME_LENS, require_two
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Located, Pointmaps, Views

WEIGHTS = ("DUSt3R_ViTLarge_BaseDecoder_512_dpt",)
ITERATIONS = 300  # of the global alignment, as upstream
SQUARE_SIZE = 224  # long side of the checkpoint that was trained on square photos; the others were trained on 4:3 and wider
FILLED = 0.9  # share of the rows and of the columns of the canvas that hold something of a photo which fills it


@dataclass(frozen=True)
class Dust3r:
    """The backend with its settings; calling it runs it."""

    settings: PointcloudSettings

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of all views. Warns with one sentence if estimated cameras may be wrong.

        Raises:
            UserError: fewer than two photos, or the weights are missing or cannot be read.
        """
        require_two(views)
        network, window, encoded = self._encode(views)
        pairs = both_orders(choose_pairs(encoded.tokens, fixed, self.settings))
        edges = predict(network, encoded, pairs, self.settings.batch)
        if fixed is not None and len(fixed) == len(views):
            aligned = align_known(edges, len(pairs), views, fixed, window, encoded.tokens.device)
        else:
            pairs, points, confidence = collect(edges, len(pairs))
            aligned = align(pairs, points, confidence, views, fixed, window, ITERATIONS, has_shared_focal(views))
        pointmaps = lift(aligned, views, fixed, window)
        return pointmaps if fixed is not None else judged(pointmaps, views), torch.arange(len(views))

    def locate(
        self, photos: Views, known: Pointmaps, frames: Views, near: Cameras | None, generator: torch.Generator
    ) -> Located:
        """Cameras of frames among photos by global alignment (eq. 9) with the photos' poses held.

        Poses need fewer pixels than depth, so about ``POSE_SIDE`` along the long side are aligned. With ``near``, feature
        matches adjust it instead.

        Raises:
            UserError: the weights are missing or cannot be read.
        """
        if near is not None:
            return locate_frames(photos, known, frames, near, generator)
        views = join_views(photos, known.cameras, frames)
        network, window, encoded = self._encode(views)
        step = pixel_step(window)
        pairs = both_orders(choose_pairs(encoded.tokens, None, self.settings))
        edges = predict(network, encoded, pairs, self.settings.batch, step)
        pairs, points, confidence = collect(edges, len(pairs))
        poses = align_poses(pairs, points, confidence, views, len(photos), window, step, ITERATIONS)
        return Located(poses[len(photos) :], ("",) * len(frames))

    def _encode(self, views: Views) -> tuple[DUSt3R, Window, Encoded]:
        network = load_network(load_dust3r, find_weights("dust3r", self.settings.weights, WEIGHTS))
        size = network.config.image_size
        landscape = self.settings.crop == "auto" and size != SQUARE_SIZE and are_square(views.masks)
        window = choose_window(views.masks.shape[1:], size, PATCH, landscape)
        return network, window, encode(network, crop_to_window(views.images, window), self.settings.batch)


@torch.inference_mode()
def encode(network: DUSt3R, images: Float[Tensor, "n 3 H W"], batch: int) -> Encoded:
    """Every photo's tokens; ``batch`` photos per forward pass."""
    device = next(network.parameters()).device
    encoded = [network.encode(part.to(device) * 2 - 1) for part in images.split(batch)]
    return Encoded(torch.cat([part.tokens for part in encoded]), encoded[0].grid)


@torch.inference_mode()
def predict(network: DUSt3R, encoded: Encoded, pairs: Int[Tensor, "e 2"], batch: int, step: int = 1) -> Iterator[Edges]:
    """The pointmaps of both views of each pair in the first one's frame and their confidence >= 1, ``batch`` pairs at a time.

    Of every ``step``-th pixel; see ``thin_cameras`` for the cameras that these belong to.
    """
    for part in pairs.to(encoded.tokens.device).split(batch):
        views = (Encoded(encoded.tokens[part[:, side]], encoded.grid) for side in (0, 1))
        found = network.decode(*views)
        points = torch.stack([thin(one.points.float(), step) for one in found], 1)
        yield Edges(part, points, torch.stack([thin(one.confidence.float(), step) for one in found], 1))


def choose_pairs(tokens: Float[Tensor, "n t c"], fixed: Cameras | None, settings: PointcloudSettings) -> list[tuple[int, int]]:
    """All pairs of a few views; of many views, pairs of nearest cameras or, if these are unknown, of similar image content."""
    n = len(tokens)
    if settings.graph != "auto" or n <= COMPLETE_UP_TO:
        return pair_graph(n, settings.graph)
    return nearest_pairs(fixed) if fixed is not None and len(fixed) == n else overlap_pairs(token_overlap(tokens).cpu())


def are_square(masks: Bool[Tensor, "n h w"]) -> bool:
    """Whether the photos are square, and not only the canvas that landscape and portrait photos share."""
    filled = (masks.any(axis).float().mean(1) > FILLED for axis in (1, 2))
    return masks.shape[1] == masks.shape[2] and all(bool(side.all()) for side in filled)


def has_shared_focal(views: Views) -> bool:
    """Whether all photos have (nearly) the same EXIF focal length, or none has one."""
    prior = views.focal_prior[views.focal_prior.isfinite()]
    return len(prior) in (0, len(views)) and (len(prior) == 0 or bool(prior.max() <= SAME_LENS * prior.min()))
