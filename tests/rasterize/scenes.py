"""Small random scenes for the tests of the rasteriser."""

import math

import torch

from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.types import Cameras, Gaussians


def blobs(n, degree=3, seed=0, size=0.05):
    """Anisotropic Gaussians of all opacities in front of the first camera of :func:`orbit`."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    means = torch.rand(n, 3, generator=generator) * torch.tensor([3.0, 2.0, 3.0]) + torch.tensor([-1.5, -1.0, 1.0])
    log_scales = math.log(size) + 0.5 * normal(n, 3)
    return Gaussians(means, normal(n, 4), log_scales, 2 * normal(n), 0.3 * normal(n, (degree + 1) ** 2, 3))


def orbit(count, width, height):
    """Cameras that look at the blobs from slightly different places."""
    focal = 0.8 * width
    intrinsics = torch.tensor([[focal, 0, 0.48 * width], [0, 1.1 * focal, 0.53 * height], [0, 0, 1]])
    turns = so3_exp(torch.tensor([[0.05, -0.1, 0.02]]) * torch.arange(count)[:, None])
    centres = torch.tensor([[0.3, -0.1, -0.2]]) * torch.arange(count)[:, None]
    return Cameras(intrinsics.repeat(count, 1, 1), rigid(turns, centres), width, height)


def leaves(gaussians, cameras):
    """Copies of everything that may need a gradient: the five fields of the Gaussians, then cam_to_world."""
    fields = (gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.logit_opacities, gaussians.sh)
    return [field.clone().requires_grad_() for field in (*fields, cameras.cam_to_world)]


def pull(rendering, seed=0):
    """A random linear function of all images, whose gradient is random everywhere."""
    generator = torch.Generator().manual_seed(seed)
    return sum((image * torch.randn(image.shape, generator=generator).to(image)).sum() for image in rendering)
