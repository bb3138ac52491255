"""Which pixels of two photos show the same point: SIFT features, mutual ratio matches, epipolar verification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

Matches = Int[NDArray[np.int64], "m 2"]  # rows of indices into the keypoints of two photos

MIN_INLIERS = 12  # fewer matches than this agree with some fundamental matrix by chance
RATIO = 0.8  # nearest over second nearest descriptor angle
MAX_ANGLE = 0.9  # radians between descriptors; beyond it the nearest one is no match even where it is distinctive

# The first level is quick and enough for neighbouring photos; the second costs a second per photo and finds more in
# photos with wide baselines, little texture or changed light.
EFFORTS = (
    {"estimate_affine_shape": True, "peak_threshold": 0.004},
    {"estimate_affine_shape": True, "domain_size_pooling": True, "peak_threshold": 0.0015, "edge_threshold": 16.0},
)


@dataclass(frozen=True)
class Features:
    """SIFT features of one photo: positions in pixels (first pixel centre at 0.5) and RootSIFT descriptors."""

    keypoints: Float[NDArray[np.float64], "k 2"]
    descriptors: Float[Tensor, "k 128"]  # integers 0..255, so that their products are exact in float32


def extract_features(image: Float[Tensor, "h w 3"], mask: Bool[Tensor, "h w"], effort: int = 0) -> Features:
    """SIFT features on the pixels that ``mask`` allows. ``effort`` indexes :data:`EFFORTS`."""
    options = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    options.sift.mergedict(EFFORTS[effort])
    extractor = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    keypoints, descriptors = extractor.extract_from_uint8_array(_grey(image))
    xy = pycolmap.keypoints_to_matrix(keypoints)[:, :2].astype(np.float64)
    column, row = np.floor(xy.T).astype(int).clip(0, [[mask.shape[1] - 1], [mask.shape[0] - 1]])
    # An affine-adapted feature may be found once per orientation: one position and shape, several descriptors.
    keep = mask.numpy()[row, column]
    return Features(xy[keep], torch.from_numpy(np.array(descriptors.data)[keep]).float())


def _grey(image: Float[Tensor, "h w 3"]) -> NDArray[np.uint8]:
    luma = image @ image.new_tensor([0.299, 0.587, 0.114])
    return np.ascontiguousarray((luma * 255).round().clamp(0, 255).to(torch.uint8).numpy())


def match_features(a: Features, b: Features, ratio: float = RATIO) -> Matches:
    """Mutual nearest neighbours that pass the ratio test."""
    if min(len(a.keypoints), len(b.keypoints)) < 2:
        return np.empty((0, 2), np.int64)
    cosine = a.descriptors @ b.descriptors.T / 512.0**2
    best, index = cosine.topk(2, dim=1)
    angle = torch.arccos(best.clamp(max=1.0))
    mutual = cosine.argmax(0)[index[:, 0]] == torch.arange(len(cosine))
    keep = mutual & (angle[:, 0] < ratio * angle[:, 1]) & (angle[:, 0] < MAX_ANGLE)
    return torch.stack([keep.nonzero()[:, 0], index[keep, 0]], 1).numpy()


def verify_matches(a: Features, b: Features, matches: Matches, max_error: float, seed: int) -> Matches:
    """The matches within ``max_error`` pixels of one epipolar geometry; none if fewer than MIN_INLIERS are.

    A homography is never preferred, as COLMAP does for flat scenes and small motion: it would drop the matches off the
    plane, which are those that tell the camera's motion.
    """
    if len(matches) < MIN_INLIERS:
        return matches[:0]
    options = pycolmap.RANSACOptions(
        max_error=max_error, random_seed=seed, min_num_trials=500, max_num_trials=5000, min_inlier_ratio=0.1, confidence=0.9999
    )
    found = pycolmap.estimate_fundamental_matrix(a.keypoints[matches[:, 0]], b.keypoints[matches[:, 1]], options)
    keep = np.zeros(len(matches), bool) if found is None else np.asarray(found["inlier_mask"], bool)
    return matches[keep] if keep.sum() >= MIN_INLIERS else matches[:0]
