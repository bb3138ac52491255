"""Intrinsics that no camera has are refused by every reader, with the number and its likely cause."""

import json
import math
import warnings

import numpy as np
import pytest
import torch
from small_captures import write_greys

from reconx_core.datasets import read
from reconx_core.datasets.capture import Capture, Photo, pinhole
from reconx_core.datasets.intrinsics import require_plausible
from reconx_core.errors import UserError

POSE = torch.eye(4).tolist()
LONG = 10**400  # an integer of JSON's that no float holds


def capture_of(values, size=(300, 400), distortion=(0.0, 0.0, 0.0, 0.0)):
    photo = Photo("a", lambda: torch.zeros(1, 1, 3), intrinsics=pinhole(*values), size=size, distortion=distortion)
    return Capture("scene", (photo,))


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ((-350, 350, 200, 150), "focal length of -350 pixels; it must be positive"),
        ((350, 0, 200, 150), "focal length of 0 pixels"),
        ((math.nan, 350, 200, 150), "not finite"),
        ((350, 350, math.inf, 150), "not finite"),
        ((0.9, 0.9, 0.5, 0.5), "focal length of 0.9 pixels for a picture of 400x300; .* share of the picture's width"),
        ((24, 24, 200, 150), "focal length of 24 pixels .* millimetres"),
        ((1e9, 1e9, 200, 150), r"focal length of 1e\+09 pixels .* check its unit"),
        ((350, 350, 0.5, 0.49), "in its corner; it looks like a share"),
        ((350, 350, 2000, 150), r"principal point at \(2000, 150\) in a picture of 400x300, far outside it"),
        ((350, 350, 200, -151), "far outside it"),
    ],
)
def test_impossible_cameras_are_refused(tmp_path, values, wrong):
    with pytest.raises(UserError, match=f"The camera of 'a' in .*{wrong}"):
        require_plausible(capture_of(values), tmp_path / "cameras.txt")


@pytest.mark.parametrize(
    "lens", [(-50.0, 0, 0, 0), (50.0, 0, 0, 0), (0, 0, 0, 0, 0, -9.0), (0, 0, 0, 0, -20.0), (math.nan, 0, 0, 0)]
)
def test_lenses_that_turn_the_picture_inside_out_are_refused(tmp_path, lens):
    with pytest.raises(UserError, match=r"scales parts of the picture|not finite"):
        require_plausible(capture_of((350, 350, 200, 150), distortion=lens), tmp_path)


@pytest.mark.parametrize("values", [(350, 340, 200, 150), (41, 41, 200, 150), (19000, 19000, 210, 160), (350, 350, 290, 150)])
def test_unusual_cameras_pass_without_a_word(tmp_path, values):
    with warnings.catch_warnings(action="error"):
        require_plausible(capture_of(values), tmp_path)
        require_plausible(capture_of((350, 340, 200, 150), distortion=(-0.3, 0.1, 0.001, 0.001, -0.02)), tmp_path)


def test_a_principal_point_far_from_the_centre_is_told(tmp_path):
    with pytest.warns(UserWarning, match=r"1 camera\(s\) in .* such as \(190, 150\) of 'a' \(800x600\)"):
        require_plausible(capture_of((700, 700, 190, 150), (600, 800)), tmp_path)


def write_transforms(folder, **top):
    write_greys(folder, ["a.png", "b.png"], 30, 40)
    frames = [{"file_path": name, "transform_matrix": POSE} for name in ("a.png", "b.png")]
    (folder / "transforms.json").write_text(json.dumps({**top, "frames": frames}))
    return folder


@pytest.mark.parametrize(
    ("top", "wrong"),
    [
        ({"camera_angle_x": 58.2}, r"camera_angle_x = 58\.2, which should be .* radians .*; it looks like degrees"),
        ({"camera_angle_x": -1}, "camera_angle_x = -1, which should be"),
        ({"x_fov": 180}, "x_fov = 180, which should be an angle of view in degrees"),
        ({"fl_x": True}, "fl_x = True, which is no number"),
        ({"fl_x": 40, "w": 40, "h": False}, "h = False, which is no number"),
        ({"fl_x": 0, "fl_y": 0}, "focal length of 0 pixels"),
        ({"fl_x": -40, "fl_y": 40}, "focal length of -40 pixels"),
        ({"fl_x": 0.9, "w": 40, "h": 30}, "focal length of 0.9 pixels"),
        ({"fl_x": math.inf}, "fl_x = inf, which is not finite"),
        *(({"fl_x": 40, key: LONG}, f"{key} = inf, which is not finite") for key in ("w", "cx", "k1", "camera_angle_x")),
        ({"fl_x": -LONG}, "fl_x = -inf, which is not finite"),
        ({"fl_x": 40, "w": math.nan}, "w = nan, which is not finite"),
        ({"fl_x": 40, "w": -40, "h": -30}, "picture size of -40x-30"),
    ],
)
def test_cameras_of_transforms(tmp_path, top, wrong):
    with pytest.raises(UserError, match=rf"transforms\.json.* {wrong}"):
        read(write_transforms(tmp_path, **top))


@pytest.mark.parametrize("camera", ["40 30 nan 40 20 15", "40 30 -40 40 20 15", "0 0 40 40 20 15", "40 30 40 40 1000 15"])
def test_cameras_of_colmap(tmp_path, camera):
    write_greys(tmp_path / "images", ["a.png", "b.png"], 30, 40)
    (tmp_path / "sparse").mkdir()
    (tmp_path / "sparse" / "cameras.txt").write_text(f"1 PINHOLE {camera}\n")
    (tmp_path / "sparse" / "images.txt").write_text("".join(f"{i} 1 0 0 0 {i} 0 0 1 {n}.png\n\n" for i, n in enumerate("ab")))
    with pytest.raises(UserError, match=r"The camera of 'a' in .*sparse has"):
        read(tmp_path)
    (tmp_path / "sparse" / "cameras.txt").write_text(f"1 PINHOLE {LONG} 30 40 40 20 15\n")
    with pytest.raises(UserError, match=r"cameras\.txt: camera 1 has a size of 401 digits"):
        read(tmp_path)


@pytest.mark.parametrize(("column", "value"), [(4, 0), (9, 0), (14, 0), (14, -40), (14, 1)])
def test_cameras_of_llff(tmp_path, column, value):
    write_greys(tmp_path / "images", ["a.png", "b.png"], 30, 40)
    rows = [[*np.column_stack([[0, -1, 0], [1, 0, 0], [0, 0, 1], [i, 0, 0], [30, 40, 45]]).ravel(), 1, 9] for i in range(2)]
    rows = np.array(rows, dtype=float)
    rows[:, column] = value
    np.save(tmp_path / "poses_bounds.npy", rows)
    with pytest.raises(UserError, match=r"The camera of 'a' in .*poses_bounds\.npy has"):
        read(tmp_path)
