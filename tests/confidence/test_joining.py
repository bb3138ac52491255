"""The end of a round: who joins, what is added, who goes on, and how a ring is closed."""

from dataclasses import replace

import pytest
import torch
from exact_scene import draw, room, room_depth, room_pointmaps, shoot

from reconx_core.confidence.joining import (
    Joined,
    choose_pair,
    confident_share,
    distributed,
    has_contrast,
    join_round,
    photos_alone,
)
from reconx_core.geometry.camera_path import se3_exp
from reconx_core.geometry.orbit import orbit_cameras, orbit_of
from reconx_core.geometry.transforms import join_cameras, rotation_angle, unproject
from reconx_core.types import Condition, Frames, Located, PointCloud, Pointmaps

FRAMES = 6


class Exact:
    """A geometry backend that knows the room, and locates every frame where ``found`` says."""

    def __init__(self, found=None):
        self.found, self.asked = found, []

    def __call__(self, views, fixed, generator):
        depth = shoot(fixed)[1]
        nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
        return Pointmaps(unproject(depth, fixed), views.masks.float(), fixed, nothing), torch.arange(len(views))

    def locate(self, photos, known, frames, near, generator):
        self.asked.append(photos.names)
        return Located(frames.cameras.cam_to_world if self.found is None else self.found[None], ("",))


@pytest.fixture(scope="module")
def before():
    return photos_alone(room().inputs(), room_pointmaps())


@pytest.fixture(scope="module")
def round_():
    """True frames from the last photo on, all sure, and their condition."""
    orbit = orbit_of(room_pointmaps())
    cameras = orbit_cameras(orbit, orbit.span[1] + 0.12 * (torch.arange(FRAMES, dtype=torch.float64) + 1))
    images = shoot(cameras)[0]
    visibility = torch.ones(images.shape[:3])
    for i in range(FRAMES):
        visibility[i, :, : 10 * i] = 0  # the farther, the more is new
    pair = torch.tensor([[1, 2]] * FRAMES)
    guide = Condition(cameras, images, visibility, pair, 1 + torch.arange(FRAMES) / 3.0 + 0.1)
    return guide, made_of(guide, torch.ones(images.shape[:3]))


def made_of(guide, confidence, told=True):
    photos = room().inputs()
    n = len(photos)
    together = join_cameras(photos.cameras, guide.cameras)
    is_photo = torch.arange(n + len(guide.cameras)) < n
    images = torch.cat([photos.images, guide.renders])
    return Frames(images, together, torch.cat([torch.ones(n, 120, 160), confidence]), is_photo, None, told)


def joined(before, guide, made, last=False, backend=None):
    return join_round(before, guide, made, range(len(guide.cameras)), backend or Exact(), last, draw())


def test_confident_frames_become_views_with_points_where_nothing_was(before, round_):
    after = joined(before, *round_)
    n = len(after.views) - 3
    assert 2 <= n <= FRAMES
    assert len(after.pointmaps.cameras) == len(after.views)
    torch.testing.assert_close(after.pointmaps.points_world[:3], before.pointmaps.points_world)
    new = after.pointmaps.confidence[3:] > 0
    depth = shoot(after.pointmaps.cameras[slice(3, None)])[1]
    torch.testing.assert_close(
        after.pointmaps.points_world[3:][new], unproject(depth, after.pointmaps.cameras[slice(3, None)])[new]
    )
    assert 0.02 < new.float().mean() < 0.7  # what the photos show already is not added again
    assert after.frames.is_photo.sum() == 3
    torch.testing.assert_close(after.frames.images[: len(after.views)], after.views.images)


def test_the_pair_is_sure_and_opens_most_and_what_lies_beyond_is_made_again(before, round_):
    guide, _ = round_
    confidence = torch.ones(FRAMES, 120, 160)
    confidence[5] = 0.1  # what opens most is not sure
    after = joined(before, guide, made_of(guide, confidence))
    inner, outer = after.pair
    torch.testing.assert_close(after.views.cameras.cam_to_world[outer], guide.cameras.cam_to_world[4])
    torch.testing.assert_close(after.views.cameras.cam_to_world[inner], guide.cameras.cam_to_world[2])
    torch.testing.assert_close(after.reached, guide.cameras.cam_to_world[4])
    assert len(after.path) == after.rounds[0]["frames"] == 5
    last = joined(before, guide, made_of(guide, confidence), last=True)
    assert (last.pair, len(last.path)) == (None, FRAMES)


def test_frames_that_are_not_sure_do_not_join(before, round_):
    guide, _ = round_
    after = joined(before, guide, made_of(guide, torch.full((FRAMES, 120, 160), 0.2)))
    assert (len(after.views), after.pair, len(after.frames)) == (3, None, 3 + FRAMES)
    assert choose_pair(Frames(guide.renders, guide.cameras, torch.zeros(FRAMES, 120, 160), torch.zeros(FRAMES).bool()),
                       torch.ones(FRAMES)) is None  # fmt: skip


def test_unsure_pixels_of_a_frame_that_joins_count_for_nothing(before, round_):
    guide, _ = round_
    confidence = torch.ones(FRAMES, 120, 160)
    confidence[:, :40] = 0.1
    after = joined(before, guide, made_of(guide, confidence))
    assert not after.views.masks[3:, :40].any()
    assert not after.pointmaps.confidence[3:, :40].any()


@pytest.mark.parametrize(("confidence", "some"), [(0.4, False), (0.6, True)])
def test_fog_that_nothing_confirms_brings_no_points(before, round_, confidence, some):
    """Between frames of fog every depth agrees: its points stood as veils before what later frames see."""
    guide, made = round_
    fog = replace(made, images=torch.where(made.is_photo[:, None, None, None], made.images, torch.full_like(made.images, 0.4)))
    sure = replace(fog, confidence=torch.where(fog.is_photo[:, None, None], fog.confidence, confidence))
    after = joined(before, guide, sure)
    assert len(after.views) > 3
    assert bool((after.pointmaps.confidence[3:] > 0).any()) is some


@pytest.mark.parametrize("light", [1.0, 0.2])
def test_whether_a_place_is_plain_does_not_depend_on_the_light(light):
    images = torch.full((1, 32, 32, 3), 0.5)
    images[:, :, 16:] = 0.6
    told = has_contrast(images * light)[0]
    assert told[:, 15:17].all()
    assert not told[:, :12].any()
    assert not told[:, 20:].any()


def test_a_round_without_frames_changes_nothing(before, round_):
    guide, made = round_
    first = joined(before, guide, made)
    nothing = Condition(guide.cameras[:0], guide.renders[:0], guide.visibility[:0], guide.pair[:0], guide.position[:0])
    after = joined(first, nothing, replace(made, is_photo=torch.ones(len(made), dtype=torch.bool)))
    assert replace(after, rounds=[]) == replace(first, rounds=[]) or after.views is first.views
    assert after.rounds[-1] == {"frames": 0, "joined": 0}


def closing(before, round_, told, found):
    """A second round that ends at the first photo, which the photos say lies at ``found``."""
    guide, made = round_
    first = joined(before, guide, made)
    pair = torch.tensor([[first.pair[1], 0]] * FRAMES)
    last = replace(guide, pair=pair, position=torch.linspace(0.2, 1, FRAMES))
    frames = made_of(last, torch.ones(FRAMES, 120, 160), told)
    views = Frames(first.views.images, first.views.cameras, torch.ones(len(first.views), 120, 160),
                   torch.ones(len(first.views), dtype=torch.bool))  # fmt: skip
    new = frames.select(torch.arange(3, 3 + FRAMES))
    whole = Frames(
        torch.cat([views.images, new.images]), join_cameras(views.cameras, new.cameras),
        torch.cat([views.confidence, new.confidence]), torch.cat([views.is_photo, new.is_photo]), None, told,
    )  # fmt: skip
    backend = Exact(found)
    return joined(first, last, whole, True, backend), backend


def test_the_drift_of_a_closed_ring_is_measured(before, round_):
    guide, _ = round_
    end = guide.cameras.cam_to_world[-1].clone()
    end[0, 3] += 0.1
    with pytest.warns(UserWarning, match=r"The ring does not close: .* place 0.0 degrees and .*% of the radius off\."):
        after, backend = closing(before, round_, True, end)
    closed = after.rounds[-1]["closed"]
    assert closed["radii"] == pytest.approx(0.1 / float(orbit_of(room_pointmaps()).radius.mean()), rel=1e-3)
    assert closed["degrees"] == pytest.approx(0, abs=0.05)
    assert not closed["distributed"]  # told cameras are what they are
    assert backend.asked == [room().inputs().names]


def test_the_drift_of_found_cameras_is_distributed_evenly(before, round_):
    photos = before.photos
    after, backend = closing(before, round_, False, None)
    assert len(backend.asked) == 2  # among the photos, and among the frames that have joined
    whole = se3_exp(torch.tensor([0.0, 0.02, 0.0, 0.1, 0.0, 0.0], dtype=torch.float64)).float()
    moved = distributed(after, whole)
    torch.testing.assert_close(moved.path.cam_to_world[-1], whole @ after.path.cam_to_world[-1], atol=1e-5, rtol=0)
    torch.testing.assert_close(moved.views.cameras.cam_to_world[:photos], after.views.cameras.cam_to_world[:photos])
    turn = rotation_angle(after.path.cam_to_world[:, :3, :3], moved.path.cam_to_world[:, :3, :3])
    evenly = torch.rad2deg(torch.tensor(0.02)) * (torch.arange(len(turn)) + 1) / len(turn)
    torch.testing.assert_close(turn, evenly, atol=0.05, rtol=0)
    # A frame's points move with it.
    seen = [(scene.views.cameras.world_to_cam[-1] @ torch.cat([scene.pointmaps.points_world[-1, 60, 80], torch.ones(1)]))
            for scene in (after, moved)]  # fmt: skip
    torch.testing.assert_close(*seen, atol=1e-4, rtol=0)


def test_photos_are_the_first_views(before):
    assert isinstance(before, Joined)
    assert before.photos == len(before.views) == 3
    assert confident_share(before.frames).min() == 1
    assert room_depth().shape == (3, 120, 160)
