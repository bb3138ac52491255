"""Batches and data augmentation of training."""

import pytest
import torch

from reconx_core.training import batches
from reconx_core.training.batches import pick_frames, pick_window, prepare, prepared_clips
from reconx_core.training.schedule import Schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.video.sources import SOURCES, frame_sources

CPU = torch.device("cpu")


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_batch(load, size, crop, augment, update=0):
    settings = TrainSettings(frames=4, crop=crop, augment=augment)
    return batches.draw_batch(load, Schedule(3, len(load), size), update, 0, settings)


@pytest.fixture(scope="module")
def load(clip):
    return prepared_clips([lambda: clip], 256, True, CPU, 1)


def test_an_update_has_always_the_same_samples(load):
    first, second, other = (draw_batch(load, 2, (32, 48), True, update) for update in (3, 3, 4))
    for name, tensor in vars(first).items():
        assert torch.equal(tensor, getattr(second, name)), name
    assert not torch.equal(first.frames, other.frames)


def test_photos_stand_at_both_ends_and_are_fully_visible(load):
    batch = draw_batch(load, 3, (32, 48), True)
    assert batch.frames.shape == (3, 4, 3, 32, 48)
    assert torch.equal(batch.renders[:, [0, -1]], batch.frames[:, [0, -1]])
    assert (batch.visibility[:, [0, -1]] == 1).all()
    assert not torch.equal(batch.renders[:, 1:-1], batch.frames[:, 1:-1])


def test_both_photos_are_always_among_the_frames():
    orders = [pick_frames(9, 4, draw(seed)).tolist() for seed in range(30)]
    assert all({order[0], order[-1]} == {0, 8} for order in orders)
    assert all(order == sorted(order) for order in orders)
    assert len({tuple(order) for order in orders}) > 10


def test_points_are_seen_from_the_first_frame(load):
    """The points are in the frame of the first camera, also in reversed clips, and mirrored with the frames."""
    seen = [draw_batch(load, 1, (48, 64), True, update).points[0] for update in range(32)]
    assert len({tuple(points[0].tolist()) for points in seen}) == 4  # forwards or backwards, mirrored or not
    assert all(points[:, 2][points[:, 2] > 0].median() == pytest.approx(1) for points in seen)


def test_without_augmentation_the_clip_is_unchanged(clip, load):
    batch = draw_batch(load, 1, (48, 64), False)
    assert torch.allclose(batch.frames[0].movedim(1, -1), clip.images, atol=0.51 / 255)
    sources = frame_sources(clip.renders, clip.visibility, (clip.alone, clip.alone_visibility))
    assert torch.allclose(batch.sources[0, :, :2].movedim(2, -1), sources[:, :2], atol=0.51 / 255)
    assert torch.equal(batch.colours[0], clip.colours)


def test_a_model_that_does_not_blend_is_given_no_sources(clip):
    blends, plain = (prepare(clip, 64, blends, CPU) for blends in (True, False))
    assert blends.pictures.shape[1] - plain.pictures.shape[1] == SOURCES
    assert len(plain.points[0]) == 64


def test_cached_clips_are_read_once(clip):
    read = []
    load = prepared_clips([lambda: read.append(0) or clip, lambda: read.append(1) or clip], 64, True, CPU, 2)
    for number in (0, 1, 0, 1):
        load[number]()
    assert read == [0, 1]


def test_what_is_too_small_is_refused(clip):
    with pytest.raises(ValueError, match="at least 5, got 4"):
        pick_frames(len(clip), 5, draw())
    with pytest.raises(ValueError, match=r"at most \(48, 64\)"):
        pick_window((48, 64), (80, 96), draw())
