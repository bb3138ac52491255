"""How much each Gaussian counts in the pictures of a scene."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.rasterize import rasterize
from reconx_core.rasterize.conventions import SH_0
from reconx_core.types import Cameras, Gaussians


def contributions(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, " n"]:
    """Each Gaussian's weights summed over all pixels of all cameras; the weights of a pixel sum to its alpha."""
    g = gaussians.detach()
    total = torch.zeros(len(g), dtype=g.means.dtype, device=g.means.device)
    for i in range(len(cameras)):
        # A render is linear in the colours, so that its derivative by them is the weight.
        base = torch.zeros_like(g.sh[:, :1], requires_grad=True)
        grey = Gaussians(g.means, g.quats, g.log_scales, g.logit_opacities, base)
        (slope,) = torch.autograd.grad(rasterize(grey, cameras[i : i + 1]).rgb[..., 0].sum(), base)
        total += slope[:, 0, 0] / SH_0
    return total


def most_seen(gaussians: Gaussians, cameras: Cameras | None, count: int) -> Gaussians:
    """The ``count`` Gaussians that contribute most to the cameras' pictures, in their order; without cameras the largest and
    most opaque."""
    if len(gaussians) <= count:
        return gaussians
    g = gaussians.detach()
    size = g.logit_opacities.sigmoid() * g.log_scales.sort(dim=-1).values[:, 1:].sum(-1).exp()
    by_size = size.argsort(descending=True, stable=True)
    seen = size if cameras is None else contributions(g, cameras)
    kept = by_size[seen[by_size].argsort(descending=True, stable=True)[:count]].sort().values
    return Gaussians(g.means[kept], g.quats[kept], g.log_scales[kept], g.logit_opacities[kept], g.sh[kept])
