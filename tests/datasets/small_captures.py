"""Small scenes on disk for the readers' tests."""

from pathlib import Path

import torch

from reconx_core.datasets import Capture, read
from reconx_core.io.images import write_png
from reconx_core.types import Cameras

SPEC = Path("procedural:hall?seed=1&views=3&width=96&height=72")


def tiny_hall() -> Capture:
    """Three inputs, two targets, 96 x 72."""
    return read(SPEC)


def cameras_of(capture: Capture) -> Cameras:
    """The exact cameras of a procedural capture."""
    intrinsics = torch.stack([p.intrinsics for p in capture.photos])
    height, width = capture.photos[0].size
    return Cameras(intrinsics, torch.stack([p.cam_to_world for p in capture.photos]), width, height)


def write_greys(folder: Path, names: list[str], height: int = 12, width: int = 16) -> None:
    """One picture per name, each of its own brightness."""
    for i, name in enumerate(names):
        write_png(folder / name, torch.full((height, width, 3), (i + 1) / (len(names) + 1)))
