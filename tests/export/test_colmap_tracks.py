"""COLMAP goes on from what we write: points with the photos that see them, and one camera for each lens."""

from dataclasses import replace

import numpy as np
import pycolmap
import pytest
import torch
from export_scene import some_cameras, some_points

from reconx_core.datasets import colmap
from reconx_core.export import write_cameras
from reconx_core.geometry.transforms import project
from reconx_core.types import Cameras, PointCloud, Tracks, Views


def three_cameras() -> Cameras:
    """Two of one lens, one of another."""
    two = some_cameras()
    poses = torch.cat([two.cam_to_world, two.cam_to_world[1:]])
    poses[2, 0, 3] -= 0.7
    lenses = torch.cat([two.intrinsics, two.intrinsics[1:] * torch.tensor([1.1, 1.1, 1.0])[:, None]])
    return Cameras(lenses, poses, 64, 48)


def points_and_tracks(cameras: Cameras) -> tuple[PointCloud, Tracks]:
    points = replace(some_points(60), xyz=some_points(60).xyz * torch.tensor([0.3, 0.2, 0.3]) + torch.tensor([0, 0, 3.0]))
    pixels, z = project(points.xyz, cameras.intrinsics, cameras.world_to_cam)
    inside = (pixels >= 0).all(-1) & (pixels < torch.tensor([64, 48])).all(-1) & (z > 0)
    view, point = inside.nonzero().unbind(-1)
    return points, Tracks(view, point, pixels[view, point])


def write(folder, points, tracks, cameras=None, origin=(0.0, 0.0, 0.0)):
    cameras = three_cameras() if cameras is None else cameras
    masks = torch.ones(3, 48, 64, dtype=torch.bool)
    photos = Views(torch.rand(3, 48, 64, 3), masks, ("a", "b", "c"), masks[:, 0, 0] & False, None, torch.full((3,), torch.nan))
    write_cameras(folder, cameras, photos, some_points(), origin, (points, tracks))
    return pycolmap.Reconstruction(str(folder / "sparse" / "0"))


def test_tracks_and_shared_lenses(tmp_path):
    points, tracks = points_and_tracks(three_cameras())
    model = write(tmp_path, points, tracks)
    assert len(model.cameras) == 2
    assert [model.images[i].camera_id for i in (1, 2, 3)] == [1, 1, 2]
    twice = torch.bincount(tracks.point, minlength=len(points)) > 1
    assert model.num_points3D() == int(twice.sum())
    assert all(point.track.length() > 1 for point in model.points3D.values())
    assert model.compute_mean_reprojection_error() < 1e-4
    for element in model.points3D[1].track.elements:
        seen = model.images[element.image_id].points2D[element.point2D_idx]
        assert seen.point3D_id == 1
    assert [p.name for p in colmap.read(tmp_path).photos] == ["a", "b", "c"]


def test_bundle_adjustment_goes_on_from_it(tmp_path):
    points, tracks = points_and_tracks(three_cameras())
    noise = torch.randn(tracks.xy.shape, generator=torch.Generator().manual_seed(3)) * 0.3
    moved = replace(points, xyz=points.xyz + 0.05)
    model = write(tmp_path, moved, replace(tracks, xy=tracks.xy + noise))
    before = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 0.5 * before < before


def test_an_origin_moves_points_and_cameras_together(tmp_path):
    points, tracks = points_and_tracks(three_cameras())
    model = write(tmp_path, points, tracks, origin=(5e5, 5.4e6, 120.0))
    assert model.compute_mean_reprojection_error() < 1e-3
    assert np.linalg.norm(model.points3D[1].xyz) > 5e6


def test_points_that_are_not_finite_take_their_observations_along(tmp_path):
    points, tracks = points_and_tracks(three_cameras())
    xyz = points.xyz.clone()
    xyz[0] = torch.nan
    whole, left = write(tmp_path / "a", points, tracks), write(tmp_path / "b", replace(points, xyz=xyz), tracks)
    assert left.num_points3D() == whole.num_points3D() - 1
    assert left.compute_mean_reprojection_error() < 1e-4


@pytest.mark.parametrize("count", [0, 1])
def test_points_that_nobody_sees_twice_are_left_out(tmp_path, count):
    nothing = Tracks(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2))
    model = write(tmp_path, some_points(count), nothing)
    assert model.num_points3D() == 0
    assert len(model.images) == 3
