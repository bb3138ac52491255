"""How open the directions between photos are: as open as solutions of noisy matches scatter."""

import numpy as np
import pycolmap
import pytest
import torch

from reconx_core.geometry.transforms import project, rigid, so3_exp
from reconx_core.pointcloud.sfm.covariance import direction_errors
from reconx_core.pointcloud.sfm.focal import REDUNDANT
from reconx_core.types import Cameras, PointCloud, Tracks

NOISE, COUNT = 0.5, 150  # pixels; points


def photographed(*baselines):
    """Cameras side by side, points in front of them, and where they see them without error."""
    draw = torch.Generator().manual_seed(0)
    points = (torch.rand(COUNT, 3, generator=draw) - 0.5) * torch.tensor([4.0, 3, 3]) + torch.tensor([0, 0, 4.5])
    n = 1 + len(baselines)
    turns = so3_exp(torch.tensor([[0.02, 0.05, 0.01]]) * torch.arange(n)[:, None])
    poses = rigid(turns, torch.tensor([1.0, 0.02, 0.1]) * torch.tensor([0.0, *baselines])[:, None])
    cameras = Cameras(torch.tensor([[400.0, 0, 256], [0, 400, 192], [0, 0, 1]]).expand(n, 3, 3), poses, 512, 384)
    pixels, _ = project(points, cameras.intrinsics, cameras.world_to_cam)
    return cameras, PointCloud(points, torch.zeros(COUNT, 3), torch.ones(COUNT)), pixels.double()


def solved(cameras, pixels):
    """Direction from the first camera to the second and the points, of matches with noise."""
    first, second = pixels.numpy()
    lens = pycolmap.Camera(model="PINHOLE", width=512, height=384, params=[400, 400, 256, 192])
    start = pycolmap.Rigid3d(cameras.world_to_cam[1].double().numpy()[:3])
    found = pycolmap.refine_relative_pose(start, lens, first, lens, second, np.ones(len(first), bool))["cam2_from_cam1"]
    centre = -found.rotation.matrix().T @ found.translation
    return centre / np.linalg.norm(centre)


def errors_of(cameras, points, pixels):
    n = len(cameras)
    tracks = Tracks(torch.arange(n).repeat_interleave(COUNT), torch.arange(COUNT).repeat(n), pixels.reshape(-1, 2).float())
    return direction_errors(cameras, points, tracks)


@pytest.mark.parametrize("baseline", [0.05, 0.5])
def test_directions_are_as_open_as_solutions_scatter(baseline):
    cameras, points, exact = photographed(baseline)
    draw = torch.Generator().manual_seed(1)
    noisy = [exact + NOISE * torch.randn(exact.shape, generator=draw, dtype=torch.float64) for _ in range(60)]
    found = np.stack([solved(cameras, pixels) for pixels in noisy])
    spread = np.rad2deg(np.sqrt(np.linalg.eigvalsh(np.cov(found.T))[-1]))  # along the direction in which it is largest
    # The points are the true ones, not adjusted to the noise: of 4 residuals per match, one would be left.
    fitted = errors_of(cameras, points, exact + (noisy[0] - exact) / 2)[0, 1]
    assert float(fitted) / REDUNDANT**0.5 == pytest.approx(spread, rel=0.3)


def test_near_photos_are_open_among_others_that_are_not():
    errors = errors_of(*photographed(0.03, 1.0))
    assert errors[0, 1] > 3 * errors[0, 2]
    assert errors[1, 0] == pytest.approx(float(errors[0, 1]), rel=0.1)
    assert (errors.diagonal() == 0).all()


def test_units_and_frame_do_not_matter():
    cameras, points, pixels = photographed(0.2, 0.5)
    moved = rigid(so3_exp(torch.tensor([0.3, -1.0, 0.2])), torch.tensor([3.0, 1.0, -2.0]))
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] *= 7
    there = Cameras(cameras.intrinsics, moved @ poses, 512, 384)
    xyz = 7 * points.xyz @ moved[:3, :3].T + moved[:3, 3]
    same = errors_of(there, PointCloud(xyz, points.rgb, points.confidence), pixels)
    torch.testing.assert_close(same, errors_of(cameras, points, pixels), rtol=0.02, atol=1e-3)


def test_too_few_points_leave_everything_open():
    cameras, points, pixels = photographed(0.5)
    few = PointCloud(points.xyz[:4], points.rgb[:4], points.confidence[:4])
    tracks = Tracks(torch.arange(2).repeat_interleave(4), torch.arange(4).repeat(2), pixels[:, :4].reshape(-1, 2).float())
    assert direction_errors(cameras, few, tracks)[0, 1] == torch.inf
