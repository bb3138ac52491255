"""Depth-Anything-3's encoder: DINOv2 whose later blocks attend within every view and over all views by turns.

Parameters are named as in the published checkpoints.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from reconx_core.pointcloud.networks.da3_config import DA3Config
from reconx_core.pointcloud.networks.dpt import tokens_to_map
from reconx_core.pointcloud.networks.vit import Block, LayerNorm, PatchEmbed, Rotation, grid_positions, make_rotation

Reference = Literal["saddle_balanced", "first", "middle"]

BLOCK_EPS = 1e-6
ROTARY_BASE = 100.0
OFFSET = 0.1  # patches that the position table is stretched by beyond the grid, as in DINOv2


class Features(NamedTuple):
    """What b scenes of s views of n patches are to the encoder."""

    patches: dict[int, Float[Tensor, "b s n 2c"]]  # by block: a view's own states beside those that have seen all views
    camera: Float[Tensor, "b s 2c"]  # the camera tokens after the last of these blocks, not normalised
    reference: Int[Tensor, " b"]  # which view was the first


class Backbone(nn.Module):
    """Patch tokens and a camera token per view."""

    def __init__(self, config: DA3Config) -> None:
        super().__init__()
        self.config = config
        width, side = config.width, config.image_size // config.patch
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        # one for the reference view, whose frame is nearly the world's, and one for all others
        self.camera_token = nn.Parameter(0.02 * torch.randn(1, 2, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + side**2, width))
        self.patch_embed = PatchEmbed(width, config.patch)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, BLOCK_EPS, layer_scale=1.0, normed=layer >= config.start)
            for layer in range(config.depth)
        )
        self.norm = LayerNorm(width)

    def forward(self, images: Float[Tensor, "b s 3 h w"], cameras: Float[Tensor, "b s c"] | None, rule: Reference) -> Features:
        """Features of normalised images; ``cameras``: tokens of known cameras.

        The reference is view 0 with known cameras or fewer than three views, else the one that ``rule`` chooses.
        """
        grid = (images.shape[-2] // self.config.patch, images.shape[-1] // self.config.patch)
        own_turn, all_turn = self._rotations(grid, images.shape[1], images.device)
        tokens = own = self._embed(images, grid)
        order = torch.arange(images.shape[1], device=images.device).expand(len(images), -1)
        kept = {}
        for layer, block in enumerate(self.blocks):
            if layer == self.config.start - 1 and cameras is None and images.shape[1] > 2:
                order = reference_first(choose_reference(tokens[:, :, 0], rule), images.shape[1])
                tokens = _reorder(tokens, order)
            if layer == self.config.start:
                tokens = torch.cat([self._camera_tokens(cameras, tokens)[:, :, None], tokens[:, :, 1:]], 2)
            turns = layer >= self.config.start
            if turns and layer % 2:
                tokens = block(tokens.flatten(1, 2), all_turn).unflatten(1, tokens.shape[1:3])
            else:
                tokens = own = block(tokens.flatten(0, 1), own_turn if turns else None).unflatten(0, tokens.shape[:2])
            if layer in self.config.dpt.layers:
                kept[layer] = (_reorder(own, back := order.argsort(1)), _reorder(tokens, back))
        # The states of a view alone stay as they are; the camera token is taken before the others are normalised.
        patches = {layer: torch.cat([own, self.norm(seen)], -1)[:, :, 1:] for layer, (own, seen) in kept.items()}
        last = kept[max(kept)]
        return Features(patches, torch.cat([states[:, :, 0] for states in last], -1), order[:, 0])

    def _embed(self, images: Float[Tensor, "b s 3 h w"], grid: tuple[int, int]) -> Float[Tensor, "b s n c"]:
        """The class token and the patches with their positions."""
        flat = images.flatten(0, 1)
        patches = self.patch_embed(flat) + self._positions(grid)
        start = (self.cls_token + self.pos_embed[:, :1]).expand(len(flat), -1, -1)
        return torch.cat([start, patches], 1).unflatten(0, images.shape[:2])

    def _positions(self, grid: tuple[int, int]) -> Float[Tensor, "1 n c"]:
        """The square position table at the size of the grid, stretched a little beyond it as in training."""
        table = self.pos_embed[:, 1:]
        side = math.isqrt(table.shape[1])
        if grid == (side, side):
            return table
        scale = [(length + OFFSET) / side for length in grid]
        return functional.interpolate(tokens_to_map(table, (side, side)), scale_factor=scale, mode="bicubic").flatten(2).mT

    def _camera_tokens(self, cameras: Tensor | None, tokens: Float[Tensor, "b s n c"]) -> Float[Tensor, "b s c"]:
        if cameras is not None:
            return cameras
        scenes, views = tokens.shape[:2]
        first, other = self.camera_token.split(1, 1)
        return torch.cat([first, other.expand(-1, views - 1, -1)], 1).expand(scenes, -1, -1)

    def _rotations(self, grid: tuple[int, int], views: int, device: torch.device) -> tuple[Rotation, Rotation]:
        """Within a view token 0 stands at (0, 0), the patches start at (1, 1); over all views every patch stands at (1, 1)."""
        positions = functional.pad(grid_positions(*grid, device) + 1, (0, 0, 1, 0))
        width = self.config.width // self.config.heads
        shared = positions.clamp(max=1).repeat(views, 1)
        return make_rotation(positions, width, ROTARY_BASE), make_rotation(shared, width, ROTARY_BASE)


def choose_reference(tokens: Float[Tensor, "b s c"], rule: Reference) -> Int[Tensor, " b"]:
    """The view that comes first, by its class token: "saddle_balanced" takes the one that is most ordinary among the views.

    Ordinary is the smallest sum of distances from the middle of the range, in how like the others a token is, how long it is
    and how its channels vary.
    """
    scenes, views, _ = tokens.shape
    if rule != "saddle_balanced":
        return torch.full((scenes,), 0 if rule == "first" else views // 2, device=tokens.device)
    length = tokens.norm(dim=-1)
    unit = tokens / length[..., None]
    alike = unit @ unit.mT
    others = (alike.sum(-1) - alike.diagonal(dim1=-2, dim2=-1)) / (views - 1)
    measures = torch.stack([others, length, unit.var(-1)], -1)
    low, high = measures.amin(1, keepdim=True), measures.amax(1, keepdim=True)
    return ((measures - low) / (high - low + 1e-8) - 0.5).abs().sum(-1).argmin(1)


def reference_first(reference: Int[Tensor, " b"], views: int) -> Int[Tensor, "b s"]:
    """Per scene the order of the views: the reference, then the others as they were."""
    every = torch.arange(views, device=reference.device).expand(len(reference), -1)
    return torch.where(every == reference[:, None], -1, every).argsort(1)


def _reorder(tokens: Float[Tensor, "b s n c"], order: Int[Tensor, "b s"]) -> Float[Tensor, "b s n c"]:
    return tokens.gather(1, order[..., None, None].expand_as(tokens))
