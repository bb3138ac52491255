"""How far estimated cameras can be trusted: what the photos say densely, and how well the focal length is determined."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import pixel_grid, project, resize_cameras, size_for, so3_exp, transform, unproject
from reconx_core.io.images import resize_images, resize_mask
from reconx_core.pointcloud.stereo.consistency import count_support
from reconx_core.pointcloud.stereo.dense import GOOD_MATCH
from reconx_core.pointcloud.stereo.planesweep import (
    OUTSIDE_COST,
    aggregate_cost,
    best_depth,
    inverse_depth_planes,
    matching_cost,
)
from reconx_core.pointcloud.stereo.ranges import depth_ranges
from reconx_core.types import Cameras, PointCloud, Views

SIZE, PLANES = 200, 48  # long side in pixels and planes of the sweeps
PARTNERS = 2  # other views with which a view is compared
PARALLAX = 3.0  # degrees between the rays of two views to a point from which stereo is sure of its depth
# Measured on real sets with known cameras (docs/cameras.md): beyond these limits most cameras were wrong.
AGREEMENT, CONTRAST, UNCERTAINTY, POINTS = 0.12, 0.15, 2.3, 20
DIRECTION = 3.0  # likewise; docs/cameras.md has the values of right and of wrong cameras
CLEAR = 0.3  # agreement above which that by chance is not asked for; smooth pictures reach 0.27
TURN = 3.0  # degrees by which cameras are turned for the agreement by chance
TRUSTED, REFUSED = 0.5, 0.1  # below the one the user is warned; below the other, by their agreement, there is no result
TEXTURE = 0.02  # standard deviation of the brightness around a pixel from which its match says something


Support = Callable[[Float[Tensor, "2 h w"], Cameras], Bool[Tensor, "2 h w"]]  # of two views' depths, by one another


class Evidence(NamedTuple):
    """What speaks for estimated cameras."""

    agreement: Float[Tensor, " n"]  # per view: share of its textured pixels that stereo with another view confirms
    contrast: Float[Tensor, " n"]  # by how much more agrees than by chance, relative to the latter; inf where that is clear
    uncertainty: float  # degrees by which the unknown focals leave relative rotations open
    points: int  # feature points of the view that has the fewest
    directions: Float[Tensor, "n n"]  # degrees by which the matches leave open in which direction a view sees another


class Scene(NamedTuple):
    """Views and cameras at the size at which they are compared."""

    images: Float[Tensor, "n h w 3"]
    usable: Bool[Tensor, "n h w"]
    cameras: Cameras
    depths: list[Float[Tensor, " d"]]


def camera_confidence(evidence: Evidence) -> float:
    """The weakest of five, each in [0, 1] and 0.5 at its limit. See docs/cameras.md."""
    return min(
        _share(float(evidence.agreement.min()), AGREEMENT),
        _share(float(evidence.contrast.min()), CONTRAST),
        1 / (1 + (evidence.uncertainty / UNCERTAINTY) ** 2),
        _share(evidence.points, POINTS),
        1 / (1 + (float(evidence.directions.max()) / DIRECTION) ** 2),
    )


def _contradicted(evidence: Evidence) -> bool:
    """Whether a view agrees with no other, or none agrees better than by chance."""
    least, best = float(evidence.agreement.min()), float(evidence.contrast.max())
    return min(_share(least, AGREEMENT), _share(best, CONTRAST)) < REFUSED


def _share(value: float, half: float) -> float:
    """0 at 0, 0.5 at ``half``, toward 1."""
    return 1 - 0.5 ** (value / half)


def judge_cameras(
    views: Views, cameras: Cameras, points: PointCloud, observations: Bool[Tensor, "n p"], uncertainty: float,
    directions: Float[Tensor, "n n"] | None = None, refuse: bool = True,
) -> float:  # fmt: skip
    """Confidence in [0, 1] of estimated cameras of all ``views``; warns with one sentence below ``TRUSTED``.

    ``uncertainty``, ``directions``: see ``Evidence``; without matches, nothing is known of the latter.

    Raises:
        UserError: unless ``refuse`` is false: the photos contradict the cameras, what they agree on is worth less than
            ``REFUSED``.
    """
    scene = _at_small_size(views, cameras, depth_ranges(cameras, points, observations))
    agreement, contrast = dense_agreement(scene, partners(cameras, points, observations))
    known = torch.zeros(len(views), len(views)) if directions is None else directions
    evidence = Evidence(agreement, contrast, uncertainty, int(observations.sum(1).min()), known)
    confidence = camera_confidence(evidence)
    if refuse and _contradicted(evidence):
        raise UserError(f"The cameras of these photos cannot be found: {_reason(views, evidence)}.")
    if confidence < TRUSTED:
        reason = _reason(views, evidence)
        warnings.warn(f"The cameras may be wrong (camera_confidence {confidence:.2f}): {reason}.", stacklevel=3)
    return confidence


def _reason(views: Views, evidence: Evidence) -> str:
    """What speaks most against the cameras, and what would help."""
    agreement, contrast = evidence.agreement, evidence.contrast
    weakest, alike = (views.names[int(values.argmin())] for values in (agreement, contrast))
    one, other = sorted(divmod(int(evidence.directions.argmax()), len(views)))
    open_by = float(evidence.directions.max())
    reasons = (
        (
            float(agreement.min()) / AGREEMENT,
            f"only {float(agreement.min()):.0%} of {weakest} agrees with another photo; add photos taken in between",
        ),
        (
            float(contrast.min()) / CONTRAST,
            f"{alike} agrees with the others hardly better than by chance; add photos in between",
        ),
        (
            evidence.points / POINTS,
            f"a photo has only {evidence.points} points in common with the others; add photos in between",
        ),
        (
            UNCERTAINTY / max(evidence.uncertainty, 1e-9),
            f"the photos do not determine the focal length, which leaves their directions open by {evidence.uncertainty:.0f} "
            "degrees; add photos, or give such as have EXIF data or intrinsics",
        ),
        (
            DIRECTION / max(open_by, 1e-9),
            f"{views.names[one]} and {views.names[other]} are so near to one another, or have so little in common, that the "
            f"direction from one to the other is open by {open_by:.0f} degrees; add photos of the same from other places",
        ),
    )
    return min(reasons)[1]


def partners(cameras: Cameras, points: PointCloud, observations: Bool[Tensor, "n p"]) -> list[tuple[int, int]]:
    """Sorted pairs (i, j), i < j, of every view with the PARTNERS that share the most points with it, of enough parallax.

    From nearly the same place stereo finds no depth, right cameras or not: points count less below PARALLAX.
    """
    rays = normalize(points.xyz - cameras.cam_to_world[:, None, :3, 3], dim=-1)
    weight = torch.full((len(cameras), len(cameras)), -1.0)
    for i, j in itertools.permutations(range(len(cameras)), 2):
        both = observations[i] & observations[j]
        angle = torch.rad2deg(torch.arccos((rays[i, both] * rays[j, both]).sum(-1).clamp(-1, 1)))
        weight[i, j] = (angle / PARALLAX).clamp(max=1).sum()
    best = weight.topk(min(PARTNERS, len(cameras) - 1), dim=1).indices
    return sorted({(min(i, j), max(i, j)) for i, row in enumerate(best.tolist()) for j in row})


def _at_small_size(views: Views, cameras: Cameras, ranges: tuple[Float[Tensor, " n"], Float[Tensor, " n"]]) -> Scene:
    height, width = views.masks.shape[1:]
    size = size_for(min(SIZE, max(height, width)), height, width)
    images = resize_images(views.images, *size)
    usable = torch.stack([resize_mask(mask, *size) for mask in views.masks]) & textured(images)
    depths = [inverse_depth_planes(float(near), float(far), PLANES) for near, far in zip(*ranges)]
    return Scene(images, usable, resize_cameras(cameras, *size), depths)


def mean_agreement(views: Views, cameras: Cameras, points: PointCloud, observations: Bool[Tensor, "n p"]) -> float:
    """Share of the textured pixels that agrees, mean over the views: by depth, and by where a pixel comes back to.

    With larger focals more agrees by depth, for a pixel is worth less depth there; with smaller ones more comes back where the
    baseline is wide. The mean of both leans to neither side.
    """
    scene = _at_small_size(views, cameras, depth_ranges(cameras, points, observations))
    return float(_shares(scene, partners(cameras, points, observations), (same_depth, same_pixel)).amax(2).mean())


def dense_agreement(scene: Scene, pairs: list[tuple[int, int]]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Per view the share of its textured pixels that agrees with the view of ``pairs`` that it agrees with most; its contrast.

    A pixel agrees if the best plane of a sweep with the other view matches photometrically, and the sweep of the other view
    finds the same surface there. How much does so by chance, cameras tell that are turned off their epipolar lines.
    """
    share = _shares(scene, pairs)[0]
    agreement, contrast = share.amax(1), torch.full((len(share),), torch.inf)
    for view in (agreement < CLEAR).nonzero()[:, 0].tolist():
        others = sorted({i + j - view for i, j in pairs if view in (i, j)})
        turned = [(other, turn) for other in others for turn in (TURN, -TURN)]
        cameras = ((o, _off_the_lines(scene.cameras[[view, o]], turn)) for o, turn in turned)
        chance = sum(float(_agreement(scene, pair, (view, o))[0, 0]) for o, pair in cameras) / 2
        contrast[view] = max(float(share[view, others].sum()) / max(chance, 1e-3) - 1, 0.0)
    return agreement, contrast


def same_depth(depths: Float[Tensor, "2 h w"], cameras: Cameras) -> Bool[Tensor, "2 h w"]:
    """Where the other view has the same depth, up to a small share of it."""
    return count_support(depths, cameras) > 0


def same_pixel(depths: Float[Tensor, "2 h w"], cameras: Cameras) -> Bool[Tensor, "2 h w"]:
    """Where a pixel, moved to the other view by its depth and back by the depth found there, comes back to itself."""
    return torch.stack([_comes_back(depths[order], cameras[order]) for order in ([0, 1], [1, 0])])


def _comes_back(depths: Float[Tensor, "2 h w"], cameras: Cameras) -> Bool[Tensor, "h w"]:
    height, width = depths.shape[1:]
    there, z = project(unproject(depths[:1], cameras[[0]]).reshape(-1, 3), cameras.intrinsics[1:], cameras.world_to_cam[1:])
    grid = there[0] / there.new_tensor([width, height]) * 2 - 1
    depth = grid_sample(depths[None, 1:], grid[None, None], mode="nearest", align_corners=False)[0, 0, 0]
    rays = torch.cat([there[0], torch.ones_like(there[0, :, :1])], 1) @ torch.linalg.inv(cameras.intrinsics[1]).T
    back, z_back = project(
        transform(cameras.cam_to_world[1], rays * depth[:, None]), cameras.intrinsics[:1], cameras.world_to_cam[:1]
    )
    error = (back[0].view(height, width, 2) - pixel_grid(height, width)).norm(dim=-1)
    ahead = (z[0] > 0) & (z_back[0] > 0) & (grid.abs() <= 1).all(-1)
    return (error < 1) & ahead.view(height, width)


def _shares(scene: Scene, pairs: list[tuple[int, int]], kinds: Sequence[Support] = (same_depth,)) -> Float[Tensor, "kinds n n"]:
    """[k, i, j]: the share of view i that agrees with view j by the k-th kind of support; 0 for what is no pair."""
    shares = torch.zeros(len(kinds), len(scene.images), len(scene.images))
    for i, j in pairs:
        shares[:, [i, j], [j, i]] = _agreement(scene, scene.cameras[[i, j]], (i, j), kinds)
    return shares


def _agreement(
    scene: Scene, cameras: Cameras, pair: tuple[int, int], kinds: Sequence[Support] = (same_depth,)
) -> Float[Tensor, "kinds 2"]:
    """Share of the usable pixels of both views of a pair, with these two cameras, that agree; by each kind of support."""
    orders = ((0, 1), (1, 0))
    swept = [_sweep(scene.images[[pair[a], pair[b]]], cameras[[a, b]], scene.depths[pair[a]]) for a, b in orders]
    depths, matches = (torch.stack(part) for part in zip(*swept))
    usable = scene.usable[list(pair)]
    agreeing = torch.stack([supported(depths, cameras) for supported in kinds]) & (matches > GOOD_MATCH) & usable
    return agreeing.sum((2, 3)) / usable.sum((1, 2)).clamp(min=1)


def _off_the_lines(cameras: Cameras, degrees: float) -> Cameras:
    """Two cameras, the second one turned by ``degrees`` about the axis that moves its pixels off their epipolar lines."""
    poses = cameras.cam_to_world.clone()
    forward, baseline = poses[1, :3, 2], poses[0, :3, 3] - poses[1, :3, 3]
    across = baseline - (baseline @ forward) * forward
    # Along the optical axis there is no such direction, and any will do.
    across = torch.where(across.norm() > 1e-3 * baseline.norm(), across, poses[1, :3, 0])
    turn = so3_exp(math.radians(degrees) * across / across.norm().clamp(min=1e-12))
    poses[1, :3, :3] = turn @ poses[1, :3, :3]
    return replace(cameras, cam_to_world=poses)


def textured(images: Float[Tensor, "n h w 3"], radius: int = 3) -> Bool[Tensor, "n h w"]:
    """Where the brightness varies within a window, so that a match is no accident."""
    grey = images.mean(-1)[:, None]
    mean, square = (torch.nn.functional.avg_pool2d(x, 2 * radius + 1, 1, radius) for x in (grey, grey * grey))
    return ((square - mean * mean).clamp(min=0).sqrt() > TEXTURE)[:, 0]


def _sweep(
    images: Float[Tensor, "2 h w 3"], cameras: Cameras, depths: Float[Tensor, " d"]
) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """Depth of the first view by a plane sweep with the second, and how well the best plane matches, in [0, 1]."""
    cost, seen = matching_cost(images[0], images[1], cameras[[0]], cameras[[1]], depths)
    cost = torch.where(seen, cost, OUTSIDE_COST)
    depth, index = best_depth(aggregate_cost(cost, images[0]), depths)
    chosen = cost.gather(0, index.round().long().clamp(0, len(cost) - 1)[None])[0]
    return depth, (1 - 2 * chosen).clamp(min=0)
