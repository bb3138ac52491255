"""SSIM as a map with a value for every pixel.

Window 11, Gaussian with sigma 1.5, population variances, data range 1, channels averaged: scikit-image's
``structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1)``, as in pixelSplat's
evaluation. The border is mirrored (edge pixels repeated), so the map equals scikit-image's at every pixel.

float32 on the CPU uses fused kernels, imported with their compiler at the first use; other dtypes and devices use plain torch.
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
        ValueError: shapes differ, a side is shorter than the window, or ``b`` requires a gradient.
    """
    check_images(a, b)
    if not runs_fused(a, b):
        return ssim_map_torch(a, b)
    flat_a, flat_b = (image.reshape(-1, *image.shape[-3:]) for image in (a, b))
    return _SsimMap.apply(flat_a, flat_b).reshape(a.shape[:-1])


def ssim(a: Float[Tensor, "*n h w 3"], b: Float[Tensor, "*n h w 3"]) -> Float[Tensor, "*n"]:
    """Mean SSIM of each image over the pixels whose window lies inside it, as in scikit-image."""
    border = WINDOW // 2
    return ssim_map(a, b)[..., border:-border, border:-border].mean((-2, -1))


def check_images(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim < 3 or a.shape[-1] != 3:
        raise ValueError(f"SSIM: expected two images (..., h, w, 3), got {tuple(a.shape)} and {tuple(b.shape)}")
    if min(a.shape[-3:-1]) < WINDOW:
        raise ValueError(f"SSIM: expected sides of at least {WINDOW} pixels, got {tuple(a.shape[-3:-1])}")
    if b.requires_grad:
        raise ValueError("SSIM: only the first image may need a gradient")


def runs_fused(*tensors: Tensor) -> bool:
    return all(tensor.device.type == "cpu" and tensor.dtype == torch.float32 for tensor in tensors)


def ssim_map_torch(a: Float[Tensor, "*n h w 3"], b: Float[Tensor, "*n h w 3"]) -> Float[Tensor, "*n h w"]:
    x = torch.stack([a, b, a * a, b * b, a * b]).movedim(-1, -3)
    mean_a, mean_b, aa, bb, ab = _blur(x)
    covariance, variances = ab - mean_a * mean_b, aa + bb - mean_a**2 - mean_b**2
    similar = (2 * mean_a * mean_b + C1) * (2 * covariance + C2)
    return (similar / ((mean_a**2 + mean_b**2 + C1) * (variances + C2))).mean(-3)


def _blur(x: Float[Tensor, "*n h w"]) -> Float[Tensor, "*n h w"]:
    """Separable Gaussian blur with a mirrored border."""
    radius = WINDOW // 2
    taps = torch.exp(-0.5 * (torch.arange(-radius, radius + 1).to(x) / SIGMA) ** 2)
    x_padded = torch.cat([x[..., :radius].flip(-1), x, x[..., -radius:].flip(-1)], -1)
    x_padded = torch.cat([x_padded[..., :radius, :].flip(-2), x_padded, x_padded[..., -radius:, :].flip(-2)], -2)
    # All images as channel groups of one image: by far the fastest convolution in torch on the CPU.
    planes = x_padded.reshape(1, -1, *x_padded.shape[-2:])
    across = (taps / taps.sum()).expand(planes.shape[1], 1, 1, WINDOW)
    convolve = functools.partial(torch.nn.functional.conv2d, groups=planes.shape[1])
    return convolve(convolve(planes, across), across.mT).reshape(x.shape)


def arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def flat_images(a: Tensor, b: Tensor) -> tuple[np.ndarray, np.ndarray]:
    flat_a, flat_b = (array.reshape(len(array), -1) for array in arrays(a, b))
    return flat_a, flat_b


def fused_similarity(
    a: np.ndarray, b: np.ndarray, weight: np.ndarray, scale: float, with_terms: bool
) -> tuple[np.ndarray, np.ndarray]:
    """(SSIM map, derivatives times scale * weight for the gradient kernel)."""
    from reconx_core.losses.ssim_kernels import similarity

    values = np.empty(weight.shape, np.float32)
    terms = np.empty((3, len(a) if with_terms else 0, a.shape[1]), np.float32)
    similarity(a, b, weight, np.float32(scale), with_terms, values, terms)
    return values, terms


def fused_gradient(
    a: np.ndarray, b: np.ndarray, terms: np.ndarray, weight: np.ndarray, l1_scale: float
) -> tuple[np.ndarray, float]:
    """Gradient with respect to ``a`` of sum(weight * (scale * SSIM + l1_scale * |a - b|)), and sum(weight * |a - b|)."""
    from reconx_core.losses.ssim_kernels import similarity_gradient

    gradient, l1_rows = np.empty((*weight.shape, 3), np.float32), np.empty(weight.shape[:2])
    similarity_gradient(a, b, terms, weight, np.float32(l1_scale), gradient.reshape(a.shape), l1_rows)
    return gradient, l1_rows.sum()


class _SsimMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        from reconx_core.cpu.jit import one_at_a_time

        ctx.save_for_backward(a, b)
        with one_at_a_time():
            values, _ = fused_similarity(*flat_images(a, b), np.empty(a.shape[:-1], np.float32), 1.0, False)
        return torch.from_numpy(values)

    @staticmethod
    def backward(ctx: Any, v_map: Tensor) -> tuple[Tensor, None]:
        from reconx_core.cpu.jit import one_at_a_time

        images, (weight,) = flat_images(*ctx.saved_tensors), arrays(v_map)
        with one_at_a_time():
            # The derivatives are recomputed instead of saved: three images less memory, and the weight is known only now.
            _, terms = fused_similarity(*images, weight, 1.0, True)
            gradient, _ = fused_gradient(*images, terms, weight, 0.0)
        return torch.from_numpy(gradient), None
