"""The CPU kernels and gsplat's CUDA kernels draw the same scene and send back the same gradients."""

import importlib.util

import pytest
import torch
from scenes import blobs, leaves, orbit, pull

from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians

MISSING = not torch.cuda.is_available() or importlib.util.find_spec("gsplat") is None
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(MISSING, reason="needs a CUDA GPU and gsplat")]

NAMES = ("means", "quats", "log_scales", "logit_opacities", "sh", "cam_to_world")


def drawn_by(backend, gaussians, cameras, device, **options):
    parameters = leaves(gaussians, cameras)
    *fields, cam_to_world = (parameter.to(device) for parameter in parameters)
    cameras = Cameras(cameras.intrinsics.to(device), cam_to_world, cameras.width, cameras.height)
    rendering = rasterize(Gaussians(*fields), cameras, backend=backend, **options)
    pull(rendering).backward()
    return [image.detach().cpu() for image in rendering], [parameter.grad for parameter in parameters]


@pytest.mark.parametrize("device", ["cuda", "cpu"], ids=["gaussians-on-gpu", "gaussians-on-cpu"])
@pytest.mark.parametrize(("degree", "size"), [(3, (70, 50)), (1, (256, 192))])
def test_images_and_gradients_agree(degree, size, device):
    gaussians, cameras = blobs(2000, degree), orbit(2, *size)
    options = {"background": torch.tensor([0.1, 0.5, 0.3])}
    cpu_images, cpu_gradients = drawn_by("cpu", gaussians, cameras, "cpu", **options)
    gpu_images, gpu_gradients = drawn_by("gsplat", gaussians, cameras, device, **options)
    for image, other in zip(cpu_images, gpu_images):
        # A pair of float32 renderers may differ by a splat where alpha is 1/255 or the light is spent.
        assert (image - other).abs().max() < 0.02
        assert (image - other).abs().mean() < 1e-5 * image.abs().max()
    for name, gradient, other in zip(NAMES, cpu_gradients, gpu_gradients):
        assert (gradient - other).norm() < 1e-3 * gradient.norm(), name


def test_lower_degree_than_stored():
    cpu, _ = drawn_by("cpu", blobs(500, 3), orbit(1, 64, 64), "cpu", sh_degree=1)
    gpu, _ = drawn_by("gsplat", blobs(500, 3), orbit(1, 64, 64), "cuda", sh_degree=1)
    assert (cpu[0] - gpu[0]).abs().max() < 0.02


def test_empty_scene_shows_the_background():
    *fields, _ = leaves(blobs(0), orbit(1, 20, 20))
    rendering = rasterize(Gaussians(*fields), orbit(2, 20, 17), backend="gsplat", background=torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(rendering.rgb, torch.tensor([0.1, 0.2, 0.3]).expand(2, 17, 20, 3))
    assert rendering.alpha.abs().max() == rendering.depth.abs().max() == 0
    pull(rendering).backward()
    assert fields[4].grad.shape == (0, 16, 3)
