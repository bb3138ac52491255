"""Paths beyond the photos: where they lead, and that no camera is where none can be."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from exact_scene import SEED, draw, room, room_pointmaps

from reconx_core.condition import build_condition
from reconx_core.condition.paths import as_given, past_end, slowed
from reconx_core.datasets import procedural
from reconx_core.datasets.raycast import render
from reconx_core.errors import UserError
from reconx_core.geometry.free_space import HIDDEN, INSIDE, free_space, obstacles, seen_through
from reconx_core.geometry.orbit import orbit_cameras, orbit_of
from reconx_core.geometry.transforms import rigid, so3_exp, unproject
from reconx_core.settings import ConditionSettings
from reconx_core.types import Cameras, PointCloud, Pointmaps, Views

SIDE = 24
SIZE = (48, 36)


def build(**settings):
    return build_condition(room().inputs(), room_pointmaps(), ConditionSettings(**settings), draw())


def exact(scene, cameras):
    """The exact pointmaps of any cameras in a procedural room, and views for them."""
    shots = [render(scene, k, pose, cameras.height, cameras.width) for k, pose in zip(cameras.intrinsics, cameras.cam_to_world)]
    images, depth = (torch.stack(part) for part in zip(*shots))
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    n, shape = len(cameras), depth.shape
    views = Views(
        images, torch.ones(shape, dtype=torch.bool), tuple("abcdefgh"[:n]), torch.zeros(n, dtype=torch.bool), cameras,
        torch.full((n,), math.nan), "posed",
    )  # fmt: skip
    return views, Pointmaps(unproject(depth, cameras), torch.ones(shape), cameras, nothing)


def looking(eyes, targets):
    width, height = SIZE
    lens = torch.tensor([[35.0, 0, width / 2], [0, 35.0, height / 2], [0, 0, 1]])
    poses = torch.cat([procedural.look_at(eye[None], target) for eye, target in zip(eyes, targets)])
    return Cameras(lens.repeat(len(eyes), 1, 1), poses, width, height)


def is_inside(scene, places):
    """Whether places are in the air of a room: within its walls and in none of its solids."""
    walls, *solids = scene.solids
    inside = (walls.to_local(places).abs() < 1).all(-1)
    for solid in solids:
        local = solid.to_local(places)
        round_ = local.norm(dim=-1) if solid.kind == "ball" else torch.maximum(local[:, :2].abs().amax(-1), local[:, 2].abs())
        inside &= round_ > 1
    return inside


def moved(cameras, rotation, shift, scale):
    places = scale * cameras.cam_to_world[:, :3, 3] @ rotation.T + shift
    return replace(cameras, cam_to_world=rigid(rotation @ cameras.cam_to_world[:, :3, :3], places))


# --- extrapolate


def test_extrapolate_adds_frames_past_both_ends_and_keeps_those_between():
    between, whole = build(), build(path="extrapolate", frames_beyond=3)
    assert torch.equal(whole.renders[3:-3], between.renders)
    assert torch.equal(whole.cameras.cam_to_world[3:-3], between.cameras.cam_to_world)
    assert whole.pair[:3].tolist() == [[1, 0]] * 3
    assert whole.pair[-3:].tolist() == [[1, 2]] * 3
    torch.testing.assert_close(whole.position[-3:], torch.tensor([4 / 3, 5 / 3, 2.0]))
    torch.testing.assert_close(whole.position[:3], torch.tensor([2.0, 5 / 3, 4 / 3]))


def test_the_way_goes_on_as_far_as_reach_says_at_the_pace_of_the_photos():
    cameras = room_pointmaps().cameras.cam_to_world[:, :3, 3]
    ends = build(path="extrapolate", reach=1.0).cameras.cam_to_world[[0, -1], :3, 3]
    baselines = torch.stack([(cameras[0] - cameras[1]).norm(), (cameras[2] - cameras[1]).norm()])
    travelled = torch.stack([(ends[0] - cameras[0]).norm(), (ends[1] - cameras[2]).norm()])
    torch.testing.assert_close(travelled, baselines, rtol=1e-3, atol=0)


def test_default_number_beyond_is_half_of_that_between():
    assert ConditionSettings(frames_per_pair=30).beyond == 15
    assert ConditionSettings(frames_beyond=0).beyond == 0
    with pytest.warns(
        UserWarning, match=r"No frames are made past the photos: condition.frames_beyond or half of frames_per_p"
    ):
        assert len(build(path="extrapolate", frames_beyond=0).cameras) == len(build().cameras)


def test_slowing_down_begins_at_full_pace_and_rests_before_the_end():
    wanted = torch.linspace(0, 10, 200)
    distance = slowed(wanted, 2.0)
    assert distance.max() <= 2.0
    assert (distance.diff() >= 0).all()
    torch.testing.assert_close(distance[1] / wanted[1], torch.tensor(1.0), atol=2e-3, rtol=0)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ["room", "hall"])
@pytest.mark.parametrize("way", ["wall", "down", "side"])
def test_no_camera_ends_up_in_a_wall_or_an_object(name, seed, way):
    """However far it should go: on to the wall ahead, down to the floor, and sideways to a wall in the corner of the eye."""
    scene = procedural.build(name, seed)
    draws = torch.Generator().manual_seed(seed)
    first = torch.tensor([0.0, -1.4, -1.6]) + 0.2 * torch.randn(3, generator=draws)
    step = {"wall": (0.0, 0.0, 0.25), "down": (0.0, 0.25, 0.05), "side": (0.35, 0.0, 0.1)}[way]
    eyes = torch.stack([first, first + torch.tensor(step)])
    ahead = torch.tensor({"wall": (0.0, 0.4, 3.0), "down": (0.2, 1.0, 2.0), "side": (2.5, 0.2, 1.5)}[way])
    views, pointmaps = exact(scene, looking(eyes, eyes + ahead))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = ConditionSettings(path="extrapolate", reach=10.0, frames_beyond=24)
        path = past_end(free_space(pointmaps), views, torch.tensor([0, 1]), settings)
    assert is_inside(scene, path.cameras.cam_to_world[:, :3, 3]).all()


def test_a_path_that_would_run_into_a_wall_says_so_in_a_sentence():
    scene = procedural.build("hall", 3)
    eyes = torch.tensor([[0.0, -1.4, -1.2], [0.0, -1.4, -0.9]])
    views, pointmaps = exact(scene, looking(eyes, eyes + torch.tensor([0.0, 0.0, 3.0])))
    with pytest.warns(UserWarning, match=r"past photo b is slowed down to stay within .* of 10 baselines .*: beyond, it \w+ "):
        past_end(free_space(pointmaps), views, torch.tensor([0, 1]), ConditionSettings(path="extrapolate", reach=10.0))


# --- free space


def test_the_photos_own_places_are_free():
    assert obstacles(free_space(room_pointmaps()), room_pointmaps().cameras) == [""] * 3


def test_places_in_and_behind_walls_are_known():
    pointmaps, cameras = room_pointmaps(), room_pointmaps().cameras[[0, 0, 0]]
    point = pointmaps.points_world[0, 60, 80]
    ray = point - cameras.cam_to_world[0, :3, 3]
    poses = cameras.cam_to_world.clone()
    poses[:, :3, 3] = point + torch.tensor([0.0, 0.4, -0.4])[:, None] * ray
    space = free_space(pointmaps)
    why = obstacles(space, replace(cameras, cam_to_world=poses))
    assert (why[0], why[2]) == (INSIDE, "")
    assert why[1] in (INSIDE, HIDDEN)
    through, hidden = seen_through(space, poses[:, :3, 3])
    assert through.tolist() == [False, False, True]
    assert bool(hidden[1])


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_what_is_free_does_not_depend_on_the_frame(scale):
    pointmaps, turn = room_pointmaps(), so3_exp(torch.tensor([0.4, -1.1, 0.7]))
    shift = scale * torch.tensor([3.0, -1.0, 2.0])
    points, cameras = scale * pointmaps.points_world @ turn.T + shift, moved(pointmaps.cameras, turn, shift, scale)
    there = replace(pointmaps, points_world=points, cameras=cameras)
    angles = torch.linspace(-3, 3, 25, dtype=torch.float64)
    one, other = orbit_of(pointmaps), orbit_of(there)
    here = orbit_cameras(one, angles)
    expected = moved(here, turn, shift, scale)
    found = orbit_cameras(other, angles)
    torch.testing.assert_close(found.cam_to_world[:, :3, :3], expected.cam_to_world[:, :3, :3], atol=2e-3, rtol=0)
    torch.testing.assert_close(found.cam_to_world[:, :3, 3], expected.cam_to_world[:, :3, 3], atol=5e-3 * scale, rtol=0)
    assert obstacles(free_space(pointmaps), here) == obstacles(free_space(there), expected)


# --- orbit


def around_a_ball(*degrees):
    """Photos of a unit ball at the origin from all sides, at distances that differ, and its near side as they see it."""
    turns = so3_exp(torch.tensor([[0.0, math.radians(d), 0.0] for d in degrees]))
    distance = 4 + 0.5 * torch.sin(torch.arange(len(degrees)) * 2.0)
    poses = rigid(turns, (turns @ torch.tensor([0.0, 0.0, -1.0])) * distance[:, None])
    x, y = torch.meshgrid(torch.linspace(-0.6, 0.6, SIDE), torch.linspace(-0.6, 0.6, SIDE), indexing="xy")
    front = torch.stack([x, y, -(1 - x * x - y * y).sqrt()], -1)
    lens = torch.tensor([[60.0, 0, SIDE / 2], [0, 60.0, SIDE / 2], [0, 0, 1]]).repeat(len(degrees), 1, 1)
    points = torch.einsum("nij,hwj->nhwi", turns, front)
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return Pointmaps(points, torch.ones(len(degrees), SIDE, SIDE), Cameras(lens, poses, SIDE, SIDE), nothing)


def test_the_orbit_passes_through_the_photos_and_looks_at_the_middle():
    pointmaps = around_a_ball(0, 50, 130, 250)
    orbit = orbit_of(pointmaps)
    torch.testing.assert_close(orbit.centre.float(), torch.zeros(3), atol=1e-4, rtol=0)
    there = orbit_cameras(orbit, orbit.angles)
    torch.testing.assert_close(there.cam_to_world, pointmaps.cameras.cam_to_world, atol=1e-4, rtol=0)


def test_an_orbit_closes_at_360_degrees_in_even_steps():
    orbit = orbit_of(around_a_ball(0, 50, 130, 250))
    ends = orbit_cameras(orbit, torch.tensor([-math.pi, math.pi - 1e-9], dtype=torch.float64)).cam_to_world
    torch.testing.assert_close(ends[0], ends[1], atol=1e-5, rtol=0)
    dense = orbit_cameras(orbit, torch.linspace(-math.pi, math.pi, 400, dtype=torch.float64)).cam_to_world[:, :3, 3]
    radius = dense[:, [0, 2]].norm(dim=-1)
    own = orbit.radius.float()
    assert radius.min() >= own.min() - 1e-4  # nowhere nearer or farther than the photos
    assert radius.max() <= own.max() + 1e-4
    assert (dense.diff(dim=0).norm(dim=-1) < 0.12).all()


def test_axes_that_are_parallel_meet_at_the_median_depth():
    pointmaps = around_a_ball(0, 0)
    poses = pointmaps.cameras.cam_to_world.clone()
    poses[:, :3, 3] = torch.tensor([[-0.2, 0.0, -4.0], [0.2, 0.0, -4.0]])
    pointmaps = replace(pointmaps, cameras=replace(pointmaps.cameras, cam_to_world=poses))
    depth = (pointmaps.points_world[..., 2] + 4).median()
    torch.testing.assert_close(orbit_of(pointmaps).centre.float(), torch.tensor([0.0, 0.0, float(depth) - 4]))


def test_photos_that_look_down_from_one_side_give_an_upright_orbit():
    eyes = torch.tensor([[-1.5, -2.0, -2.5], [0.0, -2.0, -3.0], [1.5, -2.0, -2.5]])
    cameras = looking(eyes, torch.zeros(3, 3))
    _, pointmaps = exact(procedural.build("hall", SEED), cameras)
    assert orbit_of(pointmaps).axes[:, 2] @ torch.tensor([0.0, -1, 0], dtype=torch.float64) > math.cos(math.radians(2))


def test_frames_of_an_orbit_belong_to_the_nearest_photos():
    views = room().inputs()
    guide = build(path="orbit", degrees=40, frames=9)
    assert len(guide.cameras) == 9
    inner = (guide.position > 0) & (guide.position <= 1)
    assert 2 <= int(inner.sum()) < 9
    assert {tuple(sorted(pair)) for pair in guide.pair.tolist()} == {(0, 1), (1, 2)}
    assert guide.pair[0].tolist() == [1, 0] or guide.pair[0].tolist() == [1, 2]
    assert (guide.position > 0).all()
    assert len(views) == 3


@pytest.mark.parametrize("name", ["room", "hall"])
def test_no_frame_of_an_orbit_is_in_a_wall(name):
    for seed in range(2):
        scene = procedural.build(name, seed)
        angle = torch.tensor([-0.2, 0.2]) + seed
        eyes = torch.stack([1.5 * angle.sin(), torch.full((2,), -1.3), -1.5 * angle.cos()], -1)
        views, pointmaps = exact(scene, looking(eyes, torch.tensor([0.8, -0.6, 0.8]).repeat(2, 1)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            guide = build_condition(views, pointmaps, ConditionSettings(path="orbit", frames=40), draw())
        assert is_inside(scene, guide.cameras.cam_to_world[:, :3, 3]).all()


def test_photos_that_look_away_from_each_other_have_no_orbit():
    eyes = torch.tensor([[0.0, -1.3, 1.0], [0.0, -1.3, -1.0]])
    views, pointmaps = exact(procedural.build("hall", SEED), looking(eyes, eyes * torch.tensor([1.0, 1.0, 2.0])))
    with pytest.raises(UserError, match="look away from each other"):
        build_condition(views, pointmaps, ConditionSettings(path="orbit"), draw())


# --- a file's cameras


def test_given_cameras_stay_where_they_are_but_for_those_in_walls():
    pointmaps = room_pointmaps()
    path = build(frames_per_pair=2, sway=0.0).cameras
    poses = path.cam_to_world.clone()
    poses[1, :3, 3] = pointmaps.points_world[0, 60, 80]
    with pytest.warns(UserWarning, match="1 of 4 cameras of the file's path are left out: 1 because it runs into a surface"):
        kept = as_given(replace(path, cam_to_world=poses), pointmaps, ConditionSettings())
    torch.testing.assert_close(kept.cameras.cam_to_world, path.cam_to_world[[0, 2, 3]])
    assert kept.pair.tolist() == [[0, 1], [1, 2], [1, 2]]
    torch.testing.assert_close(kept.position, torch.tensor([1 / 3, 1 / 3, 2 / 3]), atol=0.1, rtol=0)


def test_many_cameras_are_thinned_and_that_is_said():
    with pytest.warns(UserWarning, match="24 cameras, of which 5 are taken"):
        path = as_given(build(frames_per_pair=12, sway=0.0).cameras, room_pointmaps(), ConditionSettings(frames=5))
    assert len(path.cameras) == 5


def test_cameras_in_another_frame_are_refused():
    path = build(frames_per_pair=2, sway=0.0).cameras
    far = replace(path, cam_to_world=path.cam_to_world + torch.tensor([0, 0, 0, 900.0]) * (torch.arange(4) < 3)[:, None])
    with pytest.raises(UserError, match=r"None of the 4 cameras .* Are they in the frame of this scene"):
        as_given(far, room_pointmaps(), ConditionSettings())
