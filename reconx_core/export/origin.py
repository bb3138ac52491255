"""Scenes that are computed near zero because their cameras lie far from it: back into the dataset's frame."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

Origin = tuple[float, float, float]  # where the zero of a scene lies in its dataset's frame; the axes are the same
NO_ORIGIN: Origin = (0.0, 0.0, 0.0)


def parse_origin(noted: Any) -> Origin | None:
    """An origin as a file notes it, three finite numbers or texts of them; None if it is something else."""
    try:
        x, y, z = map(float, [] if isinstance(noted, str) else noted)  # "123" is no point
    except (TypeError, ValueError, OverflowError):
        return None
    return (x, y, z) if all(map(math.isfinite, (x, y, z))) else None


def in_given_frame(cam_to_world: Float[Tensor, "n 4 4"], origin: Origin) -> Float[Tensor, "n 4 4"]:
    """Poses in the dataset's frame, in float64 if that lies elsewhere."""
    if not any(origin):
        return cam_to_world
    moved = cam_to_world.double().clone()
    moved[:, :3, 3] += torch.tensor(origin, dtype=torch.float64, device=moved.device)
    return moved
