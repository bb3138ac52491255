"""How fast Gaussians are rendered: measured the same way for every scene, whatever fitted them."""

from __future__ import annotations

import statistics
import time

import torch

from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians

FRAMES = 12  # that are timed, after one that is not


@torch.no_grad()
def frames_a_second(gaussians: Gaussians, cameras: Cameras) -> float:
    """Frames of the cameras' size that are rendered in a second, one by one, in turn at the cameras; by the median time of one.

    The median, because what else runs on the machine makes single frames slow.
    """
    taken = []
    for k in range(FRAMES + 1):
        start = time.perf_counter()
        rasterize(gaussians, cameras[[k % len(cameras)]])
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return 1 / max(statistics.median(taken[1:]), 1e-9)
