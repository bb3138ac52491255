"""The camera path between the photos, and the point cloud renders along it."""

import pytest
import torch
from exact_scene import draw, room, room_pointmaps, shoot

from reconx_core.condition import build_condition, frame_positions, sway
from reconx_core.geometry.point_renders import visible_points
from reconx_core.geometry.transforms import depth_of, project
from reconx_core.settings import ConditionSettings


def build(**settings):
    return build_condition(room().inputs(), room_pointmaps(), ConditionSettings(**settings), draw())


def test_frames_lie_between_consecutive_views():
    pair, position = frame_positions(3, 4)
    assert pair.tolist() == [[0, 1]] * 4 + [[1, 2]] * 4
    torch.testing.assert_close(position, torch.tensor([0.2, 0.4, 0.6, 0.8]).repeat(2))


def test_the_path_passes_between_the_views():
    """Each frame's camera is nearer to the two views of its pair than they are to each other."""
    guide = build(frames_per_pair=3, sway=0.0)
    keys, frames = room_pointmaps().cameras.cam_to_world[:, :3, 3], guide.cameras.cam_to_world[:, :3, 3]
    ends = keys[guide.pair]
    length = (ends[:, 1] - ends[:, 0]).norm(dim=-1)
    share = ((frames - ends[:, 0]) * (ends[:, 1] - ends[:, 0])).sum(-1) / length**2
    torch.testing.assert_close(share, guide.position, atol=0.05, rtol=0)
    assert ((frames - ends.lerp(ends.flip(1), 0.5).mean(1)).norm(dim=-1) < 0.6 * length).all()


def test_sway_leaves_the_path_and_keeps_the_scenes_middle():
    pointmaps = room_pointmaps()
    pair, _ = frame_positions(3, 4)
    straight = build(frames_per_pair=4, sway=0.0).cameras
    moved = sway(straight, pointmaps, pair, 0.3)
    offset = (moved.cam_to_world[:, :3, 3] - straight.cam_to_world[:, :3, 3]).norm(dim=-1)
    centres = pointmaps.cameras.cam_to_world[:, :3, 3]
    baseline = (centres[pair[:, 1]] - centres[pair[:, 0]]).norm(dim=-1)
    torch.testing.assert_close(offset, 0.3 * baseline, atol=1e-4, rtol=1e-3)
    depth = depth_of(pointmaps.points_world, pointmaps.cameras).median()
    middle = straight.cam_to_world[:, :3, 3] + depth * straight.cam_to_world[:, :3, 2]
    for k in range(len(moved)):
        pixel, _ = project(middle[k : k + 1], moved.intrinsics[k], moved.world_to_cam[k])
        assert (pixel[0] - moved.intrinsics[k, :2, 2]).norm() < 2


def test_no_sway_leaves_the_cameras_as_they_are():
    pair, _ = frame_positions(3, 2)
    straight = build(frames_per_pair=2, sway=0.0).cameras
    torch.testing.assert_close(sway(straight, room_pointmaps(), pair, 0.0).cam_to_world, straight.cam_to_world)


@pytest.mark.parametrize("amount", [0.0, 0.3])
def test_renders_show_the_room_as_it_is_there(amount):
    guide = build(frames_per_pair=2, sway=amount)
    truth, _ = shoot(guide.cameras)
    seen = guide.visibility > 0.5
    assert seen.float().mean() > 0.8
    error = (guide.renders - truth)[seen].square().mean()
    assert -10 * torch.log10(error) > 22


def test_no_frames_where_none_are_asked_for():
    guide = build(frames_per_pair=0)
    assert guide.renders.shape == (0, 120, 160, 3)
    assert guide.pair.shape == (0, 2)


def test_points_without_confidence_are_not_shown():
    pointmaps = room_pointmaps()
    half = torch.where(torch.arange(160) < 80, pointmaps.confidence, 0.0)
    xyz, size, rgb, confidence = visible_points(room().inputs(), type(pointmaps)(
        pointmaps.points_world, half, pointmaps.cameras, pointmaps.sparse
    ))  # fmt: skip
    assert len(xyz) == len(size) == len(rgb) == len(confidence) == 3 * 120 * 80


def test_same_bytes_again():
    one, two = build(frames_per_pair=2), build(frames_per_pair=2)
    assert torch.equal(one.renders, two.renders)
    assert torch.equal(one.visibility, two.visibility)
    assert torch.equal(one.cameras.cam_to_world, two.cameras.cam_to_world)
