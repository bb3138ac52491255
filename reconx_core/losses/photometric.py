"""The photometric loss of a frame (paper eq. 14): weighted L1 and SSIM. LPIPS is added by the optimisation.

float32 on the CPU uses fused kernels that compute value and gradient together; other dtypes and devices use plain torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.losses.mask import hide_unweighted
from reconx_core.losses.ssim import (
    arrays,
    check_images,
    flat_images,
    fused_gradient,
    fused_similarity,
    runs_fused,
    ssim_map_torch,
)


def photometric_loss(
    rendered: Float[Tensor, "*n h w 3"],
    target: Float[Tensor, "*n h w 3"],
    weight: Float[Tensor, "*n h w"],
    l1_weight: float = 0.8,
    ssim_weight: float = 0.2,
) -> Float[Tensor, ""]:
    """Mean over pixels of weight * (l1_weight * |rendered - target| + ssim_weight * (1 - SSIM)), eq. 14 without LPIPS.

    Differentiable with respect to ``rendered`` only. Pixels of weight 0 have no say, not even in their neighbours' SSIM. The
    fused kernels compute value and gradient together.

    Raises:
        ValueError: as in :func:`ssim_map`, or the shape of the weight does not match the images.
    """
    check_images(rendered, target)
    if weight.shape != rendered.shape[:-1] or weight.requires_grad:
        raise ValueError(f"weight: expected {tuple(rendered.shape[:-1])} without gradient, got {tuple(weight.shape)}")
    if not runs_fused(rendered, target, weight):
        rendered, target = hide_unweighted(rendered, target, weight)
        l1 = (rendered - target).abs().mean(-1)
        return (weight * (l1_weight * l1 + ssim_weight * (1 - ssim_map_torch(rendered, target)))).mean()
    images = (image.reshape(-1, *image.shape[-3:]) for image in (rendered, target))
    return _PhotometricLoss.apply(*images, weight.reshape(-1, *weight.shape[-2:]), l1_weight, ssim_weight)


class _PhotometricLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rendered: Tensor, target: Tensor, weight: Tensor, l1_weight: float, ssim_weight: float) -> Tensor:
        from reconx_core.cpu.jit import one_at_a_time

        counts = weight > 0
        masked = not bool(counts.all())
        target = torch.where(counts[..., None], target, rendered) if masked else target  # as hide_unweighted
        images, (share,) = flat_images(rendered, target), arrays(weight / weight.numel())
        with one_at_a_time():
            values, terms = fused_similarity(*images, share, -ssim_weight, True)
            gradient, l1 = fused_gradient(*images, terms, share, l1_weight)
        if masked:
            gradient *= counts.numpy()[..., None]
        ctx.save_for_backward(torch.from_numpy(gradient))
        return torch.tensor(l1_weight * l1 + ssim_weight * (share * (1 - values)).sum(dtype=np.float64), dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, v_loss: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * v_loss, None, None, None, None
