"""Whether frames show what the photos show from their cameras: correlation with the photos' points rendered there."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry.point_renders import render_points, visible_points
from reconx_core.geometry.transforms import resize_cameras, size_for
from reconx_core.io.images import resize_images
from reconx_core.types import Cameras, Pointmaps, Views

SIZE = 256  # long side at which frames are compared
SMOOTH, WINDOW = 3, 9  # pixels: side of the mean that takes noise and sharpness away, and of the window of a correlation
TEXTURE = 0.02  # standard deviation of a window's brightness, in the render, from which its correlation says something
COVERED = 0.7  # share of a window that the points must cover
SEEN, TEXTURED = 0.2, 0.02  # shares of a frame that must show points, and textured ones; less says nothing


class Expected(NamedTuple):
    """What frames should show: the photos' points as their cameras see them, beside the frames at that size."""

    renders: Float[Tensor, "m y x 3"]
    visibility: Float[Tensor, "m y x"]  # [0, 1]; 0 where no point is seen
    frames: Float[Tensor, "m y x 3"]


def expected(photos: Views, known: Pointmaps, images: Float[Tensor, "m h w 3"], cameras: Cameras) -> Expected:
    """The frames with what the photos' points look like from there, at most SIZE pixels on the long side."""
    height, width = images.shape[1:3]
    size = size_for(min(SIZE, max(height, width)), height, width)
    renders, visibility, _ = render_points(*visible_points(photos, known), resize_cameras(cameras, *size))
    return Expected(renders, visibility, resize_images(images, *size))


def frame_agreement(beside: Expected) -> Float[Tensor, " m"]:
    """Median correlation in [-1, 1] of each frame with the photos' points as its camera sees them; NaN where it sees too few.

    Correlations are of brightness in windows, so that neither light nor colour of a frame matters. Frames of another place have
    about 0.
    """
    return _correlation(_brightness(beside.renders), _brightness(beside.frames), beside.visibility > 0)


def _brightness(images: Float[Tensor, "m h w 3"]) -> Float[Tensor, "m h w"]:
    return images @ images.new_tensor([0.299, 0.587, 0.114])


def _correlation(
    render: Float[Tensor, "m h w"], frame: Float[Tensor, "m h w"], seen: Bool[Tensor, "m h w"]
) -> Float[Tensor, " m"]:
    weight = seen.float()
    render, frame = (_mean(image, weight, SMOOTH) for image in (render, frame))
    mean = lambda image: _mean(image, weight, WINDOW)  # noqa: E731
    one, two = mean(render), mean(frame)
    variance = (mean(render * render) - one * one).clamp(min=0)
    other = (mean(frame * frame) - two * two).clamp(min=1e-8)
    correlation = (mean(render * frame) - one * two) / (variance * other).sqrt().clamp(min=1e-8)
    counts = seen & (_pool(weight, WINDOW) > COVERED) & (variance.sqrt() > TEXTURE)
    # A camera far away sees all of the scene as a speck, which correlates with anything.
    enough = (weight.mean((1, 2)) >= SEEN) & (counts.float().mean((1, 2)) >= TEXTURED)
    nothing = correlation.new_tensor(torch.nan)
    return torch.stack([c[kept].median() if some else nothing for c, kept, some in zip(correlation, counts, enough)])


def _mean(image: Float[Tensor, "m h w"], weight: Float[Tensor, "m h w"], side: int) -> Float[Tensor, "m h w"]:
    return _pool(image * weight, side) / _pool(weight, side).clamp(min=1e-6)


def _pool(image: Float[Tensor, "m h w"], side: int) -> Float[Tensor, "m h w"]:
    return F.avg_pool2d(image[:, None], side, stride=1, padding=side // 2)[:, 0]
