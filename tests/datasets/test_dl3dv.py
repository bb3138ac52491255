import json

import numpy as np
import pytest
import torch
from small_captures import write_greys

from reconx_core.datasets import detect, dl3dv, files_of, read, scene_names
from reconx_core.errors import UserError
from reconx_core.io.images import encode
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views

HASH = "032dee9fb0a8bc1b90871dc5fe950080d0bcd3caf166447f44e60ca50ac04ec7"
OTHER = HASH[::-1]
SHARED = {"w": 128, "h": 96, "fl_x": 100.0, "fl_y": 101.0, "cx": 64.0, "cy": 48.0, "camera_model": "OPENCV", "k1": 0.01}


def names(count):
    return [f"frame_{i + 1:05d}.png" for i in range(count)]


def write(folder, images=("images_4",), count=4, **top):
    """A scene whose pictures are those in ``images``, each folder as small as its name says."""
    matrices = torch.eye(4).repeat(count, 1, 1)
    matrices[:, 0, 3] = torch.arange(count)
    frames = [
        {"file_path": f"images/{name}", "transform_matrix": matrix.tolist(), "colmap_im_id": i}
        for i, (name, matrix) in enumerate(zip(names(count), matrices))
    ]
    folder.mkdir(parents=True)
    (folder / "transforms.json").write_text(json.dumps(SHARED | top | {"frames": frames[::-1]}))
    for version in images:
        factor = int(version.removeprefix("images").removeprefix("_") or 1)
        write_greys(folder / version, names(count), 96 // factor, 128 // factor)
    return folder


def test_the_camera_is_for_the_full_picture_and_the_reduced_one_is_read(tmp_path):
    scene = write(tmp_path / HASH)
    assert detect(scene).name == "dl3dv"
    capture = read(scene)
    photo = capture.photos[2]
    assert (capture.name, photo.name, photo.size, photo.load().shape) == (HASH, "frame_00003", (96, 128), (24, 32, 3))
    assert photo.intrinsics.tolist() == [[100, 0, 64], [0, 101, 48], [0, 0, 1]]
    assert photo.distortion == (0.01, 0, 0, 0)
    assert [p.cam_to_world[0, 3].item() for p in capture.photos] == [0, 1, 2, 3]
    assert photo.cam_to_world[:3, :3].diag().tolist() == [1, -1, -1]
    views = load_views(scene, ViewsSettings())
    torch.testing.assert_close(views.cameras.intrinsics[0], torch.tensor([[25.0, 0, 16], [0, 25.25, 12], [0, 0, 1]]))


def test_links_to_full_pictures_that_were_not_fetched_are_passed_over(tmp_path):
    scene = write(tmp_path / HASH)
    (scene / "images").mkdir()
    for name in names(4):
        (scene / "images" / name).symlink_to(tmp_path / "annex" / name)
    assert [p.load().shape for p in read(scene).photos] == [(24, 32, 3)] * 4


@pytest.mark.parametrize("place", ["images\\{}", "C:\\data\\images\\{}", "/home/me/images/{}"])
def test_paths_of_other_machines(tmp_path, place):
    scene = write(tmp_path / HASH)
    content = json.loads((scene / "transforms.json").read_text())
    for frame, name in zip(content["frames"], reversed(names(4))):
        frame["file_path"] = place.format(name.replace(".png", ".JPG"))  # as converted pictures are, too
    (scene / "transforms.json").write_text(json.dumps(content), encoding="utf-8-sig")
    photos = read(scene).photos
    assert [(p.name, p.number) for p in photos] == [(name[:-4], i) for i, name in enumerate(names(4))]
    assert [p.cam_to_world[0, 3].item() for p in photos] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("images", "width"), [(("images_8", "images_2"), 64), (("images_4", "images", "images_8"), 128), (("images_8",), 16)]
)
def test_the_largest_pictures_that_are_there(tmp_path, images, width):
    scene = write(tmp_path / HASH, images)
    assert read(scene).photos[0].load().shape[1] == width


def test_an_empty_folder_of_full_pictures_and_others_do_not_count(tmp_path):
    scene = write(tmp_path / "scene")
    for other in ("images", "images_old"):
        (scene / other).mkdir()
    assert detect(scene).name == "dl3dv"
    assert read(scene).photos[0].load().shape[1] == 32


def test_the_archive_sorts_scenes_into_subsets(tmp_path):
    write(tmp_path / "1K" / HASH / "nerfstudio")
    write(tmp_path / "2K" / OTHER / "nerfstudio")
    (tmp_path / "1K" / HASH / "colmap" / "sparse" / "0").mkdir(parents=True)
    for file in ("cameras.txt", "images.txt"):
        (tmp_path / "1K" / HASH / "colmap" / "sparse" / "0" / file).touch()
    assert scene_names(tmp_path) == [(HASH, tmp_path / "1K" / HASH), (OTHER, tmp_path / "2K" / OTHER)]
    assert scene_names(tmp_path / "1K") == [(HASH, tmp_path / "1K" / HASH)]
    assert detect(tmp_path / "1K" / HASH).name == "dl3dv"
    capture = read(tmp_path / "1K" / HASH)
    assert (capture.name, len(capture.photos)) == (HASH, 4)
    assert "nerfstudio/images_4/frame_00001.png" in files_of(tmp_path / "1K" / HASH)


def test_scenes_of_one_folder_and_the_file_itself(tmp_path):
    scene = write(tmp_path / HASH)
    assert scene_names(tmp_path) == [(HASH, scene)]
    assert detect(scene / "transforms.json").name == "dl3dv"
    assert len(read(scene / "transforms.json").photos) == 4


def test_frames_without_a_picture_are_left_out(tmp_path):
    scene = write(tmp_path / HASH)
    (scene / "images_4" / "frame_00002.png").unlink()
    with pytest.warns(UserWarning, match=f"1 of 4 pictures of .*{HASH}"):
        photos = read(scene).photos
    assert [p.name for p in photos] == ["frame_00001", "frame_00003", "frame_00004"]
    assert [p.cam_to_world[0, 3].item() for p in photos] == [0, 2, 3]


def test_a_scene_without_pictures_is_named(tmp_path):
    with pytest.raises(UserError, match=f"None of the 4 pictures of .*{HASH}"):
        read(write(tmp_path / HASH, images=()))


def test_reduced_pictures_need_the_size_of_the_full_ones(tmp_path):
    scene = write(tmp_path / HASH)
    meta = json.loads((scene / "transforms.json").read_text())
    del meta["w"]
    (scene / "transforms.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="does not give the size"):
        read(scene)


def test_jpegs_and_lenses(tmp_path):
    scene = write(tmp_path / HASH, images=(), count=2)
    (scene / "images_4").mkdir()
    for name in names(2):
        (scene / "images_4" / name).write_bytes(encode(torch.from_numpy(np.full((24, 32, 3), 0.5)), "JPEG"))
    assert dl3dv.read(scene).photos[0].load().shape == (24, 32, 3)
    with pytest.raises(UserError, match="fisheye"):
        read(write(tmp_path / OTHER, camera_model="OPENCV_FISHEYE"))


def test_nerfstudios_own_reduced_copies_stay_nerfstudios(tmp_path):
    assert detect(write(tmp_path / "mine", images=("images", "images_2", "images_4"))).name == "nerfstudio"
