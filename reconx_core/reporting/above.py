"""A scene from above: its points, the photos and the path of the generated frames."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import normalize

from reconx_core.types import Cameras, PointCloud

SIDE, MARGIN, FINER = 640, 24, 2  # pixels; drawn finer by a factor, then reduced
MOST_POINTS = 60_000
SURE = 0.35  # least confidence of a point that is drawn, if any has it
OVERHEAD = 0.25  # points higher above the cameras than this share of the scene's extent hide it: a ceiling
SIGHT = 0.06  # length of a camera's lines of sight, in extents
Place = Callable[[Float[Tensor, "n 3"]], np.ndarray]  # of world points, pixels of the picture
PHOTO, FRAME, PAPER = (200, 40, 30), (20, 90, 200), (250, 250, 248)


def draw_above(cloud: PointCloud, photos: Cameras, path: Cameras) -> Image.Image:
    """The picture: photos red and path blue, each camera with its angle of view; points in their colours, pale."""
    right, ahead, up = axes_above(photos)
    together = torch.cat([photos.cam_to_world, path.cam_to_world])[:, :3, 3]
    chosen = shown_points(cloud, together, up)
    known = cloud.xyz[chosen]
    flat = torch.stack([right, -ahead])
    low, extent = _frame(torch.cat([together, _within(known)]) @ flat.T)
    scale = FINER * (SIDE - 2 * MARGIN) / extent
    side = FINER * SIDE

    def place(points: Float[Tensor, "n 3"]) -> np.ndarray:
        return ((points @ flat.T - low) * scale + FINER * MARGIN).numpy()

    image = Image.fromarray(_dots(place(known), cloud.rgb[chosen], side))
    draw = ImageDraw.Draw(image)
    _draw_cameras(draw, path, place, SIGHT * extent / 2, FRAME, 2)
    line = [tuple(point) for point in place(path.cam_to_world[:, :3, 3]).tolist()]
    draw.line(line, fill=FRAME, width=FINER)
    _draw_cameras(draw, photos, place, SIGHT * extent, PHOTO, 4)
    return image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


def reach_of(photos: Cameras, path: Cameras) -> tuple[float, float]:
    """How far the path goes from the photos: the largest distance of a camera from its nearest photo, and of its direction from
    the nearest photo's, in degrees. The distance is in the photos' own: the median one from a photo to the nearest other.
    """
    apart = torch.cdist(path.cam_to_world[:, :3, 3], photos.cam_to_world[:, :3, 3]).amin(1).max()
    between = torch.cdist(photos.cam_to_world[:, :3, 3], photos.cam_to_world[:, :3, 3]).fill_diagonal_(torch.inf)
    turned = (path.cam_to_world[:, :3, 2] @ photos.cam_to_world[:, :3, 2].mT).clamp(-1, 1).amax(1).min()
    return float(apart / between.amin(1).median().clamp(min=1e-9)), float(turned.acos().rad2deg())


def axes_above(photos: Cameras) -> tuple[Float[Tensor, " 3"], Float[Tensor, " 3"], Float[Tensor, " 3"]]:
    """To the right and ahead of the mean photo, and up; unit vectors in world."""
    up = normalize(-photos.cam_to_world[:, :3, 1].mean(0), dim=0)
    ahead = photos.cam_to_world[:, :3, 2].mean(0)
    ahead = ahead - (ahead @ up) * up
    if ahead.norm() < 1e-3:  # photos all around, or of what lies below them
        first = photos.cam_to_world[0, :3, 0]
        ahead = torch.linalg.cross(up, first - (first @ up) * up)
    ahead = normalize(ahead, dim=0)
    return torch.linalg.cross(ahead, up), ahead, up


def shown_points(cloud: PointCloud, cameras: Float[Tensor, "n 3"], up: Float[Tensor, " 3"]) -> Int[Tensor, " k"]:
    """Indices of the points to draw, from the lowest to the highest."""
    sure = cloud.confidence > SURE
    index = (sure if bool(sure.any()) else cloud.confidence >= 0).nonzero()[:, 0]
    index = index[:: max(1, len(index) // MOST_POINTS)]
    height = cloud.xyz[index] @ up
    if len(index):
        extent = float((_within(cloud.xyz[index]) @ up).max() - (_within(cloud.xyz[index]) @ up).min())
        low = height <= (cameras @ up).max() + OVERHEAD * extent
        index, height = index[low], height[low]
    return index[height.argsort()]


def _within(points: Float[Tensor, "n 3"]) -> Float[Tensor, "k 3"]:
    """The points without the farthest few of each axis, which are often noise."""
    if len(points) < 100:
        return points
    low, high = (torch.from_numpy(np.quantile(points.numpy(), share, axis=0)) for share in (0.02, 0.98))
    return points[((points >= low) & (points <= high)).all(-1)]


def _frame(places: Float[Tensor, "n 2"]) -> tuple[Float[Tensor, " 2"], float]:
    """The lower corner and the side of the square around all places."""
    low, high = places.amin(0), places.amax(0)
    extent = float((high - low).max().clamp(min=1e-9))
    return (low + high - extent) / 2, extent


def _dots(places: np.ndarray, colours: Float[Tensor, "n 3"], side: int) -> np.ndarray:
    """Points as squares of 2 pixels, mixed with paper so that cameras stand out; the last ones are on top."""
    canvas = np.full((side, side, 3), PAPER, np.uint8)
    shades = (0.6 * 255 * colours.clamp(0, 1).numpy() + 0.4 * np.array(PAPER)).astype(np.uint8)
    x, y = np.floor(places).astype(int).T if len(places) else np.zeros((2, 0), int)
    for dx, dy in ((0, 0), (1, 0), (0, 1), (1, 1)):
        inside = (x + dx >= 0) & (x + dx < side) & (y + dy >= 0) & (y + dy < side)
        canvas[(y + dy)[inside], (x + dx)[inside]] = shades[inside]
    return canvas


def _draw_cameras(
    draw: ImageDraw.ImageDraw, cameras: Cameras, place: Place, length: float, colour: tuple[int, int, int], size: int
) -> None:
    """Dots of ``size`` pixels, and two lines of sight of ``length`` world units at the edges of each picture."""
    centres = cameras.cam_to_world[:, :3, 3]
    half = 0.5 * cameras.width / cameras.intrinsics[:, 0, 0]
    for sign in (-1, 1):
        ray = normalize(cameras.cam_to_world[:, :3, 2] + sign * half[:, None] * cameras.cam_to_world[:, :3, 0], dim=-1)
        for start, end in zip(place(centres).tolist(), place(centres + length * ray).tolist()):
            draw.line([tuple(start), tuple(end)], fill=colour, width=FINER)
    for x, y in place(centres).tolist():
        r = FINER * size
        draw.ellipse([x - r, y - r, x + r, y + r], fill=colour)
