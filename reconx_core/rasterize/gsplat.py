"""The CUDA rasteriser: gsplat's kernels; tensors on the CPU are copied to the GPU."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.rasterize import conventions
from reconx_core.types import Cameras, Gaussians


def rasterize_gsplat(
    gaussians: Gaussians, cameras: Cameras, background: Float[Tensor, " 3"], sh_degree: int
) -> tuple[Float[Tensor, "c h w 3"], Float[Tensor, "c h w"], Float[Tensor, "c h w"]]:
    """Colour, accumulated depth and alpha, on the device of ``gaussians``.

    Gaussians on the CPU are copied to the GPU for this call; an optimisation should keep them on the GPU.
    """
    from gsplat import rasterization

    if len(gaussians) == 0:  # gsplat's kernels divide by the count, which crashes the process
        return _nothing(gaussians, cameras, background)
    home, gpu = gaussians.means.device, gaussians.means.device if gaussians.means.is_cuda else torch.device("cuda")
    colour_depth, alpha, _ = rasterization(
        gaussians.means.to(gpu),
        gaussians.quats.to(gpu),
        gaussians.log_scales.exp().to(gpu),
        gaussians.logit_opacities.sigmoid().to(gpu),
        gaussians.sh.to(gpu),
        # Inverted on the cameras' device: cheap, and on the CPU the result is the same as in the CPU rasteriser.
        cameras.world_to_cam.to(gpu),
        cameras.intrinsics.to(gpu),
        cameras.width,
        cameras.height,
        near_plane=conventions.NEAR,
        far_plane=conventions.FAR,
        eps2d=conventions.SCREEN_BLUR,
        tile_size=conventions.TILE,
        sh_degree=sh_degree,
        packed=False,
        backgrounds=background.to(gpu).expand(len(cameras), 3),
        render_mode="RGB+D",
    )
    return colour_depth[..., :3].to(home), colour_depth[..., 3].to(home), alpha[..., 0].to(home)


def _nothing(gaussians: Gaussians, cameras: Cameras, background: Float[Tensor, " 3"]) -> tuple[Tensor, Tensor, Tensor]:
    empty = background.new_zeros(len(cameras), cameras.height, cameras.width)
    # The sum over zero Gaussians keeps the result attached to the graph, so that backward() works.
    return background.expand(*empty.shape, 3) + gaussians.sh.sum(), empty, empty
