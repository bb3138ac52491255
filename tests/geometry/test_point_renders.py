"""Renders of single points and small walls, for which every pixel's value is known."""

import torch
from exact_scene import side_by_side
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.geometry.point_renders import render_points
from reconx_core.geometry.transforms import project, unproject

CAMERA = side_by_side(1, height=48, width=64)
RED, BLUE = torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 0, 1])


def wall(z, colour, confidence, columns=slice(None)):
    """A point for every pixel of some columns, at depth z."""
    xyz = unproject(torch.full((1, 48, 64), z), CAMERA)[0][:, columns].reshape(-1, 3)
    n = len(xyz)
    return xyz, torch.full((n,), z / 64), colour.repeat(n, 1), torch.full((n,), confidence)


def render(*walls):
    images, visibility, depth = render_points(*(torch.cat(parts) for parts in zip(*walls)), CAMERA)
    return images[0], visibility[0], depth[0]


@settings(max_examples=30, deadline=None)
@given(st.floats(-0.6, 0.6), st.floats(-0.4, 0.4), st.floats(1.5, 8))
def test_a_point_appears_where_projection_says(x, y, z):
    point = torch.tensor([[x, y, z]])
    image, visibility, depth = render((point, torch.tensor([z / 64]), RED[None], torch.ones(1)))
    pixel, _ = project(point, CAMERA.intrinsics[0], CAMERA.world_to_cam[0])
    seen = (visibility > 0).nonzero()
    if not ((pixel[0] > 1) & (pixel[0] < torch.tensor([63.0, 47.0]))).all():
        return
    assert ((seen.flip(-1) + 0.5 - pixel[0]).norm(dim=-1) <= 0.81).all()
    column, row = pixel[0].floor().long().tolist()
    torch.testing.assert_close(image[row, column], RED)
    torch.testing.assert_close(depth[row, column], torch.tensor(z))


def test_nothing_is_seen_without_points_there():
    image, visibility, depth = render(wall(2.0, RED, 1.0, slice(0, 20)))
    for map_ in (image, visibility, depth):
        assert (map_[:, 24:] == 0).all()


def test_points_behind_the_camera_are_not_seen():
    xyz, size, rgb, confidence = wall(2.0, RED, 1.0)
    _, visibility, _ = render((-xyz, size, rgb, confidence))
    assert (visibility == 0).all()


def test_a_wall_is_solid():
    image, visibility, depth = render(wall(2.0, RED, 0.9))
    torch.testing.assert_close(image, RED.expand(48, 64, 3))
    torch.testing.assert_close(visibility, torch.full((48, 64), 0.9))
    torch.testing.assert_close(depth, torch.full((48, 64), 2.0))


def test_the_nearer_confident_surface_hides_the_other():
    image, _, depth = render(wall(4.0, BLUE, 1.0), wall(2.0, RED, 1.0))
    torch.testing.assert_close(image, RED.expand(48, 64, 3))
    torch.testing.assert_close(depth, torch.full((48, 64), 2.0))


def test_uncertain_points_never_hide_confident_ones():
    image, visibility, depth = render(wall(4.0, BLUE, 0.9), wall(2.0, RED, 0.1))
    torch.testing.assert_close(image, BLUE.expand(48, 64, 3))
    torch.testing.assert_close(visibility, torch.full((48, 64), 0.9))
    torch.testing.assert_close(depth, torch.full((48, 64), 4.0))


def test_uncertain_points_show_where_there_is_nothing_better():
    image, visibility, _ = render(wall(4.0, BLUE, 0.9, slice(0, 30)), wall(2.0, RED, 0.1))
    torch.testing.assert_close(image[:, 34:], RED.expand(48, 30, 3))
    torch.testing.assert_close(visibility[:, 34:], torch.full((48, 30), 0.1))


def test_on_one_surface_the_surer_colour_prevails():
    image, _, _ = render(wall(2.0, BLUE, 0.9), wall(2.01, RED, 0.4))
    assert (image[..., 2] > 3 * image[..., 0]).all()
    assert image[..., 0].min() > 0.05  # they blend


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_visibility_is_a_share_and_colours_are_of_points(seed, count):
    g = torch.Generator().manual_seed(seed)
    xyz = torch.randn(count, 3, generator=g) + torch.tensor([0.0, 0, 2])
    size, confidence = torch.rand(2, count, generator=g)
    image, visibility, depth = render((xyz, 0.1 * size, torch.rand(count, 3, generator=g), confidence))
    assert visibility.min() >= 0
    assert visibility.max() <= confidence.max() + 1e-4
    assert image.min() >= 0
    assert image.max() <= 1 + 1e-4
    assert (depth[visibility > 0] > 0).all()
