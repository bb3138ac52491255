"""Two cameras side by side before a wall at depth 2, 32 pixels of parallax, and what hangs in between."""

import pytest
import torch
from exact_scene import side_by_side

from reconx_core.pointcloud.stereo.consistency import (
    carve_free_space,
    count_support,
    count_violations,
    drop_speckles,
    splat_depth,
)

CAMERAS = side_by_side(2, baseline=0.5)  # 128 px * 0.5 / 2 = 32 columns
SHARED = torch.arange(128) >= 32  # columns of the first view that the second sees, too


@pytest.fixture
def wall():
    return torch.full((2, 96, 128), 2.0)


def test_support_is_where_the_other_view_sees_the_same_surface(wall):
    support = count_support(wall, CAMERAS)
    assert torch.equal(support[0] == 1, SHARED.expand(96, 128))
    assert torch.equal(support[1] == 1, SHARED.flip(0).expand(96, 128))


def test_no_support_for_a_depth_that_the_other_view_denies(wall):
    wall[0, 40:50, 60:70] = 1.6
    support = count_support(wall, CAMERAS)
    assert (support[0, 40:50, 60:70] == 0).all()


def test_only_trusted_pixels_confirm(wall):
    trusted = torch.ones_like(wall, dtype=torch.bool)
    trusted[1] = False
    support = count_support(wall, CAMERAS, trusted)
    assert (support[0] == 0).all()
    assert torch.equal(support[1] == 1, SHARED.flip(0).expand(96, 128))  # a pixel need not be trusted to be confirmed


def test_support_counts_every_other_view():
    cameras = side_by_side(4, baseline=0.1)
    support = count_support(torch.full((4, 96, 128), 2.0), cameras)
    assert (support[:, :, 30:-30] == 3).all()


def test_floating_before_a_trusted_surface_is_a_violation(wall):
    wall[0, 40:50, 80:90] = 1.0
    trusted = torch.ones_like(wall, dtype=torch.bool)
    violations = count_violations(wall, trusted, CAMERAS)
    assert (violations[0, 40:50, 80:90] == 1).all()
    assert violations.sum() == 100  # the wall itself violates nothing


def test_nobody_is_violated_by_what_is_not_trusted(wall):
    wall[0, 40:50, 80:90] = 1.0
    trusted = torch.zeros_like(wall, dtype=torch.bool)
    assert (count_violations(wall, trusted, CAMERAS) == 0).all()


def test_a_point_behind_the_other_views_surface_is_hidden_not_wrong(wall):
    wall[0] = 3.0
    trusted = torch.ones_like(wall, dtype=torch.bool)
    assert (count_violations(wall, trusted, CAMERAS)[0] == 0).all()


def test_depth_splatted_from_the_other_view(wall):
    trusted = torch.ones_like(wall, dtype=torch.bool)
    known = splat_depth(wall, trusted, CAMERAS)[0]
    torch.testing.assert_close(known[:, 33:], torch.full((96, 95), 2.0))
    assert known[:, :31].isinf().all()
    assert splat_depth(wall, ~trusted, CAMERAS).isinf().all()


def test_the_nearest_splatted_depth_wins():
    cameras = side_by_side(3, baseline=0.0)
    depth = torch.stack([torch.full((96, 128), z) for z in (5.0, 3.0, 2.0)])
    known = splat_depth(depth, torch.ones_like(depth, dtype=torch.bool), cameras)
    torch.testing.assert_close(known[0], torch.full((96, 128), 2.0))
    torch.testing.assert_close(known[2], torch.full((96, 128), 3.0))  # a view's own depth does not count


def test_carving_adds_its_penalty_only_in_front_of_what_is_known(wall):
    depths = torch.tensor([4.0, 2.0, 1.0])
    carved = carve_free_space(torch.zeros(3, 96, 128), CAMERAS[[0]], wall[1:], CAMERAS[1:], depths, 0.5)
    assert (carved[:2] == 0).all()  # behind the wall and on it
    seen = torch.arange(128) >= 64  # at depth 1 the parallax is 64 columns
    assert torch.equal(carved[2] == 0.5, seen.expand(96, 128))
    assert torch.equal(carved[2] == 0, ~seen.expand(96, 128))


def test_carving_leaves_the_unknown_and_its_input_alone(wall):
    cost = torch.rand(2, 96, 128, generator=torch.Generator().manual_seed(0))
    before = cost.clone()
    carved = carve_free_space(cost, CAMERAS[[0]], torch.zeros_like(wall[1:]), CAMERAS[1:], torch.tensor([3.0, 1.0]), 0.5)
    assert torch.equal(carved, before)
    carve_free_space(cost, CAMERAS[[0]], wall[1:], CAMERAS[1:], torch.tensor([3.0, 1.0]), 0.5)
    assert torch.equal(cost, before)


def test_speckles_go_and_surfaces_stay():
    depth = torch.full((40, 60), 2.0)
    depth[5:8, 5:8] = 1.0  # small, with a step all around it
    depth[20:35, 20:40] = 1.0  # as far in front, but large
    slope = 1 / torch.linspace(0.5, 1.0, 60)  # one surface, whose ends lie far apart
    trusted = torch.ones(40, 60, dtype=torch.bool)
    kept = drop_speckles(trusted, depth, spacing=0.02, least=50)
    assert (~kept).sum() == 9
    assert not kept[5:8, 5:8].any()
    assert drop_speckles(trusted, slope.expand(40, 60).contiguous(), spacing=0.02, least=50).all()


def test_what_is_not_trusted_joins_nothing():
    trusted = torch.zeros(40, 60, dtype=torch.bool)
    trusted[::2, ::2] = True
    assert not drop_speckles(trusted, torch.full((40, 60), 2.0), spacing=0.02, least=2).any()
