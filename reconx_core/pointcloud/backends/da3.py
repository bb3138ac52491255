"""The `da3` backend: Depth-Anything-3's depth and cameras of all photos; cameras adjusted to feature matches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import project
from reconx_core.io.images import to_uint8
from reconx_core.pointcloud.backends.da3_given import fit_cameras, normalise_cameras
from reconx_core.pointcloud.backends.da3_photos import LONG_SIDE, change_photo, choose_sizes, normalise
from reconx_core.pointcloud.backends.predictions import (
    Window,
    align,
    find_weights,
    from_window,
    judged,
    lift,
    load_network,
    star_pairs,
    to_window,
)
from reconx_core.pointcloud.networks.checkpoints import load_da3
from reconx_core.pointcloud.networks.da3 import DA3, GivenCameras
from reconx_core.pointcloud.networks.da3_camera import decode_cameras
from reconx_core.pointcloud.sfm.adjust import adjust_cameras
from reconx_core.pointcloud.sfm.locate import join_views, locate_frames
from reconx_core.pointcloud.sfm.solve import Sfm, require_two
from reconx_core.settings import PointcloudSettings
from reconx_core.types import Cameras, Located, PointCloud, Pointmaps, Views
from reconx_core.weights.choice import DA3_WEIGHTS

LEAST_SCALE = 1e-6  # of the predicted camera distances relative to the given ones; below it they say nothing
KEPT = "The photos' feature matches did not improve the network's cameras, which are kept and may be off by some degrees."


class Predicted(NamedTuple):
    """The network's depth and confidence of every view, and the cameras that they belong to; all on the CPU."""

    depth: Float[Tensor, "n H W"]  # along z, in units of the cameras' world
    confidence: Float[Tensor, "n H W"]  # >= 1
    cameras: Cameras  # of H x W pixels


@dataclass(frozen=True)
class Da3:
    """The backend with its settings; calling it runs it. ``enlarge``: small photos to the network's size, as upstream does."""

    settings: PointcloudSettings
    enlarge: bool = True

    def __call__(self, views: Views, fixed: Cameras | None, generator: torch.Generator) -> tuple[Pointmaps, Int[Tensor, " k"]]:
        """Pointmaps of all views.

        Warns with one sentence if the network's cameras could not be adjusted to feature matches.

        Raises:
            UserError: fewer than two photos, or the weights are missing or cannot be read.
        """
        require_two(views)
        network = load_network(load_da3, find_weights("da3", self.settings.weights, DA3_WEIGHTS, "da3-base"))
        height, width = views.masks.shape[1:]
        side = LONG_SIDE if self.enlarge else min(LONG_SIDE, max(height, width))
        size = choose_sizes(height, width, side).last
        window = Window(size, size, (0, 0))
        given = None if fixed is None or len(fixed) < len(views) else to_window(fixed, window)
        predicted = predict(network, views, side, given, self.settings.batch)
        sfm = None
        if fixed is None:
            predicted, sfm = adjust(predicted, views, window, generator)
        held = fixed if sfm is None else sfm.cameras
        # The maps are already consistent: the closed-form start aligns them to the known cameras, without optimisation.
        aligned = align(*star_pairs(*predicted), views, held, window, iterations=0, shared_focal=False)
        pointmaps = lift(aligned, views, held, window)
        if sfm is not None:
            pointmaps = replace(pointmaps, sparse=sfm.sparse, camera_confidence=sfm.camera_confidence, tracks=sfm.tracks)
        elif fixed is None:
            pointmaps = judged(pointmaps, views)
        return pointmaps, torch.arange(len(views))

    def locate(
        self, photos: Views, known: Pointmaps, frames: Views, near: Cameras | None, generator: torch.Generator
    ) -> Located:
        """Cameras of frames among photos: the network's, its world laid on the photos' cameras, adjusted to feature matches.

        A frame that has too few matches keeps the network's camera. ``near``: adjusted instead of the network's.

        Raises:
            UserError: the weights are missing or cannot be read.
        """
        if near is not None:
            return locate_frames(photos, known, frames, near, generator)
        found, _ = self(join_views(photos, known.cameras, frames), known.cameras, generator)
        start = found.cameras[slice(len(photos), None)]
        adjusted = locate_frames(photos, known, frames, start, generator)
        missed = torch.tensor([bool(why) for why in adjusted.lost])[:, None, None]
        return Located(torch.where(missed, start.cam_to_world, adjusted.cam_to_world), ("",) * len(frames))


@torch.inference_mode()
def predict(network: DA3, views: Views, side: int, given: Cameras | None, batch: int) -> Predicted:
    """Run the network on the views, resized to the long side ``side``.

    ``given``: known cameras of all views, of the network's size; they are the result's cameras, and depth is in their units.
    Otherwise world and units are the network's.
    """
    sizes = choose_sizes(views.images.shape[1], views.images.shape[2], side)
    photos = torch.stack([change_photo(photo, sizes) for photo in torch.from_numpy(to_uint8(views.images))])
    device = next(network.parameters()).device
    known = None
    if given is not None:
        known = GivenCameras(normalise_cameras(given.world_to_cam)[None].to(device), given.intrinsics[None].to(device))
    found = network(normalise(photos)[None].to(device), known, frames_per_chunk=batch, rays=False)
    height, width = sizes.last
    world_to_cam, intrinsics = (part.float().cpu() for part in decode_cameras(found.pose_encoding[0].float(), height, width))
    depth, confidence = found.depth[0].float().cpu(), found.depth_confidence[0].float().cpu()
    own = Cameras(intrinsics, torch.linalg.inv(world_to_cam), width, height)
    if given is None:
        return Predicted(depth, confidence, own)
    scale = float(fit_cameras(given.world_to_cam, world_to_cam).scale)
    # Without predicted distances there is no scale; the alignment then takes the depth as it is.
    return Predicted(depth / scale, confidence, given) if scale > LEAST_SCALE else Predicted(depth, confidence, own)


def adjust(predicted: Predicted, views: Views, window: Window, generator: torch.Generator) -> tuple[Predicted, Sfm | None]:
    """Adjust the predicted cameras to feature matches and scale each view's depth to them; None and a warning if that fails."""
    height, width = views.masks.shape[1:]
    sfm = adjust_cameras(views, from_window(predicted.cameras, window, height, width), generator)
    if sfm is None:
        warnings.warn(KEPT, stacklevel=3)
        return predicted, None
    cameras = to_window(sfm.cameras, window)
    ratio = depth_ratios(predicted.depth, cameras, sfm.sparse, sfm.observations)
    return Predicted(predicted.depth * ratio[:, None, None], predicted.confidence, cameras), sfm


def depth_ratios(
    depth: Float[Tensor, "n h w"], cameras: Cameras, points: PointCloud, observations: Tensor
) -> Float[Tensor, " n"]:
    """Per view the median ratio of the depth of the points that it observes ([n, p] bool) to its depth map there."""
    pixels, z = project(points.xyz, cameras.intrinsics, cameras.world_to_cam)
    x, y = pixels.floor().long().unbind(-1)
    x, y = x.clamp(0, cameras.width - 1), y.clamp(0, cameras.height - 1)
    ratios = []
    for view, seen in enumerate(observations):
        own = seen & (z[view] > 0)
        ratios.append((z[view, own] / depth[view, y[view, own], x[view, own]]).median())
    return torch.stack(ratios)
