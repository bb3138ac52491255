"""Which frames a model makes together, between photos and beyond them."""

import torch
from exact_scene import draw, room, room_pointmaps

from reconx_core.condition import build_condition
from reconx_core.settings import ConditionSettings, VideoSettings
from reconx_core.video import generate_frames
from reconx_core.video.backends.wan_vace import frame_order
from reconx_core.video.clip import clips_from_photos, clips_through


def guide(**settings):
    settings = {"path": "extrapolate", "frames_per_pair": 3, "frames_beyond": 2, "sway": 0.0, **settings}
    return build_condition(room().inputs(), room_pointmaps(), ConditionSettings(**settings), draw())


def test_clips_go_through_the_second_photo_and_backwards_at_the_first():
    first, backwards, last = clips_through(guide())
    assert (first.pair.tolist(), first.frames.tolist(), first.second) == ([0, 1], [2, 3, 4], None)
    assert (backwards.pair.tolist(), backwards.frames.tolist(), backwards.second) == ([1, 0], [4, 3, 2, 1, 0], 4)
    assert backwards.own.tolist() == [False, False, False, True, True]
    assert (last.pair.tolist(), last.frames.tolist(), last.second) == ([1, 2], [5, 6, 7, 8, 9], 4)
    assert last.own.all()


def test_every_frame_is_made_once():
    for condition in (guide(), guide(path="between"), guide(path="orbit", frames=12), guide(frames_per_pair=0)):
        own = torch.cat([clip.frames[clip.own] for clip in clips_through(condition)])
        alone = torch.cat([frames for _, frames in clips_from_photos(condition)])
        assert own.sort().values.tolist() == alone.sort().values.tolist() == list(range(len(condition.cameras)))


def test_a_clip_beyond_a_photo_begins_with_it():
    clips = [(photos.tolist(), frames.tolist()) for photos, frames in clips_from_photos(guide())]
    assert clips == [([0, 1], [2, 3, 4]), ([0], [1, 0]), ([1, 2], [5, 6, 7]), ([2], [8, 9])]
    assert frame_order(2, 4, ends=False) == [0, 1, 2, 2, 2]


def test_frames_beyond_are_generated_from_their_renders():
    inputs, pointmaps = room().inputs(), room_pointmaps()
    settings = VideoSettings(backend="reconx-tiny")
    made = generate_frames(inputs, pointmaps, guide(), settings, draw())
    assert len(made) == 3 + 10
    assert made.images[3:].std() > 0.05
    assert (made.images[3:] - guide().renders)[guide().visibility > 0.5].abs().mean() < 0.1
    assert made.pair[3:].tolist() == guide().pair.tolist()
