"""Panels have the colours that they should, and the clip passes through the input cameras."""

import pytest
import torch
from metrics_scene import make_cameras, make_gaussians

from reconx_core.metrics import pictures
from reconx_core.metrics.pictures import INFERNO, VIRIDIS, colour_map, depth_colours, error_heat, render_loop, render_path
from reconx_core.rasterize import rasterize


def colour(anchor: str) -> torch.Tensor:
    return torch.tensor(list(bytes.fromhex(anchor))) / 255


def test_colour_map_hits_its_anchors_and_clips():
    levels = torch.tensor([[-1.0, 0.0, 0.5, 1.0, 2.0]])
    wanted = torch.stack([colour(INFERNO[i]) for i in (0, 0, 4, 8, 8)])
    torch.testing.assert_close(colour_map(levels, INFERNO)[0], wanted)


def test_error_is_black_where_there_is_none_or_nothing_counts():
    photo = torch.full((2, 2, 3), 0.5)
    render = photo.clone()
    render[0] += 0.3
    mask = torch.tensor([[True, False], [True, True]])
    heat = error_heat(render, photo, mask)
    torch.testing.assert_close(heat[0, 0], colour(INFERNO[-1]))
    for pixel in (heat[0, 1], heat[1, 0]):
        torch.testing.assert_close(pixel, colour(INFERNO[0]))


def test_depth_is_bright_where_near_and_grey_where_empty():
    z = torch.linspace(1, 5, 64).expand(64, 64)
    alpha = torch.full((64, 64), 0.9)
    alpha[:, 40] = 0.1
    shown = depth_colours(z * alpha, alpha)
    torch.testing.assert_close(shown[0, 0], colour(VIRIDIS[-1]))
    torch.testing.assert_close(shown[0, -1], colour(VIRIDIS[0]))
    torch.testing.assert_close(shown[0, 40], torch.full((3,), 0.5))
    assert (depth_colours(z, torch.zeros(64, 64)) == 0.5).all()


@pytest.mark.parametrize(("n", "keys"), [(2, {0: 0, 4: 1}), (3, {0: 0, 7: 2})])
def test_clip_passes_through_the_cameras(n, keys):
    """Two cameras: there and back in eight frames; three: from the first to the last."""
    gaussians, cameras = make_gaussians(), make_cameras(n)
    clip = render_path(gaussians, cameras, 8)
    photos = rasterize(gaussians, cameras).rgb.clamp(0, 1)
    assert clip.shape == (8, *photos.shape[1:])
    for frame, camera in keys.items():
        torch.testing.assert_close(clip[frame], photos[camera], atol=0.01, rtol=0)
    assert (clip[1] - clip[0]).abs().max() > 0.02


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("frames", [2, 7, 8])
def test_loop_goes_to_the_last_camera_and_back_by_the_same_frames(n, frames, monkeypatch):
    gaussians, cameras = make_gaussians(), make_cameras(n)
    rendered = []
    monkeypatch.setattr(pictures, "rasterize", lambda *given: rendered.append(1) or rasterize(*given))
    clip = render_loop(gaussians, cameras, frames)
    there = frames // 2
    assert (len(clip), len(rendered)) == (frames, there + 1)
    photos = rasterize(gaussians, cameras).rgb.clamp(0, 1)
    torch.testing.assert_close(clip[0], photos[0], atol=0.01, rtol=0)
    torch.testing.assert_close(clip[there], photos[-1], atol=0.01, rtol=0)
    assert [id(frame) for frame in clip[there + 1 :]] == [id(frame) for frame in clip[1 : frames - there][::-1]]
