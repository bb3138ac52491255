"""Images and gradients of the CPU rasteriser against the plain float64 renderer."""

import pytest
import torch
from oracle import Scene, render
from scenes import blobs, leaves, orbit, pull

from reconx_core.rasterize import Rendering, rasterize
from reconx_core.types import Cameras, Gaussians

pytestmark = pytest.mark.long

BACKGROUND = torch.tensor([0.1, 0.5, 0.3])
NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh", "cam_to_world")


def ours(gaussians, cameras, **options):
    parameters = leaves(gaussians, cameras)
    *fields, cam_to_world = parameters
    cameras = Cameras(cameras.intrinsics, cam_to_world, cameras.width, cameras.height)
    rendering = rasterize(Gaussians(*fields), cameras, backend="cpu", **options)
    pull(rendering).backward()
    return rendering, [parameter.grad for parameter in parameters]


def slow(gaussians, cameras, degree, background):
    parameters = [leaf.detach().double().requires_grad_() for leaf in leaves(gaussians, cameras)]
    *fields, cam_to_world = parameters
    images = [
        render(Scene(*fields, pose, intrinsics.double()), cameras.width, cameras.height, degree, background.double())
        for pose, intrinsics in zip(cam_to_world, cameras.intrinsics)
    ]
    rendering = Rendering(*(torch.stack(group) for group in zip(*images)))
    pull(rendering).backward()
    return rendering, [parameter.grad for parameter in parameters]


def assert_same(actual, wanted, tolerance=1e-4):
    for got, image in zip(actual[0], wanted[0]):
        assert (got - image).abs().max() < 2e-5 * max(1, image.abs().max().item())
    for name, got, gradient in zip(NAMES, actual[1], wanted[1]):
        assert (got - gradient).norm() <= tolerance * gradient.norm(), name


@pytest.mark.parametrize(
    ("degree", "size", "blob"),
    [
        (3, (64, 64), 0.05),
        (2, (70, 50), 0.02),
        pytest.param(1, (33, 81), 0.1, marks=pytest.mark.slow),
        (0, (16, 16), 0.05),
    ],
    ids=["square", "small-blobs", "large-blobs", "one-tile"],
)
def test_image_and_all_gradients_of_2000_gaussians(degree, size, blob):
    gaussians, cameras = blobs(2000, degree, size=blob), orbit(1, *size)
    actual = ours(gaussians, cameras, background=BACKGROUND)
    assert actual[0].alpha.mean() > 0.5  # the test sees something
    assert_same(actual, slow(gaussians, cameras, degree, BACKGROUND))


def test_several_cameras_in_one_call():
    gaussians, cameras = blobs(500, 2, size=0.1), orbit(3, 40, 30)
    assert_same(ours(gaussians, cameras), slow(gaussians, cameras, 2, torch.zeros(3)))


def test_lower_degree_than_stored():
    gaussians, cameras = blobs(300, 3, size=0.1), orbit(1, 40, 30)
    actual = ours(gaussians, cameras, sh_degree=1)
    assert_same(actual, slow(gaussians, cameras, 1, torch.zeros(3)))
    assert torch.equal(actual[1][4][:, 4:], torch.zeros(300, 12, 3))


def test_near_large_and_outside_gaussians():
    """Centres beside the image, where the Jacobian is clamped, and splats larger than the image."""
    gaussians = blobs(200, 1, size=0.5)
    gaussians = Gaussians(gaussians.means * torch.tensor([3.0, 3.0, 0.3]), *list(vars(gaussians).values())[1:])
    cameras = orbit(1, 50, 40)
    assert_same(ours(gaussians, cameras), slow(gaussians, cameras, 1, torch.zeros(3)))


def test_opaque_wall_stops_the_light():
    """Saturated alphas and the transmittance cut."""
    gaussians = blobs(300, 0, size=0.4)
    gaussians = Gaussians(gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.logit_opacities + 8, gaussians.sh)
    cameras = orbit(1, 40, 40)
    actual = ours(gaussians, cameras)
    assert actual[0].alpha.max() > 0.999
    # 1 - opacity, a factor of the logit's gradient, has only four digits left in float32.
    assert_same(actual, slow(gaussians, cameras, 0, torch.zeros(3)), tolerance=1e-3)
