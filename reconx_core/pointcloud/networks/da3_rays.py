"""Cameras from Depth-Anything-3's rays, an alternative to its camera decoder.

The directions of a pinhole camera's rays are a homography of its pixels, A = R K^-1 up to scale. It is estimated by RANSAC and
decomposed into rotation and intrinsics.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import rigid

BEST = 0.3  # share of the pixels, the most confident ones, that are drawn from
DRAWS, DRAWN = 100, 8
INLIER = 0.2  # distance of dx / dz and dy / dz together
LEAST_Z = 1e-4  # of a direction; below it the ray is ignored
MOST_INLIERS, SHARE = 8000, 0.95  # subsample of more inliers, from the most confident share


def draw_samples(count: int, generator: torch.Generator) -> Int[Tensor, "100 8"]:
    """Which of the ``count`` most confident pixels the homography is tried on."""
    return torch.stack([torch.randperm(count, generator=generator)[:DRAWN] for _ in range(DRAWS)])


def cameras_from_rays(
    rays: Float[Tensor, "n h w 6"], confidence: Float[Tensor, "n h w"], height: int, width: int,
    generator: torch.Generator, samples: Int[Tensor, "100 8"] | None = None, centred: bool = False,
) -> tuple[Float[Tensor, "n 4 4"], Float[Tensor, "n 3 3"]]:  # fmt: skip
    """(world_to_cam, intrinsics) of views whose pictures have ``height`` x ``width`` pixels (pixel centres at +0.5).

    Args:
        rays: direction (of any length) and origin, world, at the centres of h x w cells of the picture.
        confidence: weight of each ray, positive.
        height: pixels of the picture.
        width: pixels of the picture.
        generator: of what is drawn at random.
        samples: these draws instead, indices into the most confident pixels, for all views.
        centred: upstream's decomposition, which is exact only if the principal point is the middle of the picture.
    """
    grid = _cells(*rays.shape[1:3]).to(rays)
    poses, intrinsics = [], []
    for ray, sure in zip(rays.flatten(1, 2), confidence.flatten(1)):
        weight = torch.where(ray[:, 2].abs() > LEAST_Z, sure, 0.0)
        count = max(DRAWN, int(BEST * len(weight)))
        drawn = draw_samples(count, generator) if samples is None else samples
        slope = ray[:, :2] / torch.where(weight > 0, ray[:, 2], 1.0)[:, None]
        rotation, matrix = decompose(fit_homography(grid, slope, weight, drawn, generator), centred)
        centre = (weight[:, None] * ray[:, 3:]).sum(0) / weight.sum()
        poses.append(rigid(rotation.T, -rotation.T @ centre))
        intrinsics.append(_in_pixels(matrix, height, width))
    return torch.stack(poses), torch.stack(intrinsics)


def _cells(rows: int, columns: int) -> Float[Tensor, "m 2"]:
    """(x, y) of the cells' centres, the picture being [-1, 1]²."""
    y, x = ((torch.arange(count) + 0.5) * 2 / count - 1 for count in (rows, columns))
    return torch.stack([x.expand(rows, -1), y[:, None].expand(-1, columns)], -1).flatten(0, 1)


def fit_homography(
    source: Float[Tensor, "m 2"], target: Float[Tensor, "m 2"], weight: Float[Tensor, " m"], samples: Int[Tensor, "d 8"],
    generator: torch.Generator,
) -> Float[Tensor, "3 3"]:  # fmt: skip
    """The homography that most of the weight agrees with, of positive determinant. ``samples``: into the greatest weights."""
    order = weight.argsort(descending=True, stable=True)
    tried = order[samples]
    candidates = _solve(source[tried], target[tried], weight[tried])
    found = torch.nn.functional.pad(source, (0, 1), value=1.0) @ candidates.mT
    error = (found[..., :2] / found[..., 2:] - target).norm(dim=-1)
    best = ((error < INLIER) * weight).sum(-1).argmax()
    inliers = (error[best] < INLIER).nonzero()[:, 0]
    if len(inliers) > MOST_INLIERS:
        kept = inliers[weight[inliers].argsort(descending=True, stable=True)][: int(SHARE * len(inliers))]
        inliers = kept[torch.randperm(len(kept), generator=generator)[:MOST_INLIERS]]
    homography = _solve(source[inliers], target[inliers], weight[inliers])
    return homography * torch.linalg.det(homography).sign()


def _solve(
    source: Float[Tensor, "*b k 2"], target: Float[Tensor, "*b k 2"], weight: Float[Tensor, "*b k"]
) -> Float[Tensor, "*b 3 3"]:
    """Weighted direct linear transform; the last element is 1."""
    point = torch.nn.functional.pad(source, (0, 1), value=1.0)
    none = torch.zeros_like(point)
    rows = [torch.cat([-point, none, target[..., :1] * point], -1), torch.cat([none, -point, target[..., 1:] * point], -1)]
    system = torch.cat([weight.sqrt()[..., None] * row for row in rows], -2)
    homography = torch.linalg.svd(system, full_matrices=False).Vh[..., -1, :].unflatten(-1, (3, 3))
    return homography / homography[..., 2:, 2:]


def decompose(homography: Float[Tensor, "3 3"], centred: bool = False) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3 3"]]:
    """(camera-to-world rotation, intrinsics in units of half the picture, from its middle) of R K^-1 up to scale.

    K^-1 is upper triangular. ``centred``: a lower triangular factor instead, as in upstream.
    """
    if centred:
        # Reversing rows and columns turns the one factorisation into the other.
        rotation, lower = (part.flip(0, 1) for part in _qr(homography.flip(0, 1)))
        lower = lower / lower[2, 2]
        focal, middle = 1 / lower.diagonal()[:2], lower[2, :2]
    else:
        rotation, upper = _qr(homography)
        inverse = torch.linalg.inv(upper / upper[2, 2])
        focal, middle = inverse.diagonal()[:2], inverse[:2, 2]
    intrinsics = torch.diag(torch.cat([focal, focal.new_ones(1)]))
    intrinsics[:2, 2] = middle
    return rotation, intrinsics


def _qr(matrix: Float[Tensor, "3 3"]) -> tuple[Float[Tensor, "3 3"], Float[Tensor, "3 3"]]:
    """QR with a positive diagonal."""
    q, r = torch.linalg.qr(matrix)
    sign = r.diagonal().sign()
    return q * sign, sign[:, None] * r


def _in_pixels(matrix: Float[Tensor, "3 3"], height: int, width: int) -> Float[Tensor, "3 3"]:
    half = matrix.new_tensor([width / 2, height / 2, 1.0])
    pixels = half[:, None] * matrix
    pixels[:2, 2] += half[:2]
    return pixels
