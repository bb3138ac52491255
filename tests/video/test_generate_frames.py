"""The video backends `points` and `none`."""

from dataclasses import replace

import pytest
import torch
from exact_scene import draw, room, room_pointmaps, shoot

from reconx_core.condition import build_condition
from reconx_core.errors import UserError
from reconx_core.settings import ConditionSettings, VideoSettings
from reconx_core.types import Condition
from reconx_core.video import generate_frames


@pytest.fixture(scope="module")
def guide():
    """A condition in which the right part of the room is unknown."""
    pointmaps = room_pointmaps()
    half = torch.where(torch.arange(160) < 100, pointmaps.confidence, 0.0)
    known = type(pointmaps)(pointmaps.points_world, half, pointmaps.cameras, pointmaps.sparse)
    return build_condition(room().inputs(), known, ConditionSettings(frames_per_pair=2), draw())


def generate(guide: Condition, backend: str):
    return generate_frames(room().inputs(), room_pointmaps(), guide, VideoSettings(backend=backend), draw())


def test_without_a_generator_there_are_the_photos(guide):
    frames = generate(guide, "none")
    assert frames.is_photo.tolist() == [True] * 3
    assert torch.equal(frames.images, room().inputs().images)
    assert torch.equal(frames.confidence, room().inputs().masks.float())


def test_photos_come_first_and_stay_as_they_are(guide):
    frames = generate(guide, "points")
    assert frames.is_photo.tolist() == [True] * 3 + [False] * 4
    assert torch.equal(frames.images[:3], room().inputs().images)
    assert torch.equal(frames.cameras.cam_to_world[3:], guide.cameras.cam_to_world)


def test_frames_tell_between_which_photos_they_lie_and_who_knows_their_cameras(guide):
    made = generate(guide, "points")
    assert torch.equal(made.pair[:3], torch.arange(3)[:, None].repeat(1, 2))
    assert torch.equal(made.pair[3:], guide.pair)
    assert made.cameras_told


def test_holes_are_filled_but_worth_nothing(guide):
    frames = generate(guide, "points")
    holes = guide.visibility <= 0.02
    assert 0.1 < holes.float().mean() < 0.6
    assert (frames.confidence[3:][holes] == 0).all()
    assert frames.images[3:][holes].std() > 0.01  # continued, not one flat colour
    assert frames.images.min() >= 0
    assert frames.images.max() <= 1


def test_what_is_seen_is_the_room(guide):
    frames = generate(guide, "points")
    truth, _ = shoot(guide.cameras)
    sure = frames.confidence[3:] > 0.5
    assert -10 * torch.log10((frames.images[3:] - truth)[sure].square().mean()) > 22


def test_the_less_a_pixel_is_trusted_the_more_it_gives_way_to_its_surroundings(guide):
    def detail(visibility: float) -> float:
        seen = torch.full_like(guide.visibility, visibility)
        images = generate(replace(guide, visibility=seen), "points").images[3:]
        return float((images[:, 1:] - images[:, :-1]).abs().mean())

    assert detail(1.0) == detail(0.5) > 1.2 * detail(0.2) > 1.2 * detail(0.05)


def test_no_condition_no_frames():
    empty = build_condition(room().inputs(), room_pointmaps(), ConditionSettings(frames_per_pair=0), draw())
    assert len(generate(empty, "points")) == 3


def test_a_backend_that_does_not_exist_is_named(guide):
    with pytest.raises(UserError, match=r"no video backend 'sora'.*points, .*none"):
        generate(guide, "sora")
