"""What viewers cannot show: Gaussians and points whose values are not finite or absurd, which make some show nothing at all."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.types import Gaussians, PointCloud

# Times the scene's own size. The sky of outdoor scenes lies at hundreds; packed formats waste their bits on what lies beyond.
ABSURD = 1e4


def finite_gaussians(gaussians: Gaussians, place: str) -> Gaussians:
    """The Gaussians that can be shown; a warning says how many of those in ``place`` cannot, and why.

    Raises:
        UserError: there are some, and none can be shown.
    """
    faults = _faults(gaussians.detach())
    bad = torch.stack(list(faults.values())).any(0)
    if not bad.any():
        return gaussians
    reasons = [f"{int(which.sum()):,} {why}" for why, which in faults.items() if which.any()]
    if bad.all():
        raise UserError(f"None of the {len(bad):,} Gaussians in {place} can be shown: {_listed(reasons)}.")
    _warn(bad, "Gaussians", place, _listed(reasons))
    return select_gaussians(gaussians, ~bad)


def finite_points(cloud: PointCloud, place: str) -> PointCloud:
    """The points that can be shown; a warning says how many of those in ``place`` cannot."""
    good = finite(cloud)
    if good.all():
        return cloud
    _warn(~good, "points", place, "they have values that are not finite")
    return PointCloud(cloud.xyz[good], cloud.rgb[good], cloud.confidence[good])


def finite(cloud: PointCloud) -> Bool[Tensor, " n"]:
    """Which points can be shown."""
    return cloud.xyz.isfinite().all(-1) & cloud.rgb.isfinite().all(-1)


def select_gaussians(gaussians: Gaussians, index: Tensor) -> Gaussians:
    """The Gaussians at ``index`` (integer or boolean)."""
    g = gaussians
    return Gaussians(g.means[index], g.quats[index], g.log_scales[index], g.logit_opacities[index], g.sh[index])


def _faults(g: Gaussians) -> dict[str, Bool[Tensor, " n"]]:
    """Which Gaussians cannot be shown, by what is wrong; each counts once."""
    covariances = (2 * g.log_scales).exp()  # a scale of 0 is a flat Gaussian, an opacity of 0 or 1 has an infinite logit
    known = covariances.isfinite().all(-1) & ~g.logit_opacities.isnan()
    known &= g.means.isfinite().all(-1) & g.quats.isfinite().all(-1) & g.sh.isfinite().all(-1).all(-1)
    turned = g.quats.norm(dim=-1) > 1e-12
    absurd = known & turned & _absurd(g, known & turned)
    return {
        "with values that are not finite": ~known,
        "with a rotation of zero": known & ~turned,
        "absurdly far or large": absurd,
    }


def _absurd(g: Gaussians, sound: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Which lie, or reach, ABSURD times as far from the scene's middle as half of the ``sound`` ones do."""
    if not sound.any():
        return ~sound
    middle = g.means[sound].double().median(0).values
    distance = (g.means.double() - middle).norm(dim=-1)
    size = _size(distance[sound], g.log_scales[sound])
    return (distance > ABSURD * size) | (g.log_scales.amax(-1).double().exp() > ABSURD * size)


def _size(distance: Float[Tensor, " n"], log_scales: Float[Tensor, "n 3"]) -> Float[Tensor, ""]:
    """Of a scene; that of its Gaussians where they lie at one place."""
    return torch.maximum(distance.median(), log_scales.amax(-1).median().double().exp())


def _listed(reasons: list[str]) -> str:
    return " and ".join([", ".join(reasons[:-1]), reasons[-1]] if len(reasons) > 1 else reasons)


def _warn(bad: Bool[Tensor, " n"], what: str, place: str, why: str) -> None:
    note = f"{int(bad.sum()):,} of {len(bad):,} {what} in {place} are left out: {why}."
    warnings.warn(note, stacklevel=1)
