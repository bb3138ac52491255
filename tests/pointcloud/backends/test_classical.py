"""The `classical` backend as a whole, and the steps around the stereo search."""

from dataclasses import replace

import pytest
import torch
from exact_scene import draw, relative_error, room, room_depth, room_pointmaps

from reconx_core import pointcloud
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import depth_of, project
from reconx_core.pointcloud.backends.classical import known_geometry, lift, upsample_depth
from reconx_core.pointcloud.sfm.solve import Sfm
from reconx_core.pointcloud.stereo.ranges import depth_ranges, ranges_from_cameras
from reconx_core.settings import PointcloudSettings

pytestmark = pytest.mark.long

SETTINGS = PointcloudSettings(planes=64)


@pytest.fixture(scope="module")
def estimated():
    return pointcloud.estimate(room().inputs(), SETTINGS, draw())


def exact_sfm():
    pointmaps = room_pointmaps()
    _, z = project(pointmaps.sparse.xyz, pointmaps.cameras.intrinsics, pointmaps.cameras.world_to_cam)
    registered, pairs = torch.ones(3, dtype=torch.bool), torch.tensor([[0, 1], [1, 2]])
    return Sfm(pointmaps.cameras, registered, pointmaps.sparse, z > 0, pairs, torch.tensor([100, 100]))


def test_pointmaps_lie_on_the_room(estimated):
    pointmaps, _, kept = estimated
    assert kept.tolist() == [0, 1, 2]
    error = relative_error(depth_of(pointmaps.points_world, pointmaps.cameras), room_depth())
    assert error.median() < 0.015
    assert (error[pointmaps.confidence > 0.5] < 0.05).float().mean() > 0.85


def test_known_points_tell_depths_and_what_views_share():
    pointmaps = room_pointmaps()
    sfm = known_geometry(pointmaps.cameras, pointmaps)
    near, far = depth_ranges(sfm.cameras, sfm.sparse, sfm.observations)
    truth = room_depth().flatten(1)
    assert (near < truth.quantile(0.01, 1)).all()
    assert (far > truth.quantile(0.99, 1)).all()
    shared = dict(zip(map(tuple, sfm.pairs.tolist()), sfm.inlier_counts.tolist()))
    assert min(shared[0, 1], shared[1, 2]) > shared[0, 2] > 0  # neighbours see more of the same


def test_no_known_points_leave_the_depth_to_the_cameras():
    pointmaps = replace(room_pointmaps(), confidence=torch.zeros(3, 120, 160))
    sfm = known_geometry(pointmaps.cameras, pointmaps)
    near, far = depth_ranges(sfm.cameras, sfm.sparse, sfm.observations)
    wide = ranges_from_cameras(pointmaps.cameras)
    assert torch.equal(near, wide[0])
    assert torch.equal(far, wide[1])
    assert sfm.inlier_counts.tolist() == [0, 0, 0]


def test_given_cameras_are_kept(estimated):
    given, found = room().inputs().cameras, estimated[0].cameras
    assert torch.equal(found.cam_to_world, given.cam_to_world)
    assert torch.equal(found.intrinsics, given.intrinsics)


def test_every_pixels_point_projects_onto_it(estimated):
    pointmaps = estimated[0]
    cameras = pointmaps.cameras
    pixels, _ = project(pointmaps.points_world[1].reshape(-1, 3), cameras.intrinsics[1], cameras.world_to_cam[1])
    wanted = torch.stack(torch.meshgrid(torch.arange(160) + 0.5, torch.arange(120) + 0.5, indexing="xy"), -1)
    torch.testing.assert_close(pixels, wanted.reshape(-1, 2), atol=1e-2, rtol=0)


def test_the_cloud_holds_the_confident_points(estimated):
    pointmaps, cloud, _ = estimated
    assert len(cloud) == int((pointmaps.confidence > pointcloud.FUSED_CONFIDENCE).sum())
    assert cloud.confidence.min() > pointcloud.FUSED_CONFIDENCE
    assert torch.equal(cloud.rgb, room().inputs().images[pointmaps.confidence > pointcloud.FUSED_CONFIDENCE])


def test_a_large_cloud_is_thinned_evenly(monkeypatch):
    monkeypatch.setattr(pointcloud, "MAX_POINTS", 1000)
    cloud = pointcloud.fuse(room_pointmaps(), room().inputs())
    assert 900 < len(cloud) <= 1000
    columns = torch.stack([(cloud.xyz == p).all(-1).any() for p in room_pointmaps().points_world[2, -1]])
    assert columns.any()  # down to the last rows of the last photo


def ranges(sfm):
    return depth_ranges(sfm.cameras, sfm.sparse, sfm.observations)


def test_depth_is_searched_beyond_the_points_that_a_view_sees():
    near, far = ranges(exact_sfm())
    depth = room_depth()
    assert (near < depth.amin((1, 2))).all()
    assert (far > depth.amax((1, 2))).all()
    assert (far < 4 * depth.amax((1, 2))).all()


def test_upsampling_puts_no_points_between_two_surfaces():
    depth = torch.full((1, 6, 8), 2.0)
    depth[:, :, 4:] = 5.0
    found = upsample_depth(depth, 24, 32)
    assert (((found - 2).abs() < 1e-5) | ((found - 5).abs() < 1e-5)).all()


def test_upsampling_is_smooth_on_a_surface():
    slope = 1 / torch.linspace(0.5, 0.52, 8).expand(1, 6, 8)
    found = 1 / upsample_depth(slope, 24, 32)
    assert (found.diff(dim=-1) >= -1e-6).all()
    assert len(found[0, 0].unique()) > 20


def test_masked_pixels_have_no_confidence():
    masks = room().inputs().masks.clone()
    masks[:, :, :40] = False
    pointmaps = lift(room_depth(), torch.ones_like(room_depth()), masks, exact_sfm())
    assert torch.equal(pointmaps.confidence > 0, masks)


def test_two_photos_give_the_same_bytes_again(computed_anew):
    pair = room().inputs().select(torch.tensor([0, 1]))
    settings = PointcloudSettings(planes=32, rounds=1, stereo_size=96)
    one, two = (pointcloud.estimate(pair, settings, draw())[0] for _ in range(2))
    assert torch.equal(one.points_world, two.points_world)
    assert torch.equal(one.confidence, two.confidence)


def test_a_backend_that_does_not_exist_is_named():
    with pytest.raises(UserError, match=r"no pointcloud backend 'dustr'.*classical"):
        pointcloud.make_backend(PointcloudSettings(backend="dustr"))


def test_views_without_enough_points_use_all_of_them():
    sfm = exact_sfm()
    blind = replace(sfm, observations=torch.zeros_like(sfm.observations))
    near, far = ranges(blind)
    assert (near > 0).all()
    assert (far > near).all()


def test_exact_scene_is_what_it_says():
    """Check of the fixtures: a point of one photo has the same colour in the next."""
    pointmaps, images = room_pointmaps(), room().inputs().images
    cameras = pointmaps.cameras
    pixels, z = project(pointmaps.points_world[0].reshape(-1, 3), cameras.intrinsics[1], cameras.world_to_cam[1])
    grid = pixels / torch.tensor([160, 120]) * 2 - 1
    sampled = torch.nn.functional.grid_sample(images[1:2].movedim(-1, 1), grid[None, None], align_corners=False)[0, :, 0].T
    known = torch.nn.functional.grid_sample(room_depth()[1][None, None], grid[None, None], mode="nearest", align_corners=False)
    visible = ((known[0, 0, 0] / z - 1).abs() < 0.01) & (grid.abs() < 1).all(-1)
    assert visible.float().mean() > 0.6
    assert (sampled - images[0].reshape(-1, 3))[visible].abs().mean() < 0.03
