"""Between which depths stereo searches, from feature points or from the cameras alone."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.geometry.transforms import transform
from reconx_core.types import Cameras, PointCloud

NEAR_MARGIN, FAR_MARGIN = 0.7, 2.0  # factors on the nearest and farthest feature point's depth that bound the depth search
AXES_APART = 3.0  # baselines at which depth is searched if the optical axes do not meet in front of a camera
WIDE = 8.0  # factor around the depth that the cameras' geometry suggests
FEWEST_POINTS = 12  # a view that observes fewer points takes its depth range from all points


def depth_ranges(
    cameras: Cameras, points: PointCloud, observations: Bool[Tensor, "n p"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Nearest and farthest depth of every view: a margin beyond the feature points that it observes.

    A view that observes few takes those of all views; where they are few, too, the geometry of the cameras decides.
    """
    wide = ranges_from_cameras(cameras)
    depth = transform(cameras.world_to_cam, points.xyz.expand(len(cameras), -1, -1))[..., 2]
    near, far = [], []
    for view, (z, seen) in enumerate(zip(depth, observations)):
        own = z[seen & (z > 0)]
        own = own if len(own) >= FEWEST_POINTS else z[z > 0]
        if len(own) < FEWEST_POINTS:
            near.append(float(wide[0][view]))
            far.append(float(wide[1][view]))
            continue
        low, high = torch.quantile(own, own.new_tensor([0.005, 0.995])).tolist()
        near.append(NEAR_MARGIN * low)
        far.append(FAR_MARGIN * high)
    return torch.tensor(near), torch.tensor(far)


def ranges_from_cameras(cameras: Cameras) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Wide depth ranges from posed cameras alone, around the point nearest to all optical axes.

    Where that point is not clearly in front of a camera (parallel or diverging views), around some baselines.
    """
    pose = cameras.cam_to_world.double()
    centres, forward = pose[:, :3, 3], pose[:, :3, 2]
    across = torch.eye(3, dtype=pose.dtype) - forward[:, :, None] * forward[:, None]
    middle = torch.linalg.lstsq(across.sum(0), (across @ centres[:, :, None]).sum(0)).solution[:, 0]
    depth = ((middle - centres) * forward).sum(-1)
    distance = torch.cdist(centres, centres)
    baseline = distance.masked_fill(distance == 0, torch.inf).amin(1)
    baseline = torch.where(baseline.isfinite(), baseline, 1.0)
    depth = torch.where(depth > 0.5 * baseline, depth, AXES_APART * baseline)
    return (depth / WIDE).float(), (depth * WIDE).float()
