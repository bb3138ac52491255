"""Rounds on an orbit: each goes on from where the one before has come to, and the last one back to the first photo."""

import math

import pytest
import torch
from exact_scene import room, room_pointmaps

from reconx_core.condition.rounds import Turn, build_round, free_share, next_arc, with_photos
from reconx_core.errors import UserError
from reconx_core.geometry.free_space import free_space, inside
from reconx_core.geometry.orbit import angles_of, orbit_cameras, orbit_of
from reconx_core.geometry.transforms import rotation_angle
from reconx_core.settings import ConditionSettings, parse_settings

RING = ConditionSettings(path="orbit", rounds=3, frames=24, advance=60)


def build(turn, settings=RING):
    return build_round(room().inputs(), room_pointmaps(), settings, turn)


def angles(cameras):
    """Degrees from the first photo."""
    orbit = orbit_of(room_pointmaps())
    return torch.rad2deg(torch.remainder(angles_of(orbit, cameras) - orbit.span[0] + 1e-5, 2 * math.pi))


def test_the_first_round_goes_from_the_first_photo_past_the_last_one():
    made = angles(build(Turn(1, False, 3)).cameras)
    assert made[0] == pytest.approx(0, abs=0.1)
    assert made[-1] == pytest.approx(18 + 60, abs=360 / 23)
    assert (made.diff() - 360 / 23).abs().max() < 0.1


def test_the_last_round_ends_where_the_first_began():
    first = build(Turn(1, False, 3)).cameras
    last = build(Turn(3, True, 3, (1, 2), first.cam_to_world[-1]))
    assert rotation_angle(last.cameras.cam_to_world[-1, :3, :3], first.cam_to_world[0, :3, :3]) < 0.01
    assert (last.cameras.cam_to_world[-1, :3, 3] - first.cam_to_world[0, :3, 3]).norm() < 1e-4
    assert len(first) + len(last.cameras) == RING.frames  # all of the grid, and nothing twice
    assert last.position[-1] == pytest.approx(1)
    assert last.pair[-1].tolist() == [2, int(orbit_of(room_pointmaps()).angles.argmin())]


def test_a_round_lies_beyond_its_pair():
    outer = room_pointmaps().cameras.cam_to_world[2]
    made = build(Turn(2, False, 3, (1, 2), outer))
    assert (made.pair == torch.tensor([1, 2])).all()
    assert (made.position > 1).all()
    assert angles(made.cameras)[-1] <= 18 + 60 + 0.1


def test_a_round_with_nothing_to_go_on_from_or_to_see_is_left_out():
    reached = room_pointmaps().cameras.cam_to_world[2]
    with pytest.warns(UserWarning, match="Round 2 is left out: no frame of the round before it is sure enough"):
        assert len(build(Turn(2, False, 3, None, reached)).cameras) == 0
    greedy = RING.model_copy(update={"unseen": 1.0})
    with pytest.warns(UserWarning, match=r"Round 2 is left out: it would see .*% of its pixels .*\(condition.unseen\)"):
        assert len(build(Turn(2, False, 3, (1, 2), reached), greedy).cameras) == 0
    assert len(build(Turn(2, True, 3, (1, 2), reached), greedy).cameras) > 0  # the ring is closed in any case


def test_the_ring_is_narrower_where_it_would_run_into_a_surface():
    pointmaps = room_pointmaps()
    orbit, space = orbit_of(pointmaps), free_space(pointmaps)
    wide = orbit.__class__(**{**vars(orbit), "radius": 1.5 * orbit.radius})
    turn = torch.linspace(0, 2 * math.pi, 48, dtype=torch.float64)
    before = inside(space, orbit_cameras(wide, turn).cam_to_world[:, :3, 3])
    share = free_share(space, wide, turn)
    after = inside(space, orbit_cameras(wide, turn, share).cam_to_world[:, :3, 3])
    assert before.sum() > 5
    assert after.sum() < before.sum() / 3
    assert share.diff().abs().max() < 0.07


def test_a_ring_that_is_narrow_all_round_still_closes_at_the_photos():
    orbit = orbit_of(room_pointmaps())
    turn = orbit.span[0] + torch.linspace(0, 2 * math.pi, 48, dtype=torch.float64)
    share = with_photos(torch.full((48,), 0.4, dtype=torch.float64), orbit, turn)
    assert share[[0, -1]].tolist() == [1.0, 1.0]
    assert share[24] == 0.4
    assert share.diff().abs().max() < 0.13


@pytest.mark.parametrize("coarse", [{"frames": 3}, {"frames": 5}, {"frames": 24, "advance": 1}])
def test_a_ring_of_few_frames_or_small_steps_goes_on(coarse):
    """A first round that ended at the first photo passed for one that has come all the way round."""
    settings = RING.model_copy(update=coarse)
    first = build(Turn(1, False, 3), settings).cameras
    assert angles(first)[-1] > 15.5  # the last photo is at 15.4
    rest = build(Turn(2, True, 3, None, first.cam_to_world[-1]), settings).cameras
    assert len(first) + len(rest) == settings.frames
    begun = room_pointmaps().cameras.cam_to_world[int(orbit_of(room_pointmaps()).angles.argmin())]
    assert len(build(Turn(2, True, 3, None, begun), settings).cameras) == settings.frames - 1  # all but the first were left out


def test_a_round_after_the_ring_has_closed_is_told():
    end = build(Turn(3, True, 3, (1, 2), room_pointmaps().cameras.cam_to_world[2])).cameras.cam_to_world[-1]
    with pytest.warns(UserWarning, match="Round 4 is left out: the way ends where the rounds before it have come to"):
        assert len(build(Turn(4, False, 3, (1, 2), end, True)).cameras) == 0


def test_rounds_need_an_orbit():
    with pytest.raises(UserError, match=r"condition.rounds.*more than one round needs condition.path=orbit"):
        parse_settings({}, ["condition.rounds=2"])


def test_a_later_round_knows_the_orbit_of_the_photos_alone():
    pointmaps = room_pointmaps()
    arc = next_arc(pointmaps, RING, Turn(2, False, 2, None, pointmaps.cameras.cam_to_world[2]))
    assert len(arc.orbit.angles) == 2
