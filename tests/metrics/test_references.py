"""Our image metrics against the reference implementations of published results: scikit-image, pixelSplat, the `lpips` package.

The package needs torchvision only to build VGG16, which the tests build of plain torch layers instead, with random weights.
"""

import sys
from dataclasses import replace
from functools import partial
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from metrics_scene import make_cameras, make_gaussians, make_pointmaps, make_views
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn

from reconx_core.losses.lpips import Lpips
from reconx_core.metrics import score_scene
from reconx_core.metrics.image import lpips_distance, psnr, ssim
from reconx_core.settings import MetricsSettings

SIZES = [(64, 64), (33, 50), (11, 40), (144, 192)]
DEFECTS = ("noise", "blur", "shift", "too bright")
VGG16 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")


def photo_of(height, width, seed=0):
    """Patches of one colour under a fine texture: flat and busy places, where the constants of SSIM do and do not matter."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 6, 7, generator=draw)
    patches = nn.functional.interpolate(coarse, (height, width), mode="nearest")[0].movedim(0, -1)
    texture = torch.rand(height, width, 3, generator=draw) * (torch.arange(width) > width / 3)[:, None]
    return (0.9 * patches + 0.1 * texture).contiguous()


def render_of(photo, defect):
    if defect == "noise":
        return (photo + 0.05 * torch.randn(photo.shape, generator=torch.Generator().manual_seed(1))).clamp(0, 1)
    if defect == "blur":
        padded = nn.functional.pad(photo.movedim(-1, 0)[None], (2, 2, 2, 2), mode="replicate")
        return nn.functional.avg_pool2d(padded, 5, stride=1)[0].movedim(0, -1).contiguous()
    return photo.roll(2, 1) if defect == "shift" else 1.3 * photo  # the last leaves [0, 1], as a render may


def everything(photo):
    return torch.ones(photo.shape[:2], dtype=torch.bool)


def pixelsplat_psnr(ground_truth, predicted):
    """Per image: -10 log10 of the mean squared error of the clipped images."""
    errors = (ground_truth.clip(0, 1) - predicted.clip(0, 1)).square().flatten(1).mean(1)
    return -10 * errors.log10()


def pixelsplat_ssim(ground_truth, predicted):
    """Per image; channels first, and no more options than these."""
    options = {"win_size": 11, "gaussian_weights": True, "channel_axis": 0, "data_range": 1.0}
    return [structural_similarity(gt.numpy(), hat.numpy(), **options) for gt, hat in zip(ground_truth, predicted)]


def channels_first(image):
    return image.movedim(-1, 0).contiguous()


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", SIZES)
def test_ssim_is_that_of_scikit_image_as_pixelsplat_calls_it(size, defect):
    photo = photo_of(*size)
    render = render_of(photo, defect)
    (wanted,) = pixelsplat_ssim(channels_first(photo)[None], channels_first(render.clamp(0, 1))[None])
    assert ssim(render, photo, everything(photo)) == pytest.approx(wanted, abs=1e-5)
    assert wanted < 0.999


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", SIZES)
def test_psnr_is_that_of_pixelsplat_and_of_scikit_image(size, defect):
    photo = photo_of(*size)
    render = render_of(photo, defect)
    ours = psnr(render, photo, everything(photo))
    assert ours == pytest.approx(pixelsplat_psnr(photo[None], render[None]).item(), abs=1e-5)
    clipped = (image.clamp(0, 1).double().numpy() for image in (photo, render))
    assert ours == pytest.approx(peak_signal_noise_ratio(*clipped, data_range=1.0), abs=1e-5)


def test_a_scenes_scores_are_the_means_over_its_held_out_images():
    gaussians, cameras = make_gaussians(), make_cameras()
    exact = make_views(gaussians, cameras)
    blurred = replace(exact, images=torch.stack([render_of(image, "blur") for image in exact.images]))
    pointmaps, kept = make_pointmaps(cameras[::2]), torch.arange(3)
    scores, _ = score_scene(gaussians, blurred, kept, pointmaps, MetricsSettings(), torch.Generator())
    truth, renders = (views.images[views.is_target].movedim(-1, 1) for views in (blurred, exact))
    assert len(truth) == 2
    assert scores.summary["psnr"] == pytest.approx(pixelsplat_psnr(truth, renders).mean().item(), abs=1e-5)
    assert scores.summary["ssim"] == pytest.approx(np.mean(pixelsplat_ssim(truth, renders)), abs=1e-5)


def vgg16(pretrained=False):
    """The part of torchvision's return value that the package uses."""
    assert not pretrained
    layers, before = [], 3
    for width in VGG16:
        layers += [nn.MaxPool2d(2, 2)] if width == "pool" else [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
        before = before if width == "pool" else width
    return SimpleNamespace(features=nn.Sequential(*layers))


def alexnet(pretrained=False):
    """The same for AlexNet."""
    assert not pretrained
    convolution = partial(nn.Conv2d, kernel_size=3, padding=1)
    return SimpleNamespace(
        features=nn.Sequential(
            nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(),
            nn.MaxPool2d(3, 2), convolution(192, 384), nn.ReLU(), convolution(384, 256), nn.ReLU(), convolution(256, 256),
            nn.ReLU(), nn.MaxPool2d(3, 2),
        )
    )  # fmt: skip


@pytest.fixture(scope="module")
def package():
    """The `lpips` package: `pip install --no-deps lpips`, for its dependency torchvision would bring another torch."""
    stand_in = ModuleType("torchvision")
    stand_in.models = SimpleNamespace(vgg16=vgg16, alexnet=alexnet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", stand_in)
        return pytest.importorskip("lpips", reason="no lpips package here (pip install --no-deps lpips)")


@pytest.fixture(scope="module", params=["vgg", "alex"])
def net(request):
    return request.param


@pytest.fixture(scope="module", params=["random heads", "published heads"])
def theirs(package, net, request):
    """Their network with a random backbone, and the heads that the package brings or random ones."""
    torch.manual_seed(0)
    published = request.param == "published heads"
    network = package.LPIPS(net=net, pnet_rand=True, pretrained=published, verbose=False)
    if not published:
        for head in network.lins:
            nn.init.uniform_(head.model[1].weight, 0, 1)
    return network


@pytest.fixture(scope="module")
def ours(theirs, net):
    """Our network with the same weights, in the formats in which both files are published."""
    trunk = {name.split(".", 1)[1]: value for name, value in theirs.net.state_dict().items()}
    heads = {name: value for name, value in theirs.state_dict().items() if name.startswith("lin") and "model" in name}
    return Lpips({f"features.{name}": value for name, value in trunk.items()}, heads, net)


@torch.no_grad()
@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("size", [(64, 64), (33, 50)])
def test_lpips_is_that_of_the_package_with_the_same_weights(theirs, ours, size, defect):
    photo = photo_of(*size)
    render = render_of(photo, defect)
    images = (channels_first(photo)[None], channels_first(render.clamp(0, 1))[None])
    wanted = theirs(*images, normalize=True)[0, 0, 0, 0].item()
    assert lpips_distance(ours, render, photo, everything(photo)) == pytest.approx(wanted, abs=1e-5, rel=1e-5)
    assert wanted > 1e-4
