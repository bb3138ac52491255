"""Ray-cast pictures of textured solids: trilinear texture lookup inside surfaces, supersampling at their edges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.datasets.solids import Solid, face_uv, first_hit
from reconx_core.geometry.transforms import camera_rays

_LEVELS = 11  # of a 1024 texel face


@dataclass(frozen=True)
class Scene:
    """Solids and the mip pyramids of their textures; face f of solid s is surface 6 s + f."""

    solids: tuple[Solid, ...]
    texels: Float[Tensor, "t 3"]
    offsets: Int[Tensor, "surfaces levels"]
    sides: Int[Tensor, " surfaces"]
    texel_metres: Float[Tensor, " surfaces"]


def build_scene(solids: tuple[Solid, ...], faces: list[Float[Tensor, "t t 3"]]) -> Scene:
    """Pack every face's mip pyramid (sides are powers of two, at most 1024) into one table."""
    texels, offsets, start = [], [], 0
    for face in faces:
        pyramid = [face]
        while len(pyramid[-1]) > 1:
            pyramid.append(F.avg_pool2d(pyramid[-1].permute(2, 0, 1), 2).permute(1, 2, 0))
        sizes = torch.tensor([0] + [len(p) ** 2 for p in pyramid]).cumsum(0) + start
        offsets.append(F.pad(sizes[:-1], (0, _LEVELS - len(pyramid)), value=int(sizes[-2])))
        texels += [p.reshape(-1, 3) for p in pyramid]
        start = int(sizes[-1])
    sides = torch.tensor([len(face) for face in faces])
    metres = torch.tensor([max(solid.extent(f)) for solid in solids for f in range(6)]) / sides
    return Scene(solids, torch.cat(texels), torch.stack(offsets), sides, metres)


def render(
    scene: Scene, intrinsics: Float[Tensor, "3 3"], cam_to_world: Float[Tensor, "4 4"], height: int, width: int
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w"]]:
    """Picture and z-depth at pixel centres, by ray casting; pixels on the edge between two surfaces are supersampled."""
    rays = camera_rays(intrinsics, height, width).reshape(-1, 3)
    pixel = 1 / float(intrinsics[0, 0])  # a pixel's size at unit depth
    colour, depth, surface = trace(scene, cam_to_world, rays, pixel)
    edge = _edges(surface.view(height, width)).flatten().nonzero()[:, 0]
    offsets = [(x, y, 0.0) for x in (-0.375, -0.125, 0.125, 0.375) for y in (-0.375, -0.125, 0.125, 0.375)]
    scale = torch.tensor([intrinsics[0, 0], intrinsics[1, 1], 1.0])
    inner = (rays[edge, None] + torch.tensor(offsets) / scale).reshape(-1, 3)
    colour[edge] = trace(scene, cam_to_world, inner, pixel / 4)[0].view(-1, len(offsets), 3).mean(1)
    return colour.view(height, width, 3), depth.view(height, width)


def trace(
    scene: Scene, cam_to_world: Float[Tensor, "4 4"], rays: Float[Tensor, "p 3"], pixel: float
) -> tuple[Float[Tensor, "p 3"], Float[Tensor, " p"], Int[Tensor, " p"]]:
    """Colour, ray parameter (z-depth if rays have z = 1) and surface of the first hit of camera-frame rays."""
    origin, direction = cam_to_world[:3, 3].expand_as(rays), rays @ cam_to_world[:3, :3].T
    depth, nearest = first_hit(scene.solids, origin, direction)
    surface, uv, cosine = torch.zeros_like(nearest), torch.zeros(len(rays), 2), torch.ones(len(rays))
    points = origin + depth[:, None] * direction
    for s, solid in enumerate(scene.solids):
        hit = (nearest == s).nonzero()[:, 0]
        local = solid.to_local(points[hit])
        face, uv[hit] = face_uv(local, solid.kind == "cylinder")
        surface[hit] = 6 * s + face
        cosine[hit] = (solid.normal(local) * F.normalize(direction[hit], dim=-1)).sum(-1).abs()
    footprint = depth * pixel * cosine.clamp(min=0.05).rsqrt()
    return sample(scene, surface, uv, footprint), depth, surface


def sample(
    scene: Scene, surface: Int[Tensor, " p"], uv: Float[Tensor, "p 2"], footprint: Float[Tensor, " p"]
) -> Float[Tensor, "p 3"]:
    """Trilinear texture lookup: the mip level is where a texel is as large as the pixel's footprint (metres)."""
    level = torch.log2(footprint / scene.texel_metres[surface]).clamp(0, scene.offsets.shape[1] - 1.001)
    level = torch.minimum(level, torch.log2(scene.sides[surface].float()) - 1.001)
    low = level.long()
    return torch.lerp(_bilinear(scene, surface, low, uv), _bilinear(scene, surface, low + 1, uv), (level - low)[:, None])


def _edges(surface: Int[Tensor, "h w"]) -> Tensor:
    """Pixels with a neighbour on another surface."""
    padded = F.pad(surface[None, None].float(), (1, 1, 1, 1), mode="replicate")
    return (F.max_pool2d(padded, 3, 1) != -F.max_pool2d(-padded, 3, 1))[0, 0]


def _bilinear(scene: Scene, surface: Tensor, level: Tensor, uv: Float[Tensor, "p 2"]) -> Float[Tensor, "p 3"]:
    side = scene.sides[surface] >> level
    x, y = ((uv[:, i] + 1) / 2 * side - 0.5 for i in (0, 1))
    x, y = (torch.minimum(c.clamp(min=0), side - 1.0) for c in (x, y))
    left, top = x.long(), y.long()
    right, bottom = torch.minimum(left + 1, side - 1), torch.minimum(top + 1, side - 1)
    start = scene.offsets[surface, level]
    fetch = lambda row, column: scene.texels[start + row * side + column]  # noqa: E731
    wx, wy = (x - left)[:, None], (y - top)[:, None]
    return torch.lerp(
        torch.lerp(fetch(top, left), fetch(top, right), wx), torch.lerp(fetch(bottom, left), fetch(bottom, right), wx), wy
    )
