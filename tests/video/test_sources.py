"""The source images of a frame, and their blending."""

import pytest
import torch
from exact_scene import room, room_pointmaps
from small_models import small_pipeline

from reconx_core.errors import UserError
from reconx_core.geometry.point_renders import render_points, visible_points
from reconx_core.video.diffusion.tiny import tiny_pipeline
from reconx_core.video.sources import SOFTER, SOURCES, frame_sources, photo_renders, soften


def test_a_photo_alone_shows_its_own_points():
    inputs, pointmaps = room().inputs(), room_pointmaps()
    renders, visibility = photo_renders(inputs, pointmaps, torch.tensor([0, 2]), pointmaps.cameras)
    assert renders.shape == (len(inputs), 2, *inputs.images.shape[1:])
    for k, view in enumerate((0, 2)):
        seen = visibility[view, k] > 0.3
        assert seen.float().mean() > 0.8
        assert (renders[view, k] - inputs.images[view])[seen].abs().mean() < 0.05  # from where the photo was taken
    both, _, _ = render_points(*visible_points(inputs, pointmaps), pointmaps.cameras)
    assert not torch.allclose(renders[1, 0], both[1], atol=1e-2)


def test_sources_are_the_photos_then_softer_renders():
    seeded = torch.Generator().manual_seed(0)
    renders, visibility = torch.rand(2, 12, 16, 3, generator=seeded), torch.ones(2, 12, 16)
    alone = torch.rand(2, 2, 12, 16, 3, generator=seeded), torch.ones(2, 2, 12, 16)
    sources = frame_sources(renders, visibility, alone)
    assert sources.shape == (2, SOURCES, 12, 16, 4)
    assert torch.allclose(sources[:, :2, ..., :3], alone[0], atol=1e-6)
    detail = [sources[:, 2 + k, ..., :3].std() for k in range(len(SOFTER))]
    assert renders.std() > detail[0] > detail[1]


@pytest.mark.parametrize("factor", SOFTER)
def test_softening_keeps_what_is_uniform(factor):
    assert torch.allclose(soften(torch.full((1, 9, 13, 3), 0.4), factor), torch.tensor(0.4), atol=1e-6)


def drawn(sources):
    seeded = torch.Generator().manual_seed(0)
    photos, renders = torch.rand(1, 2, 3, 16, 16, generator=seeded), torch.rand(1, 4, 3, 16, 16, generator=seeded)
    return {
        "photos": photos, "positions": [0, 3], "num_frames": 4, "renders": renders, "visibility": torch.ones(1, 4, 16, 16),
        "sources": sources, "num_inference_steps": 1, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(1),
    }  # fmt: skip


def test_a_share_of_one_shows_that_source():
    pipeline = small_pipeline(blends=True)
    pipeline.set_progress_bar_config(disable=True)
    for parameter in pipeline.unet.conv_out.parameters():
        parameter.data.zero_()
    pipeline.unet.conv_out.bias.data[2 * 64 : 3 * 64] = 40.0  # the second source, everywhere
    sources = torch.rand(1, 4, SOURCES, 4, 16, 16, generator=torch.Generator().manual_seed(2))
    given = drawn(sources)
    frames = pipeline(**given).frames
    assert torch.allclose(frames[:, 1:-1], sources[:, 1:-1, 1, :3], atol=1e-4)
    assert torch.allclose(frames[:, [0, -1]], given["photos"], atol=1e-4)  # a photo stays what it is


def test_a_model_without_noise_is_sampled_in_one_step():
    pipeline = tiny_pipeline(0)
    given = {**drawn(torch.rand(1, 4, SOURCES, 4, 16, 16)), "generator": torch.Generator()}
    with pytest.raises(UserError, match="in one step, not in 4"):
        pipeline(**{**given, "num_inference_steps": 4})


def test_alike_shares_are_the_mean():
    pipeline = small_pipeline(blends=True)
    for parameter in pipeline.unet.conv_out.parameters():
        parameter.data.zero_()
    given = drawn(torch.rand(1, 4, SOURCES, 4, 16, 16, generator=torch.Generator().manual_seed(2)))
    mean = torch.cat([given["renders"][:, :, None], given["sources"][:, :, :, :3]], 2).mean(2)
    assert torch.allclose(pipeline(**given).frames[:, 1:-1], mean[:, 1:-1], atol=1e-4)


def test_sources_and_model_have_to_fit():
    with pytest.raises(UserError, match=f"blends {SOURCES} sources beside the render, not 0"):
        small_pipeline(blends=True)(**drawn(None))
