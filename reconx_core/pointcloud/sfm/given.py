"""Whether given cameras are those of the photos: matches must lie on their epipolar lines, and in front of both cameras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.pointcloud.sfm.mapper import Pair, make_camera, to_rigid
from reconx_core.pointcloud.sfm.parallax import Pixels
from reconx_core.pointcloud.sfm.twoview import parallax, sampson_error, triangulated_depth
from reconx_core.types import Cameras

Matched = Mapping[Pair, tuple[Pixels, Pixels]]

FEWEST = 30  # matches of a pair that can contradict its cameras
NEAR = 6.0  # pixels from the epipolar line, in a photo of 512, that given cameras may be off
FIT = 0.5  # share of a pair's matches that must fit; docs/cameras.md
SHOWN = 0.5  # degrees between two rays, above which it shows whether their point lies in front of the cameras


def doubtful_cameras(names: tuple[str, ...], cameras: Cameras, matched: Matched) -> str:
    """A sentence where photos contradict the given cameras, "" elsewhere; ``matched``: verified matches, per pair of photos."""
    matched = {pair: pixels for pair, pixels in matched.items() if len(pixels[0]) >= FEWEST}
    shares = fitting_shares(cameras, matched)
    off = [pair for pair, share in shares.items() if share < FIT]
    if 2 * len(off) <= len(shares):
        return _single(names, shares)
    i, j = min(off, key=lambda pair: shares[pair])
    return (
        f"The given cameras do not fit the photos: in {len(off)} of {len(shares)} pairs of photos, {names[i]} and {names[j]} "
        "among them, most of what both show is not where the cameras put it, so the scene will be wrong; "
        f"{_advice(cameras, matched)}."
    )


def _single(names: tuple[str, ...], shares: dict[Pair, float]) -> str:
    """A sentence about photos that fit with none of the others, where most pairs fit."""
    own = {view: [share for pair, share in shares.items() if view in pair] for view in range(len(names))}
    off = [names[view] for view, values in own.items() if len(values) >= 2 and max(values) < FIT]
    if not off:
        return ""
    return (
        f"The given camera of {', '.join(off)} does not fit the photos: most of what it shows is not where the cameras put it; "
        "check its pose and its intrinsics, or leave it out."
    )


def fitting_shares(cameras: Cameras, matched: Matched) -> dict[Pair, float]:
    """Per pair the share of the matches that given cameras explain."""
    size = (cameras.height, cameras.width)
    near = NEAR * max(1.0, max(size) / 512)
    lens = [make_camera(k, size) for k in cameras.intrinsics.double().numpy()]
    poses = [to_rigid(pose) for pose in cameras.world_to_cam.double().numpy()]
    shares = {}
    for (i, j), pixels in matched.items():
        pair = (poses[j] * poses[i].inverse(), lens[i], lens[j], *pixels)
        in_front = (triangulated_depth(*pair) > 0) | (parallax(*pair) < SHOWN)
        shares[i, j] = float(np.mean((sampson_error(*pair) < near) & in_front))
    return shares


def _advice(cameras: Cameras, matched: Matched) -> str:
    """What is wrong, where the cameras fit when they are read in another way."""
    turned, *inverted = _other_readings(cameras.cam_to_world)
    if _fit(replace(cameras, cam_to_world=turned), matched):
        return (
            "they fit with the y and z axes of every camera reversed (OpenGL's and OpenCV's differ so), so write them in the "
            "axes that the format asks for"
        )
    if any(_fit(replace(cameras, cam_to_world=poses), matched) for poses in inverted):
        swapped = ", or the two cameras are swapped" if len(cameras) == 2 else ""
        return (
            f"they fit inverted, so world-to-camera matrices stand where camera-to-world ones belong, or the reverse{swapped}"
        )
    return "check their poses, their intrinsics, and which photo each belongs to"


def _fit(cameras: Cameras, matched: Matched) -> bool:
    shares = fitting_shares(cameras, matched)
    return sum(share >= FIT for share in shares.values()) > 0.8 * len(shares)


def _other_readings(cam_to_world: Float[Tensor, "n 4 4"]) -> list[Float[Tensor, "n 4 4"]]:
    """With the camera's y and z axes reversed, and inverted in either kind of axes, before and after."""
    flip = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    inverses = [torch.linalg.inv(poses) for poses in (cam_to_world, cam_to_world @ flip)]
    return [cam_to_world @ flip, *(poses for inverse in inverses for poses in (inverse, inverse @ flip))]
