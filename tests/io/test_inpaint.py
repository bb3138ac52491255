"""Hole filling."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.io.inpaint import pull_push


def images(seed, height, width, share):
    """A random picture and a mask that covers ``share`` of it, at least one pixel."""
    g = torch.Generator().manual_seed(seed)
    known = (torch.rand(1, height, width, generator=g) < share).float()
    known[0, height // 2, width // 2] = 1
    return torch.rand(1, height, width, 3, generator=g), known


sizes = st.integers(1, 37)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), sizes, sizes, st.floats(0, 1))
def test_known_pixels_stay_and_holes_are_filled_within_range(seed, height, width, share):
    picture, known = images(seed, height, width, share)
    filled = pull_push(picture, known)
    there = known > 0
    torch.testing.assert_close(filled[there], picture[there], atol=1e-5, rtol=0)
    assert filled.min() >= picture[there].min() - 1e-4
    assert filled.max() <= picture[there].max() + 1e-4


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), sizes, sizes, st.floats(0, 1), st.floats(0.01, 1))
def test_a_constant_picture_stays_constant(seed, height, width, share, value):
    _, known = images(seed, height, width, share)
    filled = pull_push(torch.full((1, height, width, 3), value), known)
    torch.testing.assert_close(filled, torch.full_like(filled, value), atol=1e-4, rtol=1e-4)


def test_what_lies_in_a_hole_does_not_matter():
    picture, known = images(0, 20, 30, 0.4)
    other = torch.where(known[..., None] > 0, picture, 7.0)
    torch.testing.assert_close(pull_push(other, known), pull_push(picture, known))


def test_a_hole_takes_the_colour_of_its_side():
    picture = torch.zeros(1, 32, 32, 1)
    picture[:, :, 16:] = 1
    known = torch.ones(1, 32, 32)
    known[:, 12:20, 2:8], known[:, 12:20, 24:30] = 0, 0
    filled = pull_push(picture, known)[0, ..., 0]
    assert filled[12:20, 2:8].max() < 0.1
    assert filled[12:20, 24:30].min() > 0.9


def test_weights_in_between_blend_with_the_neighbours():
    picture = torch.zeros(1, 16, 16, 1)
    picture[0, 8, 8] = 1
    known = torch.ones(1, 16, 16)
    known[0, 8, 8] = 0.3
    assert 0.2 < float(pull_push(picture, known)[0, 8, 8, 0]) < 0.5


def test_an_empty_picture_becomes_black():
    assert (pull_push(torch.ones(2, 5, 7, 3), torch.zeros(2, 5, 7)) == 0).all()


def test_pictures_of_a_stack_do_not_mix():
    picture, known = images(3, 12, 9, 0.5)
    pair = pull_push(torch.cat([picture, 1 - picture]), torch.cat([known, 1 - known]))
    torch.testing.assert_close(pair[:1], pull_push(picture, known))
