"""What a weight of 0 means to losses that look at neighbourhoods: such a pixel has no say, not even through its neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def hide_unweighted(
    rendered: Float[Tensor, "*n h w 3"], target: Float[Tensor, "*n h w 3"], weight: Float[Tensor, "*n h w"]
) -> tuple[Float[Tensor, "*n h w 3"], Float[Tensor, "*n h w 3"]]:
    """Both images with the render's colours, without gradient, wherever ``weight`` is 0.

    A window or receptive field across the edge of a mask, or of a photo on a larger canvas, then sees no difference beyond it,
    whatever the target holds there, and the render's pixels there get a gradient of exactly zero.
    """
    if weight.device.type == "cpu" and bool((weight > 0).all()):  # on a GPU the answer would cost more than the selection
        return rendered, target
    counts, still = (weight > 0)[..., None], rendered.detach()
    return torch.where(counts, rendered, still), torch.where(counts, target, still)
