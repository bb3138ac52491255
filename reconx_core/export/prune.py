"""Fewer Gaussians: those that add least to the pictures go first."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.export.finite import select_gaussians
from reconx_core.geometry.camera_path import even_positions, interpolate_path
from reconx_core.geometry.transforms import join_cameras
from reconx_core.rasterize import rasterize
from reconx_core.rasterize.conventions import SH_0
from reconx_core.types import Cameras, Gaussians

BETWEEN = 24  # cameras along the smooth path through the scene's own, which see what is hidden from these


def cameras_of_scene(cameras: Cameras, between: int = BETWEEN) -> Cameras:
    """The scene's own cameras and ``between`` others along the smooth path through them."""
    if len(cameras) < 2:
        return cameras
    return join_cameras(cameras, interpolate_path(cameras, even_positions(cameras, between)))


def contributions(gaussians: Gaussians, cameras: Cameras) -> Float[Tensor, " n"]:
    """Each Gaussian's weight in the pictures: the sum over all pixels of all cameras of opacity times transmittance."""
    total = torch.zeros(len(gaussians), device=gaussians.means.device)
    g = gaussians.detach()
    for i in range(len(cameras)):
        # Weights are the derivatives of a sum of pixels by colours, whichever the rasteriser is; grey ones are not clamped.
        grey = torch.zeros(len(g), 1, 3, device=g.sh.device, requires_grad=True)
        seen = rasterize(Gaussians(g.means, g.quats, g.log_scales, g.logit_opacities, grey), cameras[i : i + 1])
        (weights,) = torch.autograd.grad(seen.rgb[..., 0].sum(), grey)
        total += weights[:, 0, 0] / SH_0
    return total


def choose(
    gaussians: Gaussians, cameras: Cameras | None, most: int | None = None, min_opacity: float | None = None
) -> Int[Tensor, " k"]:
    """Indices, in their order, of the at most ``most`` Gaussians that contribute most to the pictures of ``cameras``, out of
    those whose opacity is at least ``min_opacity``.

    Raises:
        UserError: none is left; or there are more than ``most`` and no cameras.
    """
    kept = torch.arange(len(gaussians))
    if min_opacity is not None:
        kept = (gaussians.logit_opacities.detach().sigmoid().cpu() >= min_opacity).nonzero()[:, 0]
    if not len(kept):
        raise UserError(f"None of the {len(gaussians):,} Gaussians has an opacity of {min_opacity:g} or more.")
    if most is None or len(kept) <= most:
        return kept
    if cameras is None:
        raise UserError("To keep the Gaussians that contribute most, the scene's cameras are needed: give a transforms.json.")
    weights = contributions(select_gaussians(gaussians, kept), cameras)
    return kept[torch.argsort(weights, descending=True, stable=True)[:most].sort().values.cpu()]


def fidelity(gaussians: Gaussians, reference: Gaussians, cameras: Cameras) -> float:
    """PSNR in dB between the pictures of two scenes over all ``cameras``; infinite where they are the same."""
    errors = [
        (rasterize(gaussians, one).rgb.clamp(0, 1) - rasterize(reference, one).rgb.clamp(0, 1)).square().mean()
        for one in (cameras[i : i + 1] for i in range(len(cameras)))
    ]
    return float(-10 * torch.log10(torch.stack(errors).mean()))
