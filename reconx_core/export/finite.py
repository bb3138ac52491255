"""What viewers cannot show: Gaussians and points with values that are not finite, which make some show nothing at all."""

from __future__ import annotations

import warnings

from jaxtyping import Bool
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.types import Gaussians, PointCloud


def finite_gaussians(gaussians: Gaussians, place: str) -> Gaussians:
    """The Gaussians that can be shown; a warning says how many of those in ``place`` cannot.

    Raises:
        UserError: there are some, and none can be shown.
    """
    good = _can_be_shown(gaussians.detach())
    if len(good) and not gaussians.quats.any():
        raise UserError(f"The rotations of all Gaussians in {place} are 0, which is no rotation; write the file again.")
    if good.all():
        return gaussians
    if not good.any():
        raise UserError(f"None of the {len(good):,} Gaussians in {place} can be shown: each has values that are not finite.")
    _warn(good, "Gaussians", place, "values that are not finite, or no rotation")
    g = gaussians
    return Gaussians(g.means[good], g.quats[good], g.log_scales[good], g.logit_opacities[good], g.sh[good])


def finite_points(cloud: PointCloud, place: str) -> PointCloud:
    """The points that can be shown; a warning says how many of those in ``place`` cannot."""
    good = cloud.xyz.isfinite().all(-1) & cloud.rgb.isfinite().all(-1)
    if good.all():
        return cloud
    _warn(good, "points", place, "values that are not finite")
    return PointCloud(cloud.xyz[good], cloud.rgb[good], cloud.confidence[good])


def _can_be_shown(g: Gaussians) -> Bool[Tensor, " n"]:
    covariances = (2 * g.log_scales).exp()  # a scale of 0 is a flat Gaussian, an opacity of 0 or 1 has an infinite logit
    known = covariances.isfinite().all(-1) & ~g.logit_opacities.isnan()
    return known & g.means.isfinite().all(-1) & g.quats.isfinite().all(-1) & g.quats.any(-1) & g.sh.isfinite().all(-1).all(-1)


def _warn(good: Bool[Tensor, " n"], what: str, place: str, why: str) -> None:
    wrong = int((~good).sum())
    note = f"{wrong:,} of {len(good):,} {what} in {place} are left out: they have {why}."
    warnings.warn(note, stacklevel=1)
