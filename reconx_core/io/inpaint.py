"""Hole filling: images are continued smoothly into their holes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pull_push(images: Float[Tensor, "f h w c"], weight: Float[Tensor, "f h w"]) -> Float[Tensor, "f h w c"]:
    """Fill pixels of weight 0 from their neighbours: weighted averages go up an image pyramid (pull) and come back down (push).

    Pixels of weight 1 are unchanged; for weights in between, pixel and neighbours blend. An image without weight becomes 0.
    """
    known = torch.cat([images * weight[..., None], weight[..., None]], -1).permute(0, 3, 1, 2)
    return _pull_push(known).permute(0, 2, 3, 1).contiguous()


def _pull_push(known: Float[Tensor, "f c h w"]) -> Float[Tensor, "f d h w"]:
    weight = known[:, -1:]
    here = known[:, :-1] / weight.clamp(min=1e-6)
    if max(known.shape[-2:]) == 1:
        return here
    half = F.avg_pool2d(known, 2, ceil_mode=True, count_include_pad=False)
    coarse = F.interpolate(_pull_push(half), known.shape[-2:], mode="bilinear", align_corners=False)
    share = weight.clamp(max=1.0)
    return share * here + (1 - share) * coarse
