import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.datasets.capture import pinhole
from reconx_core.geometry.transforms import camera_rays
from reconx_core.geometry.undistort import distort, undistort

COEFFICIENTS = (-0.12, 0.03, 0.004, -0.006)


def scene(xy: torch.Tensor) -> torch.Tensor:
    """A smooth coloured pattern on the z = 1 plane."""
    x, y = xy.unbind(-1)
    return torch.stack([0.5 + 0.5 * torch.sin(5 * x), 0.5 + 0.5 * torch.cos(4 * y), 0.5 + 0.5 * torch.sin(3 * x + 4 * y)], -1)


def inverse(xy: torch.Tensor, coefficients) -> torch.Tensor:
    """Ideal points of distorted ones, by fixed-point iteration."""
    ideal = xy.clone()
    for _ in range(50):
        ideal = ideal + xy - distort(ideal, coefficients)
    return ideal


def test_a_picture_through_a_lens_becomes_the_pinhole_picture():
    intrinsics = pinhole(90.0, 95.0, 66.0, 47.0)  # principal point off the middle
    rays = camera_rays(intrinsics, 100, 130)[..., :2]
    through_lens, ideal = scene(inverse(rays, COEFFICIENTS)), scene(rays)
    undone, inside = undistort(through_lens, intrinsics, COEFFICIENTS)
    assert inside.float().mean() > 0.9
    assert (undone - ideal)[inside].abs().max() < 0.01
    assert (through_lens - ideal).abs().max() > 0.1  # the lens mattered


def test_pixels_that_the_lens_did_not_see_are_marked():
    image = torch.ones(40, 60, 3)
    _, inside = undistort(image, pinhole(40.0, 40.0, 30.0, 20.0), (0.3, 0.0, 0.0, 0.0))
    assert not inside[0, 0]
    assert inside[20, 30]


def test_no_distortion_changes_nothing():
    image = torch.rand(8, 9, 3)
    undone, inside = undistort(image, pinhole(9.0, 9.0, 4.0, 4.0), (0.0, 0.0, 0.0, 0.0))
    assert torch.equal(undone, image)
    assert inside.all()


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7), *[st.floats(-0.1, 0.1)] * 4)
def test_distort_is_the_opencv_model(x, y, k1, k2, p1, p2):
    r2 = x * x + y * y
    expected = [
        x * (1 + k1 * r2 + k2 * r2**2) + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * (1 + k1 * r2 + k2 * r2**2) + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    ]
    got = distort(torch.tensor([x, y], dtype=torch.float64), (k1, k2, p1, p2)).tolist()
    assert all(math.isclose(a, b, abs_tol=1e-12) for a, b in zip(got, expected))


@settings(max_examples=50, deadline=None)
@given(st.floats(-0.7, 0.7), st.floats(-0.7, 0.7), *[st.floats(-0.1, 0.1)] * 6)
def test_further_coefficients_are_those_of_opencv(x, y, k1, k2, k3, k4, k5, k6):
    r2 = x * x + y * y
    polynomial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    point = torch.tensor([x, y], dtype=torch.float64)
    for more, radial in (((k3,), polynomial), ((k3, k4, k5, k6), polynomial / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3))):
        got = distort(point, (k1, k2, 0.0, 0.0, *more)).tolist()
        assert all(math.isclose(a, b * radial, abs_tol=1e-12) for a, b in zip(got, (x, y)))


def test_the_third_radial_coefficient_alone_is_undone():
    intrinsics = pinhole(90.0, 95.0, 66.0, 47.0)
    rays = camera_rays(intrinsics, 100, 130)[..., :2]
    coefficients = (0.0, 0.0, 0.0, 0.0, 0.3)
    through_lens = scene(inverse(rays, coefficients))
    undone, inside = undistort(through_lens, intrinsics, coefficients)
    assert (undone - scene(rays))[inside].abs().max() < 0.015  # bilinear
    assert (through_lens - scene(rays)).abs().max() > 0.1
    negligible, _ = undistort(scene(rays), intrinsics, (0.0, 0.0, 0.0, 0.0, 1e-9))
    assert (negligible - scene(rays)).abs().max() < 1e-4
