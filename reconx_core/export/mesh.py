"""A coloured mesh of a scene's surfaces: rendered depths of many cameras, joined in a truncated signed distance (TSDF)."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from plyfile import PlyData, PlyElement
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.export.gltf import mesh_to_glb
from reconx_core.geometry.transforms import in_picture, project, unproject
from reconx_core.io.images import to_uint8
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians

ENDINGS = (".ply", ".glb")
DETAIL = 256  # cells along the longest side of the box
TRUNCATION = 4  # cells within which depths are averaged
OPAQUE = 0.5  # least alpha of a pixel with a surface
EDGE = 0.03  # relative step of depth from pixel to pixel where it is a mixture of two surfaces
AGREE = 0.02  # relative difference of depths of one surface
INSIDE = 0.01  # share of the points, on either side of each axis, that may lie outside of the box
SMALLEST = 1e-3  # share of all triangles that a separate piece needs to stay
CELLS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Mesh:
    vertices: Float[Tensor, "v 3"]  # world
    faces: Int[Tensor, "f 3"]  # counter-clockwise seen from outside
    colours: Float[Tensor, "v 3"]


@dataclass(frozen=True)
class Depths:
    """What the cameras see of the Gaussians."""

    cameras: Cameras
    depth: Float[Tensor, "n h w"]  # z; meaningless where the confidence is 0
    confidence: Float[Tensor, "n h w"]  # [0, 1]
    rgb: Float[Tensor, "n h w 3"]


@dataclass(frozen=True)
class Box:
    """A grid of cubic cells."""

    low: Float[Tensor, " 3"]  # centre of cell (0, 0, 0)
    cell: float  # side
    shape: tuple[int, int, int]


def extract_mesh(gaussians: Gaussians, cameras: Cameras, detail: int = DETAIL) -> Mesh:
    """The surfaces that ``cameras`` see, in cells of which ``detail`` lie along the longest side of what they see.

    Raises:
        UserError: no surface is seen.
    """
    seen = render_depths(gaussians, cameras)
    box = _box(unproject(seen.depth, cameras)[seen.confidence > 0], detail)
    distance, known = integrate(seen, box)
    if not (known.any() and distance[known].min() < 0 < distance[known].max()):
        raise UserError("No surface is seen in the scene: it is too thin, or its cameras look elsewhere.")
    vertices, faces, _, _ = marching_cubes(distance.numpy(), 0.0, mask=known.numpy(), gradient_direction="descent")
    kept, faces = _without_crumbs(faces.astype(np.int64), len(vertices))
    points = box.low + box.cell * torch.from_numpy(np.ascontiguousarray(vertices[kept])).float()
    return Mesh(points, torch.from_numpy(faces), _colours(points, seen, TRUNCATION * box.cell))


@torch.no_grad()
def render_depths(gaussians: Gaussians, cameras: Cameras) -> Depths:
    """Depths with a confidence: opacity, times the share of the other cameras seeing the point whose depths agree.

    It is 0 at the edges of surfaces, where a pixel's depth lies between them.
    """
    one = [rasterize(gaussians, cameras[i : i + 1]) for i in range(len(cameras))]
    alpha, rgb = (torch.cat([getattr(r, name).cpu() for r in one]) for name in ("alpha", "rgb"))
    depth = torch.cat([r.depth.cpu() for r in one]) / alpha.clamp(min=1e-6)
    solid = (alpha > OPAQUE) & ~_edges(depth)
    agreed = torch.stack([_agreement(i, depth, solid, cameras) for i in range(len(cameras))])
    return Depths(cameras, depth, torch.where(solid, alpha * agreed, 0.0).clamp(0, 1), rgb.clamp(0, 1))


def _edges(depth: Float[Tensor, "n h w"]) -> Bool[Tensor, "n h w"]:
    highest = F.max_pool2d(depth[:, None], 3, 1, 1)[:, 0]
    lowest = -F.max_pool2d(-depth[:, None], 3, 1, 1)[:, 0]
    return highest > lowest * (1 + 2 * EDGE)


def _agreement(
    view: int, depth: Float[Tensor, "n h w"], solid: Bool[Tensor, "n h w"], cameras: Cameras
) -> Float[Tensor, "h w"]:
    """Share of the other cameras which see a surface where the point is, or behind it, and see it where the point is.

    1 where no other camera sees it.
    """
    points = unproject(depth[view : view + 1], cameras[view : view + 1])[0]
    same, behind = torch.zeros(points.shape[:2]), torch.zeros(points.shape[:2])
    for other in range(len(cameras)):
        if other == view:
            continue
        look = _look(points.reshape(-1, 3), depth, cameras, other)
        known, ratio = look.inside & solid[other].flatten()[look.pixel], look.depth / look.z
        same += (known & ((ratio - 1).abs() < AGREE)).reshape(same.shape)
        behind += (known & (ratio > 1 + AGREE)).reshape(same.shape)  # it sees through the point
    return torch.where(same + behind > 0, same / (same + behind).clamp(min=1), 1.0)


@dataclass(frozen=True)
class Look:
    """Points in a camera."""

    inside: Bool[Tensor, " p"]  # whether each falls into the picture
    pixel: Int[Tensor, " p"]  # its pixel's index there, any where it does not
    z: Float[Tensor, " p"]
    depth: Float[Tensor, " p"]  # what the camera sees there


def _look(points: Float[Tensor, "p 3"], depth: Float[Tensor, "n h w"], cameras: Cameras, view: int) -> Look:
    pixels, z = project(points, cameras.intrinsics[view], cameras.world_to_cam[view])
    inside = in_picture(pixels, z, cameras)
    pixels = torch.where(inside[:, None], pixels, 0.5)
    x, y = pixels.long().unbind(-1)
    # Inverse depth is linear on planes: nearest pixels would make steps of slanted ones.
    grid = (pixels / pixels.new_tensor([cameras.width, cameras.height]) * 2 - 1)[None, None]
    inverse = F.grid_sample(1 / depth[view][None, None].clamp(min=1e-6), grid, padding_mode="border", align_corners=False)
    return Look(inside, y * cameras.width + x, z.clamp(min=1e-9), 1 / inverse[0, 0, 0])


def _box(points: Float[Tensor, "p 3"], detail: int) -> Box:
    if not len(points):
        raise UserError("No surface is seen in the scene: its cameras see nothing opaque.")
    ordered = points.sort(0).values
    skip = int(INSIDE * len(points))
    low, high = ordered[skip], ordered[len(points) - 1 - skip]
    cell = float((high - low).max()) / detail
    margin = (TRUNCATION + 1) * cell
    x, y, z = (((high - low + 2 * margin) / cell).ceil().long() + 1).tolist()
    return Box(low - margin, cell, (x, y, z))


def integrate(seen: Depths, box: Box) -> tuple[Float[Tensor, "x y z"], Bool[Tensor, "x y z"]]:
    """The signed distance to the nearest surface, along the rays and averaged by confidence; in cells, positive before it.

    It is truncated; and which of the cells' corners are known.
    """
    distance, weight = torch.ones(box.shape), torch.zeros(box.shape)
    limit = TRUNCATION * box.cell
    for part, points in _slabs(box):
        total, weights = torch.zeros(len(points)), torch.zeros(len(points))
        for view in range(len(seen.cameras)):
            look = _look(points, seen.depth, seen.cameras, view)
            ahead = look.depth - look.z
            w = torch.where(look.inside & (ahead > -limit), seen.confidence[view].flatten()[look.pixel], 0.0)
            total += w * (ahead / limit).clamp(-1, 1)
            weights += w
        shape = distance[part].shape
        distance[part] = torch.where(weights > 0, total / weights.clamp(min=1e-9), 1.0).reshape(shape)
        weight[part] = weights.reshape(shape)
    return distance, _whole(weight > 0)


def _whole(known: Bool[Tensor, "x y z"]) -> Bool[Tensor, "x y z"]:
    """Whether all eight corners of the cell that begins at each corner are known."""
    padded = F.pad(known.float()[None, None], (0, 1, 0, 1, 0, 1))
    return -F.max_pool3d(-padded, 2, 1)[0, 0] > 0


def _slabs(box: Box) -> Iterator[tuple[slice, Float[Tensor, "p 3"]]]:
    """Slices along the first axis, with the positions of their cells."""
    x, y, z = (torch.arange(n) for n in box.shape)
    step = max(1, CELLS_AT_ONCE // (len(y) * len(z)))
    for start in range(0, len(x), step):
        part = slice(start, min(start + step, len(x)))
        grid = torch.stack(torch.meshgrid(x[part], y, z, indexing="ij"), -1).reshape(-1, 3)
        yield part, box.low + box.cell * grid


def _without_crumbs(faces: Int[np.ndarray, "f 3"], vertices: int) -> tuple[Int[np.ndarray, " v"], Int[np.ndarray, "g 3"]]:
    """The vertices to keep, and the faces by them: without separate pieces of few triangles, which are floaters."""
    pairs = (np.concatenate([faces[:, 0], faces[:, 1]]), np.concatenate([faces[:, 1], faces[:, 2]]))
    links = coo_matrix((np.ones(len(pairs[0]), bool), pairs), (vertices, vertices))
    _, piece = connected_components(links, directed=False)
    owner = piece[faces[:, 0]]
    large = np.bincount(owner, minlength=piece.max() + 1) >= SMALLEST * len(faces)
    faces = faces[large[owner]]
    kept, renumbered = np.unique(faces, return_inverse=True)
    return kept, renumbered.reshape(-1, 3)


def _colours(points: Float[Tensor, "v 3"], seen: Depths, limit: float) -> Float[Tensor, "v 3"]:
    """Means of the pictures' colours at each vertex, over the cameras that see it, near ones first; grey where none does."""
    total, weights = torch.zeros(len(points), 3), torch.zeros(len(points))
    for view in range(len(seen.cameras)):
        look = _look(points, seen.depth, seen.cameras, view)
        visible = look.inside & ((look.depth - look.z).abs() < limit)
        w = torch.where(visible, seen.confidence[view].flatten()[look.pixel] / look.z**2, 0.0)
        total += w[:, None] * seen.rgb[view].reshape(-1, 3)[look.pixel]
        weights += w
    return torch.where(weights[:, None] > 0, total / weights.clamp(min=1e-12)[:, None], 0.5)


def mesh_bytes(mesh: Mesh, ending: str) -> bytes:
    """A binary PLY in the scene's axes, or a GLB with y up, with a colour for each vertex."""
    if ending == ".glb":
        return mesh_to_glb(mesh.vertices, mesh.faces, mesh.colours)
    points, colours = mesh.vertices.numpy(), to_uint8(mesh.colours)
    columns = {name: points[:, i].astype("<f4") for i, name in enumerate("xyz")}
    columns |= {name: colours[:, i] for i, name in enumerate(("red", "green", "blue"))}
    vertex = np.empty(len(points), dtype=[(name, column.dtype) for name, column in columns.items()])
    for name, column in columns.items():
        vertex[name] = column
    face = np.empty(len(mesh.faces), dtype=[("vertex_indices", "<i4", (3,))])
    face["vertex_indices"] = mesh.faces.numpy()
    buffer = io.BytesIO()
    elements = [PlyElement.describe(vertex, "vertex"), PlyElement.describe(face, "face")]
    PlyData(elements, byte_order="<").write(buffer)
    return buffer.getvalue()
