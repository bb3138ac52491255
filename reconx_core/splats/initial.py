"""Initial Gaussians of the optimisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor

from reconx_core.geometry.transforms import depth_of, project, resize_cameras, unproject
from reconx_core.io.inpaint import pull_push
from reconx_core.rasterize import Backend, rasterize
from reconx_core.rasterize.conventions import SH_0
from reconx_core.types import Cameras, Frames, Gaussians, PointCloud, Pointmaps

KNOWN = 0.03  # minimum confidence of a pixel that becomes a Gaussian
CONFIRMED = 0.4  # confidence above which another view sees the same surface
SAME_SURFACE = 0.02  # relative depth difference below which pixels of two views show the same surface
SPREAD = 0.55  # standard deviation of a Gaussian, in distances to its neighbours
WIDER, FILL_STEP = 1.5, 4  # field of view in which holes are filled, relative to the photos'; half-size pixels per Gaussian
FAR_BIAS = 3  # exponent of the depth in the inpainting weights, so that holes are filled from the background
IN_FRONT = 0.97  # a point occludes a surface if its depth is below this share of the surface's
BACK_OFF = (1.0, 1.15, 1.3, 1.6, 2.0, 3.0)  # depth factors that are tried to avoid occlusion
BLUR = 0.02  # inpainting weight of a known pixel in the backdrop: the smaller, the blurrier
BACKDROP, BACKDROP_STEP = 1.5, 6  # relative to the depth of the farthest surface; half-size pixels per backdrop Gaussian
CLEARANCE = 0.7  # of the typical depth, round every frame's camera: nothing that no photo shows starts within
HOLE = 0.5  # alpha of the render below which a pixel is a hole


def gaussians_from_points(
    xyz: Float[Tensor, "n 3"], rgb: Float[Tensor, "n 3"], scale: Float[Tensor, " n"], opacity: Float[Tensor, " n"],
    sh_degree: int,
) -> Gaussians:  # fmt: skip
    """Isotropic Gaussians with standard deviation ``scale`` (world units)."""
    sh = torch.zeros(len(xyz), (sh_degree + 1) ** 2, 3)
    sh[:, 0] = (rgb - 0.5) / SH_0
    quats = torch.tensor([1.0, 0.0, 0.0, 0.0]).repeat(len(xyz), 1)
    return Gaussians(xyz, quats, scale.log()[:, None].repeat(1, 3), torch.logit(opacity, eps=1e-3), sh)


def concatenate(parts: list[Gaussians]) -> Gaussians:
    """Concatenate sets of Gaussians."""
    names = ("means", "quats", "log_scales", "logit_opacities", "sh")
    return Gaussians(*(torch.cat([getattr(p, name) for p in parts]) for name in names))


def from_sparse(points: PointCloud, sh_degree: int) -> Gaussians:
    """The initialisation of 3D Gaussian Splatting: opacity 0.1, scale the RMS distance to the three nearest points."""
    distance, _ = cKDTree(points.xyz.numpy()).query(points.xyz.numpy(), k=min(4, len(points)))
    scale = torch.from_numpy(np.sqrt((distance[:, 1:] ** 2).mean(1)).astype(np.float32)).clamp(min=1e-7)
    return gaussians_from_points(points.xyz, points.rgb, scale, torch.full((len(points),), 0.1), sh_degree)


def from_random(frames: Frames, pointmaps: Pointmaps, most: int, sh_degree: int, generator: torch.Generator) -> Gaussians:
    """About ``most`` usable pixels of the photos (0: all) at random depths within the scene's range, without stereo depth."""
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)
    known = depth[pointmaps.confidence > KNOWN]
    near, far = np.quantile(known.numpy() if len(known) else depth.numpy(), (0.01, 0.99)).clip(1e-6).tolist()
    share = most / depth.numel() if most else 1.0
    picked = (torch.rand(depth.shape, generator=generator) < share) & usable_pixels(frames)
    drawn = near * (far / near) ** torch.rand(depth.shape, generator=generator)
    step = max(1.0, share**-0.5)
    return _pixels(frames.images[frames.is_photo], drawn, pointmaps.cameras, picked, step, 0.1, sh_degree)


def from_pointmaps(frames: Frames, pointmaps: Pointmaps, most: int, sh_degree: int, backend: Backend) -> Gaussians:
    """One Gaussian per known pixel that no other view already covers, subsampled evenly to at most ``most`` (0: all).

    The depth of a pixel that no other view confirms is unreliable: it is moved back along its ray until it occludes no
    confirmed surface in any frame, and left out if that is not possible.
    """
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)
    wanted = (pointmaps.confidence > KNOWN) & ~repeated_pixels(depth, pointmaps)
    picked, step = thin_pixels(wanted, most)
    images, sure = frames.images[frames.is_photo], pointmaps.confidence > CONFIRMED
    confirmed = _pixels(images, depth, pointmaps.cameras, picked & sure, step, 0.9, sh_degree)
    surfaces = render_surfaces(confirmed, frames.cameras, backend)
    parts = [confirmed]
    for i, unsure in enumerate(picked & ~sure):
        camera = pointmaps.cameras[[i]]
        moved, free = push_behind(depth[i][unsure], unsure, camera, surfaces)
        place = depth[i].clone()
        place[unsure] = moved
        unsure = unsure.clone()
        unsure[unsure.clone()] = free
        parts.append(_pixels(images[[i]], place[None], camera, unsure[None], step, 0.5, sh_degree))
    return concatenate(parts)


def from_every_pixel(frames: Frames, pointmaps: Pointmaps, most: int, sh_degree: int) -> Gaussians:
    """One Gaussian per usable pixel of every photo, where its pointmap puts it (paper IV-E), at most ``most`` (0: all).

    Where a network gave no depth, outside its crop, the pointmap holds that of the crop's edge, and the optimisation moves it.
    """
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)
    picked, step = thin_pixels(usable_pixels(frames), most)
    return _pixels(frames.images[frames.is_photo], depth, pointmaps.cameras, picked, step, 0.9, sh_degree)


def usable_pixels(frames: Frames) -> Bool[Tensor, "n h w"]:
    """Pixels of the photos that are neither masked out nor margin."""
    return frames.confidence[frames.is_photo] > 0


def thin_pixels(wanted: Bool[Tensor, "n h w"], most: int) -> tuple[Bool[Tensor, "n h w"], float]:
    """At most ``most`` of the wanted pixels (0: all), evenly skipped, and how many pixels they are apart."""
    step = max(1.0, float(np.sqrt(int(wanted.sum()) / most))) if most else 1.0
    while int((picked := wanted & every_nth(wanted, step)).sum()) > most > 0:
        step *= 1.02
    return picked, step


def _pixels(
    images: Float[Tensor, "n h w 3"], depth: Float[Tensor, "n h w"], cameras: Cameras, where: Bool[Tensor, "n h w"],
    step: float, opacity: float, sh_degree: int,
) -> Gaussians:  # fmt: skip
    """One Gaussian per pixel of ``where``, with a scale that matches the distance to the next one (``step`` pixels)."""
    size = SPREAD * step * depth / cameras.intrinsics[:, 0, 0][:, None, None]
    points, scale = unproject(depth, cameras)[where], size[where].clamp(min=1e-7)
    return gaussians_from_points(points, images[where], scale, torch.full_like(scale, opacity), sh_degree)


def every_nth(like: Bool[Tensor, "n h w"], step: float) -> Bool[Tensor, "n h w"]:
    """Mask of a grid of pixels ``step`` apart; a fractional step takes the nearest pixels."""
    height, width = like.shape[1:]
    rows, columns = (((torch.arange(int(side / step)) + 0.5) * step).long() for side in (height, width))
    grid = torch.zeros_like(like)
    grid[:, rows[:, None], columns] = True
    return grid


def repeated_pixels(depth: Float[Tensor, "n h w"], pointmaps: Pointmaps) -> Bool[Tensor, "n h w"]:
    """Pixels whose surface an earlier view already covers with at least the same resolution and confidence."""
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
            repeated[i] |= (same & (trust >= 0.9 * pointmaps.confidence[i].flatten()) & (trust > CONFIRMED)).reshape(
                height, width
            )
    return repeated


@dataclass(frozen=True)
class Surfaces:
    """Depth of the nearest surface from each camera."""

    depth: Float[Tensor, "n h w"]  # 0 where there is none
    cameras: Cameras
    clearance: float  # distance from the cameras, world units


def render_surfaces(gaussians: Gaussians, cameras: Cameras, backend: Backend, clearance: float = 0.0) -> Surfaces:
    """Render the depth of the Gaussians from every camera at half resolution; ``clearance``: a share of the typical depth."""
    small = resize_cameras(cameras, cameras.height // 2, cameras.width // 2)
    with torch.no_grad():
        rendering = rasterize(gaussians, small, backend=backend)
    solid = rendering.alpha > HOLE
    depth = torch.where(solid, rendering.depth / rendering.alpha.clamp(min=1e-6), 0.0)
    typical = float(depth[solid].median()) if bool(solid.any()) else 0.0
    return Surfaces(depth, small, clearance * typical)


def occludes(points: Float[Tensor, "p 3"], surfaces: Surfaces) -> Bool[Tensor, " p"]:
    """Points that lie in front of a surface as seen from any of its cameras, or so near to one that they would fill a view."""
    pixels, z = project(points, surfaces.cameras.intrinsics, surfaces.cameras.world_to_cam)
    grid = pixels / pixels.new_tensor([surfaces.cameras.width, surfaces.cameras.height]) * 2 - 1
    first = F.grid_sample(surfaces.depth[:, None], grid[:, None], mode="nearest", align_corners=False)[:, 0, 0]
    near = torch.cdist(surfaces.cameras.cam_to_world[:, :3, 3], points) < surfaces.clearance
    return ((z > 0) & (z < IN_FRONT * first) | near).any(0)


def push_behind(
    depth: Float[Tensor, " p"], where: Bool[Tensor, "h w"], camera: Cameras, surfaces: Surfaces
) -> tuple[Float[Tensor, " p"], Bool[Tensor, " p"]]:
    """The smallest multiple of ``depth`` (BACK_OFF) at which a point occludes no surface, and whether there is one."""
    best, hiding = depth.clone(), torch.arange(len(depth))
    eye = camera.cam_to_world[0, :3, 3]
    rays = _on_rays(torch.ones_like(depth), where, camera) - eye
    for factor in BACK_OFF:
        best[hiding] = factor * depth[hiding]
        hiding = hiding[occludes(eye + best[hiding, None] * rays[hiding], surfaces)]
    clear = torch.ones_like(depth, dtype=torch.bool)
    clear[hiding] = False
    return best, clear


def _on_rays(depth: Float[Tensor, " p"], where: Bool[Tensor, "h w"], camera: Cameras) -> Float[Tensor, "p 3"]:
    full = torch.ones(where.shape)
    full[where] = depth
    return unproject(full[None], camera)[0][where]


def fill_holes(gaussians: Gaussians, frames: Frames, backend: Backend) -> Gaussians:
    """Add coarse Gaussians in the holes of renders with a wider field of view from the frames' cameras.

    Colour and inverse depth are inpainted from the background at the edge of the hole; points that would occlude a surface
    in a frame, or lie between the cameras, are moved back until they do not.
    """
    order = torch.cat([frames.is_photo.nonzero()[:, 0], (~frames.is_photo).nonzero()[:, 0]])
    cameras = widen(frames.cameras, WIDER)
    surfaces = render_surfaces(gaussians, frames.cameras, backend, CLEARANCE)
    for i in order.tolist():
        with torch.no_grad():
            rendering = rasterize(gaussians, cameras[[i]], backend=backend)
        depth, colour, hole = _inpaint(rendering.rgb[0], rendering.depth[0], rendering.alpha[0])
        hole &= every_nth(hole[None], FILL_STEP)[0]
        depth, clear = push_behind(depth[hole], hole, cameras[[i]], surfaces)
        points = _on_rays(depth, hole, cameras[[i]])[clear]
        scale = SPREAD * FILL_STEP * depth[clear] / cameras.intrinsics[i, 0, 0]
        opacity = torch.full_like(scale, 0.8)
        filling = gaussians_from_points(points, colour[hole][clear].clamp(0, 1), scale, opacity, gaussians.sh_degree)
        gaussians = concatenate([gaussians, filling])
    return gaussians


def add_backdrop(gaussians: Gaussians, frames: Frames, backend: Backend) -> Gaussians:
    """Add large Gaussians behind all surfaces, in the blurred colours of the photos.

    Novel views show small gaps between the Gaussians; they should show a plausible colour instead of black.
    """
    surfaces = render_surfaces(gaussians, frames.cameras, backend, CLEARANCE)
    # One for all: beside a close-up the scene goes on, and what is behind it there would stand in the others' way.
    farthest = BACKDROP * float(torch.quantile(surfaces.depth.flatten(1)[:, ::7], 0.98, dim=1).max())
    parts = [gaussians]
    for i in frames.is_photo.nonzero()[:, 0].tolist():
        camera = widen(frames.cameras[[i]], WIDER)
        every = torch.ones(camera.height, camera.width, dtype=torch.bool)
        grid = every_nth(every[None], BACKDROP_STEP)[0]
        depth = torch.full((int(grid.sum()),), farthest)
        points = _on_rays(depth, grid, camera)
        colour = _blurred(frames.images[i], frames.confidence[i].gt(0).float(), camera)[grid]
        clear = ~occludes(points, surfaces)
        scale = BACKDROP_STEP * depth[clear] / camera.intrinsics[0, 0, 0]
        opacity = torch.full_like(scale, 0.95)
        parts.append(gaussians_from_points(points[clear], colour[clear], scale, opacity, gaussians.sh_degree))
    return concatenate(parts)


def _blurred(image: Float[Tensor, "h w 3"], usable: Float[Tensor, "h w"], wider: Cameras) -> Float[Tensor, "h2 w2 3"]:
    """The photo, blurred, in the centre of the wider camera's image; masked pixels and everything outside are inpainted."""
    height, width = (round(side / 2) for side in image.shape[:2])
    known = torch.cat([image * usable[..., None], usable[..., None]], -1).permute(2, 0, 1)[None]
    small = F.interpolate(known, (height, width), mode="area")[0].permute(1, 2, 0)
    top, left = (wider.height - height) // 2, (wider.width - width) // 2
    canvas, weight = torch.zeros(wider.height, wider.width, 3), torch.zeros(wider.height, wider.width)
    canvas[top : top + height, left : left + width] = small[..., :3] / small[..., 3:].clamp(min=1e-6)
    weight[top : top + height, left : left + width] = BLUR * small[..., 3]
    return pull_push(canvas[None], weight[None])[0]


def _inpaint(
    rgb: Float[Tensor, "h w 3"], depth: Float[Tensor, "h w"], alpha: Float[Tensor, "h w"]
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w 3"], Bool[Tensor, "h w"]]:
    """Depth and colour with holes inpainted, mostly from the background, and the mask of the holes."""
    solid = alpha > HOLE
    depth = depth / alpha.clamp(min=1e-6)
    typical = depth[solid].median() if bool(solid.any()) else depth.new_tensor(1.0)
    weight = torch.where(solid, (depth / typical).clamp(0.1, 10.0) ** FAR_BIAS, 0.0) / 10.0**FAR_BIAS
    known = torch.cat([rgb / alpha.clamp(min=1e-6)[..., None], 1 / depth.clamp(min=1e-6)[..., None]], -1)
    filled = pull_push(known[None], weight[None])[0]
    return 1 / filled[..., 3].clamp(min=1e-6), filled[..., :3], ~solid & (filled[..., 3] > 0)


def widen(cameras: Cameras, factor: float) -> Cameras:
    """The same cameras with a larger field of view, at half the resolution."""
    width, height = (round(side * factor / 2) for side in (cameras.width, cameras.height))
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2] *= 0.5
    intrinsics[:, 0, 2] += (width - cameras.width / 2) / 2
    intrinsics[:, 1, 2] += (height - cameras.height / 2) / 2
    return Cameras(intrinsics, cameras.cam_to_world, width, height)
