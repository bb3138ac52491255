"""One clip of a procedural room, with renders shifted as by a wrong depth."""

import torch

from reconx_core.datasets import procedural
from reconx_core.types import Cameras, Clip


def small_clip() -> Clip:
    capture = procedural.read("procedural:hall?seed=1&views=2&targets=2&arc=8&width=64&height=48")
    images = torch.stack([photo.load() for photo in capture.photos])
    poses = torch.stack([photo.cam_to_world for photo in capture.photos])
    intrinsics = torch.stack([photo.intrinsics for photo in capture.photos])
    visibility = torch.ones(4, 48, 64)
    visibility[1:-1, 16:30, 20:40] = 0
    renders = images.roll(2, 2) * (visibility > 0)[..., None]
    alone = torch.stack([images.roll(shift, 2) for shift in (1, 3)], 1)
    points = torch.randn(256, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, -1.0, 1.0])
    return Clip(
        images, Cameras(intrinsics, poses, 64, 48), renders, visibility, alone, visibility[:, None].repeat(1, 2, 1, 1), points,
        torch.rand(256, 3), fps=12.0,
    )  # fmt: skip
