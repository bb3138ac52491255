"""The `dust3r` backend: a network's pointmaps of pairs of photos, aligned into one world (paper IV-C, eq. 9)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.pointcloud.backends.predictions import (
    align,
    both_orders,
    choose_window,
    crop_to_window,
    find_weights,
    lift,
    load_network,
)
from reconx_core.pointcloud.global_alignment.graph import (
    COMPLETE_UP_TO,
    nearest_pairs,
    overlap_pairs,
    pair_graph,
    token_overlap,
)
from reconx_core.pointcloud.networks.checkpoints import load_dust3r
from reconx_core.pointcloud.networks.dust3r import PATCH, DUSt3R, Encoded
from reconx_core.pointcloud.sfm.solve import SAME_LENS, require_two
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Pointmaps, Views

WEIGHTS = ("DUSt3R_ViTLarge_BaseDecoder_512_dpt",)
ITERATIONS = 300  # of the global alignment, as upstream
SQUARE_SIZE = 224  # long side of the checkpoint that was trained on square photos; the others were trained on 4:3 and wider
FILLED = 0.9  # share of the rows and of the columns of the canvas that hold something of a photo which fills it


@dataclass(frozen=True)
class Dust3r:
    """The backend with its settings; calling it runs it."""

    settings: PointcloudSettings

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of all views.

        Raises:
            UserError: fewer than two photos, or the weights are missing or cannot be read.
        """
        require_two(views)
        network = load_network(load_dust3r, find_weights("dust3r", self.settings.weights, WEIGHTS))
        size = network.config.image_size
        landscape = self.settings.crop == "auto" and size != SQUARE_SIZE and are_square(views.masks)
        window = choose_window(views.masks.shape[1:], size, PATCH, landscape)
        pairs, points, confidence = predict(network, crop_to_window(views.images, window), fixed, self.settings)
        aligned = align(pairs, points, confidence, views, fixed, window, ITERATIONS, has_shared_focal(views))
        return lift(aligned, views, fixed, window), torch.arange(len(views))


@torch.inference_mode()
def predict(
    network: DUSt3R, images: Float[Tensor, "n 3 H W"], fixed: Cameras | None, settings: PointcloudSettings
) -> tuple[Int[Tensor, "e 2"], Float[Tensor, "e 2 H W 3"], Float[Tensor, "e 2 H W"]]:
    """Pairs of views in both orders, each with the pointmaps of both views in the first one's frame and their confidence >= 1.

    Every photo is encoded once; ``settings.batch`` is the maximum number of photos or pairs per forward pass.
    """
    device = next(network.parameters()).device
    encoded = [network.encode(part.to(device) * 2 - 1) for part in images.split(settings.batch)]
    tokens, grid = torch.cat([part.tokens for part in encoded]), encoded[0].grid
    pairs = both_orders(choose_pairs(tokens, fixed, settings)).to(device)
    # Written in place: the maps of many frames take gigabytes, and concatenation would need twice the memory.
    points = torch.empty(len(pairs), 2, *images.shape[2:], 3, device=device)
    confidence = torch.empty(points.shape[:-1], device=device)
    for at in torch.arange(len(pairs), device=device).split(settings.batch):
        first, second = pairs[at].unbind(1)
        for side, found in enumerate(network.decode(Encoded(tokens[first], grid), Encoded(tokens[second], grid))):
            points[at, side], confidence[at, side] = found.points.float(), found.confidence.float()
    return pairs, points, confidence


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
