"""Depth-Anything-3's cameras: known ones as tokens, predicted ones from tokens.

Parameters are named as in the published checkpoints. A camera is encoded as the translation, quaternion (xyzw) and vertical and
horizontal field of view (radians) of its *camera-to-world* pose; the principal point is the middle of the picture.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from reconx_core.geometry.transforms import matrix_to_quaternion, quaternion_to_matrix, rigid
from reconx_core.pointcloud.networks.da3_config import DA3Config
from reconx_core.pointcloud.networks.vit import Block, LayerNorm, Mlp

ENCODING = 9
ENCODER_DEPTH, ENCODER_HEADS = 4, 16  # whatever the width
LEAST_TANGENT = 1e-6


class CameraEncoder(nn.Module):
    """A token per known camera, by attention over all cameras of a scene."""

    def __init__(self, config: DA3Config) -> None:
        super().__init__()
        width = config.width
        self.pose_branch = Mlp(ENCODING, width // 2, width)
        self.token_norm, self.trunk_norm = LayerNorm(width), LayerNorm(width)
        self.trunk = nn.ModuleList(Block(width, ENCODER_HEADS, layer_scale=1.0) for _ in range(ENCODER_DEPTH))

    def forward(self, encoding: Float[Tensor, "b s 9"]) -> Float[Tensor, "b s c"]:
        """Tokens of cameras as `encode_cameras` gives them."""
        tokens = self.token_norm(self.pose_branch(encoding))
        for block in self.trunk:
            tokens = block(tokens)
        return self.trunk_norm(tokens)


class CameraDecoder(nn.Module):
    """Cameras from the encoder's camera tokens, in one step."""

    def __init__(self, config: DA3Config) -> None:
        super().__init__()
        width = 2 * config.width
        self.backbone = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.fc_t, self.fc_qvec = nn.Linear(width, 3), nn.Linear(width, 4)
        self.fc_fov = nn.Sequential(nn.Linear(width, 2), nn.ReLU())

    def forward(self, tokens: Float[Tensor, "b s c"]) -> Float[Tensor, "b s 9"]:
        """Encoded cameras, the fields of view not negative."""
        states = self.backbone(tokens)
        return torch.cat([self.fc_t(states), self.fc_qvec(states), self.fc_fov(states)], -1)


def encode_cameras(
    world_to_cam: Float[Tensor, "*n 4 4"], intrinsics: Float[Tensor, "*n 3 3"], height: int, width: int
) -> Float[Tensor, "*n 9"]:
    """Cameras (intrinsics in pixels of ``height`` x ``width``) as the encoder takes them."""
    rotation, translation = world_to_cam[..., :3, :3].mT, world_to_cam[..., :3, 3:]
    centre = -(rotation @ translation)[..., 0]
    quaternion = matrix_to_quaternion(rotation).roll(-1, -1)
    focal = torch.stack([intrinsics[..., 1, 1], intrinsics[..., 0, 0]], -1)
    fov = 2 * torch.atan(focal.new_tensor([height / 2, width / 2]) / focal)
    return torch.cat([centre, quaternion, fov], -1)


def decode_cameras(
    encoding: Float[Tensor, "*n 9"], height: int, width: int
) -> tuple[Float[Tensor, "*n 4 4"], Float[Tensor, "*n 3 3"]]:
    """(world_to_cam, intrinsics) of encoded cameras for pictures of ``height`` x ``width`` pixels, pixel centres at +0.5."""
    centre, quaternion, fov = encoding.split([3, 4, 2], -1)
    rotation = quaternion_to_matrix(quaternion.roll(1, -1)).mT
    world_to_cam = rigid(rotation, -(rotation @ centre[..., None])[..., 0])
    middle = fov.new_tensor([height / 2, width / 2])
    focal_y, focal_x = (middle / torch.tan(fov / 2).clamp(min=LEAST_TANGENT)).unbind(-1)
    intrinsics = torch.diag_embed(torch.stack([focal_x, focal_y, torch.ones_like(focal_x)], -1))
    intrinsics[..., :2, 2] = middle.flip(0)
    return world_to_cam, intrinsics
