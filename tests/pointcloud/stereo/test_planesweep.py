"""Plane sweep against surfaces whose depth is known exactly."""

import pytest
import torch
from exact_scene import inner, plane, relative_error, side_by_side
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.geometry.transforms import pixel_grid, project, rigid, so3_exp, unproject
from reconx_core.pointcloud.stereo.planesweep import (
    OUTSIDE_COST,
    aggregate_cost,
    best_depth,
    inverse_depth_planes,
    matching_cost,
    plane_homographies,
)
from reconx_core.types import Cameras

DEPTHS = inverse_depth_planes(1.0, 6.0, 64)


def sweep(slope):
    """(estimated, exact) depth of the first of two views of a plane."""
    cameras = side_by_side(2)
    images, depth = plane(cameras, slope)
    cost, seen = matching_cost(images[0], images[1], cameras[[0]], cameras[[1]], DEPTHS)
    found, _ = best_depth(aggregate_cost(torch.where(seen, cost, OUTSIDE_COST), images[0]), DEPTHS)
    return found, depth[0]


def test_planes_are_even_in_inverse_depth_from_far_to_near():
    assert DEPTHS[0] == pytest.approx(6)
    assert DEPTHS[-1] == pytest.approx(1)
    step = (1 / DEPTHS).diff()
    torch.testing.assert_close(step, step[:1].expand(63), atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 20))
def test_homography_takes_pixels_where_projection_does(seed, z):
    g = torch.Generator().manual_seed(seed)
    pose = rigid(so3_exp(0.1 * torch.randn(2, 3, generator=g)), 0.2 * torch.randn(2, 3, generator=g))
    k = torch.tensor([[50.0, 0, 16], [0, 55, 12], [0, 0, 1]]).repeat(2, 1, 1)
    cameras = Cameras(k, pose, 32, 24)
    rotation, offset = plane_homographies(cameras[[0]], cameras[[1]])
    pixels = torch.nn.functional.pad(pixel_grid(24, 32).reshape(-1, 2), (0, 1), value=1.0).double()
    there = pixels @ rotation.mT + offset / z
    points = unproject(torch.full((1, 24, 32), z), cameras[[0]]).reshape(-1, 3)
    wanted, depth = project(points, k[1], cameras.world_to_cam[1])
    in_front = depth > 0.1
    found = (there[:, :2] / there[:, 2:]).float()
    torch.testing.assert_close(found[in_front], wanted[in_front], atol=0.02, rtol=1e-3)


def test_cost_is_low_at_the_true_plane_and_bounded_everywhere():
    cameras = side_by_side(2)
    images, depth = plane(cameras)
    right, wrong = (matching_cost(*images, cameras[[0]], cameras[[1]], torch.tensor([z]))[0][0] for z in (2.0, 2.6))
    assert depth.min() == depth.max() == 2
    assert inner(right, 16).mean() < 0.05 < 0.3 < inner(wrong, 16).mean()
    assert min(right.min(), wrong.min()) >= 0
    assert max(right.max(), wrong.max()) <= 1


def test_what_the_source_cannot_see_is_said():
    cameras = side_by_side(2, baseline=0.5)
    images, _ = plane(cameras)
    _, seen = matching_cost(*images, cameras[[0]], cameras[[1]], torch.tensor([2.0]))
    assert seen.dtype == torch.bool
    assert torch.equal(seen[0], (torch.arange(128) >= 32).expand(96, 128))  # 128 px * 0.5 / 2 = 32 columns


@pytest.mark.parametrize("slope", [(0.0, 0.0), (0.3, 0.2), (-0.4, 0.3)])
def test_depth_of_a_textured_plane(slope):
    found, truth = sweep(slope)
    error = inner(relative_error(found, truth), 16)
    assert (error < 0.01).float().mean() > 0.9


def test_depth_is_finer_than_the_planes():
    found, truth = sweep((0.3, 0.2))
    spacing = (1 - 1 / 6) / 63
    error = inner((1 / found - 1 / truth).abs(), 16)
    assert error.median() < spacing / 8


@settings(deadline=None)  # a laden machine
@given(st.floats(0.6, 61.4))
def test_parabola_finds_its_vertex_between_planes(index):
    cost = 0.01 * (torch.arange(64) - index).square().expand(2, 3, 64)
    depth, found = best_depth(cost.contiguous(), DEPTHS)
    assert found[0, 0].item() == pytest.approx(index, abs=0.02)
    inverse = 1 / 6 + (1 - 1 / 6) * index / 63
    assert depth[1, 2].item() == pytest.approx(1 / inverse, rel=1e-3)


def test_a_gap_without_evidence_takes_its_surroundings():
    cost = torch.ones(32, 20, 30)
    cost[10] = 0
    cost[:, 5:15, 10:20] = 0.5
    index = aggregate_cost(cost, torch.zeros(20, 30, 3)).argmin(-1)
    assert (index == 10).all()


def test_same_bytes_again():
    assert torch.equal(sweep((0.3, 0.2))[0], sweep((0.3, 0.2))[0])
