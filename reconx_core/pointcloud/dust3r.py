"""The `dust3r` backend: a network's pointmaps of pairs of photos, aligned into one world (paper IV-C, eq. 9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.pointcloud.checkpoints import load_dust3r
from reconx_core.pointcloud.dust3r_network import PATCH, DUSt3R, Encoded, Prediction
from reconx_core.pointcloud.graph import COMPLETE_UP_TO, nearest_pairs, overlap_pairs, pair_graph, token_overlap
from reconx_core.pointcloud.predictions import align, both_orders, choose_window, find_weights, lift, load_network, see
from reconx_core.pointcloud.sfm import SAME_LENS, require_two
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Pointmaps, Views

WEIGHTS = ("DUSt3R_ViTLarge_BaseDecoder_512_dpt",)
ITERATIONS = 300  # of the alignment, upstream's


@dataclass(frozen=True)
class Dust3r:
    """Settings bound to the backend's protocol."""

    settings: PointcloudSettings

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of all views.

        Raises:
            UserError: fewer than two photos, or the weights are not there or cannot be read.
        """
        require_two(views)
        network = load_network(load_dust3r, find_weights("dust3r", self.settings.weights, WEIGHTS))
        window = choose_window(views.masks.shape[1:], network.config.image_size, PATCH)
        pairs, points, confidence = predict(network, see(views.images, window), fixed, self.settings)
        aligned = align(pairs, points, confidence, views, fixed, window, ITERATIONS, one_lens(views))
        return lift(aligned, views, fixed, window), torch.arange(len(views))


@torch.inference_mode()
def predict(
    network: DUSt3R, images: Float[Tensor, "n 3 H W"], fixed: Cameras | None, settings: PointcloudSettings
) -> tuple[Int[Tensor, "e 2"], Float[Tensor, "e 2 H W 3"], Float[Tensor, "e 2 H W"]]:
    """Pairs of views in both orders, each with the pointmaps of both in the first one's frame and their confidence >= 1.

    Every photo is encoded once; ``settings.batch`` bounds how many photos or pairs are in memory at once.
    """
    device = next(network.parameters()).device
    encoded = [network.encode(part.to(device) * 2 - 1) for part in images.split(settings.batch)]
    tokens, grid = torch.cat([part.tokens for part in encoded]), encoded[0].grid
    both = both_orders(choose_pairs(tokens, fixed, settings))
    decoded = list(decode(network, tokens, grid, both.to(device), settings.batch))
    points = torch.cat([torch.stack([first.points, second.points], 1) for first, second in decoded])
    confidence = torch.cat([torch.stack([first.confidence, second.confidence], 1) for first, second in decoded])
    return both.to(device), points.float(), confidence.float()


def decode(
    network: DUSt3R, tokens: Float[Tensor, "n t c"], grid: tuple[int, int], pairs: Int[Tensor, "e 2"], batch: int
) -> Iterator[tuple[Prediction, Prediction]]:
    for first, second in (part.unbind(1) for part in pairs.split(batch)):
        yield network.decode(Encoded(tokens[first], grid), Encoded(tokens[second], grid))


def choose_pairs(tokens: Float[Tensor, "n t c"], fixed: Cameras | None, settings: PointcloudSettings) -> list[tuple[int, int]]:
    """All pairs of a few views; of many the nearest by their cameras or, where those are not known, by what they show."""
    n = len(tokens)
    if settings.graph != "auto" or n <= COMPLETE_UP_TO:
        return pair_graph(n, settings.graph)
    return nearest_pairs(fixed) if fixed is not None and len(fixed) == n else overlap_pairs(token_overlap(tokens).cpu())


def one_lens(views: Views) -> bool:
    """Whether the photos say nothing of their lenses, or all the same."""
    prior = views.focal_prior[views.focal_prior.isfinite()]
    return len(prior) in (0, len(views)) and (len(prior) == 0 or bool(prior.max() <= SAME_LENS * prior.min()))
