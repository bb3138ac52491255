"""The exported camera folder opens as a COLMAP scene and as a nerfstudio scene, with the same cameras and pictures."""

import numpy as np
import pycolmap
import pytest
import torch
from export_scene import some_cameras, some_points
from plyfile import PlyData

from reconx_core.datasets import colmap, nerfstudio
from reconx_core.export import points_from_ply, write_cameras, write_colmap
from reconx_core.settings import ViewsSettings
from reconx_core.types import Views
from reconx_core.views import load_views


@pytest.fixture
def photos() -> Views:
    images = torch.randint(256, (2, 48, 64, 3), generator=torch.Generator().manual_seed(2)) / 255
    masks = torch.ones(2, 48, 64, dtype=torch.bool)
    masks[1, :, :10] = False
    return Views(images, masks, ("left", "right"), torch.zeros(2, dtype=torch.bool), None, torch.full((2,), torch.nan))


@pytest.mark.parametrize("read", [colmap.read, nerfstudio.read])
def test_either_format_reads_back(tmp_path, photos, read):
    write_cameras(tmp_path, some_cameras(), photos, some_points())
    back = read(tmp_path).photos
    assert [p.name for p in back] == ["left", "right"]
    for i, photo in enumerate(back):
        torch.testing.assert_close(photo.intrinsics, some_cameras().intrinsics[i])
        torch.testing.assert_close(photo.cam_to_world, some_cameras().cam_to_world[i], atol=1e-6, rtol=0)
        assert torch.equal(photo.load(), photos.images[i])
    assert back[0].load_mask is None
    assert torch.equal(back[1].load_mask(), photos.masks[1])


def test_it_is_a_scene_again(tmp_path, photos):
    write_cameras(tmp_path, some_cameras(), photos, some_points())
    views = load_views(tmp_path, ViewsSettings())
    assert torch.equal(views.images, photos.images)
    assert torch.equal(views.masks, photos.masks)
    torch.testing.assert_close(views.cameras.cam_to_world, some_cameras().cam_to_world)


def test_points_stand_in_both(tmp_path, photos):
    points = some_points()
    write_cameras(tmp_path, some_cameras(), photos, points)
    assert torch.equal(points_from_ply(tmp_path / "points.ply").xyz, points.xyz)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    order = sorted(model.points3D)
    torch.testing.assert_close(torch.tensor([model.points3D[i].xyz.tolist() for i in order]), points.xyz)
    assert [model.points3D[i].color.tolist() for i in order] == (points.rgb * 255).round().int().tolist()


UTM = (5e5, 5.4e6, 120.0)


@pytest.mark.parametrize("read", [colmap.read, nerfstudio.read])
def test_cameras_are_in_the_given_frame_to_the_last_micrometre(tmp_path, photos, read):
    write_cameras(tmp_path, some_cameras(), photos, some_points(), UTM)
    back = read(tmp_path)
    for i, photo in enumerate(back.photos):
        in_frame = photo.cam_to_world.double()
        in_frame[:3, 3] += torch.tensor(back.origin, dtype=torch.float64)
        expected = some_cameras().cam_to_world[i].double()
        expected[:3, 3] += torch.tensor(UTM, dtype=torch.float64)
        torch.testing.assert_close(in_frame, expected, atol=1e-6, rtol=0)
    assert back.origin == UTM


def test_points_in_the_given_frame_are_in_double_precision(tmp_path, photos):
    points = some_points()
    write_cameras(tmp_path, some_cameras(), photos, points, UTM)
    expected = points.xyz.double().numpy() + np.array(UTM)
    vertex = PlyData.read(tmp_path / "points.ply")["vertex"].data
    np.testing.assert_array_equal(np.stack([vertex[k] for k in "xyz"], -1), expected)
    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    np.testing.assert_array_equal([model.points3D[i].xyz for i in sorted(model.points3D)], expected)


@pytest.mark.parametrize("text", [False, True])
def test_colmap_bytes_are_the_same_each_time(tmp_path, text):
    for name in "ab":
        write_colmap(tmp_path / name, some_cameras(), ["l.png", "r.png"], some_points(3000), text)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert ("cameras.txt" if text else "cameras.bin") in files
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_colmap_projects_points_where_we_do(tmp_path):
    """An independent check of axes and pixel origin: COLMAP's own projection."""
    from reconx_core.geometry.transforms import project

    cameras = some_cameras()
    write_colmap(tmp_path, cameras, ["l.png", "r.png"], some_points())
    model = pycolmap.Reconstruction(str(tmp_path))
    point = torch.tensor([0.2, -0.1, 3.0])
    for i, image in enumerate(sorted(model.images.values(), key=lambda image: image.name)):
        ours, _ = project(point[None], cameras.intrinsics[i], cameras.world_to_cam[i])
        torch.testing.assert_close(torch.from_numpy(image.project_point(point.double().numpy())).float(), ours[0])
