"""Feature matching: SIFT features, mutual nearest neighbours with ratio test, epipolar verification."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pycolmap
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64
from numpy.typing import NDArray
from PIL import Image
from scipy.spatial import cKDTree
from torch import Tensor

Matches = Int64[np.ndarray, "m 2"]  # rows of indices into the keypoints of two photos

RATIO = 0.8  # nearest over second nearest descriptor angle
MAX_ANGLE = 0.9  # radians between descriptors; maximum of a match, even if it passes the ratio test
SAME_PLACE = 6.0  # pixels; features closer than this count as the same point in the ratio test
# Inliers that some epipolar geometry has by chance, measured on photos of different places: a share of the matches plus a
# constant; more with tilted copies, where wrong matches come in clusters.
CHANCE, MIN_INLIERS, MIN_INLIERS_TILTED = 0.2, 8, 16
TILTS = ((1.6, 4), (2.6, 6))  # foreshortening, number of directions in half a turn (Morel and Yu's affine SIFT, coarser)
CHUNK = 2048  # descriptors compared at once, which bounds memory
SIFT = {"peak_threshold": 0.004}


@dataclass(frozen=True)
class Features:
    """SIFT features of one photo. A keypoint has several descriptors where it is seen in several orientations or tilts."""

    keypoints: Float64[np.ndarray, "k 2"]  # pixels, first pixel centre at 0.5
    descriptors: Float[Tensor, "d 128"]  # RootSIFT; integers 0..255, so that their products are exact in float32
    owner: Int[Tensor, " d"]  # keypoint of each descriptor
    plain: int  # number of leading descriptors that are of the photo itself; the others are of tilted copies


def extract_features(image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> Features:
    """SIFT features on the pixels that ``mask`` allows."""
    xy, descriptors = _sift(_grey(image), {**SIFT, "estimate_affine_shape": True})
    keep = _inside(xy, mask.numpy())
    return _merge(
        Features(np.empty((0, 2)), torch.empty(0, 128), torch.empty(0, dtype=torch.int64), 0), xy[keep], descriptors[keep]
    )


def add_unadapted(features: Features, image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> Features:
    """Add features of the photo without affine adaptation, as tilted copies of another photo have them. Indices stay valid."""
    xy, descriptors = _sift(_grey(image), SIFT)
    keep = _inside(xy, mask.numpy())
    return _merge(features, xy[keep], descriptors[keep])


def add_tilted(features: Features, image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"]) -> Features:
    """Add features of foreshortened copies of the photo (affine SIFT), for wide baselines. Existing indices stay valid."""
    features = add_unadapted(features, image, mask)
    plain, grey = features.plain, _grey(image)
    for tilt, directions in TILTS:
        for k in range(directions):
            xy, descriptors = _tilted_sift(grey, tilt, math.pi * k / directions)
            keep = _inside(xy, mask.numpy())
            features = _merge(features, xy[keep], descriptors[keep])
    return Features(features.keypoints, features.descriptors, features.owner, plain)


def _merge(features: Features, xy: Float64[np.ndarray, "k 2"], descriptors: NDArray[np.uint8]) -> Features:
    """Add descriptors; positions within a pixel of an existing keypoint are assigned to it."""
    known = len(features.keypoints)
    distance, owner = cKDTree(features.keypoints).query(xy) if known else (np.full(len(xy), np.inf), np.zeros(len(xy), int))
    fresh = distance > 1.0
    places, inverse = np.unique(xy[fresh], axis=0, return_inverse=True)
    owner[fresh] = known + inverse.reshape(-1)
    stacked = torch.cat([features.descriptors, torch.from_numpy(descriptors).float()])
    owners = torch.cat([features.owner, torch.from_numpy(owner.astype(np.int64))])
    return Features(np.concatenate([features.keypoints, places]), stacked, owners, len(stacked))


def _grey(image: Float[Tensor, "h w 3"]) -> NDArray[np.uint8]:
    luma = image @ image.new_tensor([0.299, 0.587, 0.114])
    return np.ascontiguousarray((luma * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def _sift(grey: NDArray[np.uint8], options: dict) -> tuple[Float64[np.ndarray, "k 2"], NDArray[np.uint8]]:
    extraction = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    extraction.sift.mergedict(options)
    extractor = pycolmap.FeatureExtractor.create(extraction, pycolmap.Device.cpu)
    keypoints, descriptors = extractor.extract_from_uint8_array(grey)
    return pycolmap.keypoints_to_matrix(keypoints)[:, :2].astype(np.float64), np.array(descriptors.data)


def _tilted_sift(grey: NDArray[np.uint8], tilt: float, angle: float) -> tuple[Float64[np.ndarray, "k 2"], NDArray[np.uint8]]:
    """Features of the photo turned by ``angle`` and squeezed by ``tilt`` along x, at their positions in the photo."""
    height, width = grey.shape
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]]) @ turn.T
    low, size = corners.min(0), np.ceil(np.ptp(corners, axis=0)).astype(int)
    origin = turn.T @ low
    affine = (turn[0, 0], turn[1, 0], origin[0], turn[0, 1], turn[1, 1], origin[1])
    turned = Image.fromarray(grey).transform(tuple(size.tolist()), Image.Transform.AFFINE, affine, Image.Resampling.BICUBIC)
    squeezed = turned.resize((round(turned.width / tilt), turned.height), Image.Resampling.LANCZOS)
    xy, descriptors = _sift(np.ascontiguousarray(squeezed), {**SIFT, "max_num_features": 2000})
    return (xy * [turned.width / squeezed.width, 1.0] + low) @ turn, descriptors


def _inside(xy: Float64[np.ndarray, "k 2"], mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, " k"]:
    """Whether each position is in the mask and not at the border, where a rotated copy has artificial corners."""
    height, width = mask.shape
    column, row = np.floor(xy.T).astype(int)
    within = (column >= 2) & (row >= 2) & (column < width - 2) & (row < height - 2)
    return within & mask[row.clip(0, height - 1), column.clip(0, width - 1)]


def match_features(a: Features, b: Features, ratio: float = RATIO) -> Matches:
    """Keypoints whose descriptors are mutually nearest and distinct; tilted copies are matched with plain photos only."""
    halves = [(slice(None), slice(b.plain)), (slice(a.plain), slice(None))]
    if b.plain == len(b.descriptors):  # the first half is all that there is
        halves = halves[:1]
    elif a.plain == len(a.descriptors):
        halves = halves[1:]
    found = [_match(a, b, one, two, ratio) for one, two in halves]
    return np.unique(np.concatenate(found), axis=0)


def _match(a: Features, b: Features, one: slice, two: slice, ratio: float) -> Matches:
    at_a, at_b = (torch.from_numpy(f.keypoints)[f.owner[s]] for f, s in ((a, one), (b, two)))
    if min(len(at_a), len(at_b)) < 2:
        return np.empty((0, 2), np.int64)
    nearest, distinct, back = _nearest(a.descriptors[one], b.descriptors[two], at_b, ratio)
    keep = distinct & ((at_a[back[nearest]] - at_a).norm(dim=-1) < 2)
    return torch.stack([a.owner[one][keep], b.owner[two][nearest[keep]]], 1).numpy()


def _nearest(
    query: Float[Tensor, "p 128"], among: Float[Tensor, "q 128"], at: Float[Tensor, "q 2"], ratio: float
) -> tuple[Int[Tensor, " p"], Bool[Tensor, " p"], Int[Tensor, " q"]]:
    """Index of the nearest descriptor, whether it is clearly nearer than any at another place, and the same index back."""
    nearest, distinct = [], []
    most, back = torch.full((len(among),), -1.0), torch.zeros(len(among), dtype=torch.int64)
    for start in range(0, len(query), CHUNK):
        product = query[start : start + CHUNK] @ among.T
        best, index = product.topk(min(5, len(among)), dim=1)
        angle = torch.arccos((best / 512.0**2).clamp(max=1.0))
        rival = (at[index] - at[index[:, :1]]).norm(dim=-1) > SAME_PLACE
        # All five are at one place: any other place is at least as far as the fifth.
        second = torch.where(rival, angle, torch.inf).amin(1).minimum(torch.where(rival.any(1), torch.inf, angle[:, -1]))
        nearest.append(index[:, 0])
        distinct.append((angle[:, 0] < ratio * second) & (angle[:, 0] < MAX_ANGLE))
        column, row = product.max(0)
        back = torch.where(column > most, row + start, back)
        most = most.maximum(column)
    return torch.cat(nearest), torch.cat(distinct), back


def verify_matches(a: Features, b: Features, matches: Matches, max_error: float, seed: int) -> Matches:
    """The matches within ``max_error`` pixels of one epipolar geometry; none if there are no more than expected by chance.

    Unlike in COLMAP, a homography is never preferred (for flat scenes and small motion): it would drop the matches off the
    plane, which determine the camera motion.
    """
    tilted = a.plain < len(a.descriptors) or b.plain < len(b.descriptors)
    enough = CHANCE * len(matches) + (MIN_INLIERS_TILTED if tilted else MIN_INLIERS)
    if len(matches) < enough:
        return matches[:0]
    options = pycolmap.RANSACOptions(
        max_error=max_error, random_seed=seed, min_num_trials=500, max_num_trials=5000, min_inlier_ratio=0.1, confidence=0.9999
    )
    found = pycolmap.estimate_fundamental_matrix(a.keypoints[matches[:, 0]], b.keypoints[matches[:, 1]], options)
    keep = np.zeros(len(matches), bool) if found is None else np.asarray(found["inlier_mask"], bool)
    return matches[keep] if keep.sum() >= enough else matches[:0]
