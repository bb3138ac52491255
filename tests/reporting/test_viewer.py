"""The browser page: the arrays that viser gets, and that the page is served."""

import importlib.util
import math
import urllib.request

import pytest
import torch

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.reporting.viewer import show_scene, splat_arrays, up_direction
from reconx_core.types import Cameras, Gaussians

needs_viser = pytest.mark.skipif(importlib.util.find_spec("viser") is None, reason="viser (the `view` extra) is not installed")


def scene() -> tuple[Gaussians, Cameras]:
    quarter = torch.tensor([[math.sqrt(0.5), 0, 0, math.sqrt(0.5)]])
    gaussians = Gaussians(
        torch.tensor([[0.0, 0, 3]]), quarter, torch.tensor([[1.0, 2.0, 3.0]]).log(), torch.zeros(1), torch.zeros(1, 4, 3)
    )
    turn = so3_exp(torch.tensor([[0.0, 0, 0.2], [0.0, 0, -0.2]]))
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).repeat(2, 1, 1)
    return gaussians, Cameras(intrinsics, rigid(turn, torch.tensor([[0.0, 0, 0], [1, 0, 0]])), 64, 48)


def test_gaussians_as_viser_wants_them():
    arrays = splat_arrays(scene()[0])
    # A quarter turn about z swaps the variances along x and y.
    assert arrays["covariances"][0].diagonal() == pytest.approx([4, 1, 9], abs=1e-5)
    assert arrays["rgbs"][0] == pytest.approx([0.5, 0.5, 0.5])
    assert arrays["opacities"].shape == (1, 1)
    assert arrays["opacities"][0, 0] == 0.5


def test_up_is_against_the_image_y_axis():
    torch.testing.assert_close(up_direction(scene()[1]), torch.tensor([0.0, -1.0, 0.0]))


@needs_viser
@pytest.mark.parametrize("with_cameras", [True, False])
def test_page_is_served(with_cameras):
    gaussians, cameras = scene()
    server = show_scene(gaussians, cameras if with_cameras else None, port=8765)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.get_port()}", timeout=10) as page:
            assert b"<html" in page.read().lower()
    finally:
        server.stop()


def test_without_viser_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"reconx\[view\]"):
        show_scene(scene()[0])
