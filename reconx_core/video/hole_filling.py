"""The training-free generator: renders of the point cloud, holes continued from what is around them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.io.inpaint import pull_push

SEEN = 0.02  # visibility below which a pixel counts as a hole
CLEAR = 0.4  # visibility from which a pixel is shown as it is; the less below, the more it gives way to what is around


def fill_holes(
    renders: Float[Tensor, "f h w 3"], visibility: Float[Tensor, "f h w"]
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:
    """Renders of the point cloud continued into their holes, and the visibility, which is 0 there."""
    seen = torch.where(visibility > SEEN, visibility, 0.0)
    return pull_push(renders, (seen / CLEAR).clamp(max=1.0)), seen
