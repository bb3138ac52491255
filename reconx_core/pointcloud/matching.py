"""Which pixels of two photos show the same point: SIFT features, mutual ratio matches, epipolar verification."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

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


@dataclass(frozen=True)
class Matches:
    """Verified matches of one pair: rows of keypoint indices, and whether one homography explains most of them."""

    indices: Int[NDArray[np.int64], "m 2"]
    planar: bool

    def __len__(self) -> int:
        return len(self.indices)


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


def match_features(a: Features, b: Features, ratio: float = RATIO) -> Int[NDArray[np.int64], "m 2"]:
    """Mutual nearest neighbours that pass the ratio test."""
    if min(len(a.keypoints), len(b.keypoints)) < 2:
        return np.empty((0, 2), np.int64)
    cosine = a.descriptors @ b.descriptors.T / 512.0**2
    best, index = cosine.topk(2, dim=1)
    angle = torch.arccos(best.clamp(max=1.0))
    mutual = cosine.argmax(0)[index[:, 0]] == torch.arange(len(cosine))
    keep = mutual & (angle[:, 0] < ratio * angle[:, 1]) & (angle[:, 0] < MAX_ANGLE)
    return torch.stack([keep.nonzero()[:, 0], index[keep, 0]], 1).numpy()


def verify_matches(
    a: Features, b: Features, matches: Int[NDArray[np.int64], "m 2"], size: tuple[int, int], max_error: float, seed: int
) -> Matches:
    """The matches that agree with one fundamental matrix, or one homography where the scene is flat; none if too few.

    ``size`` is (height, width); ``max_error`` is in pixels.
    """
    height, width = size
    camera = pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId.SIMPLE_PINHOLE, float(max(size)), width, height)
    options = pycolmap.TwoViewGeometryOptions(min_num_inliers=MIN_INLIERS, detect_watermark=False)
    options.ransac.mergedict({"max_error": max_error, "random_seed": seed, "max_num_trials": 5000, "min_inlier_ratio": 0.1})
    geometry = pycolmap.estimate_two_view_geometry(camera, a.keypoints, camera, b.keypoints, matches.astype(np.uint32), options)
    flat = pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC
    return Matches(np.asarray(geometry.inlier_matches, np.int64).reshape(-1, 2), geometry.config == int(flat))
