"""Slanted-plane refinement of planes from a fronto-parallel initialisation."""

import numba
import numpy as np
import pytest
import torch
from exact_scene import inner, plane, relative_error, side_by_side

from reconx_core.pointcloud.stereo.patchmatch import _random, refine_depth

NEAR, FAR = 1.0, 6.0
SPACING = (1 / NEAR - 1 / FAR) / 63


def coarse(depth):
    """Depth rounded to every second plane: up to one spacing off."""
    step = 2 * SPACING
    return 1 / ((1 / depth / step).round() * step)


def refine(images, cameras, start, trust=0.0):
    weight = torch.full_like(start, trust)
    return refine_depth(images[0], images[1:], cameras[[0]], cameras[1:], start, weight, NEAR, FAR, SPACING)


@pytest.fixture(scope="module")
def refined():
    """(start, refined, agreement, truth) of a slanted plane."""
    cameras = side_by_side(2)
    images, depth = plane(cameras, (0.3, 0.2))
    return coarse(depth[0]), *refine(images, cameras, coarse(depth[0])), depth[0]


def test_refinement_improves_a_coarse_start(refined):
    start, found, _, truth = refined
    before, after = (inner(relative_error(x, truth), 16) for x in (start, found))
    assert (before < 0.01).float().mean() < 0.6
    assert (after < 0.01).float().mean() > 0.9
    assert after.median() < before.median() / 4


def test_steep_surfaces_are_found_as_slanted():
    """At a wide baseline a steep surface is foreshortened: patches match only as slanted planes."""
    cameras = side_by_side(2, baseline=0.4)
    images, depth = plane(cameras, (0.5, 0.2))
    start = coarse(depth[0])
    found, _ = refine(images, cameras, start)
    seen = slice(40, -16)  # columns that both photos hold
    before, after = (relative_error(x, depth[0])[16:-16, seen].median() for x in (start, found))
    assert after < before / 4


def test_agreement_is_high_where_the_photos_agree(refined):
    _, _, agreement, _ = refined
    assert inner(agreement, 16).median() > 0.9
    assert agreement.min() >= 0
    assert agreement.max() <= 1


def test_depth_stays_between_its_limits(refined):
    _, found, _, _ = refined
    assert found.min() >= NEAR * 0.99
    assert found.max() <= FAR * 1.01


def test_nothing_moves_where_the_photos_do_not_decide():
    cameras = side_by_side(2)
    images = torch.full((2, 96, 128, 3), 0.5)
    start = torch.full((96, 128), 2.0)
    found, agreement = refine(images, cameras, start, trust=0.02)
    torch.testing.assert_close(inner(found, 24), inner(start, 24))  # what both photos hold
    assert inner(agreement, 24).max() < 0.1


def test_trust_holds_the_start():
    """What is trusted gives way less to the photos."""
    cameras = side_by_side(2)
    images, depth = plane(cameras, (0.3, 0.2))
    start = coarse(depth[0])
    loose, held = (relative_error(refine(images, cameras, start, trust)[0], start).mean() for trust in (0.0, 1.0))
    assert held < loose / 3


def test_a_second_source_may_miss_the_surface(refined):
    """A view that shows something else does not spoil what the other one confirms."""
    cameras = side_by_side(3)
    images, depth = plane(cameras, (0.3, 0.2))
    images[2] = images[2].flip(0)
    found, _ = refine(images, cameras, coarse(depth[0]))
    assert (inner(relative_error(found, depth[0]), 16) < 0.01).float().mean() > 0.8


def test_random_numbers_fill_their_interval():
    @numba.njit
    def numbers(count):
        out = np.empty(count, np.float32)
        for i in range(count):
            out[i] = _random(i)
        return out

    drawn = numbers(20_000)
    assert np.abs(drawn).max() <= 1
    assert abs(drawn.mean()) < 0.02
    assert drawn.std() == pytest.approx(3**-0.5, abs=0.02)
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.03


def test_same_bytes_again(refined):
    cameras = side_by_side(2)
    images, _ = plane(cameras, (0.3, 0.2))
    found, agreement = refine(images, cameras, refined[0])
    assert torch.equal(found, refined[1])
    assert torch.equal(agreement, refined[2])
