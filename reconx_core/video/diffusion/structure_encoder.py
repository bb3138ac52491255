"""The 3-D structure condition: farthest point sampling and the structure encoder (eq. 10)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from reconx_core.cpu.jit import serial_kernel
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import transform
from reconx_core.video.diffusion.structure_attention import PlainAttnProcessor

BLOCK = 64  # points along the curve that are skipped together if a new sample cannot be their nearest one
_CELLS = 10  # bits per axis of the Z-curve that orders the points


def normalise_points(points_world: Float[Tensor, "n 3"], cam_to_world: Float[Tensor, "4 4"]) -> Float[Tensor, "n 3"]:
    """Points in the frame of the first camera, divided by their median depth there: the input of the encoder.

    Raises:
        UserError: no point lies in front of the camera.
    """
    points = transform(torch.linalg.inv(cam_to_world), points_world)
    depth = points[:, 2][points[:, 2] > 0]
    if not len(depth):
        raise UserError("No point of the cloud lies in front of the first camera; check the cameras.")
    return points / depth.median()


def farthest_point_sample(points: Float[Tensor, "n 3"], count: int) -> Int[Tensor, " count"]:
    """Indices of ``count`` points, each the farthest from those before it; the first is the farthest from the centroid.

    Ties are broken by position, so the chosen points do not depend on the order of the input (except among duplicates).
    Distances are float32.

    Raises:
        UserError: there are not ``count`` points, or some are not finite.
    """
    if not 1 <= count <= len(points):
        raise UserError(f"Cannot choose {count} of {len(points)} points; choose at least one and at most all.")
    values = points.detach().cpu().numpy().astype(np.float32)
    if not np.isfinite(values).all():
        raise UserError("The point cloud holds coordinates that are not finite; remove those points first.")
    order = _neighbours_together(values)
    values = values[order]
    offsets = values - values.mean(0, dtype=np.float64).astype(np.float32)
    picked = np.empty(count, np.int64)
    picked[0] = np.argmax((offsets * offsets).sum(1))
    starts = np.arange(0, len(values), BLOCK)
    low, high = np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)
    _pick_farthest(*np.ascontiguousarray(values.T), low, high, picked)
    return torch.from_numpy(order[picked]).to(points.device)


def _neighbours_together(points: np.ndarray) -> np.ndarray:
    """An order that depends only on the positions: along a Z-curve, then by coordinates."""
    low, high = points.min(0), points.max(0)
    cells = ((points - low) / np.maximum(high - low, np.float32(1e-30)) * (2**_CELLS - 1)).astype(np.int64)
    bits = np.arange(_CELLS)
    code = sum((((cells[:, axis, None] >> bits) & 1) << (3 * bits + axis)).sum(1) for axis in range(3))
    return np.lexsort((*points.T, code))


@serial_kernel
def _pick_farthest(x, y, z, low, high, picked):
    """Farthest point sampling: fill ``picked``, whose first entry is given.

    Squared distances are kept as their bits: those of non-negative floats order like integers, whose maximum the compiler
    vectorises. A block is skipped if its bounding box is farther from the new sample than all its points are from earlier
    ones; that is exact, since rounding preserves the order of the two distances. Sampled points get -1.
    """
    count, blocks = len(x), len(low)
    nearest = np.full(count, np.float32(np.inf).view(np.int32), np.int32)
    farthest = np.full(blocks, np.float32(np.inf).view(np.int32), np.int32)
    for k in range(len(picked) - 1):
        i = picked[k]
        nearest[i] = -1
        best, where = np.int32(-1), 0
        for b in range(blocks):
            dx = max(low[b, 0] - x[i], x[i] - high[b, 0], np.float32(0))
            dy = max(low[b, 1] - y[i], y[i] - high[b, 1], np.float32(0))
            dz = max(low[b, 2] - z[i], z[i] - high[b, 2], np.float32(0))
            if np.float32(dx * dx + dy * dy + dz * dz).view(np.int32) <= farthest[b]:
                farthest[b] = _approach(x, y, z, i, nearest, b * BLOCK, min((b + 1) * BLOCK, count))
            if farthest[b] > best:
                best, where = farthest[b], b
        j = where * BLOCK
        while nearest[j] != best:
            j += 1
        picked[k + 1] = j


@serial_kernel
def _approach(x, y, z, i, nearest, start, end):
    """Update the distances of the points in [start, end) with the new sample i; returns the largest."""
    top = np.int32(-1)
    for j in range(start, end):
        dx, dy, dz = x[j] - x[i], y[j] - y[i], z[j] - z[i]
        nearest[j] = min(nearest[j], np.float32(dx * dx + dy * dy + dz * dz).view(np.int32))
        top = max(top, nearest[j])
    return top


def fourier_features(points: Float[Tensor, "*n 3"], frequencies: int) -> Float[Tensor, "*n e"]:
    """Sine and cosine of the coordinates times 2^k π for k < ``frequencies``, then the coordinates; e = 6·frequencies + 3.

    Always float32: half precision would lose the higher frequencies.
    """
    points = points.float()
    basis = math.pi * 2.0 ** torch.arange(frequencies, device=points.device)
    angles = (points[..., None] * basis).flatten(-2)
    return torch.cat([angles.sin(), angles.cos(), points], -1)


class StructureEncoder(ModelMixin, ConfigMixin):
    """F(P) = FFN(CrossAttn(PosEmb(P~), PosEmb(P))) (eq. 10), with P~ the farthest point sample of P at 1/``ratio``.

    PosEmb is an MLP of ``fourier_features`` (and of features per point, such as colours). Both steps are pre-norm
    with a residual connection, as in 3DShape2VecSet, and the tokens are normalised at the end.

    Args:
        width: channels of the tokens.
        heads: attention heads.
        frequencies: sinusoids per coordinate.
        ratio: points per token.
        feature_dim: features per point.
    """

    @register_to_config
    def __init__(self, width: int = 1024, heads: int = 16, frequencies: int = 8, ratio: int = 8, feature_dim: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(6 * frequencies + 3 + feature_dim, width), nn.GELU(), nn.Linear(width, width))
        self.norm_queries, self.norm_keys, self.norm_attended, self.norm_out = (nn.LayerNorm(width) for _ in range(4))
        # diffusers types the processor as one of its own classes
        processor: Any = PlainAttnProcessor()
        self.attention = Attention(width, cross_attention_dim=width, heads=heads, dim_head=width // heads, processor=processor)
        self.feed_forward = FeedForward(width)

    def forward(
        self,
        points: Float[Tensor, "b n 3"],
        features: Float[Tensor, "b n c"] | None = None,
        indices: Int[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b t width"]:
        """Structure tokens of clouds normalised by ``normalise_points`` (first camera's frame, median depth 1).

        ``indices``: the result of ``sample``, to skip the sampling if a cloud is encoded repeatedly.

        Raises:
            UserError: there are fewer points than one token needs.
        """
        if indices is None:
            indices = self.sample(points)
        embedded = self._embed(points, features)
        queries = embedded.gather(1, indices[..., None].expand(-1, -1, embedded.shape[-1]))
        tokens = queries + self.attention(self.norm_queries(queries), self.norm_keys(embedded))
        return self.norm_out(tokens + self.feed_forward(self.norm_attended(tokens)))

    def sample(self, points: Float[Tensor, "b n 3"]) -> Int[Tensor, "b t"]:
        """Farthest point sample of n // ``ratio`` points of each cloud, for ``forward``'s ``indices``."""
        return torch.stack([farthest_point_sample(cloud, points.shape[1] // self.config["ratio"]) for cloud in points])

    def _embed(self, points: Tensor, features: Tensor | None) -> Float[Tensor, "b n width"]:
        position = fourier_features(points, self.config["frequencies"]).to(self.dtype)
        return self.embedding(position if features is None else torch.cat([position, features.to(self.dtype)], -1))
