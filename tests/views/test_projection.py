"""Panoramas and fisheye discs are told from ordinary photos by their pixels."""

import math

import pytest
import torch

from reconx_core.datasets import Photo
from reconx_core.datasets.capture import Capture
from reconx_core.errors import UserError
from reconx_core.settings import ViewsSettings
from reconx_core.views import views_of
from reconx_core.views.projection import describe_projection


def texture(points: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Colours of points in space, smooth and of all scales."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.randn(24, 3, generator=generator) * torch.linspace(1, 12, 24)[:, None]
    weights = torch.rand(24, 3, generator=generator) / 6
    return (0.5 + torch.sin(points @ waves.T + torch.arange(24)) @ weights / 2).clamp(0.1, 1)


def sphere(seed: int = 0, height: int = 128) -> torch.Tensor:
    latitude = ((torch.arange(height) + 0.5) / height - 0.5)[:, None] * math.pi
    longitude = ((torch.arange(2 * height) + 0.5) / height)[None] * math.pi
    points = [latitude.cos() * longitude.cos(), latitude.sin().expand(-1, 2 * height), latitude.cos() * longitude.sin()]
    return texture(torch.stack(points, -1), seed)


def plane(height: int, width: int) -> torch.Tensor:
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width) * width / height, indexing="ij")
    return texture(torch.stack([x, y, torch.ones_like(x)], -1))


def disc(size: int = 128, width: int | None = None) -> torch.Tensor:
    width = width or size
    y, x = torch.meshgrid(torch.arange(size) + 0.5 - size / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    return plane(size, width) * (torch.hypot(x, y) < size / 2)[..., None]


@pytest.mark.parametrize("seed", range(4))
def test_a_sphere_is_told(seed):
    assert "panorama" in describe_projection(sphere(seed))
    assert describe_projection(sphere(seed)[:, :-8]) is None  # no longer the whole


def test_discs_are_told():
    assert "fisheye" in describe_projection(disc())
    assert "fisheye" in describe_projection(disc(96, 128))
    assert "fisheye" in describe_projection(torch.cat([disc(), disc().flip(1)], 1))  # front and back of a 360 degree camera


def studio() -> torch.Tensor:
    """A thing before a wall that is alike on both sides."""
    wall = torch.linspace(0.4, 0.9, 128)[:, None, None].expand(-1, 256, 3).clone()
    wall[40:90, 100:150] = plane(50, 50)
    return wall


def turntable() -> torch.Tensor:
    return disc(64).new_zeros(128, 128, 3).index_put((torch.arange(40, 90)[:, None], torch.arange(30, 90)), plane(50, 60))


@pytest.mark.parametrize("image", [plane(128, 256), plane(96, 128), torch.zeros(64, 128, 3), studio(), turntable()])
def test_ordinary_photos_are_not(image):
    assert describe_projection(image) is None


def test_a_panorama_among_photos_is_left_out_and_panoramas_alone_are_refused():
    flat = [Photo(f"p{i}", lambda i=i: plane(128, 256).roll(9 * i, 0)) for i in range(2)]
    round_ = [Photo(f"s{i}", lambda i=i: sphere(i)) for i in range(2)]
    with pytest.warns(UserWarning, match=r"'s0' looks like one that is a panorama.* It is left out"):
        assert views_of(Capture("place", (*flat, round_[0])), ViewsSettings()).names == ("p0", "p1")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(UserError, match=r"at least two.* Photo 's0' looks like"):
        views_of(Capture("place", tuple(round_)), ViewsSettings())
