"""What lies in a scene's folder and is not used is told; pictures are found in the layouts that programs write."""

import json
import warnings

import pytest
from small_captures import write_greys

from reconx_core.datasets import detect, read, scene_names
from reconx_core.errors import UserError

CAMERA = "1 PINHOLE 40 30 40 40 20 15\n"


def write_model(folder, names):
    folder.mkdir(parents=True)
    (folder / "cameras.txt").write_text(CAMERA)
    (folder / "images.txt").write_text("".join(f"{i} 1 0 0 0 {i} 0 0 1 {name}\n\n" for i, name in enumerate(names)))


def write_transforms(folder, names):
    frames = [{"file_path": f"images/{name}", "transform_matrix": [[1, 0, 0, i], [0, 1, 0, 0], [0, 0, 1, 0]]}
              for i, name in enumerate(names)]  # fmt: skip
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 40, "frames": frames}))


@pytest.mark.parametrize("kind", ["transforms", "model"])
def test_photos_that_the_cameras_do_not_list_are_told(tmp_path, kind):
    write_greys(tmp_path / "images", ["a.png", "b.png", "c.png", "d.png", "a.mask.png", "b.jpg"], 30, 40)
    if kind == "transforms":
        write_transforms(tmp_path, ["a.png", "b.png"])
    else:
        write_model(tmp_path / "sparse", ["a.png", "b.png"])
    with pytest.warns(UserWarning, match=r"2 photo\(s\) beside the 2 that .* lists have no camera, such as c\.png"):
        assert len(read(tmp_path).photos) == 2


def test_nothing_is_told_where_all_are_listed(tmp_path):
    write_greys(tmp_path / "images", ["a.png", "b.png"], 30, 40)
    write_greys(tmp_path / "depth", ["a.png", "b.png"], 30, 40)
    write_transforms(tmp_path, ["a.png", "b.png"])
    with warnings.catch_warnings(action="error"):
        read(tmp_path)


@pytest.mark.parametrize("place", ["dense", "dense/0"])
@pytest.mark.parametrize("raw", [False, True])
def test_undistorted_models_are_read_with_their_own_pictures(tmp_path, place, raw):
    write_greys(tmp_path / place / "images", ["a.png", "b.png"], 30, 40)
    write_model(tmp_path / place / "sparse", ["a.png", "b.png"])
    if raw:
        write_greys(tmp_path / "images", ["a.png", "b.png"], 60, 80)
    assert detect(tmp_path).name == "colmap"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert read(tmp_path).photos[0].load().shape == (30, 40, 3)
    assert ["dense" in str(warning.message) for warning in told] == [True] * raw


def test_a_video_beside_photos_is_told(tmp_path):
    write_greys(tmp_path, ["a.png", "b.png"], 30, 40)
    (tmp_path / "walk.MOV").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"the photos are used and not walk\.MOV; give the path of a video"):
        assert len(read(tmp_path).photos) == 2


def test_photos_in_folders_of_the_given_one_are_told(tmp_path):
    for name in ("left", "right"):
        write_greys(tmp_path / name, ["a.png", "b.png"])
    with pytest.raises(UserError, match=r"are in folders of it \(left, right\); give one of these"):
        read(tmp_path)
    write_greys(tmp_path, ["a.png", "b.png"])
    with pytest.warns(UserWarning, match="Photos in folders of .* are not used: left, right"):
        read(tmp_path)


def test_a_single_photo_and_a_folder_of_a_video_tell_what_to_give(tmp_path):
    write_greys(tmp_path / "photos", ["a.png"])
    with pytest.raises(UserError, match="single picture: give the folder of photos, or the path of a video"):
        scene_names(tmp_path / "photos" / "a.png")
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "c.mp4").write_bytes(b"x")
    with pytest.raises(UserError, match=r"give the path of the video in it \(c\.mp4\), or a folder of photos"):
        scene_names(tmp_path / "clips")
