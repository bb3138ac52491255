"""Polycam's raw export is read with its cameras."""

import json

import pytest
import torch
from PIL import Image
from small_captures import cameras_of, tiny_hall, write_greys

from reconx_core.datasets import detect, read
from reconx_core.datasets.capture import opencv_from_opengl
from reconx_core.errors import UserError


def write_export(folder, kind=""):
    """The hall's pictures and cameras as Polycam lays them out."""
    hall = tiny_hall()
    poses = opencv_from_opengl(cameras_of(hall).cam_to_world)
    for i, (photo, pose) in enumerate(zip(hall.photos, poses)):
        fx, fy, cx, cy = photo.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
        camera = {f"t_{row}{column}": float(pose[row, column]) for row in range(3) for column in range(4)}
        camera |= {"fx": fx, "fy": fy, "cx": cx, "cy": cy, "width": 96, "height": 72, "blur_score": 100.0}
        for place in (f"{kind}images", f"{kind}cameras"):
            (folder / "keyframes" / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray((photo.load() * 255).byte().numpy()).save(folder / "keyframes" / f"{kind}images" / f"{100 + i}.jpg")
        (folder / "keyframes" / f"{kind}cameras" / f"{100 + i}.json").write_text(json.dumps(camera))
    write_greys(folder, ["thumbnail.jpg"])
    return hall


@pytest.mark.parametrize("inside", [False, True])
def test_cameras_and_pictures(tmp_path, inside):
    hall = write_export(tmp_path)
    path = tmp_path / "keyframes" if inside else tmp_path
    assert detect(path).name == "polycam"
    with pytest.warns(UserWarning, match="images with Polycam's cameras are used"):
        capture = read(path)
    assert [p.name for p in capture.photos] == ["100", "101", "102", "103", "104"]
    torch.testing.assert_close(cameras_of(capture).intrinsics, cameras_of(hall).intrinsics)
    torch.testing.assert_close(cameras_of(capture).cam_to_world, cameras_of(hall).cam_to_world, atol=2e-6, rtol=0)


def test_corrected_cameras_go_before_those_of_the_phone(tmp_path):
    write_export(tmp_path)
    write_export(tmp_path, "corrected_")
    (tmp_path / "keyframes" / "corrected_cameras" / "102.json").unlink()
    with pytest.warns(UserWarning, match="1 of the pictures in .* left out"):
        assert len(read(tmp_path).photos) == 4


def test_damaged_cameras_are_named(tmp_path):
    write_export(tmp_path)
    file = tmp_path / "keyframes" / "cameras" / "101.json"
    file.write_text(json.dumps({"t_00": 1}))
    with pytest.raises(UserError, match=r"101\.json is no camera of Polycam's: .*'t_01'"):
        read(tmp_path)
    file.write_text("[]")
    with pytest.raises(UserError, match=r"101\.json is no camera of Polycam's"):
        read(tmp_path)
    file.write_text("{")
    with pytest.raises(UserError, match=r"101\.json' is damaged"):
        read(tmp_path)


def test_without_cameras_the_photos_are_used(tmp_path):
    write_export(tmp_path)
    for file in (tmp_path / "keyframes" / "cameras").iterdir():
        file.unlink()
    with pytest.warns(UserWarning, match=r"photos in keyframes/images are used; .*thumbnail\.jpg"):
        assert len(read(tmp_path).photos) == 5


def test_scaled_axes_are_normalised_and_unknown_poses_left_open(tmp_path):
    hall = write_export(tmp_path)
    cameras = tmp_path / "keyframes" / "cameras"
    camera = json.loads((cameras / "100.json").read_text())
    rotation = {key: 2 * value for key, value in camera.items() if key.startswith("t_") and not key.endswith("3")}
    (cameras / "100.json").write_text(json.dumps(camera | rotation))
    (cameras / "101.json").write_text(json.dumps(camera | {"t_03": None}))
    (cameras / "102.json").write_text(json.dumps(camera | {"t_03": 10**400}))
    with pytest.warns(UserWarning, match=r"1 of 5 poses in .*cameras have scaled axes \(by 2\)"):
        scaled, unknown, endless, *_ = read(tmp_path).photos
    torch.testing.assert_close(scaled.cam_to_world, hall.photos[0].cam_to_world, atol=2e-6, rtol=0)
    assert unknown.cam_to_world is endless.cam_to_world is None
