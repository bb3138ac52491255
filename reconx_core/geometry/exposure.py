"""What turns each photo's colours into a light that all share, where exposure or white balance differ between the photos.

Photos taken by a camera's automatics or by several cameras differ by a gain and an offset of each channel, near enough. Places
that two of them show say by how much; the mean of the photos stays where it is.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import depth_of, in_picture, project
from reconx_core.types import Pointmaps, Views

CONFIDENT = 0.5  # pixels that are compared
SAME_SURFACE = 0.02  # relative depth within which two photos show the same place
CELL = 8  # pixels between the compared ones, and side of the means that are compared
CLIPPED = 0.02  # colours nearer to black or white say nothing
FEWEST = 100  # places that a pair of photos has to share
STEPS = 20  # of the robust fit
OUTLIER, LEAST_SCALE = 1.5, 0.01  # medians of the residual at which a place counts half, and the least such residual
HELD = 1e-4, 0.1  # by how much gains are held near 1, and offsets near 0: a longer exposure leaves black black
# Mean change of a photo's colours from which all of them are changed. A video's automatics change less, and slowly: there the
# light of a new view is that of the photos beside it, which harmonics tell, and one light for all costs 0.7 dB (docs/quality.md).
LEAST_SHIFT = 0.1


def estimate_exposures(photos: Views, pointmaps: Pointmaps) -> Float[Tensor, "n 2 3"] | None:
    """Gain and offset of each photo that bring all of them to one light; None where they have about the same."""
    common = common_colours(photos, pointmaps)
    if not len(common.pair):
        return None
    exposures = fit_exposures(common, len(photos))
    return exposures if max(shifts(common, exposures)) >= LEAST_SHIFT else None


def in_common_light(photos: Views, exposures: Float[Tensor, "n 2 3"] | None) -> Views:
    """The photos with their colours changed by their exposures, in [0, 1]; None: as they are."""
    if exposures is None:
        return photos
    gain, offset = exposures[:, 0, None, None], exposures[:, 1, None, None]
    return replace(photos, images=(gain * photos.images + offset).clamp(0, 1))


def in_own_light(render: Float[Tensor, "h w 3"], exposure: Float[Tensor, "2 3"]) -> Float[Tensor, "h w 3"]:
    """What a photo with that exposure would have of a render in the common light."""
    return (render - exposure[1]) / exposure[0]


def shifts(common: Common, exposures: Float[Tensor, "n 2 3"]) -> list[float]:
    """By how much each photo's colours change: mean over the compared places, of the channel that changes most."""
    gain, offset = exposures[common.pair[:, 0]].unbind(1)
    changed = ((gain - 1) * common.first + offset).abs()
    places = [changed[common.pair[:, 0] == photo] for photo in range(len(exposures))]
    return [float(change.mean(0).max()) if len(change) else 0.0 for change in places]


class Common(NamedTuple):
    """Places that two photos show: the photos, and the colours there."""

    pair: Int[Tensor, "k 2"]
    first: Float[Tensor, "k 3"]
    second: Float[Tensor, "k 3"]


def common_colours(photos: Views, pointmaps: Pointmaps) -> Common:
    """Mean colours of the places that any two photos show."""
    means = F.avg_pool2d(photos.images.permute(0, 3, 1, 2), CELL + 1, stride=1, padding=CELL // 2, count_include_pad=False)
    means = means.permute(0, 2, 3, 1)
    depth, found = depth_of(pointmaps.points_world, pointmaps.cameras), []
    for i, j in itertools.permutations(range(len(photos)), 2):
        place = (slice(i, i + 1), slice(CELL // 2, None, CELL), slice(CELL // 2, None, CELL))
        sure = pointmaps.confidence[place][0] > CONFIDENT
        camera = pointmaps.cameras[j : j + 1]
        pixels, there = project(pointmaps.points_world[place][0][sure], camera.intrinsics[0], camera.world_to_cam[0])
        inside = in_picture(pixels, there, pointmaps.cameras)
        x, y = pixels[inside].long().unbind(-1)
        same = (depth[j, y, x] / there[inside] - 1).abs() < SAME_SURFACE
        same &= pointmaps.confidence[j, y, x] > CONFIDENT
        one, two = means[place][0][sure][inside][same], means[j, y[same], x[same]]
        plain = torch.cat([one, two], -1)
        plain = ((plain > CLIPPED) & (plain < 1 - CLIPPED)).all(-1)
        if int(plain.sum()) >= FEWEST:
            found.append(Common(torch.tensor([[i, j]]).expand(int(plain.sum()), 2), one[plain], two[plain]))
    nothing = Common(torch.zeros(0, 2, dtype=torch.int64), torch.zeros(0, 3), torch.zeros(0, 3))
    return Common(*(torch.cat(parts) for parts in zip(nothing, *found)))


def fit_exposures(common: Common, photos: int) -> Float[Tensor, "n 2 3"]:
    """Gain and offset of each photo after which most places have the same colours in both photos.

    Robust least squares (Cauchy weights). The mean gain is 1 and the mean offset 0.
    """
    found = torch.stack([torch.ones(photos, 3), torch.zeros(photos, 3)], 1).double()
    for _ in range(STEPS):
        residual = apart(common, found).amax(-1)
        scale = max(OUTLIER * float(residual.median()), LEAST_SCALE)
        weight = 1 / (1 + (residual / scale).square())
        found = torch.stack([_solve(common, weight, photos, channel) for channel in range(3)], -1)
    return found.float()


def apart(common: Common, exposures: Float[Tensor, "n 2 3"]) -> Float[Tensor, "k 3"]:
    """Difference of the colours of each place in its two photos."""
    one, two = (exposures[common.pair[:, side]] for side in (0, 1))
    return (one[:, 0] * common.first + one[:, 1] - two[:, 0] * common.second - two[:, 1]).abs()


def _solve(common: Common, weight: Float[Tensor, " k"], photos: int, channel: int) -> Float[Tensor, "n 2"]:
    """Gains, then offsets, of one channel."""
    k = len(weight)
    rows, (i, j) = torch.arange(k), common.pair.unbind(-1)
    equations = torch.zeros(k, 2 * photos, dtype=torch.float64)
    equations[rows, i], equations[rows, photos + i] = common.first[:, channel].double(), 1.0
    equations[rows, j], equations[rows, photos + j] = -common.second[:, channel].double(), -1.0
    weighted = equations * weight.double()[:, None]
    normal, right = weighted.T @ equations, torch.zeros(2 * photos, dtype=torch.float64)
    counts = torch.bincount(common.pair.flatten(), weight.double().repeat_interleave(2), minlength=photos)
    held = torch.cat([stiff * (counts + 1) for stiff in HELD])  # 1: photos that share nothing stay as they are
    normal += torch.diag(held)
    right[:photos] += held[:photos]
    compared = (counts > 0).double()
    for part in (slice(0, photos), slice(photos, None)):  # means, of those that share something
        normal[part, part] += counts.sum() * torch.outer(compared, compared)
    right[:photos] += counts.sum() * compared.sum() * compared
    return torch.linalg.solve(normal, right).reshape(2, photos).T
