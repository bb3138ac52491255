"""The fused SSIM against scikit-image (values) and against plain torch in float64 (gradients)."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity

from reconx_core.losses.photometric import photometric_loss
from reconx_core.losses.ssim import ssim, ssim_map


def images(height, width, n=1, seed=0):
    """Smooth pictures and noisy copies of them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 4, 5, generator=generator)
    b = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").movedim(1, -1).contiguous()
    return (b + 0.1 * torch.randn(b.shape, generator=generator)).clamp(0, 1), b


def scikit(a, b):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    return structural_similarity(a.double().numpy(), b.double().numpy(), channel_axis=-1, full=True, **options)


@settings(deadline=None, max_examples=15)
@given(height=st.integers(11, 40), width=st.integers(11, 40), seed=st.integers(0, 99))
def test_map_is_scikit_images_at_every_pixel(height, width, seed):
    a, b = images(height, width, seed=seed)
    mean, full = scikit(a[0], b[0])
    np.testing.assert_allclose(ssim_map(a, b)[0], full.mean(-1), atol=1e-5)
    assert ssim(a, b)[0].item() == pytest.approx(mean, abs=1e-5)


def test_bright_flat_areas_keep_their_precision():
    a = torch.full((1, 32, 32, 3), 0.97)
    a[:, 8:20, 8:20] += 0.004
    b = a.flip(1)
    np.testing.assert_allclose(ssim_map(a, b)[0], scikit(a[0], b[0])[1].mean(-1), atol=1e-4)


@pytest.mark.parametrize("size", [(11, 11), (17, 40), (64, 31)])
def test_map_gradient_is_that_of_float64_torch(size):
    a, b = images(*size, n=2)
    weight = torch.randn(2, *size, generator=torch.Generator().manual_seed(3))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        x = a.to(dtype, copy=True).requires_grad_()
        (ssim_map(x, b.to(dtype)) * weight).sum().backward()
        gradients.append(x.grad)
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm()


def test_photometric_loss_and_gradient_are_those_of_float64_torch():
    a, b = images(33, 50, n=2)
    weight = torch.rand(2, 33, 50, generator=torch.Generator().manual_seed(3))
    results = []
    for dtype in (torch.float32, torch.float64):
        x = a.to(dtype, copy=True).requires_grad_()
        loss = photometric_loss(x, b.to(dtype), weight.to(dtype), 0.8, 0.2)
        (3 * loss).backward()
        results.append((loss.item(), x.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert (results[0][1] - results[1][1]).norm() < 1e-5 * results[1][1].norm()


def loss_and_gradient(rendered, target, weight, dtype=torch.float32, **terms):
    x = rendered.to(dtype, copy=True).requires_grad_()
    loss = photometric_loss(x, target.to(dtype), weight.to(dtype), **terms)
    return loss.item(), torch.autograd.grad(loss, x)[0]


def some_weight(height, width):
    """Some pixels at the edge are masked out, as beyond a smaller photo on its canvas, and some inside are not trusted."""
    weight = torch.rand(2, height, width, generator=torch.Generator().manual_seed(3)).clamp(min=0.1)
    weight[:, :7] = 0
    weight[1, :, -9:] = 0
    weight[0, 12:19, 20:31] = 0
    return weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fused", "plain"])
@pytest.mark.parametrize("terms", [{"ssim_weight": 0.0}, {"l1_weight": 0.0}, {}], ids=["L1", "SSIM", "both"])
def test_pixels_without_weight_have_no_gradient_and_no_say(dtype, terms):
    (a, b), weight = images(33, 50, n=2), some_weight(33, 50)
    none = weight == 0
    loss, gradient = loss_and_gradient(a, b, weight, dtype, **terms)
    assert (gradient[none] == 0).all()
    assert (gradient[~none] != 0).float().mean() > 0.99
    for beyond in (torch.zeros_like(b), 1 - b):  # a black margin, or a photo that is wrong there
        other = loss_and_gradient(a, torch.where(none[..., None], beyond, b), weight, dtype, **terms)
        assert other[0] == loss
        assert torch.equal(other[1], gradient)


def test_the_fused_loss_is_that_of_float64_torch_under_masks():
    (a, b), weight = images(33, 50, n=2), some_weight(33, 50)
    (fused, by_kernel), (plain, by_torch) = (loss_and_gradient(a, b, weight, dtype) for dtype in (torch.float32, torch.float64))
    assert fused == pytest.approx(plain, rel=1e-6)
    assert (by_kernel - by_torch).norm() < 1e-5 * by_torch.norm()


def test_ssim_across_the_edge_of_a_mask_sees_what_differs_inside():
    a, b = images(33, 50)
    weight = torch.ones(1, 33, 50)
    weight[:, :, 25:] = 0
    inside = torch.where(weight[..., None] > 0, a, b)
    both, beyond = (loss_and_gradient(x, b, weight, l1_weight=0.0)[0] for x in (a, torch.where(weight[..., None] > 0, b, a)))
    assert beyond == pytest.approx(0, abs=1e-6)
    assert both == pytest.approx(loss_and_gradient(inside, b, weight, l1_weight=0.0)[0], rel=0.2)
    assert both > 0.01


def test_loss_is_zero_and_flat_at_the_target():
    _, b = images(20, 20)
    x = b.clone().requires_grad_()
    loss = photometric_loss(x, b, torch.ones(1, 20, 20))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert x.grad.abs().max() < 1e-6


def test_leading_dimensions_are_free():
    a, b = images(16, 16, n=6)
    nested = ssim_map(a.reshape(2, 3, 16, 16, 3), b.reshape(2, 3, 16, 16, 3))
    assert torch.equal(nested.reshape(6, 16, 16), ssim_map(a, b))
    assert torch.equal(ssim_map(a[2], b[2]), ssim_map(a, b)[2])
    assert ssim(a[0], b[0]).shape == ()


@pytest.mark.parametrize(
    ("shape_a", "shape_b", "words"),
    [
        ((10, 20, 3), (10, 20, 3), "at least 11"),
        ((20, 20, 3), (20, 21, 3), "two images"),
        ((20, 20, 1), (20, 20, 1), "two images"),
    ],
)
def test_wrong_shapes_are_named(shape_a, shape_b, words):
    with pytest.raises(ValueError, match=words):
        ssim_map(torch.zeros(shape_a), torch.zeros(shape_b))


def test_second_image_may_not_need_a_gradient():
    a, b = images(16, 16)
    with pytest.raises(ValueError, match="first image"):
        ssim_map(a, b.requires_grad_())
