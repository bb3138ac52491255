"""VGGT's network without tracking: any number of photos to cameras, depth and points in one pass.

Parameters are named as in the published checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import quaternion_to_matrix, rigid
from reconx_core.pointcloud.networks.dpt import DPTConfig, Pyramid, resizers, tokens_to_map, upsample
from reconx_core.pointcloud.networks.vit import (
    Block,
    LayerNorm,
    Mlp,
    PatchEmbed,
    Rotation,
    grid_positions,
    lower_precision,
    make_rotation,
)  # fmt: skip

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENCODER_EPS = 1e-6
LAYER_SCALE = 0.01  # initial value, except in the encoder
REFINEMENTS = 4  # iterations of the camera head
UV_BASE, UV_STRENGTH = 100.0, 0.1
DPT_1B = DPTConfig((4, 11, 17, 23), (256, 512, 1024, 1024), last_width=32)
POSE = 9  # translation, quaternion xyzw, vertical and horizontal field of view
SIZES = {
    "img_size": "image_size", "patch_size": "patch", "embed_dim": "width", "depth": "depth", "num_heads": "heads",
    "num_register_tokens": "registers", "rope_freq": "rotary_base",
}  # fmt: skip
FIXED = {"mlp_ratio": 4, "qk_norm": True, "qkv_bias": True, "proj_bias": True, "ffn_bias": True, "init_values": LAYER_SCALE}


@dataclass(frozen=True)
class VGGTConfig:
    """Sizes of the network; the defaults are those of VGGT-1B."""

    image_size: int = 518  # image size of the position embedding, pixels
    patch: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    registers: int = 4
    rotary_base: float = 100.0
    encoder_depth: int = 24
    encoder_heads: int = 16
    camera_depth: int = 4
    camera_heads: int = 16
    dpt: DPTConfig = DPT_1B

    @property
    def special_tokens(self) -> int:
        """Number of tokens before a photo's patches: the camera token and the registers."""
        return 1 + self.registers


class VGGTPrediction(NamedTuple):
    """All results for b scenes of s photos; the world is the first photo's camera frame up to the network's own scale."""

    pose_encoding: Float[Tensor, "b s 9"]  # world to camera, see decode_cameras
    depth: Float[Tensor, "b s h w"]  # along z
    depth_confidence: Float[Tensor, "b s h w"]  # 1 and more
    points: Float[Tensor, "b s h w 3"] | None  # world; None if not requested
    points_confidence: Float[Tensor, "b s h w"] | None  # 1 and more


def vggt_config(settings: Mapping[str, Any]) -> VGGTConfig:
    """The configuration behind upstream's constructor arguments (the hub's config.json; those of parts under their names).

    Raises:
        UserError: a setting is unknown or its value is not supported.
    """
    parts = {"dino", "camera_head", "dpt", "patch_start_idx"}
    for name, value in settings.items():
        known = name in {*SIZES, *parts} or name.startswith("enable_") or (name in FIXED and FIXED[name] == value)
        if not known:
            raise UserError(f"The setting {name}={value!r} of this VGGT network is not supported; use a published one.")
    encoder, camera, dpt = (settings.get(part, {}) for part in ("dino", "camera_head", "dpt"))
    layers = tuple(dpt.get("intermediate_layer_idx", DPT_1B.layers))
    levels = tuple(dpt.get("out_channels", DPT_1B.level_widths))
    return VGGTConfig(
        **{ours: settings[theirs] for theirs, ours in SIZES.items() if theirs in settings},
        encoder_depth=encoder.get("depth", 24),
        encoder_heads=encoder.get("num_heads", 16),
        camera_depth=camera.get("trunk_depth", 4),
        camera_heads=camera.get("num_heads", 16),
        dpt=DPTConfig(layers, levels, dpt.get("features", DPT_1B.width), DPT_1B.last_width),
    )


def decode_cameras(
    pose_encoding: Float[Tensor, "*n 9"], height: int, width: int
) -> tuple[Float[Tensor, "*n 4 4"], Float[Tensor, "*n 3 3"]]:
    """(world_to_cam, intrinsics) of encoded cameras: focal lengths from the fields of view, principal points in the middle.

    The intrinsics are upstream's, in pixels whose centres have *whole* coordinates; in this package's convention (+0.5)
    the principal point lies half a pixel further right and down.
    """
    translation, quaternion, fov = pose_encoding.split([3, 4, 2], -1)
    world_to_cam = rigid(quaternion_to_matrix(quaternion.roll(1, -1)), translation)
    centre = fov.new_tensor([height / 2, width / 2])
    focal_y, focal_x = (centre / torch.tan(fov / 2)).unbind(-1)
    intrinsics = torch.diag_embed(torch.stack([focal_x, focal_y, torch.ones_like(focal_x)], -1))
    intrinsics[..., :2, 2] = centre.flip(0)
    return world_to_cam, intrinsics


class PatchEncoder(nn.Module):
    """DINOv2 with registers: patch tokens of single photos."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        width, side = config.width, config.image_size // config.patch
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.register_tokens = nn.Parameter(0.02 * torch.randn(1, config.registers, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + side**2, width))
        self.patch_embed = PatchEmbed(width, config.patch)
        self.blocks = nn.ModuleList(
            Block(width, config.encoder_heads, ENCODER_EPS, layer_scale=1.0) for _ in range(config.encoder_depth)
        )
        self.norm = LayerNorm(width, ENCODER_EPS)

    def forward(self, images: Float[Tensor, "b 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "b n c"]:
        count = len(images)
        patches = self.patch_embed(images) + self._positions(grid)
        start = torch.cat([self.cls_token + self.pos_embed[:, :1], self.register_tokens], 1)
        tokens = torch.cat([start.expand(count, -1, -1), patches], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens[:, start.shape[1] :])

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 n c"]:
        """The square position embedding, interpolated to the grid."""
        table = self.pos_embed[:, 1:]
        side = math.isqrt(table.shape[1])
        if grid == (side, side):
            return table
        resized = functional.interpolate(tokens_to_map(table, (side, side)), grid, mode="bicubic", antialias=True)
        return resized.flatten(2).mT


class Aggregator(nn.Module):
    """Alternating attention within every photo and over all photos."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.patch_embed = PatchEncoder(config)
        # one variant for the first photo, whose camera frame is the world frame, and one for all others
        self.camera_token = nn.Parameter(0.02 * torch.randn(1, 2, 1, width))
        self.register_token = nn.Parameter(0.02 * torch.randn(1, 2, config.registers, width))
        self.frame_blocks, self.global_blocks = (
            nn.ModuleList(Block(width, config.heads, layer_scale=LAYER_SCALE, normed=True) for _ in range(config.depth))
            for _ in range(2)
        )

    def forward(self, images: Float[Tensor, "b s 3 h w"], layers: Collection[int]) -> dict[int, Float[Tensor, "b s n 2c"]]:
        """Tokens after the blocks of the ``layers``: frame and global attention outputs, concatenated."""
        scenes, photos, _, height, width = images.shape
        grid = (height // self.config.patch, width // self.config.patch)
        turn = self._rotation(grid, images.device)
        turn_all = Rotation(turn.cos.repeat(photos, 1, 1), turn.sin.repeat(photos, 1, 1))
        tokens = self._start(images, grid)
        kept = {}
        for layer, (frame_block, global_block) in enumerate(zip(self.frame_blocks, self.global_blocks)):
            own = frame_block(tokens.reshape(scenes * photos, -1, self.config.width), turn)
            tokens = global_block(own.reshape(scenes, -1, self.config.width), turn_all)
            if layer in layers:
                kept[layer] = torch.cat([states.reshape(scenes, photos, -1, self.config.width) for states in (own, tokens)], -1)
        return kept

    def _start(self, images: Float[Tensor, "b s 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "bs n c"]:
        """Each photo's camera token, registers and patches."""
        scenes, photos = images.shape[:2]
        mean, std = (images.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        patches = self.patch_embed(((images - mean) / std).flatten(0, 1), grid)
        first, others = torch.cat([self.camera_token, self.register_token], 2)[0]
        special = torch.cat([first[None], others.expand(photos - 1, -1, -1)])
        return torch.cat([special.repeat(scenes, 1, 1), patches], 1)

    def _rotation(self, grid: tuple[int, int], device: torch.device) -> Rotation:
        """Rotary positions: special tokens at (0, 0), patches from (1, 1) on."""
        positions = functional.pad(grid_positions(*grid, device) + 1, (0, 0, self.config.special_tokens, 0))
        return make_rotation(positions, self.config.width // self.config.heads, self.config.rotary_base)


class CameraHead(nn.Module):
    """Cameras from the photos' camera tokens, by iterative refinement."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        width = 2 * config.width
        self.token_norm, self.trunk_norm = LayerNorm(width), LayerNorm(width)
        self.empty_pose_tokens = nn.Parameter(torch.zeros(1, 1, POSE))
        self.embed_pose = nn.Linear(POSE, width)
        self.poseLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 3 * width))
        blocks = (Block(width, config.camera_heads, layer_scale=LAYER_SCALE) for _ in range(config.camera_depth))
        self.trunk = nn.ModuleList(blocks)
        self.pose_branch = Mlp(width, width // 2, POSE)

    def forward(self, tokens: Float[Tensor, "b s c"]) -> Float[Tensor, "b s 9"]:
        """Encoded cameras, the fields of view not negative."""
        tokens = self.token_norm(tokens)
        plain = functional.layer_norm(tokens, tokens.shape[-1:], eps=1e-6)
        pose = self._delta(tokens, plain, self.empty_pose_tokens.expand(*tokens.shape[:2], -1))
        for _ in range(REFINEMENTS - 1):
            pose = pose + self._delta(tokens, plain, pose)
        return torch.cat([pose[..., :7], pose[..., 7:].relu()], -1)

    def _delta(self, tokens: Tensor, plain: Tensor, pose: Float[Tensor, "b s 9"]) -> Float[Tensor, "b s 9"]:
        """Update of the cameras, from tokens modulated by the current cameras."""
        shift, scale, gate = self.poseLN_modulation(self.embed_pose(pose)).chunk(3, -1)
        tokens = tokens + gate * (plain * (1 + scale) + shift)
        for block in self.trunk:
            tokens = block(tokens)
        return self.pose_branch(self.trunk_norm(tokens))


class DenseHead(nn.Module):
    """A value per pixel from four layers' patch tokens (DPT)."""

    def __init__(self, config: VGGTConfig, channels: int) -> None:
        super().__init__()
        dpt = config.dpt
        self.config = config
        self.norm = LayerNorm(2 * config.width)
        self.projects = nn.ModuleList(nn.Conv2d(2 * config.width, width, 1) for width in dpt.level_widths)
        self.resize_layers = nn.ModuleList(resizers(dpt.level_widths))
        self.scratch = Pyramid(dpt, "vggt")
        half = dpt.width // 2
        self.scratch.add_module("output_conv1", nn.Conv2d(dpt.width, half, 3, padding=1))
        last = [nn.Conv2d(half, dpt.last_width, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(dpt.last_width, channels, 1)]
        self.scratch.add_module("output_conv2", nn.Sequential(*last))

    def forward(self, features: Mapping[int, Float[Tensor, "f n c"]], grid: tuple[int, int]) -> Float[Tensor, "f k h w"]:
        aspect = grid[1] / grid[0]
        levels = []
        for layer, project, resize in zip(self.config.dpt.layers, self.projects, self.resize_layers):
            patches = self.norm(features[layer][:, self.config.special_tokens :])
            levels.append(resize(add_uv(project(tokens_to_map(patches, grid)), aspect)))
        fused = self.scratch.get_submodule("output_conv1")(self.scratch(levels))
        pixels = upsample(fused, [length * self.config.patch for length in grid])
        return self.scratch.get_submodule("output_conv2")(add_uv(pixels, aspect))


def add_uv(x: Float[Tensor, "b c h w"], aspect: float) -> Float[Tensor, "b c h w"]:
    """Add, in place, a sinusoidal position embedding: half of the channels for x, half for y; image corners have distance 1.

    ``aspect``: width / height of the whole image.
    """
    half = x.shape[1] // 2
    height, width = x.shape[-2:]
    diagonal = math.hypot(aspect, 1.0)
    x[:, :half] += waves(aspect / diagonal, width, half, x)[:, None, :]
    x[:, half:] += waves(1.0 / diagonal, height, half, x)[:, :, None]
    return x


def waves(span: float, count: int, channels: int, like: Tensor) -> Float[Tensor, "channels count"]:
    """Sines, then cosines, of falling frequencies, at the centres of ``count`` pixels across [-span, span]."""
    edge = span * (count - 1) / count
    places = torch.linspace(-edge, edge, count, dtype=torch.float64, device=like.device)
    frequencies = UV_BASE ** -(torch.arange(channels // 2, dtype=torch.float64, device=like.device) / (channels / 2))
    angles = frequencies[:, None] * places
    return UV_STRENGTH * torch.cat([angles.sin(), angles.cos()]).to(like.dtype)


class VGGT(nn.Module):
    """Aggregator, camera head, and dense heads for depth and points."""

    def __init__(self, config: VGGTConfig) -> None:
        super().__init__()
        self.config = config
        self.aggregator = Aggregator(config)
        self.camera_head = CameraHead(config)
        self.point_head = DenseHead(config, 4)
        self.depth_head = DenseHead(config, 2)

    def lower_precision(self, dtype: torch.dtype) -> VGGT:
        """Let the aggregator's blocks compute in ``dtype`` (bfloat16); residual streams and heads stay in float32."""
        lower_precision(self.aggregator, dtype)
        return self

    def forward(
        self, images: Float[Tensor, "b s 3 h w"], frames_per_chunk: int | None = None, points: bool = True
    ) -> VGGTPrediction:
        """All predictions for b scenes of s photos, in [0, 1], sides in multiples of 14 (518 wide in training).

        Args:
            images: the photos; the first one's camera frame becomes the world.
            frames_per_chunk: how many photos the dense heads take at a time, which bounds their memory; None: all.
            points: whether to run the point head, whose output is redundant with depth and camera.
        """
        last = self.config.depth - 1
        features = self.aggregator(images, {*self.config.dpt.layers, last})
        pose_encoding = self.camera_head(features[last][:, :, 0])
        depth = self._dense(self.depth_head, features, images, frames_per_chunk)
        xyz = self._dense(self.point_head, features, images, frames_per_chunk) if points else None
        return VGGTPrediction(
            pose_encoding,
            depth[:, :, 0].exp(),
            1 + depth[:, :, 1].exp(),
            None if xyz is None else unfold_range(xyz[:, :, :3].movedim(2, -1)),
            None if xyz is None else 1 + xyz[:, :, 3].exp(),
        )

    def _dense(
        self, head: DenseHead, features: Mapping[int, Tensor], images: Tensor, frames_per_chunk: int | None
    ) -> Float[Tensor, "b s k h w"]:
        """A dense head's raw output, computed for ``frames_per_chunk`` photos at a time."""
        scenes, photos, _, height, width = images.shape
        grid = (height // self.config.patch, width // self.config.patch)
        flat = {layer: tokens.flatten(0, 1) for layer, tokens in features.items()}
        step = frames_per_chunk or scenes * photos
        parts = [
            head({layer: tokens[start : start + step] for layer, tokens in flat.items()}, grid)
            for start in range(0, scenes * photos, step)
        ]
        return torch.cat(parts).unflatten(0, (scenes, photos))


def unfold_range(x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """sign(x) · expm1|x|: the inverse of a signed logarithm."""
    return torch.copysign(torch.expm1(x.abs()), x)
