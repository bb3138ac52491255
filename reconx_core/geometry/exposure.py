"""What turns each photo's colours into a light that all share, where exposure or white balance differ between the photos.

A power of each channel, which leaves black black and white white: nothing is lost, and every photo can have its own light
back. Places that two photos show say which; the mean of the photos' powers is 1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.surfaces import CONFIDENT, sight_of
from reconx_core.geometry.undistort import straighten
from reconx_core.types import Pointmaps, Views

SAME_SURFACE = 0.02  # relative depth within which two photos show the same place
CELL = 8  # pixels between the compared ones, and side of the means that are compared
CLIPPED = 0.02  # colours nearer to black or white say nothing
FEWEST = 100  # places that a pair of photos has to share
STEPS = 20  # of the robust fit
OUTLIER, LEAST_SCALE = 1.5, 0.01  # medians of the residual at which a difference counts half, and the least such residual
HELD = 1e-3  # by how much powers are held near 1
# Mean change of a photo's colours from which all of them are changed. A video's automatics change less, and slowly: there a new
# view has the light of the photos beside it, which harmonics tell, and one light for all costs 0.7 dB (docs/quality.md).
LEAST_SHIFT = 0.1


def straight_photos(views: Views, kept: Int[Tensor, " k"], pointmaps: Pointmaps) -> Views:
    """The input photos that have a camera (``kept``), undistorted where their lens was found to bend."""
    return straighten(views.inputs().select(kept), pointmaps.cameras, pointmaps.radial)


def registered_photos(views: Views, kept: Int[Tensor, " k"], pointmaps: Pointmaps) -> Views:
    """The same as the scene is made of them: in the light that all share, where theirs differ."""
    return in_common_light(straight_photos(views, kept, pointmaps), pointmaps.exposures)


def estimate_exposures(photos: Views, pointmaps: Pointmaps) -> Float[Tensor, "n 3"] | None:
    """Powers of each photo's channels that bring all photos to one light; None where they have about the same."""
    common = common_colours(photos, pointmaps)
    if not len(common.pair):
        return None
    exposures = fit_exposures(common, len(photos))
    return exposures if max(shifts(common, exposures)) >= LEAST_SHIFT else None


def in_common_light(photos: Views, exposures: Float[Tensor, "n 3"] | None) -> Views:
    """The photos with their colours changed by their exposures; None: as they are."""
    return photos if exposures is None else replace(photos, images=photos.images ** exposures[:, None, None])


def in_own_light(render: Float[Tensor, "h w 3"], exposure: Float[Tensor, " 3"]) -> Float[Tensor, "h w 3"]:
    """What a photo with that exposure would have of a render in the common light."""
    return render.clamp(0, 1) ** (1 / exposure)


def shifts(common: Common, exposures: Float[Tensor, "n 3"]) -> list[float]:
    """By how much each photo's colours change: mean over the compared places, of the channel that changes most."""
    changed = (common.first ** exposures[common.pair[:, 0]] - common.first).abs()
    places = [changed[common.pair[:, 0] == photo] for photo in range(len(exposures))]
    return [float(change.mean(0).max()) if len(change) else 0.0 for change in places]


class Common(NamedTuple):
    """Places that two photos show: the photos, and the colours there."""

    pair: Int[Tensor, "k 2"]
    first: Float[Tensor, "k 3"]
    second: Float[Tensor, "k 3"]


def common_colours(photos: Views, pointmaps: Pointmaps) -> Common:
    """Mean colours of the places that any two photos show, once from each of the two."""
    means = F.avg_pool2d(photos.images.permute(0, 3, 1, 2), CELL + 1, stride=1, padding=CELL // 2, count_include_pad=False)
    means = means.permute(0, 2, 3, 1)
    grid = (slice(None), slice(CELL // 2, None, CELL), slice(CELL // 2, None, CELL))
    sure = pointmaps.confidence[grid] > CONFIDENT
    sight, owner = sight_of(pointmaps.points_world[grid][sure], pointmaps, SAME_SURFACE), sure.nonzero()[:, 0]
    j, place = (sight.seen & (torch.arange(len(photos))[:, None] != owner)).nonzero(as_tuple=True)
    first, second = means[grid][sure][place], means[j, sight.row[j, place], sight.column[j, place]]
    return _telling(Common(torch.stack([owner[place], j], -1), first, second), len(photos))


def _telling(common: Common, photos: int) -> Common:
    """The places that neither photo clips, of pairs that share enough of them."""
    colours = torch.cat([common.first, common.second], -1)
    plain = ((colours > CLIPPED) & (colours < 1 - CLIPPED)).all(-1)
    pair = common.pair[:, 0] * photos + common.pair[:, 1]
    counts = torch.bincount(pair[plain], minlength=photos**2)
    kept = plain & (counts[pair] >= FEWEST)
    return Common(*(part[kept] for part in common))


def fit_exposures(common: Common, photos: int) -> Float[Tensor, "n 3"]:
    """Powers after which most places have the same colours in both photos.

    Robust least squares in logarithms, where powers are factors, by the colours' own differences.
    """
    found = torch.ones(photos, 3)
    for _ in range(STEPS):
        one, two = _lit(common, found)
        weight = robust_weights((one - two).abs().amax(-1))
        found = torch.stack([_solve(common, weight * (one * two)[:, i], photos, i) for i in range(3)], -1)
    return found


def robust_weights(residual: Float[Tensor, " k"]) -> Float[Tensor, " k"]:
    """Cauchy weights of differences of colours: what disagrees with most has little say."""
    scale = max(OUTLIER * float(residual.median()), LEAST_SCALE)
    return 1 / (1 + (residual / scale).square())


def apart(common: Common, exposures: Float[Tensor, "n 3"]) -> Float[Tensor, "k 3"]:
    """Difference of the colours of each place in its two photos."""
    one, two = _lit(common, exposures)
    return (one - two).abs()


def _lit(common: Common, exposures: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
    i, j = common.pair.unbind(-1)
    return common.first ** exposures[i], common.second ** exposures[j]


def _solve(common: Common, weight: Float[Tensor, " k"], photos: int, channel: int) -> Float[Tensor, " n"]:
    """The powers of one channel."""
    rows, (i, j) = torch.arange(len(weight)), common.pair.unbind(-1)
    equations = torch.zeros(len(weight), photos, dtype=torch.float64)
    equations[rows, i] = common.first[:, channel].double().log()
    equations[rows, j] = -common.second[:, channel].double().log()
    weighted = equations * weight.double()[:, None]
    counts = torch.bincount(common.pair.flatten(), weight.double().repeat_interleave(2), minlength=photos)
    compared = (counts > 0).double()  # the mean is theirs; those that share nothing stay as they are
    normal = weighted.T @ equations + torch.diag(HELD * (counts + 1)) + counts.sum() * torch.outer(compared, compared)
    right = HELD * (counts + 1) + counts.sum() * compared.sum() * compared
    return torch.linalg.solve(normal, right).float()
