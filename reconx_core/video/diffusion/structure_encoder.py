"""The 3-D structure condition: the structure encoder (eq. 10)."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float, Int
from torch import Tensor, nn

from reconx_core.video.diffusion.structure_attention import PlainAttnProcessor
from reconx_core.video.diffusion.structure_points import farthest_point_sample


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
