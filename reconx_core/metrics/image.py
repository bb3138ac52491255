"""PSNR, SSIM and LPIPS of one render against its photo, over the photo's valid pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Bool, Float
from skimage.metrics import structural_similarity
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.losses.lpips import LAYOUTS, Lpips, Net
from reconx_core.types import ViewScore

Background = Literal["photo", "white"]


def psnr(render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> float:
    """Peak signal-to-noise ratio in dB over the masked pixels, both images clipped to [0, 1]; infinite if equal."""
    error = (render.clamp(0, 1) - photo.clamp(0, 1))[mask].double().square().mean().item()
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(
    render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], background: Background = "photo"
) -> float:
    """Structural similarity: Gaussian window of 11 pixels and sigma 1.5, mean over channels and masked pixels.

    With pixelSplat's options for scikit-image: sample covariance; the mean leaves out a border of 5 pixels. Outside the mask
    the render is replaced by the photo, so that windows across the mask's edge see no difference there. With the background
    ``white`` both are white there, and the mean is over the whole image.
    """
    first, second = composite(render, photo, mask, background)
    _, per_pixel = structural_similarity(
        second.clamp(0, 1).numpy(), first.clamp(0, 1).numpy(), win_size=11, gaussian_weights=True, sigma=1.5,
        use_sample_covariance=True, data_range=1.0, channel_axis=-1, full=True,
    )  # fmt: skip
    inner = torch.from_numpy(per_pixel)[5:-5, 5:-5].double()
    return (inner if background == "white" else inner[mask[5:-5, 5:-5]]).mean().item()


def score_view(
    name: str,
    render: Float[Tensor, "h w 3"],
    photo: Float[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w"],
    lpips: Mapping[Net, Lpips | None],
    *,
    refined: bool,
    is_target: bool,
    background: Background = "photo",
) -> ViewScore:
    """All metrics of one view; LPIPS of a net is None without its weights.

    Raises:
        UserError: the mask leaves nothing to score.
    """
    if not mask[5:-5, 5:-5].any():
        raise UserError(f"The mask of '{name}' leaves no pixel to score; correct the mask or leave the photo out.")
    vgg, alex = (_lpips_or_none(lpips.get(net), render, photo, mask, background) for net in LAYOUTS)
    quality = psnr(render, photo, mask), ssim(render, photo, mask, background)
    return ViewScore(name, *quality, vgg, refined, is_target, alex)


def _lpips_or_none(
    lpips: Lpips | None, render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"],
    background: Background,
) -> float | None:  # fmt: skip
    return None if lpips is None else lpips_distance(lpips, render, photo, mask, background)


@torch.no_grad()
def lpips_distance(
    lpips: Lpips, render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"],
    background: Background = "photo",
) -> float:  # fmt: skip
    """LPIPS of the whole image, outside the mask as in :func:`ssim`."""
    images = (image[None].to(lpips.shift.device) for image in composite(render, photo, mask, background))
    return lpips(*images).item()


def composite(
    render: Float[Tensor, "h w 3"], photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], background: Background
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w 3"]]:
    """Render, clipped to [0, 1], and photo inside the mask; outside of it the photo in both, or white in both."""
    inside, outside = mask[..., None], torch.ones_like(photo) if background == "white" else photo
    return torch.where(inside, render.clamp(0, 1), outside), torch.where(inside, photo, outside)
