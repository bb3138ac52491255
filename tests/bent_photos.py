"""Photos as a lens with one radial term would have taken them."""

from dataclasses import replace

import torch
import torch.nn.functional as F

from reconx_core.geometry.transforms import camera_rays


def bend(views, k1):
    """The views, of pinhole cameras, through a lens of the same focal with that term; without their cameras."""
    n, height, width = views.masks.shape
    intrinsics = views.cameras.intrinsics[0]
    seen = camera_rays(intrinsics, height, width)[..., :2]
    ideal = seen.clone()
    for _ in range(30):  # inverts seen = ideal * (1 + k1 |ideal|^2)
        ideal = seen / (1 + k1 * ideal.square().sum(-1, keepdim=True))
    grid = (ideal * intrinsics.diagonal()[:2] + intrinsics[:2, 2]) / torch.tensor([width, height]) * 2 - 1
    images = F.grid_sample(views.images.movedim(-1, 1), grid.expand(n, -1, -1, -1), padding_mode="border", align_corners=False)
    return replace(views, images=images.movedim(1, -1).contiguous(), cameras=None, protocol="unposed")
