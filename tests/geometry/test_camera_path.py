"""The path passes through its keys, is C1, and is equivariant to rigid transforms and scaling."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.geometry.camera_path import even_positions, interpolate_path, se3_exp, se3_log
from reconx_core.geometry.transforms import rigid, rotation_angle, so3_exp
from reconx_core.types import Cameras


def random_cameras(seed: int, n: int) -> Cameras:
    g = torch.Generator().manual_seed(seed)
    pose = rigid(so3_exp(0.4 * torch.randn(n, 3, generator=g)), torch.randn(n, 3, generator=g))
    k = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).repeat(n, 1, 1)
    k[:, 0, 0] += torch.rand(n, generator=g)
    return Cameras(k, pose, 64, 48)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_exp_of_log_is_identity(seed):
    poses = random_cameras(seed, 5).cam_to_world.double()
    torch.testing.assert_close(se3_exp(se3_log(poses)), poses, atol=1e-5, rtol=0)


def test_log_near_identity_keeps_the_twist():
    twist = torch.tensor([[1e-9, 0, 2e-9, 1.0, -2.0, 3.0], [0.0, 0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(se3_log(se3_exp(twist)), twist)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_path_passes_through_keys(seed, n):
    cameras = random_cameras(seed, n)
    path = interpolate_path(cameras, torch.arange(n).float())
    torch.testing.assert_close(path.cam_to_world, cameras.cam_to_world, atol=1e-5, rtol=0)
    torch.testing.assert_close(path.intrinsics, cameras.intrinsics)


def test_velocity_is_continuous_at_the_keys():
    cameras = random_cameras(3, 5)
    h = 1e-3
    p = interpolate_path(cameras, torch.tensor([2 - h, 2.0, 2 + h])).cam_to_world.double()
    before, after = se3_log(p[0].inverse() @ p[1]) / h, se3_log(p[1].inverse() @ p[2]) / h
    torch.testing.assert_close(before, after, atol=0.02, rtol=0.02)
    assert before.norm() > 0.1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10))
def test_path_moves_with_the_world(seed, scale):
    cameras, positions = random_cameras(seed, 4), torch.linspace(0, 3, 13)
    move = random_cameras(seed + 1, 1).cam_to_world[0]

    def moved(c: Cameras) -> Cameras:
        pose = move @ c.cam_to_world
        pose[:, :3, 3] *= scale
        return Cameras(c.intrinsics, pose, c.width, c.height)

    a, b = interpolate_path(moved(cameras), positions), moved(interpolate_path(cameras, positions))
    torch.testing.assert_close(a.cam_to_world, b.cam_to_world, atol=1e-4 * max(1, scale), rtol=1e-4)


def orbit(angles: list[float]) -> Cameras:
    """Cameras on a unit circle that look at the origin."""
    turn = so3_exp(torch.tensor([[0.0, math.radians(a), 0.0] for a in angles]))
    return Cameras(torch.eye(3).repeat(len(angles), 1, 1), rigid(turn, -turn[:, :, 2]), 8, 8)


def test_two_cameras_around_a_point_stay_on_the_circle():
    path = interpolate_path(orbit([0, 80]), torch.linspace(0, 1, 9))
    torch.testing.assert_close(path.cam_to_world[:, :3, 3].norm(dim=-1), torch.ones(9), atol=1e-5, rtol=0)


def test_uneven_spacing_does_not_overshoot():
    poses = torch.eye(4).repeat(4, 1, 1)
    poses[:, 0, 3] = torch.tensor([0, 0.01, 5, 5.01])
    x = interpolate_path(Cameras(torch.eye(3).repeat(4, 1, 1), poses, 8, 8), torch.linspace(0, 3, 200)).cam_to_world[:, 0, 3]
    assert (x.diff() >= 0).all()


def test_even_positions_turn_at_a_constant_rate():
    cameras = orbit([0, 5, 50, 60])
    positions = even_positions(cameras, 31)
    poses = interpolate_path(cameras, positions).cam_to_world
    turn = rotation_angle(poses[:-1, :3, :3], poses[1:, :3, :3])
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(3)
    torch.testing.assert_close(turn, torch.full((30,), 2.0), atol=0.1, rtol=0)


def test_position_outside_raises():
    with pytest.raises(ValueError, match="positions"):
        interpolate_path(orbit([0, 10]), torch.tensor([1.5]))
