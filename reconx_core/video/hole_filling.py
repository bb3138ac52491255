"""The training-free generator: renders of the point cloud with inpainted holes."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.io.inpaint import pull_push

SEEN = 0.02  # visibility up to which a pixel counts as a hole
CLEAR = 0.4  # visibility from which a pixel is kept; below, it is blended with its neighbourhood by visibility / CLEAR


def fill_holes(
    renders: Float[Tensor, "f h w 3"], visibility: Float[Tensor, "f h w"]
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:
    """Renders of the point cloud with inpainted holes, and the visibility with 0 in the holes."""
    seen = torch.where(visibility > SEEN, visibility, 0.0)
    return pull_push(renders, (seen / CLEAR).clamp(max=1.0)), seen
