"""The `vggt` backend: cameras and depth of all photos in one pass of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.pointcloud.backends.predictions import (
    align,
    choose_window,
    crop_to_window,
    find_weights,
    judged,
    lift,
    load_network,
    star_pairs,
)
from reconx_core.pointcloud.networks.checkpoints import load_vggt
from reconx_core.pointcloud.networks.vggt import VGGTPrediction, decode_cameras
from reconx_core.pointcloud.sfm.locate import join_views, locate_frames
from reconx_core.pointcloud.sfm.solve import require_two
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Located, Pointmaps, Views

WEIGHTS = ("VGGT-1B", "VGGT-1B-Commercial")


@dataclass(frozen=True)
class Vggt:
    """The backend with its settings; calling it runs it."""

    settings: PointcloudSettings

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of all views. Warns with one sentence if estimated cameras may be wrong.

        Raises:
            UserError: fewer than two photos, or the weights are missing or cannot be read.
        """
        require_two(views)
        network = load_network(load_vggt, find_weights("vggt", self.settings.weights, WEIGHTS))
        window = choose_window(views.masks.shape[1:], network.config.image_size, network.config.patch)
        with torch.inference_mode():
            images = crop_to_window(views.images, window).to(next(network.parameters()).device)
            predicted = network(images[None], frames_per_chunk=self.settings.batch, points=False)
        # The maps are already consistent: the closed-form start aligns them to the known cameras, without optimisation.
        aligned = align(*as_pairs(predicted), views, fixed, window, iterations=0, shared_focal=False)
        pointmaps = lift(aligned, views, fixed, window)
        return pointmaps if fixed is not None else judged(pointmaps, views), torch.arange(len(views))

    def locate(
        self, photos: Views, known: Pointmaps, frames: Views, near: Cameras | None, generator: torch.Generator
    ) -> Located:
        """Cameras of frames among photos: the network's, its world laid on the photos' cameras. ``near``: by feature matches.

        Raises:
            UserError: the weights are missing or cannot be read.
        """
        if near is not None:
            return locate_frames(photos, known, frames, near, generator)
        found, _ = self(join_views(photos, known.cameras, frames), known.cameras, generator)
        return Located(found.cameras.cam_to_world[len(photos) :], ("",) * len(frames))


def as_pairs(
    predicted: VGGTPrediction,
) -> tuple[Int[Tensor, "e 2"], Float[Tensor, "e 2 H W 3"], Float[Tensor, "e 2 H W"]]:
    """Star graph of the first view, in both orders: pointmaps in the frame of each pair's first view, and confidence >= 1.

    The points are the predicted depth unprojected with the predicted cameras, which upstream found more accurate than the
    point head.
    """
    depth, confidence = predicted.depth[0].float(), predicted.depth_confidence[0].float()
    height, width = depth.shape[1:]
    world_to_cam, intrinsics = (part.float() for part in decode_cameras(predicted.pose_encoding[0].float(), height, width))
    return star_pairs(depth, confidence, Cameras(intrinsics, torch.linalg.inv(world_to_cam), width, height))
