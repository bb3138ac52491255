"""Preprocessing of photos for Depth-Anything-3: resized to its long side, then to whole patches, both times in 8 bits.

Upstream resizes with OpenCV: area averaging to shrink, bicubic interpolation without antialiasing if a side grows. The
implementation here differs by at most two levels of 255, in up to 3 % of the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from reconx_core.pointcloud.networks.vggt import IMAGENET_MEAN, IMAGENET_STD

PATCH = 14
LONG_SIDE = 504
Method = Literal["upper_bound_resize", "upper_bound_crop", "lower_bound_resize", "lower_bound_crop"]
Size = tuple[int, int]  # height, width


class Sizes(NamedTuple):
    """What becomes of a photo's size: resized, then resized again or cut out of the middle."""

    first: Size
    last: Size
    crop: bool


class Seen(NamedTuple):
    """Photos at the size that the network takes, and their intrinsics in its pixels."""

    photos: UInt8[Tensor, "n H W 3"]
    intrinsics: Float[Tensor, "n 3 3"]


def choose_sizes(height: int, width: int, side: int = LONG_SIDE, method: Method = "upper_bound_resize") -> Sizes:
    """The sizes of a photo on its way into the network.

    ``method``: whether ``side`` (pixels) is that of the long side ("upper") or of the short one ("lower"), and whether sides
    then go to the nearest multiple of a patch, ties up, or are cropped to the one below.
    """
    bound, crop = (max, min)[method.startswith("lower")](height, width), method.endswith("crop")
    first = (height, width) if bound == side else (round(height * side / bound), round(width * side / bound))
    whole = [length // PATCH * PATCH if crop else (length + PATCH // 2) // PATCH * PATCH for length in first]
    return Sizes((max(1, first[0]), max(1, first[1])), (max(PATCH, whole[0]), max(PATCH, whole[1])), crop)


def prepare(
    photos: Sequence[UInt8[Tensor, "h w 3"]], intrinsics: Float[Tensor, "n 3 3"], side: int = LONG_SIDE,
    method: Method = "upper_bound_resize",
) -> Seen:  # fmt: skip
    """Photos of any sizes as the network takes them, cut to the smallest of their sizes about the middle."""
    sizes = [choose_sizes(photo.shape[0], photo.shape[1], side, method) for photo in photos]
    smallest = (min(one.last[0] for one in sizes), min(one.last[1] for one in sizes))
    made = [_cut(change_photo(photo, one), smallest) for photo, one in zip(photos, sizes)]
    known = [
        _moved(change_intrinsics(matrix, photo.shape, one), one.last, smallest)
        for matrix, photo, one in zip(intrinsics, photos, sizes)
    ]
    return Seen(torch.stack(made), torch.stack(known))


def normalise(photos: UInt8[Tensor, "n H W 3"]) -> Float[Tensor, "n 3 H W"]:
    """Colours with ImageNet's mean and deviation taken out."""
    mean, std = (torch.tensor(values) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((photos.float() / 255 - mean) / std).movedim(-1, 1)


def change_photo(photo: UInt8[Tensor, "h w 3"], sizes: Sizes) -> UInt8[Tensor, "H W 3"]:
    """The photo at the last of the sizes."""
    resized = resize(photo, sizes.first)
    return _cut(resized, sizes.last) if sizes.crop else resize(resized, sizes.last)


def change_intrinsics(intrinsics: Float[Tensor, "3 3"], before: Sequence[int], sizes: Sizes) -> Float[Tensor, "3 3"]:
    """Intrinsics of a photo whose height and width were ``before``, in pixels of the last of the sizes."""
    resized = _scaled(intrinsics, before, sizes.first)
    return (_moved if sizes.crop else _scaled)(resized, sizes.first, sizes.last)


def _scaled(intrinsics: Float[Tensor, "3 3"], before: Sequence[int], after: Size) -> Float[Tensor, "3 3"]:
    return intrinsics * intrinsics.new_tensor([after[1] / before[1], after[0] / before[0], 1.0])[:, None]


def _moved(intrinsics: Float[Tensor, "3 3"], before: Size, after: Size) -> Float[Tensor, "3 3"]:
    """The principal point in the middle that is cut out."""
    moved = intrinsics.clone()
    moved[:2, 2] -= moved.new_tensor([(before[1] - after[1]) // 2, (before[0] - after[0]) // 2])
    return moved


def _cut(photo: UInt8[Tensor, "h w 3"], size: Size) -> UInt8[Tensor, "H W 3"]:
    """The middle of the photo."""
    top, left = (photo.shape[0] - size[0]) // 2, (photo.shape[1] - size[1]) // 2
    return photo[top : top + size[0], left : left + size[1]]


def resize(photo: UInt8[Tensor, "h w 3"], size: Size) -> UInt8[Tensor, "H W 3"]:
    """Averaged over what each new pixel covers; where a side grows, cubic (a = -0.75) without antialiasing."""
    before = tuple(photo.shape[:2])
    if before == size:
        return photo
    values = photo.movedim(-1, 0).double()
    if size[0] > before[0] or size[1] > before[1]:
        found = functional.interpolate(values[None], size, mode="bicubic")[0]
    else:
        found = _covered(before[0], size[0]) @ values @ _covered(before[1], size[1]).T
    return found.round().clamp(0, 255).to(torch.uint8).movedim(0, -1)


def _covered(before: int, after: int) -> Float[Tensor, "after before"]:
    """Which share of each new pixel lies on which old one, along one side."""
    edges = torch.arange(after + 1, dtype=torch.float64) * before / after
    old = torch.arange(before, dtype=torch.float64)
    overlap = edges[1:, None].minimum(old + 1) - edges[:-1, None].maximum(old)
    return overlap.clamp(min=0) * after / before
