"""What every reader returns: a scene's photos with all that is known about each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from jaxtyping import Bool, Float

if TYPE_CHECKING:
    from torch import Tensor

DISTORTION = ("k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6")  # in OpenCV's order


@dataclass(frozen=True)
class Photo:
    """One photo. Pixels are loaded on demand; ``load`` raises ImageError if the file cannot be read."""

    name: str
    load: Callable[[], Float[Tensor, "h w 3"]]
    load_mask: Callable[[], Bool[Tensor, "h w"]] | None = None  # True where the pixel may be used
    focal: float = math.nan  # pixels of the photo as loaded, from EXIF
    sharpness: float = math.nan  # of video frames; of each window the sharpest is kept
    intrinsics: Float[Tensor, "3 3"] | None = None  # pixels of an image of `size`
    size: tuple[int, int] | None = None  # (height, width) that the intrinsics refer to; None: the photo's own
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)  # k1 k2 p1 p2, and k3, or k3 k4 k5 k6, as OpenCV orders them
    cam_to_world: Float[Tensor, "4 4"] | None = None  # OpenCV axes, relative to the origin of the capture
    load_object_mask: Callable[[], Bool[Tensor, "h w"]] | None = None  # True on the object that is scored; of any size
    # z-depth in the unit of the poses, 0 where it is not known; of the photo's shape, in any size
    load_depth: Callable[[], Float[Tensor, "h w"]] | None = None
    number: int | None = None  # frame number in the dataset, missing frames counted; None: the index in the capture


class Split(NamedTuple):
    """Indices into a capture's photos."""

    inputs: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Capture:
    """A scene in capture order, with the splits that its dataset defines and the one it is usually scored on."""

    name: str
    photos: tuple[Photo, ...]
    splits: Mapping[str, Split] = field(default_factory=dict)
    default_split: str | None = None
    origin: tuple[float, float, float] = (0.0, 0.0, 0.0)  # in the dataset's frame; not zero where cameras lie far away


def opencv_from_opengl(cam_to_world: Float[Tensor, "*n 4 4"]) -> Float[Tensor, "*n 4 4"]:
    """Flip the camera's y and z axes (the same flip converts back)."""
    import torch

    return cam_to_world * torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=cam_to_world.dtype)


def fits(size: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two (height, width) are those of one picture, of the same or another resolution."""
    return abs(size[0] * other[1] / (size[1] * other[0]) - 1) <= 0.02


def pinhole(fx: float, fy: float, cx: float, cy: float) -> Float[Tensor, "3 3"]:
    """Intrinsics matrix."""
    import torch

    return torch.tensor([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def every_eighth(count: int) -> Split:
    """The held-out views that published results on forward-facing scenes use: index 0, 8, 16, ..."""
    return Split(tuple(i for i in range(count) if i % 8), tuple(range(0, count, 8)))
