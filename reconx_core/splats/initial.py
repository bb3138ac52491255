"""The Gaussians that the optimisation starts from."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from reconx_core.geometry import depth_of, project, unproject
from reconx_core.inpaint import pull_push
from reconx_core.rasterize import Backend, rasterize
from reconx_core.types import Cameras, Frames, Gaussians, PointCloud, Pointmaps

SH_0 = 0.28209479177387814  # the constant basis function: colour = 0.5 + SH_0 * coefficient
KNOWN = 0.03  # confidence below which a pixel starts no Gaussian
SAME_SURFACE = 0.02  # relative depth difference at which a pixel repeats what another view already holds
SPREAD = 0.55  # standard deviation of a Gaussian, in distances to its neighbours
WIDER, FILL_STEP = 1.5, 3  # how far beyond the photos' edge holes are filled; half-size pixels per filling Gaussian
FAR_BIAS = 3  # power of the depth by which the background gains on the foreground in a hole
BACK_OFF = (1.0, 1.15, 1.3, 1.6, 2.0, 3.0)
HOLE = 0.5  # opacity of the render below which there is a hole


def gaussians_from_points(
    xyz: Float[Tensor, "n 3"], rgb: Float[Tensor, "n 3"], scale: Float[Tensor, " n"], opacity: Float[Tensor, " n"],
    sh_degree: int,
) -> Gaussians:  # fmt: skip
    """Isotropic Gaussians of one standard deviation ``scale`` (world units)."""
    sh = torch.zeros(len(xyz), (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (rgb - 0.5) / SH_0
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(xyz), 1)
    return Gaussians(xyz, quats, scale.log()[:, None].repeat(1, 3), torch.logit(opacity, eps=1e-3), sh)


def concatenate(parts: list[Gaussians]) -> Gaussians:
    """All Gaussians of several sets in one."""
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return Gaussians(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def from_sparse(points: PointCloud, sh_degree: int) -> Gaussians:
    """3D Gaussian Splatting's own start: opacity 0.1, scale the mean distance to the three nearest points."""
    distance, _ = cKDTree(points.xyz.numpy()).query(points.xyz.numpy(), k=min(4, len(points)))
    scale = torch.from_numpy(np.sqrt((distance[:, 1:] ** 2).mean(1)).astype(np.float32)).clamp(min=1e-7)
    return gaussians_from_points(points.xyz, points.rgb, scale, torch.full((len(points),), 0.1), sh_degree)


def from_pointmaps(images: Float[Tensor, "n h w 3"], pointmaps: Pointmaps, most: int, sh_degree: int) -> Gaussians:
    """One Gaussian per pixel that is known and not yet held by another view, thinned evenly to at most ``most``."""
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)
    wanted = (pointmaps.confidence > KNOWN) & ~repeated_pixels(depth, pointmaps)
    step = max(1, int(np.ceil(np.sqrt(int(wanted.sum()) / most))))
    while int((picked := wanted & every_nth(wanted, step)).sum()) > most:
        step += 1
    size = depth / pointmaps.cameras.intrinsics[:, 0, 0][:, None, None] * step
    opacity = torch.where(pointmaps.confidence > 0.4, 0.9, 0.4)
    return gaussians_from_points(
        pointmaps.points_world[picked], images[picked], SPREAD * size[picked].clamp(min=1e-7), opacity[picked], sh_degree
    )


def every_nth(like: Bool[Tensor, "n h w"], step: int) -> Bool[Tensor, "n h w"]:
    """A regular grid of pixels."""
    grid = torch.zeros_like(like)
    grid[:, step // 2 :: step, step // 2 :: step] = True
    return grid


def repeated_pixels(depth: Float[Tensor, "n h w"], pointmaps: Pointmaps) -> Bool[Tensor, "n h w"]:
    """Pixels whose surface an earlier view holds at least as finely and with as much confidence."""
    n, height, width = depth.shape
    cameras = pointmaps.cameras
    repeated = torch.zeros_like(depth, dtype=torch.bool)
    for i in range(1, n):
        points = pointmaps.points_world[i].reshape(-1, 3)
        for j in range(i):
            pixels, z = project(points, cameras.intrinsics[j], cameras.world_to_cam[j])
            grid = (pixels / pixels.new_tensor([width, height]) * 2 - 1)[None, None]
            stack = torch.stack([depth[j], pointmaps.confidence[j]])[None]
            there, trust = F.grid_sample(stack, grid, mode="nearest", align_corners=False)[0, :, 0]
            same = ((there / z - 1).abs() < SAME_SURFACE) & (z > 0) & (z < 1.1 * depth[i].flatten())
            repeated[i] |= (same & (trust >= 0.9 * pointmaps.confidence[i].flatten()) & (trust > 0.4)).reshape(height, width)
    return repeated


def fill_holes(gaussians: Gaussians, frames: Frames, pointmaps: Pointmaps, backend: Backend) -> Gaussians:
    """Add coarse Gaussians where a wider look from the frames' cameras meets nothing.

    Colour and inverse depth are continued from what is behind the hole's edge; what would hide something from a photo
    moves back until it does not.
    """
    order = torch.cat([frames.is_photo.nonzero()[:, 0], (~frames.is_photo).nonzero()[:, 0]])
    cameras = widen(frames.cameras, WIDER)
    for i in order.tolist():
        rendering = rasterize(gaussians, cameras[[i]], backend=backend)
        depth, colour, hole = _continue(rendering.rgb[0], rendering.depth[0], rendering.alpha[0])
        hole &= every_nth(hole[None], FILL_STEP)[0]
        depth, clear = _behind_what_photos_see(depth[hole], hole, cameras[[i]], pointmaps)
        points = _on_rays(depth, hole, cameras[[i]])[clear]
        scale = SPREAD * FILL_STEP * depth[clear] / cameras.intrinsics[i, 0, 0]
        opacity = torch.full_like(scale, 0.8)
        filling = gaussians_from_points(points, colour[hole][clear].clamp(0, 1), scale, opacity, gaussians.sh_degree)
        gaussians = concatenate([gaussians, filling])
    return gaussians


def _continue(
    rgb: Float[Tensor, "h w 3"], depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"]
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """Depth and colour everywhere, those of the background gaining on those of the foreground, and where holes are."""
    solid = alpha > HOLE
    depth = depth / alpha.clamp(min=1e-6)
    typical = depth[solid].median() if bool(solid.any()) else depth.new_tensor(1.0)
    weight = torch.where(solid, (depth / typical).clamp(0.1, 10.0) ** FAR_BIAS, 0.0) / 10.0**FAR_BIAS
    known = torch.cat([rgb / alpha.clamp(min=1e-6)[..., None], 1 / depth.clamp(min=1e-6)[..., None]], -1)
    filled = pull_push(known[None], weight[None])[0]
    return 1 / filled[..., 3].clamp(min=1e-6), filled[..., :3], ~solid & (filled[..., 3] > 0)


def _on_rays(depth: Float[Tensor, " p"], where: Bool[Tensor, "h w"], camera: Cameras) -> Float[Tensor, "p 3"]:
    full = torch.ones(where.shape)
    full[where] = depth
    return unproject(full[None], camera)[0][where]


def _behind_what_photos_see(
    depth: Float[Tensor, " p"], where: Bool[Tensor, "h w"], camera: Cameras, pointmaps: Pointmaps
) -> tuple[Float[Tensor, " p"], Bool[Tensor, " p"]]:
    """The nearest of a few depths from ``depth`` on that hides nothing from a photo, and where there is one."""
    best, clear = depth.clone(), torch.zeros_like(depth, dtype=torch.bool)
    for factor in BACK_OFF:
        free = ~clear & ~hides_photo(_on_rays(factor * depth, where, camera), pointmaps)
        best[free] = factor * depth[free]
        clear |= free
    return best, clear


def widen(cameras: Cameras, factor: float) -> Cameras:
    """The same cameras with a larger field of view, at half the resolution."""
    width, height = (round(side * factor / 2) for side in (cameras.width, cameras.height))
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2] *= 0.5
    intrinsics[:, 0, 2] += (width - cameras.width / 2) / 2
    intrinsics[:, 1, 2] += (height - cameras.height / 2) / 2
    return Cameras(intrinsics, cameras.cam_to_world, width, height)


def hides_photo(points: Float[Tensor, "p 3"], pointmaps: Pointmaps) -> Bool[Tensor, " p"]:
    """Points that stand before a surface in one of the photos."""
    depth = torch.where(pointmaps.confidence > KNOWN, depth_of(pointmaps.points_world, pointmaps.cameras), 0.0)
    pixels, z = project(points, pointmaps.cameras.intrinsics, pointmaps.cameras.world_to_cam)
    grid = pixels / pixels.new_tensor([depth.shape[2], depth.shape[1]]) * 2 - 1
    surface = F.grid_sample(depth[:, None], grid[:, None], mode="nearest", align_corners=False)[:, 0, 0]
    return ((z > 0) & (z < 0.97 * surface)).any(0)
