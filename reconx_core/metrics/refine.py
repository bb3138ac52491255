"""Target cameras in the reconstruction's frame: mapped there by a similarity transform, then refined against the photo."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry.camera_path import se3_exp
from reconx_core.geometry.transforms import resize_cameras, size_for
from reconx_core.metrics.pose import align_cameras
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians

# Coarse to fine: image scale in each third of the steps.
LEVELS = (0.25, 0.5, 1.0)
SMALLEST = 64  # pixels of the long side
LEARNING_RATE = 6e-3  # radians, and shares of the scene's distance


def map_targets(targets: Cameras, estimated: Cameras, truth: Cameras) -> Cameras:
    """True target cameras in the frame of a reconstruction whose input cameras are ``estimated`` instead of ``truth``.

    Poses are mapped by the similarity transform between the two sets of input cameras, focal lengths by the mean ratio
    between them: a reconstruction with a wrong focal length must be rendered with the same error.
    """
    moved = align_cameras(estimated, truth).inverse().cameras(targets)
    focal = (_focals(estimated) / _focals(truth)).mean(0)
    intrinsics = targets.intrinsics.clone()
    intrinsics[:, :2, :2] *= focal[:, None]
    return replace(moved, intrinsics=intrinsics)


def refine_camera(
    gaussians: Gaussians,
    camera: Cameras,
    photo: Float[Tensor, "h w 3"],
    mask: Bool[Tensor, "h w"],
    steps: int,
) -> Cameras:
    """The pose of one camera after ``steps`` of Adam on the L1 distance between render and photo, the Gaussians frozen.

    The pose moves by a twist in its own frame. Returns the initial camera if it fits the photo better than the result.
    """
    gaussians = gaussians.detach()
    unit = (gaussians.means - camera.cam_to_world[0, :3, 3]).norm(dim=-1).median()
    twist = torch.zeros(6, requires_grad=True)
    optimiser = torch.optim.Adam([twist], lr=LEARNING_RATE, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, gamma=0.1 ** (1 / max(1, steps)))
    pyramid = [_resized(camera, photo, mask, share) for share in LEVELS]
    for step in range(steps):
        small, target, weight = pyramid[step * len(LEVELS) // steps]
        optimiser.zero_grad()
        _difference(gaussians, _moved(small, twist, unit), target, weight).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        candidates = [camera, _moved(camera, twist, unit)]
        losses = [_difference(gaussians, candidate, photo, mask.float()).item() for candidate in candidates]
    return candidates[losses.index(min(losses))]


def _focals(cameras: Cameras) -> Float[Tensor, "n 2"]:
    return cameras.intrinsics[:, :2, :2].diagonal(dim1=1, dim2=2)


def _moved(camera: Cameras, twist: Float[Tensor, " 6"], unit: Float[Tensor, ""]) -> Cameras:
    step = se3_exp(torch.cat([twist[:3], twist[3:] * unit]))
    return replace(camera, cam_to_world=camera.cam_to_world @ step)


def _difference(
    gaussians: Gaussians, camera: Cameras, photo: Float[Tensor, "h w 3"], weight: Float[Tensor, "h w"]
) -> Float[Tensor, ""]:
    """Weighted mean absolute difference between the render and the photo."""
    error = (rasterize(gaussians, camera).rgb[0] - photo).abs().mean(-1)
    return (error * weight).sum() / weight.sum().clamp(min=1e-6)


def _resized(
    camera: Cameras, photo: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], share: float
) -> tuple[Cameras, Float[Tensor, "h2 w2 3"], Float[Tensor, "h2 w2"]]:
    """Camera, photo and weights at a smaller size; the photo's colours near the mask's edge come from inside the mask."""
    height, width = mask.shape
    long_side = max(height, width)
    size = size_for(min(long_side, max(SMALLEST, round(long_side * share))), height, width)
    stack = torch.cat([photo * mask[..., None], mask[..., None]], -1).movedim(-1, 0)[None]
    small = F.interpolate(stack, size, mode="bilinear", antialias=True, align_corners=False)[0].movedim(0, -1)
    weight = small[..., 3]
    return resize_cameras(camera, *size), small[..., :3] / weight.clamp(min=1e-6)[..., None], weight
