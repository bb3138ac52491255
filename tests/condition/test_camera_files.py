"""Files of cameras: what is read of each kind, and what is said of those that cannot be used."""

import json
import math
import warnings

import pytest
import torch
from exact_scene import room_pointmaps

from reconx_core import export
from reconx_core.condition.camera_files import cameras_on_path, files_of_path, read_path
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import resize_cameras

ORIGIN = (500_000.0, 5_400_000.0, 120.0)
NO_ORIGIN = (0.0, 0.0, 0.0)
CAMERA = {"camera_to_world": [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1], "fov": 60, "aspect": 1.5}
WHOLE = {"camera_type": "perspective", "render_height": 100, "render_width": 150, "camera_path": [CAMERA]}


def written(tmp_path, content, name="camera_path.json"):
    (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path / name


@pytest.mark.parametrize("origin", [NO_ORIGIN, ORIGIN])
@pytest.mark.parametrize("name", ["camera_path.json", "transforms.json", "sparse/0/images.bin"])
def test_an_exported_path_reads_back(tmp_path, name, origin):
    cameras = room_pointmaps().cameras
    export.write_path(tmp_path, cameras, origin)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = cameras_on_path(read_path(tmp_path / name), cameras, origin)
    torch.testing.assert_close(back.cam_to_world, cameras.cam_to_world, atol=1e-4, rtol=0)
    torch.testing.assert_close(back.intrinsics, cameras.intrinsics, atol=1e-3, rtol=0)


def test_a_text_model_is_read_in_the_order_of_the_names_and_without_its_cameras(tmp_path):
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 -2 1 b10.png\n\n2 1 0 0 0 0 0 -1 1 b9.png\n\n")
    like = room_pointmaps().cameras
    path = cameras_on_path(read_path(tmp_path / "images.txt"), like, NO_ORIGIN)
    assert path.cam_to_world[:, 2, 3].tolist() == [1.0, 2.0]
    torch.testing.assert_close(path.intrinsics[0], like.intrinsics.mean(0))
    assert set(files_of_path(tmp_path / "images.txt")) == {"images.txt"}
    (tmp_path / "cameras.txt").write_text("1 PINHOLE 80 60 50 50 40 30\n")
    path = cameras_on_path(read_path(tmp_path / "images.txt"), like, NO_ORIGIN)
    assert path.intrinsics[0, 0, 0] == 50 * like.height / 60
    assert set(files_of_path(tmp_path / "images.txt")) == {"images.txt", "cameras.txt"}


def test_a_viewers_camera_is_opengls_and_its_angle_of_view_vertical(tmp_path):
    like = room_pointmaps().cameras
    path = cameras_on_path(read_path(written(tmp_path, WHOLE)), like, NO_ORIGIN)
    torch.testing.assert_close(path.cam_to_world[0].diagonal(), torch.tensor([1.0, -1.0, -1.0, 1.0]))
    focal = like.height / 2 / math.tan(math.radians(30))
    expected = torch.tensor([[focal, 0, like.width / 2], [0, focal, like.height / 2], [0, 0, 1]])
    torch.testing.assert_close(path.intrinsics[0], expected)


def test_cameras_of_another_size_keep_what_they_see(tmp_path):
    like = room_pointmaps().cameras
    export.write_path(tmp_path, resize_cameras(like, 2 * like.height, 2 * like.width))
    path = cameras_on_path(read_path(tmp_path / "transforms.json"), like, NO_ORIGIN)
    torch.testing.assert_close(path.intrinsics, like.intrinsics, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is damaged, it is no JSON"),
        ("[1]", "holds no cameras"),
        ({"frames": []}, "holds no cameras"),
        ({"keyframes": []}, "holds no cameras"),
        (WHOLE | {"camera_path": []}, "without cameras"),
        (WHOLE | {"camera_type": "equirectangular"}, "of type 'equirectangular'"),
        (WHOLE | {"render_height": "tall"}, "render_height = 'tall', which should be a number"),
        (WHOLE | {"render_height": 0}, "render size of 150x0"),
        (WHOLE | {"camera_path": [CAMERA | {"fov": 180}]}, "fov = 180 in camera 0"),
        (WHOLE | {"camera_path": [CAMERA | {"fov": None}]}, "fov = "),
        (WHOLE | {"camera_path": [CAMERA | {"camera_to_world": [1, 2]}]}, "not 16 numbers"),
        (WHOLE | {"camera_path": [CAMERA | {"camera_to_world": "here"}]}, "not 16 numbers"),
        (WHOLE | {"camera_path": [CAMERA | {"camera_to_world": [math.nan] * 16}]}, "no camera with a pose"),
        ({"frames": [{"transform_matrix": [[1, 2]]}]}, "not 4x4"),
        ({"frames": [{"fl_x": 100, "w": 100, "h": 100}]}, "no camera with a pose"),
    ],
)
def test_a_file_that_cannot_be_used_is_a_sentence(tmp_path, content, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserError, match=said):
            read_path(written(tmp_path, content))


@pytest.mark.parametrize("content", ["", "1 1 0 0\n", "one two\n"])
def test_a_broken_model_is_a_sentence(tmp_path, content):
    with pytest.raises(UserError, match=r"images\.txt"):
        read_path(written(tmp_path, content, "images.txt"))


def test_a_truncated_binary_model_is_a_sentence(tmp_path):
    export.write_path(tmp_path, room_pointmaps().cameras)
    images = tmp_path / "sparse" / "0" / "images.bin"
    images.write_bytes(images.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"images\.bin is truncated"):
        read_path(images)
    with pytest.raises(UserError, match=r"points3D\.bin is no images file"):
        read_path(images.with_name("points3D.bin"))


def test_what_is_no_file_names_the_kinds_of_path(tmp_path):
    with pytest.raises(UserError, match=r"between, extrapolate, orbit or a file of cameras, but '.*/none.json' is not there"):
        read_path(tmp_path / "none.json")
    with pytest.raises(UserError, match="is a folder"):
        read_path(tmp_path)


def test_cameras_without_a_pose_are_left_out_and_counted(tmp_path):
    lost = CAMERA | {"camera_to_world": [math.nan] * 16}
    with pytest.warns(UserWarning, match=r"1 of 3 cameras in .* have no pose"):
        assert len(read_path(written(tmp_path, WHOLE | {"camera_path": [CAMERA, lost, CAMERA]})).photos) == 2
