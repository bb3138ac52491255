"""Transformer modules that DUSt3R and VGGT share; parameters are named as in the published checkpoints.

Precision: a layer computes in the precision of its weights. So a transformer with bfloat16 linear layers still has a float32
residual stream and float32 norms, as with autocast, but without a second copy of the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class Rotation(NamedTuple):
    """A 2-D rotary position embedding: per token, axis (row, column) and frequency."""

    cos: Float[Tensor, "n 2 f"]
    sin: Float[Tensor, "n 2 f"]


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Float[Tensor, "n 2"]:
    """(row, column) of every patch, row by row."""
    return torch.cartesian_prod(torch.arange(rows, device=device), torch.arange(columns, device=device)).float()


def make_rotation(positions: Float[Tensor, "n 2"], head_width: int, base: float) -> Rotation:
    """Angles position · base^(-2i/(d/2)) for heads of width d, half of which turns with the row and half with the column."""
    half = head_width // 2
    exponents = torch.arange(0, half, 2, device=positions.device) / half
    angles = positions[..., None] * base**-exponents
    return Rotation(angles.cos(), angles.sin())


def rotate(states: Float[Tensor, "b n h d"], rotation: Rotation) -> Float[Tensor, "b n h d"]:
    """Apply the rotary embedding to queries or keys."""
    first, second = states.unflatten(-1, (2, 2, -1)).unbind(-2)
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).flatten(-3)


def attend(
    query: Float[Tensor, "b q h d"], key: Float[Tensor, "b k h d"], value: Float[Tensor, "b k h d"]
) -> Float[Tensor, "b q c"]:
    """Multi-head attention in the precision of the values; the heads are concatenated in the result."""
    query, key, value = (states.to(value.dtype).transpose(1, 2) for states in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(-2)


class Linear(nn.Linear):
    """A linear layer that computes in the precision of its weights."""

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return super().forward(x.to(self.weight.dtype))


class LayerNorm(nn.LayerNorm):
    """A layer norm that computes in the precision of its weights."""

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return super().forward(x.to(self.weight.dtype))


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), initial))

    def forward(self, x: Float[Tensor, "*b c"]) -> Float[Tensor, "*b c"]:
        return x * self.gamma


class PatchEmbed(nn.Module):
    """Square patches of an image as tokens, row by row."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n c"]:
        """Raises ValueError if the image does not consist of whole patches; the convolution would crop it silently."""
        patch = self.proj.stride[0]
        if images.shape[-2] % patch or images.shape[-1] % patch:
            raise ValueError(f"images: expected height and width in multiples of {patch}, got {tuple(images.shape)}")
        return self.proj(images).flatten(2).mT


class Attention(nn.Module):
    """Self-attention, optionally with rotary positions and with queries and keys normalised per head."""

    def __init__(self, width: int, heads: int, normed: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.q_norm = LayerNorm(width // heads) if normed else nn.Identity()
        self.k_norm = LayerNorm(width // heads) if normed else nn.Identity()
        self.proj = Linear(width, width)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        return self.proj(attend(query, key, value))


class Mlp(nn.Module):
    """Two linear layers with an exact (not tanh) GELU between them."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, out)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm self-attention and MLP; ``layer_scale`` is the initial value of a factor on both, None for no factor."""

    def __init__(
        self, width: int, heads: int, eps: float = 1e-5, layer_scale: float | None = None, normed: bool = False
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = LayerNorm(width, eps), LayerNorm(width, eps)
        self.attn = Attention(width, heads, normed)
        self.mlp = Mlp(width, 4 * width, width)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, x: Float[Tensor, "b n c"], rotation: Rotation | None = None) -> Float[Tensor, "b n c"]:
        x = x + self.ls1(self.attn(self.norm1(x), rotation))
        return x + self.ls2(self.mlp(self.norm2(x)))


def lower_precision(blocks: nn.Module, dtype: torch.dtype) -> None:
    """Convert the linear layers of these transformer blocks (nearly all of their weights) to ``dtype``."""
    for module in blocks.modules():
        if isinstance(module, Linear):
            module.to(dtype)
