"""The baseline of rasterize.py: a fair tiled Gaussian renderer in plain torch, float32, gradients by autograd.

Vectorised projection and lists of tiles, then per 16x16 tile one dense [splats, 256] block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reconx_core.geometry.transforms import pixel_grid, quaternion_to_matrix
from reconx_core.rasterize import conventions as conv
from reconx_core.types import Cameras, Gaussians

TILE = conv.TILE


def harmonics(directions: Tensor) -> Tensor:
    """The 16 real spherical harmonics [n, 16] of unit directions."""
    x, y, z = directions.unbind(-1)
    b, zz, minus, a = conv.SH_2
    d3, d2, ring_zz, ring, d0_zz, d0 = conv.SH_3
    basis = [
        torch.full_like(x, conv.SH_0), -conv.SH_1 * y, conv.SH_1 * z, -conv.SH_1 * x,
        b * x * y, -b * y * z, zz * z**2 - minus, -b * x * z, a * (x**2 - y**2),
        -d3 * y * (3 * x**2 - y**2), 2 * d2 * x * y * z, -y * (ring_zz * z**2 - ring), z * (d0_zz * z**2 - d0),
        -x * (ring_zz * z**2 - ring), d2 * z * (x**2 - y**2), -d3 * x * (x**2 - 3 * y**2),
    ]  # fmt: skip
    return torch.stack(basis, -1)


def project(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Screen positions [n, 2], covariances [n, 2, 2] and depths [n] in the first camera."""
    world_to_cam, intrinsics = cameras.world_to_cam[0], cameras.intrinsics[0]
    x, y, z = (gaussians.means @ world_to_cam[:3, :3].T + world_to_cam[:3, 3]).unbind(-1)
    focal, middle = intrinsics.diagonal()[:2], intrinsics[:2, 2]
    size = focal.new_tensor([cameras.width, cameras.height])
    slopes = torch.stack([x / z, y / z], -1)
    beyond = conv.VIEW_MARGIN * size / focal
    clamped = slopes.clamp(-middle / focal - beyond, (size - middle) / focal + beyond)
    jacobian = torch.cat([torch.diag_embed(focal / z[:, None]), (-focal * clamped / z[:, None])[..., None]], -1)
    axes = quaternion_to_matrix(gaussians.quats) * gaussians.log_scales.exp()[:, None]
    factor = jacobian @ world_to_cam[:3, :3] @ axes
    return slopes * focal + middle, factor @ factor.mT + conv.SCREEN_BLUR * torch.eye(2), z


@torch.no_grad()
def list_tiles(position: Tensor, covariance: Tensor, depth: Tensor, opacity: Tensor, cameras: Cameras) -> tuple[Tensor, ...]:
    """For each tile its splats from front to back: (indices of all tiles' splats, tile starts)."""
    reach = (2 * (opacity / conv.MIN_ALPHA).clamp(min=1).log()).sqrt()
    extent = (reach[:, None] * covariance.diagonal(dim1=-2, dim2=-1).sqrt()).ceil()
    tiles = torch.tensor([math.ceil(cameras.width / TILE), math.ceil(cameras.height / TILE)])
    low = ((position - extent) / TILE).floor().clamp(min=0).minimum(tiles).long()
    high = ((position + extent) / TILE).ceil().clamp(min=0).minimum(tiles).long()
    count = (high - low).prod(-1) * ((depth >= conv.NEAR) & (opacity >= conv.MIN_ALPHA))
    visible = count.nonzero()[:, 0]
    visible = visible[depth[visible].argsort(stable=True)]
    owner = visible.repeat_interleave(count[visible])
    nth = torch.arange(len(owner)) - (count[visible].cumsum(0) - count[visible]).repeat_interleave(count[visible])
    columns = (high - low)[owner, 0]
    tile = (low[owner, 1] + nth // columns) * tiles[0] + low[owner, 0] + nth % columns
    order = tile.argsort(stable=True)
    starts = torch.bincount(tile, minlength=int(tiles.prod())).cumsum(0)
    return owner[order], torch.cat([starts.new_zeros(1), starts])


def blend(position: Tensor, conic: Tensor, opacity: Tensor, features: Tensor, pixels: Tensor) -> Tensor:
    """Features [pixels, 4] and alpha of sorted splats over one tile."""
    dx, dy = (position[:, None] - pixels).unbind(-1)
    exponent = 0.5 * (conic[:, 0, 0, None] * dx * dx + conic[:, 1, 1, None] * dy * dy) + conic[:, 0, 1, None] * dx * dy
    alpha = (opacity[:, None] * torch.exp(-exponent)).clamp(max=conv.MAX_ALPHA)
    alpha = torch.where((exponent >= 0) & (alpha >= conv.MIN_ALPHA), alpha, 0)
    alpha = torch.where((1 - alpha.detach()).cumprod(0) > conv.MIN_TRANSMITTANCE, alpha, 0)
    left = torch.cat([alpha.new_ones(1, len(pixels)), (1 - alpha).cumprod(0)])
    return torch.cat([(alpha * left[:-1]).T @ features, 1 - left[-1, :, None]], -1)


def render(gaussians: Gaussians, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """rgb [h, w, 3], accumulated depth [h, w] and alpha [h, w] of the first camera."""
    position, covariance, depth = project(gaussians, cameras)
    opacity = gaussians.logit_opacities.sigmoid()
    directions = torch.nn.functional.normalize(gaussians.means - cameras.cam_to_world[0, :3, 3], dim=-1)
    colour = (torch.einsum("nk,nkc->nc", harmonics(directions), gaussians.sh) + 0.5).clamp(min=0)
    features, conic = torch.cat([colour, depth[:, None]], -1), torch.linalg.inv(covariance)
    order, starts = list_tiles(position, covariance, depth, opacity, cameras)
    corner, rows = pixel_grid(TILE, TILE).reshape(-1, 2), []
    columns = math.ceil(cameras.width / TILE)
    for tile, (start, end) in enumerate(zip(starts.tolist(), starts[1:].tolist())):
        i = order[start:end]
        pixels = corner + TILE * torch.tensor([tile % columns, tile // columns])
        rows.append(blend(position[i], conic[i], opacity[i], features[i], pixels))
    image = torch.stack(rows).reshape(-1, columns, TILE, TILE, 5).transpose(1, 2).reshape(-1, columns * TILE, 5)
    image = image[: cameras.height, : cameras.width]
    return image[..., :3], image[..., 3], image[..., 4]
