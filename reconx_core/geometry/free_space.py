"""Where a camera can be: what a point cloud and the photos behind it tell of a place that no photo was taken from.

A photo has seen through all that lies before its surfaces. What lies behind them, and what no photo looks at, is not known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from scipy.spatial import cKDTree
from torch import Tensor
from torch.nn.functional import normalize

from reconx_core.geometry.transforms import depth_of, project, resize_cameras, size_for
from reconx_core.types import Cameras, Pointmaps

SURE = 0.35  # confidence from which a point counts as surface
MOST_POINTS = 200_000  # that are searched, evenly subsampled
NEAREST = 4  # the distance to a surface is that to its n-th nearest point: a single one may be noise
CLEARANCE = 0.1  # least distance to a surface, in median depths of the scene
OWN_SHARE = 0.5  # of the photos' own distance to the nearest surface: where they were, a camera can be
BEHIND = 1.03  # relative depth from which a place is behind a photo's surface
GRID = 64  # long side of the coarse picture that tells what a camera sees
MOSTLY = 0.5  # share of what a camera sees from behind with which it is behind a surface
WALL = 0.03  # share of the scene's points on a plane that is a wall, floor or ceiling, also where no photo shows it
BEYOND_WALL = 0.05  # share of the points that may lie behind a wall: noise, and what is seen through a window
ALONG = 0.9  # cosine between a wall's normal and those of its points
THICKNESS = 0.02  # of a wall's points, in median depths
CANDIDATES, JUDGES = 2000, 5000  # points whose planes are tried as walls, and points that these are held against
LEAST_SEEN = 0.05  # share of the picture that points fill, below which a camera sees nothing of the scene

INSIDE = "runs into a surface"
HIDDEN = "goes behind what the photos show"
BLIND = "sees nothing of what the photos show"


@dataclass(frozen=True)
class FreeSpace:
    """What is known of a scene's surfaces, in world units."""

    pointmaps: Pointmaps
    depth: Float[Tensor, "n h w"]  # of the photos
    sure: Bool[Tensor, "n h w"]
    points: Float[Tensor, "p 3"]
    normals: Float[Tensor, "p 3"]  # towards the photo that shows the point
    tree: Any  # of the points, scipy's
    clearance: float
    walls: Float[Tensor, "m 4"]  # planes that all of the scene is on one side of: unit normal to that side, and offset


def free_space(pointmaps: Pointmaps) -> FreeSpace:
    """What the pointmaps tell. Points below SURE count only where no other is as sure."""
    sure = pointmaps.confidence > SURE
    sure = sure if bool(sure.any()) else pointmaps.confidence > 0
    depth = depth_of(pointmaps.points_world, pointmaps.cameras)
    chosen = sure.flatten().nonzero()[:, 0]
    chosen = chosen[:: max(1, -(-len(chosen) // MOST_POINTS))]
    points = pointmaps.points_world.reshape(-1, 3)[chosen]
    normals = surface_normals(pointmaps).reshape(-1, 3)[chosen]
    tree = cKDTree(points.double().numpy())
    own = _distance(tree, pointmaps.cameras.cam_to_world[:, :3, 3])
    typical = float(depth[sure].median()) if len(points) else 0.0
    clearance = min(CLEARANCE * typical, OWN_SHARE * float(own.min()))
    walls = find_walls(points, normals, pointmaps.cameras, THICKNESS * typical)
    return FreeSpace(pointmaps, depth, sure, points, normals, tree, clearance, walls)


def find_walls(
    points: Float[Tensor, "p 3"], normals: Float[Tensor, "p 3"], cameras: Cameras, thickness: float
) -> Float[Tensor, "m 4"]:
    """Planes of points with all photos and nearly all other points on one side, as [normal, offset]; world units.

    A room goes on where no photo shows it: a camera on such a plane's other side would have left it.
    """
    candidates = slice(None, None, max(1, len(points) // CANDIDATES))
    judges = slice(None, None, max(1, len(points) // JUDGES))
    planes = torch.cat([normals[candidates], -(points[candidates] * normals[candidates]).sum(-1, keepdim=True)], -1)
    distance = points[judges] @ planes[:, :3].mT + planes[:, 3]
    flat = (distance.abs() < thickness) & (normals[judges] @ planes[:, :3].mT > ALONG)
    on_it, behind = flat.float().mean(0), (distance < -thickness).float().mean(0)
    photos = cameras.cam_to_world[:, :3, 3] @ planes[:, :3].mT + planes[:, 3]
    return planes[(on_it > WALL) & (behind < BEYOND_WALL) & (photos > thickness).all(0)]


def surface_normals(pointmaps: Pointmaps) -> Float[Tensor, "n h w 3"]:
    """Unit normals of the pointmaps' surfaces, each towards the camera of its photo."""
    points = pointmaps.points_world
    down, right = (torch.gradient(points, dim=axis)[0] for axis in (1, 2))
    normals = normalize(torch.linalg.cross(right, down, dim=-1), dim=-1, eps=1e-30)
    towards = pointmaps.cameras.cam_to_world[:, None, None, :3, 3] - points
    return torch.where((normals * towards).sum(-1, keepdim=True) < 0, -normals, normals)


def obstacles(space: FreeSpace, cameras: Cameras) -> list[str]:
    """For each camera why it cannot be there, as the end of a sentence; empty where it can."""
    centres = cameras.cam_to_world[:, :3, 3]
    near = inside(space, centres)
    free, hidden = seen_through(space, centres)
    filled, backs = what_is_seen(space, cameras)
    behind = ~free & (hidden | (backs > MOSTLY))
    return [
        INSIDE if inside else HIDDEN if back else BLIND if seen < LEAST_SEEN else ""
        for inside, seen, back in zip(near.tolist(), filled.tolist(), behind.tolist())
    ]


def inside(space: FreeSpace, places: Float[Tensor, "k 3"]) -> Bool[Tensor, " k"]:
    """Whether a place is nearer to a surface than a camera should be, or beyond a wall."""
    return (_distance(space.tree, places) < space.clearance) | outside(space, places)


def outside(space: FreeSpace, places: Float[Tensor, "k 3"]) -> Bool[Tensor, " k"]:
    """Whether a place is nearer to a wall than a camera should be, or behind it, also where no photo shows the wall."""
    photos = space.pointmaps.cameras.cam_to_world[:, :3, 3]
    own = (photos @ space.walls[:, :3].mT + space.walls[:, 3]).amin(0)
    least = (OWN_SHARE * own).clamp(max=space.clearance)
    return (places @ space.walls[:, :3].mT + space.walls[:, 3] < least).any(-1)


def seen_through(space: FreeSpace, places: Float[Tensor, "k 3"]) -> tuple[Bool[Tensor, " k"], Bool[Tensor, " k"]]:
    """Whether a photo has seen through each place, and whether one shows a surface before it; neither where none looks."""
    cameras = space.pointmaps.cameras
    pixels, z = project(places, cameras.intrinsics, cameras.world_to_cam)
    x, y = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < cameras.width) & (y >= 0) & (y < cameras.height)
    x, y = x.clamp(0, cameras.width - 1), y.clamp(0, cameras.height - 1)
    view = torch.arange(len(cameras))[:, None].expand_as(x)
    known = inside & space.sure[view, y, x]
    surface = space.depth[view, y, x]
    return (known & (z < surface / BEHIND)).any(0), (known & (z > surface * BEHIND)).any(0)


def what_is_seen(space: FreeSpace, cameras: Cameras) -> tuple[Float[Tensor, " k"], Float[Tensor, " k"]]:
    """Share of each camera's picture that points fill, and the share of these that it sees from behind."""
    small = resize_cameras(cameras, *size_for(GRID, cameras.height, cameras.width))
    shares = [_seen_by(space, small[[k]]) for k in range(len(cameras))]
    return torch.tensor([filled for filled, _ in shares]), torch.tensor([backs for _, backs in shares])


def _seen_by(space: FreeSpace, camera: Cameras) -> tuple[float, float]:
    pixels, depth = project(space.points, camera.intrinsics[0], camera.world_to_cam[0])
    x, y = pixels.floor().unbind(-1)
    inside = (depth > 0) & (x >= 0) & (x < camera.width) & (y >= 0) & (y < camera.height)
    points, normals, depth = space.points[inside], space.normals[inside], depth[inside]
    cell = (y[inside] * camera.width + x[inside]).long()
    nearest = torch.full((camera.width * camera.height,), torch.inf).scatter_reduce(0, cell, depth, "amin")
    front = depth <= nearest[cell] * BEHIND
    towards = camera.cam_to_world[0, :3, 3] - points[front]
    back = (normals[front] * towards).sum(-1) < 0
    filled = float(nearest.isfinite().float().mean())
    return filled, float(back.float().mean()) if len(back) else 0.0


def _distance(tree: Any, places: Float[Tensor, "k 3"]) -> Float[Tensor, " k"]:
    """Distance of places from the surface; infinite where there are too few points."""
    distance, _ = tree.query(places.double().numpy(), k=[min(NEAREST, max(1, tree.n))])
    return torch.from_numpy(distance[:, 0]).float()
