"""How far the mesh of a procedural scene lies from its true surfaces: `python -m benchmarks.mesh [SPEC] [stage.key=value ...]`.

A vertex's distance is that along the axis of the camera in which it is least, to the true depth there. Vertices that no camera
of the capture sees do not count. The same of the rendered depths, and of the geometry backend's, as what the mesh is made from.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

import reconx
from reconx_core.datasets import read
from reconx_core.export.mesh import DETAIL, extract_mesh, render_depths
from reconx_core.export.prune import cameras_of_scene
from reconx_core.geometry.transforms import depth_of, project
from reconx_core.types import Cameras

SPEC = "procedural:room?seed=1&views=4&width=256&height=192"


def truth(spec: str) -> tuple[Cameras, Float[Tensor, "n h w"], list[str]]:
    """Cameras, exact depths and names of all photos, held-out ones included."""
    photos = read(Path(spec)).photos
    depths = torch.stack([photo.load_depth() for photo in photos if photo.load_depth is not None])
    intrinsics, poses = (torch.stack([getattr(p, name) for p in photos]).float() for name in ("intrinsics", "cam_to_world"))
    return Cameras(intrinsics, poses, depths.shape[2], depths.shape[1]), depths, [photo.name for photo in photos]


def off(points: Float[Tensor, "p 3"], cameras: Cameras, depths: Float[Tensor, "n h w"]) -> Float[Tensor, " q"]:
    """The distances, in the scene's units, of the points that a camera sees."""
    pixels, z = project(points, cameras.intrinsics, cameras.world_to_cam)
    size = pixels.new_tensor([cameras.width, cameras.height])
    inside = (z > 0) & (pixels >= 0).all(-1) & (pixels < size).all(-1)
    grid = (pixels / size * 2 - 1)[:, None]
    there = 1 / F.grid_sample(1 / depths[:, None], grid, padding_mode="border", align_corners=False)[:, 0, 0]
    least = torch.where(inside, (z - there).abs(), torch.inf).min(0).values
    return least[least.isfinite()]


def told(name: str, distance: Float[Tensor, " p"], depth: float) -> str:
    shares = ", ".join(f"{(distance < depth * part).float().mean():.0%} within {part:.0%}" for part in (0.01, 0.02, 0.05))
    return f"{name}: median {distance.median():.4f} ({distance.median() / depth:.2%} of the median depth), {shares}"


def main(spec: str, overrides: list[str]) -> None:
    settings = reconx.make_settings(["views.protocol=posed", *overrides])
    scene = reconx.reconstruct_stored(spec, os.environ["RECONX_STORE"], settings)
    cameras, depths, names = truth(spec)
    depth = float(depths.median())
    own = torch.tensor([names.index(name) for name in scene.views.inputs().select(scene.kept).names])
    mesh = extract_mesh(scene.gaussians, cameras_of_scene(scene.cameras), DETAIL)
    side = float((mesh.vertices.max(0).values - mesh.vertices.min(0).values).max())
    print(f"{len(mesh.vertices):,} vertices, {len(mesh.faces):,} triangles")
    print(f"cells of {side / DETAIL:.4f}, median depth {depth:.2f}")
    print(told("mesh", off(mesh.vertices, cameras, depths), depth))
    exact = F.interpolate(depths[own, None], (scene.cameras.height, scene.cameras.width), mode="nearest-exact")[:, 0]
    seen = render_depths(scene.gaussians, scene.cameras)
    print(told("rendered depth", (seen.depth - exact).abs()[seen.confidence > 0], depth))
    estimated = depth_of(scene.pointmaps.points_world, scene.cameras)
    print(told("geometry backend", (estimated - exact).abs()[scene.pointmaps.confidence > 0.5], depth))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else SPEC, sys.argv[2:])
