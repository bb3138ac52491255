"""A small synthetic scene whose photos are its own renders, so that its perfect score is known."""

import torch

from reconx_core.geometry.transforms import matrix_to_quaternion, quaternion_to_matrix, rigid, so3_exp
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians, PointCloud, Pointmaps, Views

WIDTH, HEIGHT, FOCAL = 96, 72, 90.0


def make_gaussians(n: int = 900) -> Gaussians:
    """Coloured blobs around depth 3, of all scales, so that the photos have structure of all scales."""
    g = torch.Generator().manual_seed(4)
    means = torch.rand(n, 3, generator=g) * torch.tensor([5.0, 4.0, 2.0]) + torch.tensor([-2.5, -2.0, 2.0])
    log_scales = -3.2 + 0.8 * torch.randn(n, 3, generator=g)
    log_scales[:60] += 1.6
    means[:60, 2] += 1.5
    quats = torch.randn(n, 4, generator=g)
    return Gaussians(means, quats, log_scales, torch.full((n,), 1.5), torch.randn(n, 1, 3, generator=g))


def make_cameras(n: int = 5) -> Cameras:
    """Cameras side by side, slightly turned."""
    side = torch.linspace(-0.5, 0.5, n)
    turn = so3_exp(torch.stack([0.05 * side, -0.2 * side, 0.1 * side], -1))
    centre = torch.stack([side, 0.2 * side.square(), 0.1 * side], -1)
    k = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]).repeat(n, 1, 1)
    return Cameras(k, rigid(turn, centre), WIDTH, HEIGHT)


def make_views(gaussians: Gaussians, cameras: Cameras, protocol: str = "posed") -> Views:
    """The scene's renders as photos; every second one is held out."""
    n = len(cameras)
    images = rasterize(gaussians, cameras).rgb.detach().clamp(0, 1)
    is_target = torch.arange(n) % 2 == 1
    masks = torch.ones(n, HEIGHT, WIDTH, dtype=torch.bool)
    names = tuple(f"photo_{i}.jpg" for i in range(n))
    return Views(images, masks, names, is_target, cameras, torch.full((n,), torch.nan), protocol)  # type: ignore[arg-type]


def make_pointmaps(cameras: Cameras) -> Pointmaps:
    """Pointmaps of which only the cameras and the confidence matter."""
    n = len(cameras)
    empty = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    confidence = torch.linspace(0, 1, WIDTH).expand(n, HEIGHT, WIDTH).contiguous()
    return Pointmaps(torch.zeros(n, HEIGHT, WIDTH, 3), confidence, cameras, empty)


def move_cameras(cameras: Cameras, scale: float, move: torch.Tensor) -> Cameras:
    """Cameras after the world moved by x -> scale * R x + t, with ``move`` = [R t]."""
    pose = cameras.cam_to_world.clone()
    pose[:, :3, :3] = move[:3, :3] @ pose[:, :3, :3]
    pose[:, :3, 3] = scale * pose[:, :3, 3] @ move[:3, :3].mT + move[:3, 3]
    return Cameras(cameras.intrinsics, pose, cameras.width, cameras.height)


def move_gaussians(gaussians: Gaussians, scale: float, move: torch.Tensor) -> Gaussians:
    """Gaussians (SH degree 0) after the same move of the world."""
    rotation = move[:3, :3]
    return Gaussians(
        scale * gaussians.means @ rotation.mT + move[:3, 3],
        matrix_to_quaternion(rotation @ quaternion_to_matrix(gaussians.quats)),
        gaussians.log_scales + torch.tensor(scale).log(), gaussians.logit_opacities, gaussians.sh,
    )  # fmt: skip
