"""Removal of lens distortion (OpenCV's model: radial, as a polynomial or a quotient of two, and tangential)."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry.transforms import camera_rays
from reconx_core.types import Cameras, Views


def distort(xy: Float[Tensor, "*n 2"], coefficients: tuple[float, ...]) -> Float[Tensor, "*n 2"]:
    """Where an ideal point of the z = 1 plane appears through a lens with k1 k2 p1 p2 and, if there are more, k3 k4 k5 k6."""
    k1, k2, p1, p2, *more = coefficients
    x, y = xy.unbind(-1)
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2 * r2
    if any(more):
        k3, k4, k5, k6 = (*more, 0.0, 0.0, 0.0)[:4]
        radial = (radial + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    xd = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
    yd = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
    return torch.stack([xd, yd], -1)


def undistort(
    image: Float[Tensor, "h w 3"], intrinsics: Float[Tensor, "3 3"], coefficients: tuple[float, ...]
) -> tuple[Float[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """The picture as a pinhole camera with the same intrinsics would have taken it, and a mask of the pixels that it covers."""
    height, width = image.shape[:2]
    if not any(coefficients):
        return image, torch.ones(height, width, dtype=torch.bool)
    ideal = camera_rays(intrinsics, height, width)[..., :2]
    pixels = distort(ideal, coefficients) * intrinsics.diagonal()[:2] + intrinsics[:2, 2]
    grid = pixels / torch.tensor([width, height]) * 2 - 1
    warped = F.grid_sample(image.permute(2, 0, 1)[None], grid[None], align_corners=False, padding_mode="border")
    return warped[0].permute(1, 2, 0), (grid.abs() <= 1).all(-1)


def undistort_masked(
    image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], intrinsics: Float[Tensor, "3 3"], coefficients: tuple[float, ...]
) -> tuple[Float[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """Picture and mask as a pinhole camera would have taken them; a pixel stays in the mask if all of it comes from within."""
    if not any(coefficients):
        return image, mask
    straight, inside = undistort(image, intrinsics, coefficients)
    whole = undistort(mask[..., None].expand(-1, -1, 3).float(), intrinsics, coefficients)[0][..., 0].gt(0.99)
    return straight, whole & inside


def straighten(photos: Views, cameras: Cameras, radial: Float[Tensor, " n"] | None) -> Views:
    """The photos as the pinhole ``cameras`` (one each) see them; ``radial``: k1 of each photo's lens, or None."""
    if radial is None:
        return photos
    lenses = zip(photos.images, photos.masks, cameras.intrinsics, radial.tolist(), strict=True)
    pairs = [undistort_masked(image, mask, k, (k1, 0.0, 0.0, 0.0)) for image, mask, k, k1 in lenses]
    return replace(photos, images=torch.stack([image for image, _ in pairs]), masks=torch.stack([mask for _, mask in pairs]))
