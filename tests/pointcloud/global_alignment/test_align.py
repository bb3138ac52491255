"""Pointmaps of the inside of a box, exact, then with noise and outliers: the scene must be recovered."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.geometry.transforms import camera_rays, rigid, rotation_angle, so3_exp, transform
from reconx_core.pointcloud.global_alignment.align import align_pointmaps, weighted_median
from reconx_core.types import Cameras

pytestmark = pytest.mark.long

HEIGHT, WIDTH, FOCAL = 36, 48, 40.0


def ring(n: int) -> Cameras:
    """Cameras on an arc, all looking at the far corner of a box."""
    angle = torch.linspace(-0.4, 0.4, n)
    centre = torch.stack([2 * torch.sin(angle), 0.1 * torch.arange(n), -1 + 0.5 * torch.cos(angle)], -1)
    rotation = so3_exp(torch.stack([0.03 * torch.arange(n), -angle, torch.zeros(n)], -1))
    intrinsics = torch.tensor([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]]).expand(n, 3, 3).contiguous()
    return Cameras(intrinsics, rigid(rotation, centre), WIDTH, HEIGHT)


def box_points(cameras: Cameras) -> torch.Tensor:
    """World points where the pixels' rays leave the box |x| < 4, |y| < 3, |z| < 5."""
    rays = camera_rays(cameras.intrinsics, HEIGHT, WIDTH) @ cameras.cam_to_world[:, None, :3, :3].mT
    centre = cameras.cam_to_world[:, None, None, :3, 3]
    wall = torch.tensor([4.0, 3.0, 5.0]) * rays.sign()
    return centre + rays * ((wall - centre) / rays).amin(-1, keepdim=True)


def predictions(cameras: Cameras, pairs: torch.Tensor, scales=None, noise=0.0, outliers=0.0, seed=0):
    """Predictions of a perfect stereo network, in each first camera's frame and at an arbitrary scale."""
    draw = torch.Generator().manual_seed(seed)
    world = box_points(cameras)[pairs]
    points = transform(cameras.world_to_cam[pairs[:, 0]], world.flatten(1, 3)).reshape(world.shape)
    points = points * (1 + noise * torch.randn(points.shape[:-1], generator=draw)[..., None])
    wild = torch.rand(points.shape[:-1], generator=draw) < outliers
    points[wild] = 6 * torch.randn(int(wild.sum()), 3, generator=draw)
    if scales is not None:
        points = points * scales[:, None, None, None, None]
    return points, torch.ones(points.shape[:-1])


def assert_same_world(aligned, truth, degrees, share):
    """Poses within ``degrees`` and centres within ``share`` of the scene's size, in the frame of the first camera."""
    to_first = truth.world_to_cam[0] @ truth.cam_to_world
    size = transform(truth.world_to_cam[:1], box_points(truth).reshape(1, -1, 3))[0].norm(dim=-1).mean()
    assert rotation_angle(aligned.cameras.cam_to_world[:, :3, :3], to_first[:, :3, :3]).max() < degrees
    found, true = aligned.cameras.cam_to_world[:, :3, 3], to_first[:, :3, 3]
    scale = (found * true).sum() / (found * found).sum()
    assert (scale * found - true).norm(dim=-1).max() < share * size


PAIRS = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 2], [1, 3]])
SCALES = torch.tensor([1.0, 2.0, 0.3, 1.5, 0.8])


def test_exact_pointmaps_give_exact_cameras_and_points():
    truth = ring(4)
    aligned = align_pointmaps(PAIRS, *predictions(truth, PAIRS, SCALES), iterations=30)
    assert_same_world(aligned, truth, degrees=0.01, share=1e-4)
    torch.testing.assert_close(aligned.cameras.intrinsics, truth.intrinsics, rtol=1e-3, atol=0)
    in_first = transform(truth.world_to_cam[0], box_points(truth).flatten(0, 2)).reshape(aligned.points_world.shape)
    torch.testing.assert_close(
        aligned.points_world * (in_first[0, ..., 2].mean() / aligned.points_world[0, ..., 2].mean()),
        in_first,
        rtol=1e-3,
        atol=1e-2,
    )
    assert aligned.confidence.min() > 0.99


def test_noise_and_outliers_are_survived():
    truth = ring(4)
    points, confidence = predictions(truth, PAIRS, SCALES, noise=0.005, outliers=0.15)
    aligned = align_pointmaps(PAIRS, points, confidence)
    assert_same_world(aligned, truth, degrees=0.1, share=1e-3)
    assert (aligned.cameras.intrinsics[:, 0, 0] / FOCAL - 1).abs().max() < 0.005


def test_known_intrinsics_are_kept():
    truth = ring(3)
    pairs = torch.tensor([[0, 1], [1, 2]])
    intrinsics = truth.intrinsics.clone()
    intrinsics[:, 0, 2] += 5  # off-centre principal point, not what would be assumed
    truth = Cameras(intrinsics, truth.cam_to_world, WIDTH, HEIGHT)
    aligned = align_pointmaps(pairs, *predictions(truth, pairs), intrinsics=intrinsics, iterations=20)
    assert torch.equal(aligned.cameras.intrinsics, intrinsics)
    assert_same_world(aligned, truth, degrees=0.01, share=1e-4)


def test_known_cameras_do_not_move_and_each_pairs_scale_is_found():
    truth = ring(4)
    aligned = align_pointmaps(PAIRS, *predictions(truth, PAIRS, SCALES, noise=0.002, outliers=0.1), fixed=truth)
    assert aligned.cameras is truth
    distance = (aligned.points_world - box_points(truth)).norm(dim=-1)
    assert distance.median() < 0.01
    # Pixels are in two pairs or more: where both predictions are outliers the depth is unknown, and the confidence low.
    assert aligned.confidence[distance > 0.5].mean() < 0.7 < 0.9 < aligned.confidence[distance < 0.05].mean()


def test_confidence_decides_between_two_predictions():
    truth = ring(3)
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    points, confidence = predictions(truth, pairs)
    points[0, 0] *= 1.5
    confidence[0, 0] = 0.1
    aligned = align_pointmaps(pairs, points, confidence, fixed=truth)
    torch.testing.assert_close(aligned.points_world, box_points(truth), rtol=1e-3, atol=2e-2)


def test_pixels_that_nothing_is_known_of_have_no_confidence():
    truth = ring(2)
    pairs = torch.tensor([[0, 1]])
    points, confidence = predictions(truth, pairs)
    confidence[:, :, :10] = 0
    for aligned in (align_pointmaps(pairs, points, confidence, fixed=truth), align_pointmaps(pairs, points, confidence)):
        assert (aligned.confidence[:, :10] == 0).all()
        assert (aligned.confidence[:, 10:] > 0).all()
        assert aligned.points_world.isfinite().all()


@settings(deadline=None, max_examples=8)
@given(omega=st.tuples(*[st.floats(-3, 3)] * 3), shift=st.tuples(*[st.floats(-9, 9)] * 3), edge=st.integers(0, 4))
def test_a_rigid_change_of_a_pairs_frame_changes_nothing(omega, shift, edge):
    """T_e absorbs it (with known intrinsics: a focal can only be read off a pointmap in its own camera's frame)."""
    truth = ring(4)
    points, confidence = predictions(truth, PAIRS, SCALES)
    moved = points.clone()
    moved[edge] = points[edge] @ so3_exp(torch.tensor(omega)).mT + torch.tensor(shift)
    before, after = (align_pointmaps(PAIRS, p, confidence, intrinsics=truth.intrinsics, iterations=15) for p in (points, moved))
    torch.testing.assert_close(after.points_world, before.points_world, rtol=1e-3, atol=2e-3)
    torch.testing.assert_close(after.cameras.cam_to_world, before.cameras.cam_to_world, rtol=1e-3, atol=2e-3)


def test_same_input_same_bytes():
    points, confidence = predictions(ring(4), PAIRS, SCALES, noise=0.01)
    one, two = (align_pointmaps(PAIRS, points, confidence, iterations=10) for _ in range(2))
    assert torch.equal(one.points_world, two.points_world)
    assert torch.equal(one.cameras.cam_to_world, two.cameras.cam_to_world)


def test_pairs_that_leave_a_view_out_are_refused():
    pairs = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(ValueError, match="do not join all 4 views"):
        align_pointmaps(pairs, *predictions(ring(4), pairs))


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(0.1, 5)), min_size=1, max_size=7))
def test_weighted_median_minimises_the_weighted_distances(rows):
    values, weight = torch.tensor(rows).T.double()
    median = float(weighted_median(values[None], weight[None], dim=1))
    costs = [float((weight * (values - v).abs()).sum()) for v in values.tolist()]
    assert math.isclose(float((weight * (values - median).abs()).sum()), min(costs), abs_tol=1e-5)
