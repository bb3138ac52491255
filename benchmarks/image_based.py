"""Plane-sweep image-based rendering: the floor that a reconstruction has to be above.

For each held-out camera fronto-parallel planes are swept, the input photos are warped onto each, and where they agree in
colour their mean is shown (a soft winner over the planes). Nothing is learned or optimised; the true cameras are used.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core import datasets
from reconx_core.datasets.nerfstudio import read_frames
from reconx_core.geometry.transforms import pixel_grid
from reconx_core.pointcloud.stereo.planesweep import inverse_depth_planes, plane_homographies
from reconx_core.types import Cameras, Views

PLANES = 160
SHARPNESS = 400.0  # of the soft winner, per unit of colour variance
ALONE, UNSEEN = 0.02, 0.05  # cost of a plane that a single photo sees, and on top of it of one that none sees


def render_views(inputs: Views, targets: Cameras, near: float, far: float) -> Float[Tensor, "n h w 3"]:
    """What the input photos show from each target camera, all cameras being the true ones."""
    assert inputs.cameras is not None
    depths = inverse_depth_planes(near, far, PLANES)
    return torch.stack([_render(inputs, inputs.cameras, targets[[i]], depths) for i in range(len(targets))])


def _render(inputs: Views, cameras: Cameras, target: Cameras, depths: Float[Tensor, " d"]) -> Float[Tensor, "h w 3"]:
    shape = (len(depths), target.height, target.width)
    total, squares, count = torch.zeros(shape[0], 3, *shape[1:]), torch.zeros(shape), torch.zeros(shape)
    for i in range(len(inputs)):
        colour, seen = _warp(inputs.images[i], inputs.masks[i], cameras[[i]], target, depths)
        total += colour * seen[:, None]
        squares += colour.square().sum(1) * seen
        count += seen
    mean = total.div_(count.clamp(min=1)[:, None])
    variance = squares / count.clamp(min=1) - mean.square().sum(1)
    cost = _smooth(variance + ALONE * (count < 2) + UNSEEN * (count < 1))
    return (torch.softmax(-SHARPNESS * cost, 0)[:, None] * mean).sum(0).clamp(0, 1).permute(1, 2, 0)


def _warp(
    image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], source: Cameras, target: Cameras, depths: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "d 3 h w"], Float[Tensor, "d h w"]]:
    """A photo as every plane shows it to the target camera, and 1 where it sees that point."""
    rotation, offset = plane_homographies(target, source)
    pixels = F.pad(pixel_grid(target.height, target.width), (0, 1), value=1.0).double()
    points = pixels @ rotation.mT + offset / depths.double()[:, None, None, None]
    there = points[..., :2] / points[..., 2:].clamp(min=1e-6)
    grid = (there / there.new_tensor([source.width, source.height]) * 2 - 1).float()
    # Beyond a photo's valid pixels its border is continued, but does not count.
    layers = torch.cat([image.permute(2, 0, 1), mask[None].float()])[None].expand(len(depths), -1, -1, -1)
    warped = F.grid_sample(layers, grid, align_corners=False, padding_mode="border")
    seen = (grid.abs() <= 1).all(-1) & (points[..., 2] > 0) & (warped[:, 3] > 0.99)
    return warped[:, :3], seen.float()


def _smooth(cost: Float[Tensor, "d h w"]) -> Float[Tensor, "d h w"]:
    """Mean of the averages over 7x7 and 3x3 pixels."""
    layers = cost[:, None]
    return 0.5 * (F.avg_pool2d(layers, 7, 1, 3) + F.avg_pool2d(layers, 3, 1, 1))[:, 0]


def depth_bounds(scene: Path, inputs: Cameras) -> tuple[float, float]:
    """Nearest and farthest depth to sweep: the dataset's own bounds with a margin, else from where its cameras look.

    Raises:
        UserError: the scene cannot be read, or its cameras are not known.
    """
    stated = _stated_bounds(scene)
    if stated is not None:
        return 0.8 * stated[0], 1.5 * stated[1]
    every = [p.cam_to_world for p in datasets.read(scene).photos if p.cam_to_world is not None]
    depth = _depth_of_interest(torch.stack(every).double())
    centres = inputs.cam_to_world[:, :3, 3].double()
    baseline = float(torch.cdist(centres, centres).max())
    depth = depth if depth > 0.5 * baseline else 3 * baseline
    return 0.25 * depth, 8 * depth


def _stated_bounds(scene: Path) -> tuple[float, float] | None:
    """The nearest and farthest bound in ``transforms.json``, which datasets from LLFF have."""
    file = scene / "transforms.json"
    frames = read_frames(file) if file.is_file() else []
    near, far = ([frame[key] for frame in frames if key in frame] for key in ("near", "far"))
    return (min(near), max(far)) if near and far else None


def _depth_of_interest(cam_to_world: Float[Tensor, "n 4 4"]) -> float:
    """Median depth of the point that is nearest to all optical axes."""
    centres, axes = cam_to_world[:, :3, 3], cam_to_world[:, :3, 2]
    across = torch.eye(3, dtype=axes.dtype) - axes[:, :, None] * axes[:, None]
    point = torch.linalg.lstsq(across.sum(0), (across @ centres[..., None]).sum(0)).solution[:, 0]
    return float(((point - centres) * axes).sum(-1).median())
