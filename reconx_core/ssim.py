"""SSIM with a value for every pixel, and the photometric loss of eq. 14 built on it.

Window 11, Gaussian with sigma 1.5, population variances, data range 1, channels averaged: scikit-image's
``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)``, as pixelSplat reports
it. At the border the image is mirrored (its edge pixels repeated), so the map equals scikit-image's at every pixel.

float32 on the CPU runs in fused kernels; any other dtype or device in plain torch.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2


def ssim_map(a: Float[Tensor, "*n h w 3"], b: Float[Tensor, "*n h w 3"]) -> Float[Tensor, "*n h w"]:
    """SSIM around every pixel, differentiable with respect to ``a``.

    Raises:
        ValueError: shapes differ, a side is shorter than the window, or ``b`` asks for a gradient.
    """
    _check(a, b)
    if not _fused(a, b):
        return _ssim_map_torch(a, b)
    flat_a, flat_b = (image.reshape(-1, *image.shape[-3:]) for image in (a, b))
    return _SsimMap.apply(flat_a, flat_b).reshape(a.shape[:-1])


def ssim(a: Float[Tensor, "*n h w 3"], b: Float[Tensor, "*n h w 3"]) -> Float[Tensor, "*n"]:
    """Mean SSIM of each image over the pixels whose window lies inside it, as scikit-image averages."""
    border = WINDOW // 2
    return ssim_map(a, b)[..., border:-border, border:-border].mean((-2, -1))


def photometric_loss(
    rendered: Float[Tensor, "*n h w 3"],
    target: Float[Tensor, "*n h w 3"],
    weight: Float[Tensor, "*n h w"],
    l1_weight: float = 0.8,
    ssim_weight: float = 0.2,
) -> Float[Tensor, ""]:
    """Mean over pixels of weight * (l1_weight * |rendered - target| + ssim_weight * (1 - SSIM)), eq. 14 without LPIPS.

    Differentiable with respect to ``rendered`` only. The fused kernels compute value and gradient together.

    Raises:
        ValueError: as :func:`ssim_map`, or the weight's shape is not the images'.
    """
    _check(rendered, target)
    if weight.shape != rendered.shape[:-1] or weight.requires_grad:
        raise ValueError(f"weight: expected {tuple(rendered.shape[:-1])} without gradient, got {tuple(weight.shape)}")
    if not _fused(rendered, target, weight):
        l1 = (rendered - target).abs().mean(-1)
        return (weight * (l1_weight * l1 + ssim_weight * (1 - _ssim_map_torch(rendered, target)))).mean()
    images = (image.reshape(-1, *image.shape[-3:]) for image in (rendered, target))
    return _PhotometricLoss.apply(*images, weight.reshape(-1, *weight.shape[-2:]), l1_weight, ssim_weight)


def _check(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
        raise ValueError(f"SSIM: expected two images (..., h, w, 3), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"SSIM: expected sides of at least {WINDOW} pixels, got {tuple(a.shape[-3:-1])}")
    if b.requires_grad:
        raise ValueError("SSIM: only the first image may need a gradient")


def _fused(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def _ssim_map_torch(a: Float[Tensor, "*n h w 3"], b: Float[Tensor, "*n h w 3"]) -> Float[Tensor, "*n h w"]:
    x = torch.stack([a, b, a * a, b * b, a * b]).movedim(-1, -3)
    mean_a, mean_b, aa, bb, ab = _blur(x)
    covariance, variances = ab - mean_a * mean_b, aa + bb - mean_a**2 - mean_b**2
    similar = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return (similar / ((mean_a**2 + mean_b**2 + C1) * (variances + C2))).mean(-3)


def _blur(x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
    """The window along both axes, edge pixels mirrored."""
    radius = WINDOW // 2
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(x) / SIGMA) ** 2)
    x_padded = torch.cat([x[..., :radius].flip(-1), x, x[..., -radius:].flip(-1)], -1)
    x_padded = torch.cat([x_padded[..., :radius, :].flip(-2), x_padded, x_padded[..., -radius:, :].flip(-2)], -2)
    # All images as groups of one picture: by far torch's fastest way on the CPU.
    planes = x_padded.reshape(1, -1, *x_padded.shape[-2:])
    across = (taps / taps.sum()).expand(planes.shape[1], 1, 1, WINDOW)
    convolve = functools.partial(torch.nn.functional.conv2d, groups=planes.shape[1])
    return convolve(convolve(planes, across), across.mT).reshape(x.shape)


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _flat_images(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    flat_a, flat_b = (array.reshape(len(array), -1) for array in _arrays(a, b))
    return flat_a, flat_b


def _similarity(
    a: np.ndarray, b: np.ndarray, weight: np.ndarray, scale: float, with_terms: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(SSIM map, derivatives times scale * weight for the gradient kernel)."""
    from reconx_core.ssim_kernels import similarity

    values = np.empty(weight.shape, np.float32)
    terms = np.empty((3, len(a) if with_terms else 0, a.shape[1]), np.float32)
    similarity(a, b, weight, np.float32(scale), with_terms, values, terms)
    return values, terms


def _gradient(a: np.ndarray, b: np.ndarray, terms: np.ndarray, weight: np.ndarray, l1_scale: float) -> tuple[np.ndarray, float]:
    """Gradient for ``a`` of sum(weight * (scale * SSIM + l1_scale * |a - b|)), and sum(weight * |a - b|)."""
    from reconx_core.ssim_kernels import similarity_gradient

    gradient, l1_rows = np.empty((*weight.shape, 3), np.float32), np.empty(weight.shape[:2])
    similarity_gradient(a, b, terms, weight, np.float32(l1_scale), gradient.reshape(a.shape), l1_rows)
    return gradient, l1_rows.sum()


class _SsimMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        from reconx_core.jit import one_at_a_time

        ctx.save_for_backward(a, b)
        with one_at_a_time():
            values, _ = _similarity(*_flat_images(a, b), np.empty(a.shape[:-1], np.float32), 1.0, False)
        return torch.from_numpy(values)

    @staticmethod
    def backward(ctx: Any, v_map: Tensor) -> tuple[Tensor, None]:
        from reconx_core.jit import one_at_a_time

        images, (weight,) = _flat_images(*ctx.saved_tensors), _arrays(v_map)
        with one_at_a_time():
            # The derivatives are recomputed rather than kept: three images less memory, and only now the weight is known.
            _, terms = _similarity(*images, weight, 1.0, True)
            gradient, _ = _gradient(*images, terms, weight, 0.0)
        return torch.from_numpy(gradient), None


class _PhotometricLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rendered: Tensor, target: Tensor, weight: Tensor, l1_weight: float, ssim_weight: float) -> Tensor:
        from reconx_core.jit import one_at_a_time

        images, (share,) = _flat_images(rendered, target), _arrays(weight / weight.numel())
        with one_at_a_time():
            values, terms = _similarity(*images, share, -ssim_weight, True)
            gradient, l1 = _gradient(*images, terms, share, l1_weight)
        ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.tensor(l1_weight * l1 + ssim_weight * (share * (1 - values)).sum(dtype=np.float64), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, v_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * v_loss, None, None, None, None
