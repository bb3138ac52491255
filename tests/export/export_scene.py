"""A scene to export: random Gaussians in front of two cameras."""

import torch

from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians, PointCloud


def some_gaussians(degree: int, count: int = 400, seed: int = 0) -> Gaussians:
    """Overlapping, anisotropic, partly transparent Gaussians around (0, 0, 3)."""
    rng = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=rng)  # noqa: E731
    return Gaussians(
        means=normal(count, 3) * torch.tensor([0.8, 0.6, 0.4]) + torch.tensor([0.0, 0.0, 3.0]),
        quats=normal(count, 4) * 2,  # not normalised, as an optimiser leaves them
        log_scales=normal(count, 3) * 0.4 - 2.3,
        logit_opacities=normal(count) * 2,
        sh=normal(count, (degree + 1) ** 2, 3) * torch.tensor([0.9] + [0.15] * ((degree + 1) ** 2 - 1))[:, None],
    )


def some_cameras() -> Cameras:
    """Two cameras, 64 x 48, turned and moved against each other."""
    intrinsics = torch.tensor([[60.0, 0, 31], [0, 62, 25], [0, 0, 1]]).expand(2, 3, 3).clone()
    rotations = so3_exp(torch.tensor([[0.0, 0, 0], [0.1, -0.2, 0.05]]))
    return Cameras(intrinsics, rigid(rotations, torch.tensor([[0.0, 0, 0], [0.4, 0.1, -0.2]])), 64, 48)


def some_points(count: int = 50) -> PointCloud:
    rng = torch.Generator().manual_seed(1)
    rgb = torch.randint(256, (count, 3), generator=rng) / 255
    return PointCloud(torch.randn(count, 3, generator=rng), rgb, torch.rand(count, generator=rng))


def render(gaussians: Gaussians) -> torch.Tensor:
    return rasterize(gaussians, some_cameras(), backend="cpu").rgb


def psnr(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(-10 * torch.log10((a.clamp(0, 1) - b.clamp(0, 1)).square().mean()))
