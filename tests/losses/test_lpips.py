"""LPIPS with random weights against a plain transcription of its definition; the real weights are not ours to ship."""

import pytest
import torch
from torch import nn

from reconx_core.errors import UserError
from reconx_core.losses.lpips import Lpips, load_lpips, lpips_missing_reason

CHANNELS = (64, 128, 256, 512, 512)
LEFT = (torch.arange(48) < 24).float().expand(2, 33, 48)


def vgg16_features() -> nn.Sequential:
    """The convolutional part of VGG16 (configuration D of Simonyan and Zisserman)."""
    layers: list[nn.Module] = []
    before = 3
    for width, depth in zip(CHANNELS, (2, 2, 3, 3, 3)):
        for _ in range(depth):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def vgg() -> nn.Sequential:
    torch.manual_seed(0)
    return vgg16_features()


@pytest.fixture(scope="module")
def heads() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=g) for i, c in enumerate(CHANNELS)}


def state(vgg: nn.Sequential) -> dict[str, torch.Tensor]:
    return {f"features.{name}": value for name, value in vgg.state_dict().items()}


def images(seed: int) -> torch.Tensor:
    return torch.rand(2, 33, 48, 3, generator=torch.Generator().manual_seed(seed))


def defined(vgg: nn.Sequential, heads: dict[str, torch.Tensor], a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Sum over relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of the spatial mean of head . (unit a - unit b)^2."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    x, y = (((2 * image - 1 - shift) / scale).permute(0, 3, 1, 2) for image in (a, b))
    total = torch.zeros(len(a))
    reads = {3: 0, 8: 1, 15: 2, 22: 3, 29: 4}
    for number, layer in enumerate(vgg):
        x, y = layer(x), layer(y)
        if number in reads:
            ux, uy = (v / (v.norm(dim=1, keepdim=True) + 1e-10) for v in (x, y))
            weight = heads[f"lin{reads[number]}.model.1.weight"]
            total = total + (weight * (ux - uy) ** 2).sum(1).mean((1, 2))
    return total


@torch.no_grad()
def test_follows_the_definition(vgg, heads):
    distance = Lpips(state(vgg), heads)(images(0), images(1))
    torch.testing.assert_close(distance, defined(vgg, heads, images(0), images(1)), rtol=1e-5, atol=1e-7)
    assert (distance > 0.001).all()


def test_equal_images_have_no_distance_and_a_finite_gradient(vgg, heads):
    image = images(0).requires_grad_()
    distance = Lpips(state(vgg), heads)(image, image.detach())
    assert (distance == 0).all()
    Lpips(state(vgg), heads)(image, images(1)).sum().backward()
    assert image.grad.isfinite().all()
    assert image.grad.abs().max() > 0


def gradient(lpips: Lpips, image: torch.Tensor, reference: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    image = image.clone().requires_grad_()
    return torch.autograd.grad(lpips(image, reference, weight).sum(), image)[0]


@torch.no_grad()
def test_a_weight_for_all_pixels_is_a_factor(vgg, heads):
    lpips = Lpips(state(vgg), heads)
    plain = lpips(images(0), images(1))
    assert torch.equal(lpips(images(0), images(1), torch.ones(2, 33, 48)), plain)
    torch.testing.assert_close(lpips(images(0), images(1), torch.full((2, 33, 48), 0.25)), 0.25 * plain)


@torch.no_grad()
def test_each_pixel_counts_by_its_weight(vgg, heads):
    """A difference at the left is worth twice as much under twice the weight there, whatever weight the right has."""
    lpips, image = Lpips(state(vgg), heads), images(0)
    spoilt = image.clone()
    spoilt[:, :, :4] = images(1)[:, :, :4]  # far enough from the right half that few receptive fields reach there
    half, whole, right = (lpips(spoilt, image, w) for w in (0.5 * LEFT + 0.01, LEFT + 0.01, 1.01 - LEFT))
    assert (half / whole - 0.5).abs().max() < 0.02
    assert (right < 0.4 * whole).all()


def test_masked_out_pixels_have_no_gradient_and_no_say(vgg, heads):
    lpips, masked = Lpips(state(vgg), heads), LEFT == 0
    found = gradient(lpips, images(0), images(1), LEFT)
    assert (found[masked] == 0).all()
    assert (found[~masked] != 0).float().mean() > 0.9
    other = torch.where(masked[..., None], 1 - images(1), images(1))  # another photo beyond the mask
    assert torch.equal(gradient(lpips, images(0), other, LEFT), found)
    assert (gradient(lpips, images(0), images(1), torch.zeros(2, 33, 48)) == 0).all()


def test_weights_are_found_in_the_folder(vgg, heads, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    assert load_lpips() is None
    assert "vgg16-397923af.pth" in lpips_missing_reason()
    assert "vgg.pth" in lpips_missing_reason()
    torch.save(state(vgg), tmp_path / "vgg16-397923af.pth")
    assert load_lpips() is None
    # The published files have the format of torch < 1.6.
    torch.save(heads, tmp_path / "vgg.pth", _use_new_zipfile_serialization=False)
    assert lpips_missing_reason() is None
    with torch.no_grad():
        found, direct = load_lpips()(images(0), images(1)), Lpips(state(vgg), heads)(images(0), images(1))
    assert torch.equal(found, direct)


def test_another_device_leaves_the_first_alone(vgg, heads, tmp_path, monkeypatch):
    """The `splats` stage optimises on the GPU while `metrics` scores another scene."""
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    torch.save(state(vgg), tmp_path / "vgg16-397923af.pth")
    torch.save(heads, tmp_path / "vgg.pth")
    here, there = load_lpips(), load_lpips("meta")
    assert {value.device.type for value in here.buffers()} == {"cpu"}
    assert {value.device.type for value in there.buffers()} == {"meta"}


@pytest.mark.parametrize("damage", ["truncated", "other keys"])
def test_damaged_weights_are_named(heads, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    torch.save(heads, tmp_path / "vgg.pth")
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg16-397923af.pth")
    if damage == "truncated":
        (tmp_path / "vgg16-397923af.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError, match="vgg16-397923af"):
        load_lpips()
