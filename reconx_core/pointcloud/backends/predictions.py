"""Shared by the learned backends: the crop of the photos for the network, and the alignment of its pairwise pointmaps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.geometry.surfaces import CONFIDENT, sight_of
from reconx_core.geometry.transforms import depth_of, resize_cameras, size_for, transform, unproject
from reconx_core.io.images import resize_for_network, resize_images
from reconx_core.pointcloud.backends.classical import upsample_depth
from reconx_core.pointcloud.global_alignment.align import (
    AGREES,
    Aligned,
    Edges,
    align_edges,
    align_pointmaps,
    clean_confidence,
)
from reconx_core.pointcloud.global_alignment.graph import pair_graph
from reconx_core.pointcloud.sfm.evidence import judge_cameras
from reconx_core.types import Cameras, PointCloud, Pointmaps, Views
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.loaded import keep_loaded

POSE_SIDE = 170  # pixels along the long side that suffice for poses
SAMPLES = 1000  # pixels per view that stand for feature points where cameras are judged
SAME_SURFACE = 0.1  # relative difference of depths up to which two views see the same; coarser than stereo asks for


class Window(NamedTuple):
    """The centre crop of the resized photos that the network gets."""

    full: tuple[int, int]  # height and width of the resized photos
    size: tuple[int, int]  # of the window, multiples of the patch
    corner: tuple[int, int]  # of the window, row and column


def find_weights(backend: str, name: str, defaults: Sequence[str], fetched: str = "") -> Path:
    """The weights' folder or file: ``name`` as a path or in RECONX_WEIGHTS; if it is empty, the first default that exists.

    ``fetched``: their name in `reconx weights fetch`, if it is not the backend's.

    Raises:
        UserError: there is none.
    """
    places = [Path(name).expanduser(), weights_folder() / name] if name else [weights_folder() / one for one in defaults]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise UserError(
            f"There are no weights for pointcloud.backend={backend} in {' or '.join(map(str, places))}; fetch them with "
            f"`reconx weights fetch {fetched or backend}`, or use pointcloud.backend=classical, which needs none."
        )
    return found.resolve()


@keep_loaded("pointcloud")
def load_network(load: Callable[[Path], Any], path: Path) -> Any:
    """The network that ``load`` reads, on the GPU (transformer blocks in bfloat16) if there is one; cached for the next scene.

    Raises:
        UserError: the file is invalid.
    """
    network = load(path)
    return network.to("cuda").lower_precision(torch.bfloat16) if torch.cuda.is_available() else network


def both_orders(pairs: Sequence[tuple[int, int]]) -> Int[Tensor, "e 2"]:
    """The pairs in both orders, sorted; the network treats the two views of a pair differently."""
    return torch.tensor(sorted([*pairs, *((j, i) for i, j in pairs)]))


def star_pairs(
    depth: Float[Tensor, "n H W"], confidence: Float[Tensor, "n H W"], cameras: Cameras
) -> tuple[Int[Tensor, "e 2"], Float[Tensor, "e 2 H W 3"], Float[Tensor, "e 2 H W"]]:
    """Star graph of the first view, in both orders: pointmaps in the frame of each pair's first view, and confidence."""
    n, height, width = depth.shape
    world = unproject(depth, cameras)
    pairs = both_orders(pair_graph(n, "star")).to(depth.device)
    seen = transform(cameras.world_to_cam[pairs[:, 0]], world[pairs].flatten(1, 3))
    return pairs, seen.reshape(len(pairs), 2, height, width, 3), confidence[pairs]


def choose_window(shape: Sequence[int], long_side: int, patch: int, landscape: bool = False) -> Window:
    """Resize to the network's long side and centre-crop to whole patches; ``landscape``: to 4:3, at most."""
    full = size_for(long_side, *shape)
    rows = min(full[0], 3 * full[1] // 4) if landscape else full[0]
    size = (rows // patch * patch, full[1] // patch * patch)
    return Window(full, size, ((full[0] - size[0]) // 2, (full[1] - size[1]) // 2))


def crop_to_window(images: Float[Tensor, "n h w 3"], window: Window) -> Float[Tensor, "n 3 H W"]:
    """Resize the photos and crop them to the window."""
    return _cut(resize_for_network(images, *window.full), window)


def crop_masks(masks: Bool[Tensor, "n h w"], window: Window) -> Bool[Tensor, "n H W"]:
    """Masks of the photos in the window: True where most of a pixel is."""
    return _cut(resize_images(masks[..., None].float(), *window.full), window)[:, 0] > 0.5


def _cut(images: Float[Tensor, "n h w c"], window: Window) -> Float[Tensor, "n c H W"]:
    (height, width), (top, left) = window.size, window.corner
    return images[:, top : top + height, left : left + width].movedim(-1, 1)


def align(
    pairs: Int[Tensor, "e 2"], points: Float[Tensor, "e 2 H W 3"], confidence: Float[Tensor, "e 2 H W"], views: Views,
    fixed: Cameras | None, window: Window, iterations: int, shared_focal: bool,
) -> Aligned:  # fmt: skip
    """Global alignment of the pairs (eq. 9), with the logarithm of the network's confidence c >= 1 as C.

    The resulting confidence of consistent pixels, 1 - 1 / c, is the logistic function of the network's raw output.
    """
    given = views.given_intrinsics
    known = None if given is None else to_window(_with_intrinsics(views, given), window).intrinsics.to(points.device)
    cameras = None if fixed is None else _move(to_window(fixed, window), points.device)
    everything = cameras is not None and len(cameras) == len(views)
    usable = crop_masks(views.masks, window).to(points.device)[pairs]
    steps = 0 if everything else iterations
    sure = torch.where(usable, 1 - 1 / confidence, 0.0)
    weight = torch.where(usable, confidence.log(), 0.0) if steps else None
    aligned = align_pointmaps(
        pairs, points, sure, cameras, known, steps, weight=weight,
        shared_focal=shared_focal and not everything and known is None,
    )  # fmt: skip
    return _cleaned(aligned)


def align_known(
    edges: Iterable[Edges], count: int, views: Views, fixed: Cameras, window: Window, device: torch.device
) -> Aligned:
    """The same for known cameras of all views from ``count`` edges in turn, whose pointmaps are never in memory together."""
    usable = crop_masks(views.masks, window).to(device)
    sure = (edge._replace(confidence=torch.where(usable[edge.pairs], 1 - 1 / edge.confidence, 0.0)) for edge in edges)
    return _cleaned(align_edges(sure, count, _move(to_window(fixed, window), device)))


def _cleaned(aligned: Aligned) -> Aligned:
    """Without floaters, and on the CPU; they are found on the device of the predictions."""
    points, sure, cameras = aligned
    # Upstream's tolerance of 0.1 % is below the networks' accuracy: it would set the confidence of every third pixel to 0.
    clean = clean_confidence(points, sure, cameras, AGREES)
    return Aligned(points.cpu(), clean.cpu(), _move(cameras, torch.device("cpu")))


# --- poses alone -------------------------------------------------------------------------------------------------------


def pixel_step(window: Window) -> int:
    """Odd step in pixels that leaves about POSE_SIDE of them along the long side of the window."""
    return max(1, 2 * round((max(window.size) / POSE_SIDE - 1) / 2) + 1)


def thin(maps: Float[Tensor, "b H W *c"], step: int) -> Float[Tensor, "b h w *c"]:
    """The middle pixel of every ``step`` x ``step`` pixels, ``step`` being odd; what is left over at the end is cut off."""
    height, width = (side // step * step for side in maps.shape[1:3])
    return maps[:, step // 2 : height : step, step // 2 : width : step]


def thin_cameras(cameras: Cameras, step: int) -> Cameras:
    """The cameras whose pixels are those that ``thin`` keeps."""
    height, width = cameras.height // step, cameras.width // step
    return resize_cameras(replace(cameras, height=height * step, width=width * step), height, width)


def align_poses(
    pairs: Int[Tensor, "e 2"], points: Float[Tensor, "e 2 h w 3"], confidence: Float[Tensor, "e 2 h w"], views: Views,
    held: int, window: Window, step: int, iterations: int,
) -> Float[Tensor, "n 4 4"]:  # fmt: skip
    """Poses of all views by eq. 9 with known intrinsics, those of the ``held`` first ones as they are.

    The predictions are of the pixels that ``thin`` keeps of the window.
    """
    assert views.cameras is not None
    cameras = _move(thin_cameras(to_window(views.cameras, window), step), points.device)
    usable = thin(crop_masks(views.masks, window), step).to(points.device)[pairs]
    sure, weight = torch.where(usable, 1 - 1 / confidence, 0.0), torch.where(usable, confidence.log(), 0.0)
    intrinsics = cameras.intrinsics
    fixed = cameras[:held]
    return align_pointmaps(pairs, points, sure, fixed, intrinsics, iterations, weight=weight).cameras.cam_to_world.cpu()


def _with_intrinsics(views: Views, intrinsics: Float[Tensor, "n 3 3"]) -> Cameras:
    height, width = views.masks.shape[1:]
    return Cameras(intrinsics, torch.eye(4).expand(len(views), 4, 4), width, height)


def _move(cameras: Cameras, device: torch.device) -> Cameras:
    return replace(cameras, intrinsics=cameras.intrinsics.to(device), cam_to_world=cameras.cam_to_world.to(device))


def to_window(cameras: Cameras, window: Window) -> Cameras:
    """Convert cameras of the photos to cameras of the window."""
    return _shifted(resize_cameras(cameras, *window.full), -window.corner[0], -window.corner[1], window.size)


def from_window(cameras: Cameras, window: Window, height: int, width: int) -> Cameras:
    """The inverse of `to_window`, for photos of the given size."""
    return resize_cameras(_shifted(cameras, *window.corner, window.full), height, width)


def _shifted(cameras: Cameras, down: int, right: int, size: tuple[int, int]) -> Cameras:
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, 0, 2] += right
    intrinsics[:, 1, 2] += down
    return replace(cameras, intrinsics=intrinsics, height=size[0], width=size[1])


def lift(aligned: Aligned, views: Views, fixed: Cameras | None, window: Window) -> Pointmaps:
    """Pointmaps at the photos' size; confidence 0 in masked pixels and outside the window."""
    height, width = views.masks.shape[1:]
    cameras = from_window(aligned.cameras, window, height, width)
    if fixed is not None:  # bit for bit, which converting to the window and back is not
        cameras = replace(
            cameras, intrinsics=torch.cat([fixed.intrinsics, cameras.intrinsics[len(fixed) :]]),
            cam_to_world=torch.cat([fixed.cam_to_world, cameras.cam_to_world[len(fixed) :]]),
        )  # fmt: skip
    (top, left), (rows, columns) = window.corner, window.size
    border = (left, window.full[1] - columns - left, top, window.full[0] - rows - top)
    depth = depth_of(aligned.points_world, aligned.cameras)
    behind = depth <= 0
    depth = F.pad(torch.where(behind, depth.abs() + 1e-6, depth)[:, None], border, mode="replicate")[:, 0]
    confidence = F.pad(torch.where(behind, 0.0, aligned.confidence), border)
    confidence = F.interpolate(confidence[:, None], (height, width), mode="nearest-exact")[:, 0]
    points = unproject(upsample_depth(depth, height, width), cameras)
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return Pointmaps(points, torch.where(views.masks, confidence, 0.0), cameras, nothing)


# --- how far a network's cameras are trusted ----------------------------------------------------------------------------


def judged(pointmaps: Pointmaps, views: Views) -> Pointmaps:
    """With the confidence in the network's cameras by what the photos say densely; warns where they may be wrong.

    The predicted points stand for the feature points. Nothing is refused: with a network one knows that it guesses.
    """
    points, seen = sampled_points(pointmaps)
    confidence = judge_cameras(views, pointmaps.cameras, points, seen, 0.0, refuse=False)
    return replace(pointmaps, camera_confidence=confidence)


def sampled_points(pointmaps: Pointmaps) -> tuple[PointCloud, Bool[Tensor, "n p"]]:
    """About SAMPLES confident points of every view on a grid, and which of the views see each: two or more."""
    n, height, width = pointmaps.confidence.shape
    step = max(1, round((height * width / SAMPLES) ** 0.5))
    grid = (slice(None), slice(step // 2, None, step), slice(step // 2, None, step))
    good = pointmaps.confidence[grid] > CONFIDENT
    xyz, owner = pointmaps.points_world[grid][good], good.nonzero()[:, 0]
    seen = sight_of(xyz, pointmaps, SAME_SURFACE).seen | (owner == torch.arange(n)[:, None])
    shared = seen.sum(0) > 1
    cloud = PointCloud(xyz[shared], torch.zeros_like(xyz[shared]), pointmaps.confidence[grid][good][shared])
    return cloud, seen[:, shared]
