"""Image metrics against their definitions, and under masks; test_references.py compares them with other implementations."""

import math

import pytest
import torch

from reconx_core.errors import UserError
from reconx_core.metrics.image import psnr, score_view, ssim


def pair(seed: int = 0, height: int = 40, width: int = 56) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    photo = torch.rand(height, width, 3, generator=g)
    return (photo + 0.1 * torch.randn(height, width, 3, generator=g)).clamp(0, 1), photo


def everything(image: torch.Tensor) -> torch.Tensor:
    return torch.ones(image.shape[:2], dtype=torch.bool)


def test_ssim_is_that_of_explicit_windows():
    render, photo = pair(1, 13, 15)
    x = torch.arange(-5, 6, dtype=torch.float64)
    line = torch.exp(-x * x / (2 * 1.5**2))
    sample = 121 / 120  # the covariance of a sample of as many pixels as the window has
    window = (line[:, None] * line)[..., None] / line.sum() ** 2

    def at(i: int, j: int) -> torch.Tensor:
        a, b = render[i : i + 11, j : j + 11].double(), photo[i : i + 11, j : j + 11].double()
        ma, mb = (window * a).sum((0, 1)), (window * b).sum((0, 1))
        va, vb = (sample * (window * (x - mean) ** 2).sum((0, 1)) for x, mean in ((a, ma), (b, mb)))
        cov = sample * (window * (a - ma) * (b - mb)).sum((0, 1))
        return (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))

    wanted = torch.stack([at(i, j) for i in range(3) for j in range(5)]).mean().item()
    assert ssim(render, photo, everything(photo)) == pytest.approx(wanted, abs=1e-5)


def test_renders_are_clipped():
    _, photo = pair()
    assert psnr(photo + 2 * (photo == 1), photo, everything(photo)) == math.inf
    assert psnr(torch.full_like(photo, 7.0), torch.ones_like(photo), everything(photo)) == math.inf


def test_what_is_masked_out_does_not_count():
    render, photo = pair()
    mask = everything(photo)
    mask[:, 40:] = False
    spoilt = torch.where(mask[..., None], render, 1 - photo)
    assert psnr(spoilt, photo, mask) == psnr(render[:, :40], photo[:, :40], everything(photo[:, :40]))
    assert ssim(spoilt, photo, mask) == ssim(render, photo, mask)
    equal_inside = torch.where(mask[..., None], photo, 1 - photo)
    assert ssim(equal_inside, photo, mask) == pytest.approx(1)
    assert ssim(render, photo, mask) < 0.99


def test_on_white_ssim_is_that_of_two_composited_pictures():
    """RegNeRF's images for DTU: rgb * mask + (1 - mask), scored whole; PSNR stays inside the mask."""
    render, photo = pair()
    mask = everything(photo)
    mask[:, 40:] = False
    on_white = [image * mask[..., None] + 1.0 * ~mask[..., None] for image in (render, photo)]
    whole = ssim(*on_white, everything(photo))
    assert ssim(render, photo, mask, "white") == pytest.approx(whole)
    assert whole > ssim(render, photo, mask)  # half of the picture is equal
    score = score_view("a", render, photo, mask, {}, refined=False, is_target=True, background="white")
    assert (score.psnr, score.ssim) == (psnr(render, photo, mask), pytest.approx(whole))
    black = torch.where(mask[..., None], render, 0.0)
    assert ssim(black, 1 - torch.where(mask[..., None], 1 - photo, 0.3), mask, "white") == pytest.approx(whole)


def test_empty_mask_is_a_user_error():
    render, photo = pair()
    with pytest.raises(UserError, match=r"barn\.jpg"):
        score_view("barn.jpg", render, photo, ~everything(photo), {}, refined=False, is_target=True)


def test_no_number_without_lpips_weights():
    render, photo = pair()
    assert score_view("a", render, photo, everything(photo), {}, refined=False, is_target=True).lpips is None
