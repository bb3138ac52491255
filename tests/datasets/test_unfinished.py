"""Partly downloaded datasets: complete scenes are evaluated, and the others are named in a warning."""

import json
import warnings

import numpy as np
import pytest
from small_captures import write_greys
from test_colmap_reader import write as write_colmap
from test_dl3dv import write as write_dl3dv
from test_dtu import write_archive, write_rectified
from test_llff import write as write_llff_files
from test_realestate import write_frames

from reconx_core.datasets import detect, nerfstudio, read, scene_names
from reconx_core.errors import UserError

HASHES = [f"{i:x}" * 64 for i in range(5)]


def left_out(dataset) -> tuple[list[str], str]:
    """The names of the complete scenes, and the warning about the others."""
    with pytest.warns(UserWarning, match="left out") as warned:
        names = [name for name, _ in scene_names(dataset)]
    (warning,) = warned.list
    return names, str(warning.message)


def write_llff(dataset, name):
    (dataset / name).mkdir(parents=True)
    return write_llff_files(dataset / name, 3)


def test_llff(tmp_path):
    for name in ("fern", "fortress", "horns", "leaves", "room", "trex"):
        write_llff(tmp_path, name)
    for image in (tmp_path / "fortress" / "images").iterdir():
        image.unlink()
    (tmp_path / "horns" / "images" / "01.png").unlink()
    (tmp_path / "leaves" / "poses_bounds.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "trex" / "poses_bounds.npy").unlink()
    (tmp_path / "orchids").mkdir()
    (tmp_path / ".cache" / "images").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").touch()
    names, shown = left_out(tmp_path)
    assert names == ["fern", "room"]
    assert shown.startswith(f"5 of 7 scenes in '{tmp_path}' are left out")
    for sentence in ("fortress' has 3 poses", "horns' has 3 poses", "leaves/poses_bounds.npy", "orchids' is empty",
                     "trex' has photos, but no cameras as the others have"):  # fmt: skip
        assert sentence in shown
    assert ".cache" not in shown
    assert "notes" not in shown


def no_model(scene):
    for file in (scene / "sparse" / "0").iterdir():
        file.unlink()


def no_pictures(scene):
    for file in (scene / "images").iterdir():
        file.unlink()


def no_folder(scene):
    (scene / "sparse").rename(scene.parent / ".sparse")


def reduced_pictures_alone(scene):
    no_folder(scene)
    (scene / "images").rename(scene / "images_8")


def cut(name):
    return lambda scene: (scene / "sparse" / "0" / name).write_bytes(b"\1\0\0\0")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_model, "has photos and sparse, but no whole set of cameras"),
        (lambda scene: (scene / "sparse" / "0" / "images.bin").unlink(), "has photos and sparse, but no whole set of cameras"),
        (cut("cameras.bin"), "cameras.bin is truncated"),
        (cut("images.bin"), "images.bin is truncated"),
        (no_pictures, "has no pictures beside it"),
        (no_folder, "has photos, but no cameras as the others have"),
        (reduced_pictures_alone, "has pictures, but no cameras"),
    ],
)
def test_colmap(tmp_path, damage, message):
    for name in ("bicycle", "garden", "truck"):
        write_colmap(tmp_path / name, ["a.png", "b.png"])
    damage(tmp_path / "garden")
    names, shown = left_out(tmp_path)
    assert names == ["bicycle", "truck"]
    assert "garden" in shown
    assert message in shown


def test_dl3dv(tmp_path):
    for name in HASHES[:3]:
        write_dl3dv(tmp_path / "1K" / name)
    (tmp_path / "1K" / HASHES[1] / "transforms.json").unlink()
    write_dl3dv(tmp_path / "2K" / HASHES[3], images=())
    write_greys(tmp_path / "2K" / HASHES[4] / "images", ["a.png"])
    (tmp_path / "3K").mkdir()
    names, shown = left_out(tmp_path)
    assert names == [HASHES[0], HASHES[2]]
    assert f"{HASHES[1]}' has pictures, but no cameras" in shown
    assert f"None of the 4 pictures of '{tmp_path / '2K' / HASHES[3]}'" in shown
    assert f"{HASHES[4]}' has photos, but no cameras" in shown
    assert "3K' is empty" in shown
    with pytest.raises(UserError, match=f"{HASHES[1]}' has pictures, but no cameras"):
        read(tmp_path / "1K" / HASHES[1])


def test_dtu(tmp_path):
    for name in ("scan1", "scan2", "scan3", "scan4"):
        write_archive(tmp_path / name, masks=True)
    (tmp_path / "scan2" / "cameras.npz").unlink()
    (tmp_path / "scan3" / "cameras.npz").write_bytes(b"PK")
    for image in (tmp_path / "scan4" / "image").iterdir():
        image.unlink()
    (tmp_path / "idrmasks" / "scan1").mkdir(parents=True)
    (tmp_path / "scan9").mkdir()
    names, shown = left_out(tmp_path)
    assert names == ["scan1"]
    for sentence in ("scan2' has pictures, but no cameras", "scan3/cameras.npz", "scan4' has no pictures", "scan9' is empty"):
        assert sentence in shown
    assert "idrmasks" not in shown


def test_dtu_without_the_cameras_of_all_scans(tmp_path):
    write_rectified(tmp_path, ["scan1_train"])
    (tmp_path / "Cameras").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"No scene in .* is whole.*scan1_train' has no cameras"):
        scene_names(tmp_path)


def write_nerfstudio(folder, pictures=True):
    folder.mkdir(parents=True)
    if pictures:
        write_greys(folder / "images", ["a.png", "b.png"])
    frames = [{"file_path": f"images/{name}.png", "transform_matrix": np.eye(4).tolist()} for name in "ab"]
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 9, "w": 16, "h": 12, "frames": frames}))


def test_nerfstudio_and_synthetic_scenes(tmp_path):
    write_nerfstudio(tmp_path / "whole")
    write_nerfstudio(tmp_path / "bare", pictures=False)
    write_nerfstudio(tmp_path / "cut")
    (tmp_path / "cut" / "transforms.json").write_text('{"frames": [{"file')
    write_nerfstudio(tmp_path / "lego", pictures=False)
    (tmp_path / "lego" / "transforms.json").rename(tmp_path / "lego" / "transforms_train.json")
    names, shown = left_out(tmp_path)
    assert names == ["whole"]
    assert f"None of the 2 pictures that {tmp_path / 'bare' / 'transforms.json'} lists is there" in shown
    assert f"'{tmp_path / 'cut' / 'transforms.json'}' is damaged" in shown
    assert f"{tmp_path / 'lego' / 'transforms_train.json'} lists" in shown


@pytest.mark.parametrize("layout", ["beside", "cameras and frames"])
def test_camera_files_and_frames(tmp_path, layout):
    frames, cameras = (tmp_path, tmp_path) if layout == "beside" else (tmp_path / "frames", tmp_path / "cameras")
    for key in ("k1", "k2", "k3", "k4"):
        write_frames(frames / key, cameras / f"{key}.txt")
    (cameras / "k2.txt").unlink()
    for frame in (frames / "k3").iterdir():
        frame.unlink()
    (cameras / "k5.txt").write_text((cameras / "k4.txt").read_text())
    with pytest.warns(UserWarning, match="left out") as warned:
        assert [name for name, _ in scene_names(tmp_path)] == ["k1", "k4"]
    shown = " ".join(str(w.message) for w in warned.list)
    assert "1 of the 4 camera files in" in shown
    assert "have no frames: k5" in shown
    assert "k2' has photos, but no cameras" in shown
    assert "k3' has no frames" in shown


@pytest.mark.parametrize("nested", ["", "images"])
def test_folders_of_photos_alone_are_whole(tmp_path, nested):
    for name in ("attic", "cellar"):
        write_greys(tmp_path / name / nested, ["a.jpg", "b.jpg"])
    write_nerfstudio(tmp_path / "hall")  # one scene with cameras does not mean that the others should have some
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [name for name, _ in scene_names(tmp_path)] == ["attic", "cellar", "hall"]


def test_photos_in_another_layout_than_the_scenes_with_cameras(tmp_path):
    for name in ("a", "b", "c"):
        write_nerfstudio(tmp_path / name)
    write_greys(tmp_path / "holiday", ["a.jpg", "b.jpg"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [name for name, _ in scene_names(tmp_path)] == ["a", "b", "c", "holiday"]


def test_no_scene_is_whole(tmp_path):
    write_nerfstudio(tmp_path / "a", pictures=False)
    (tmp_path / "b").mkdir()
    with pytest.raises(UserError, match=r"No scene in .* is whole.*transforms\.json.*b' is empty"):
        scene_names(tmp_path)


def test_a_folder_of_photos_given_by_itself_is_not_judged(tmp_path):
    write_greys(tmp_path / "place" / "images", ["a.jpg", "b.jpg"])
    (tmp_path / "place" / "sparse").mkdir()
    assert scene_names(tmp_path / "place") == [("place", tmp_path / "place")]
    assert detect(tmp_path / "place").name == "photos"


def test_one_picture_is_enough_to_try(tmp_path):
    """Missing pictures are reported when the scene is read, and only then."""
    write_nerfstudio(tmp_path / "a")
    (tmp_path / "a" / "images" / "b.png").unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert scene_names(tmp_path) == [("a", tmp_path / "a")]
    assert len(nerfstudio.read(tmp_path / "a").photos) == 2
