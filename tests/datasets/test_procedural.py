"""Exactness of the procedural scenes: every view must agree with every other through its depth and camera."""

from pathlib import Path

import pytest
import torch
from small_captures import cameras_of, tiny_hall

from reconx_core.datasets import procedural, procedural_spec, read, scene_names
from reconx_core.datasets.solids import first_hit
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import project, transform, unproject

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def room():
    return read(Path("procedural:room?seed=3&views=3&width=160&height=120"))


def warp_error(capture, i: int, j: int) -> tuple[float, float]:
    """Median colour difference of the points of view i seen in view j, and the share of i's pixels visible there."""
    cameras = cameras_of(capture)
    depth_i, depth_j = (capture.photos[k].load_depth() for k in (i, j))
    points = unproject(depth_i[None], cameras[[i]]).reshape(-1, 3)
    pixels, z = project(points, cameras.intrinsics[j], cameras.world_to_cam[j])
    grid = (pixels / torch.tensor([cameras.width, cameras.height]) * 2 - 1)[None, None]
    sample = lambda image: torch.nn.functional.grid_sample(image[None], grid, align_corners=False)[0, :, 0]  # noqa: E731
    there = sample(depth_j[None])[0]
    seen = (grid[0, 0].abs() < 1).all(-1) & ((z - there).abs() < 0.01 * z)
    colour = sample(capture.photos[j].load().permute(2, 0, 1)).T
    difference = (colour - capture.photos[i].load().view(-1, 3)).abs().mean(-1)
    return float(difference[seen].median()), float(seen.float().mean())


@pytest.mark.long
def test_views_agree_through_depth_and_cameras(room):
    difference, seen = warp_error(room, 0, 1)
    assert seen > 0.6
    assert difference < 0.03
    assert warp_error(room, 0, 4)[1] < seen  # further apart, less in common


def test_depth_is_where_the_solids_are(room):
    """A ray's hit lies on its solid's surface: on the unit cube, ball or cylinder in the solid's own frame."""
    scene = procedural.build("room", 3)
    points = unproject(room.photos[0].load_depth()[None], cameras_of(room)[[0]]).reshape(-1, 3)
    off = torch.full((len(points),), torch.inf)
    for solid in scene.solids:
        local = solid.to_local(points)
        flat = local[:, [0, 2]].norm(dim=-1)
        size = {"room": local.abs().amax(-1), "box": local.abs().amax(-1), "ball": local.norm(dim=-1),
                "cylinder": torch.maximum(flat, local[:, 1].abs())}[solid.kind]  # fmt: skip
        off = torch.minimum(off, (size - 1).abs())
    assert off.max() < 1e-3


def test_normals_point_towards_the_camera(room):
    scene = procedural.build("room", 3)
    camera = cameras_of(room)[[0]]
    points = unproject(room.photos[0].load_depth()[None], camera).reshape(-1, 3)
    origin = camera.cam_to_world[0, :3, 3]
    _, nearest = first_hit(scene.solids, origin.expand_as(points), points - origin)
    for s, solid in enumerate(scene.solids):
        hit = points[nearest == s]
        facing = (solid.normal(solid.to_local(hit)) * (origin - hit)).sum(-1)
        assert (facing > -1e-3).all(), solid


@pytest.mark.slow
def test_the_same_spec_gives_the_same_bytes_and_another_seed_another_scene():
    cached, again = procedural.build("hall", 1), procedural.build.__wrapped__("hall", 1)
    assert torch.equal(cached.texels, again.texels)
    assert cached.solids == again.solids
    first = tiny_hall().photos[1].load()
    assert torch.equal(first, tiny_hall().photos[1].load())
    other = read(Path("procedural:hall?seed=2&width=96&height=72")).photos[1].load()
    assert (first - other).abs().mean() > 0.05


def test_cameras_are_inside_the_room_level_and_outside_the_things():
    for seed in range(8):
        capture = read(Path(f"procedural:room?seed={seed}&views=4&arc=20&width=32&height=24"))
        poses = cameras_of(capture).cam_to_world
        torch.testing.assert_close(
            poses[:, :3, :3].mT @ poses[:, :3, :3], torch.eye(3).expand(len(poses), 3, 3), atol=1e-5, rtol=0
        )
        assert torch.allclose(torch.linalg.det(poses[:, :3, :3]), torch.ones(len(poses)))
        assert poses[:, 1, 0].abs().max() < 1e-6  # level horizon
        for solid in procedural.furnished_room(procedural.generator(seed, "procedural", "room")):
            inside = (solid.to_local(poses[:, :3, 3]).abs() < 1).all(-1)
            assert inside.all() if solid.kind == "room" else not inside.any()


def test_there_is_texture_everywhere(room):
    """SIFT and stereo need gradients in every part of the picture."""
    grey = room.photos[2].load().mean(-1)
    blocks = grey.unfold(0, 20, 20).unfold(1, 20, 20)
    assert blocks.std((-1, -2)).min() > 0.005


def test_inputs_and_targets_alternate():
    capture = read(Path("procedural:hall?views=3&targets=2&width=32&height=24"))
    assert capture.splits["between"] == ((0, 3, 6), (1, 2, 4, 5))
    centres = cameras_of(capture).cam_to_world[:, :3, 3]
    steps = (centres[1:] - centres[:-1]).norm(dim=-1)
    assert steps.max() < 1.5 * steps.min()


def test_more_than_once_round_is_said_and_spread_evenly():
    with pytest.warns(UserWarning, match="36 views 12 degrees apart go round more than once; they are 10 degrees apart, once"):
        capture = read(Path("procedural:hall?views=36&targets=0&width=32&height=24"))
    centres = cameras_of(capture).cam_to_world[:, :3, 3]
    steps = (centres.roll(-1, 0) - centres)[:, [0, 2]].norm(dim=-1)
    torch.testing.assert_close(steps, steps.mean().expand(36), atol=1e-4, rtol=0)  # the last is as near to the first


def test_intrinsics_follow_size_and_field_of_view():
    photo = read(Path("procedural:hall?fov=90&width=200&height=100")).photos[0]
    torch.testing.assert_close(photo.intrinsics, torch.tensor([[100.0, 0, 100], [0, 100, 50], [0, 0, 1]]))
    assert photo.load().shape == (100, 200, 3)


def test_seed_ranges_are_several_scenes():
    assert [str(p) for p in procedural_spec.expand("procedural:room?seed=1..3&views=4")] == [
        f"procedural:room?seed={seed}&views=4" for seed in (1, 2, 3)
    ]


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("castle", "castle"),
        ("room?sede=1", "sede"),
        ("room?seed=one", "seed"),
        ("room?views=1", "views"),
        ("room?fov=170", "fov should be from 10 to 120, not 170"),
        ("room?fov=nan", "fov should be from 10 to 120, not nan"),
        ("room?arc=nan", "arc should be from 0 to 330, not nan"),
        ("room?arc=inf", "arc should be from 0 to 330, not inf"),
        ("room?arc=-5", "arc should be from 0 to 330"),
        ("room?views=99999999999", "views should be from 2 to 1000"),
        ("room?width=99999999999", "width should be from 16"),
        ("room?seed=1&seed=2", "'seed' is given more than once"),
        ("", "no scene is named; there are room, hall"),
        ("?seed=1", "no scene is named"),
    ],
)
def test_wrong_specs_are_explained(spec, wrong):
    with pytest.raises(UserError, match=wrong):
        read(Path(f"procedural:{spec}"))


@pytest.mark.parametrize(
    ("spec", "wrong"),
    [
        ("hall?seed=5..1", r"the range of seeds ends before it begins.* give 1\.\.5"),
        ("room?seed=0..99999999999", "the range of seeds is 100,000,000,000 scenes; at most 100,000"),
        ("room?seed=0.." + "9" * 5000, "at most 18 digits"),
        ("?seed=0..1", "no scene is named"),
        ("room?seed=0..1&seed=3", "'seed' is given more than once"),
        ("room?seed=1..", "'seed=1..' should be a number"),
    ],
)
def test_wrong_ranges_are_explained(spec, wrong):
    with pytest.raises(UserError, match=wrong):
        scene_names(Path(f"procedural:{spec}"))


def test_transform_of_look_at():
    pose = procedural.look_at(torch.tensor([[0.0, -1.0, -3.0]]), torch.tensor([0.0, -1.0, 0.0]))
    ahead = transform(torch.linalg.inv(pose), torch.tensor([[[0.0, -1.0, 0.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]]]))[0]
    torch.testing.assert_close(ahead, torch.tensor([[0.0, 0, 3], [1, 0, 3], [0, 1, 3]]))  # x right, y down
