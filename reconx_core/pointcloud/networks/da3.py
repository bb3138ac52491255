"""Depth-Anything-3 (DA3-SMALL, DA3-BASE): any number of views to depth, rays and cameras in one pass.

Built from a description of its behaviour, not from its source. Parameters are named as in the published checkpoints, without
the leading "model.".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from reconx_core.pointcloud.networks.da3_backbone import Backbone, Features, Reference
from reconx_core.pointcloud.networks.da3_camera import CameraDecoder, CameraEncoder, encode_cameras
from reconx_core.pointcloud.networks.da3_config import DA3Config
from reconx_core.pointcloud.networks.da3_head import DualHead
from reconx_core.pointcloud.networks.vit import lower_precision


class GivenCameras(NamedTuple):
    """Known cameras of b scenes of s views, in the world and units that the network was trained on."""

    world_to_cam: Float[Tensor, "b s 4 4"]
    intrinsics: Float[Tensor, "b s 3 3"]  # pixels of the images


class DA3Prediction(NamedTuple):
    """All results for b scenes of s views; the world is near the reference view's camera frame, up to a scale."""

    pose_encoding: Float[Tensor, "b s 9"]  # camera to world, see da3_camera.decode_cameras
    depth: Float[Tensor, "b s h w"]  # along z
    depth_confidence: Float[Tensor, "b s h w"]  # more than 1
    rays: Float[Tensor, "b s y x 6"] | None  # direction with z = 1 in the camera, origin; world; None where not asked for
    rays_confidence: Float[Tensor, "b s y x"] | None  # more than 1
    reference: Int[Tensor, " b"]


class DA3(nn.Module):
    """Encoder, dense head for depth and rays, camera encoder and decoder."""

    def __init__(self, config: DA3Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = nn.ModuleDict({"pretrained": Backbone(config)})
        self.head = DualHead(config)
        self.cam_enc = CameraEncoder(config)
        self.cam_dec = CameraDecoder(config)

    def lower_precision(self, dtype: torch.dtype) -> DA3:
        """Let the encoder's blocks compute in ``dtype`` (bfloat16); residual streams, head and cameras stay in float32."""
        lower_precision(self.backbone, dtype)
        return self

    def forward(
        self,
        images: Float[Tensor, "b s 3 h w"],
        cameras: GivenCameras | None = None,
        reference: Reference = "saddle_balanced",
        frames_per_chunk: int | None = None,
        rays: bool = True,
    ) -> DA3Prediction:
        """Everything about b scenes of s views, normalised as for ImageNet, sides in multiples of 14 (504 the longer one).

        Args:
            images: the views.
            cameras: known ones; the cameras of the result are predicted all the same.
            reference: how the view is chosen that the network takes for the first; not asked with cameras or two views.
            frames_per_chunk: how many views the head takes at a time, which bounds its memory; None: all.
            rays: whether to run the head's chain for rays.
        """
        tokens = None if cameras is None else self.cam_enc(encode_cameras(*cameras, *images.shape[-2:]))
        features: Features = self.backbone["pretrained"](images, tokens, reference)
        depth, found = self._dense(features, images, frames_per_chunk, rays)
        return DA3Prediction(
            self.cam_dec(features.camera),
            depth[:, :, 0].exp(),
            1 + depth[:, :, 1].exp(),
            None if found is None else found[:, :, :6].movedim(2, -1),
            None if found is None else 1 + found[:, :, 6].exp(),
            features.reference,
        )

    def _dense(
        self, features: Features, images: Tensor, frames_per_chunk: int | None, rays: bool
    ) -> tuple[Float[Tensor, "b s 2 h w"], Float[Tensor, "b s 7 y x"] | None]:
        """The head's raw output, a few views at a time."""
        scenes, views, _, height, width = images.shape
        grid = (height // self.config.patch, width // self.config.patch)
        flat = {layer: tokens.flatten(0, 1) for layer, tokens in features.patches.items()}
        step = frames_per_chunk or scenes * views
        parts = [
            self.head({layer: tokens[start : start + step] for layer, tokens in flat.items()}, grid, rays)
            for start in range(0, scenes * views, step)
        ]
        depth, found = zip(*parts)
        return _joined(depth, (scenes, views)), _joined(found, (scenes, views)) if rays else None


def _joined(parts: Iterable[Tensor], shape: tuple[int, int]) -> Float[Tensor, "b s c h w"]:
    return torch.cat(list(parts)).unflatten(0, shape)
