"""The training-free generator: renders of the point cloud, holes continued from what is around them."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.inpaint import pull_push
from reconx_core.types import Condition, Views

SEEN = 0.02  # visibility below which a pixel counts as a hole
CLEAR = 0.4  # visibility from which a pixel is shown as it is; the less below, the more it gives way to what is around


def point_frames(
    inputs: Views, condition: Condition, generator: torch.Generator
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:
    """Frames and their confidence, which is the visibility: filled holes have none."""
    seen = torch.where(condition.visibility > SEEN, condition.visibility, 0.0)
    return pull_push(condition.renders, (seen / CLEAR).clamp(max=1.0)), seen
