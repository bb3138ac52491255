"""Batches and data augmentation of training."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from reconx_core.training import batches
from reconx_core.training.batches import Reads, pick_frames, pick_window, prepare, prepared_clips
from reconx_core.training.loader import Batches, load_batches
from reconx_core.training.schedule import Schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.sources import SOURCES, frame_sources

TINY = Reads(points=256, renders=True, filled=True, sources=True)


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def draw_batch(load, size, crop, augment, update=0):
    settings = TrainSettings(frames=4, crop=crop, augment=augment)
    return batches.draw_batch(load, Schedule(3, len(load), size), update, 0, settings, TINY)


@pytest.fixture(scope="module")
def load(clip):
    return prepared_clips([lambda: clip], TINY, 1)


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
    orders = [pick_frames(9, 4, 8, draw(seed)).tolist() for seed in range(30)]
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
    small = replace(TINY, points=64, sources=False)
    blends, plain, photos = (prepare(clip, reads) for reads in (TINY, small, Reads()))
    assert blends.pictures.shape[1] - plain.pictures.shape[1] == SOURCES
    assert len(plain.points[0]) == 64
    assert photos.pictures.shape[1] == 1
    settings = TrainSettings(frames=4, crop=(32, 48))
    bare = Clip(clip.images, clip.cameras)
    batch = batches.draw_batch(prepared_clips([lambda: bare], Reads(), 1), Schedule(0, 1, 2), 0, 0, settings, Reads())
    assert {name for name, value in vars(batch).items() if value is not None} == {"seeds", "ends", "frames"}


def test_cached_clips_are_read_once(clip):
    read = []
    load = prepared_clips([lambda: read.append(0) or clip, lambda: read.append(1) or clip], TINY, 2)
    for number in (0, 1, 0, 1):
        load[number]()
    assert read == [0, 1]


def test_what_is_too_small_is_refused(clip):
    with pytest.raises(ValueError, match="at least 5, got 4"):
        pick_frames(len(clip), 5, 3, draw())
    with pytest.raises(ValueError, match=r"at most \(48, 64\)"):
        pick_window((48, 64), (80, 96), draw())


def test_a_second_photo_within_the_clip_keeps_its_place(clip):
    inner = prepare(replace(clip, second=2), TINY)
    assert torch.equal(inner.pictures[[0, 2], 1], inner.pictures[[0, 2], 0]), "photos in place of renders"
    assert not torch.equal(inner.pictures[3, 1], inner.pictures[3, 0])
    for second, frames, order in ((2, 4, [0, 1, 2, 3]), (7, 4, [0, 3, 7, 9]), (5, 5, [0, 2, 5, 7, 9])):
        assert pick_frames(max(frames, 10 if second > 3 else 4), frames, second, None).tolist() == order
    batch = batches.draw_batch([lambda: inner], Schedule(0, 1, 2), 0, 0, TrainSettings(frames=4, crop=(32, 48)), TINY)
    assert batch.ends.tolist() == [[0, 2], [0, 2]]


@pytest.mark.long
def test_batches_are_the_same_from_any_number_of_processes(clip):
    settings = TrainSettings(frames=4, crop=(32, 48), augment=True, accumulate=2)
    schedule = Schedule(3, 2, batch=2, accumulate=2)
    loaders = [partial(replace, clip, fps=float(number)) for number in (1, 2)]
    alone, ahead = (
        list(load_batches(Batches(loaders, schedule, settings.model_copy(update={"loader_workers": count}), TINY), range(1, 3)))
        for count in (0, 2)
    )
    assert len(alone) == len(ahead) == 4
    for one, other in zip(alone, ahead):
        for name, value in vars(one).items():
            assert torch.equal(value, getattr(other, name)), name
    assert not torch.equal(alone[0].frames, alone[1].frames)
