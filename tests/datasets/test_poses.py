"""Poses as programs write them: scaled, sheared, unknown, in UTM coordinates."""

import json

import numpy as np
import pytest
import torch
from small_captures import cameras_of, tiny_hall, write_greys

from reconx_core.datasets import Capture, Photo, read
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.export.dataset import write_photos
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views

UTM = (5e5, 5.4e6, 120.0)


def write(folder, change):
    """The hall with its list of frames changed in place."""
    write_photos(tiny_hall(), folder, "PNG")
    content = json.loads((folder / "transforms.json").read_text())
    change(content["frames"])
    (folder / "transforms.json").write_text(json.dumps(content))
    return folder


def scale(frames, *factors):
    for frame in frames:
        for row in frame["transform_matrix"][:3]:
            row[:3] = [value * factor for value, factor in zip(row, factors)]


def shift(frames, offset=UTM):
    for frame in frames:
        for row, value in zip(frame["transform_matrix"], offset):
            row[3] += value


@pytest.mark.parametrize("factors", [(0.01, 0.01, 0.01), (100.0, 100.0, 100.0), (1.0, 1.0, 2.5)])
def test_scaled_axes_are_normalised_and_said(tmp_path, factors):
    write(tmp_path, lambda frames: scale(frames, *factors))
    with pytest.warns(UserWarning, match="5 of 5 poses in .*scaled axes"):
        capture = read(tmp_path)
    torch.testing.assert_close(cameras_of(capture).cam_to_world, cameras_of(tiny_hall()).cam_to_world)


def test_a_matrix_scaled_as_a_whole(tmp_path):
    write(tmp_path, lambda frames: [row.__setitem__(slice(4), [2 * v for v in row]) for row in frames[0]["transform_matrix"]])
    with pytest.warns(UserWarning, match="1 of 5"):
        capture = read(tmp_path)
    torch.testing.assert_close(cameras_of(capture).cam_to_world, cameras_of(tiny_hall()).cam_to_world)


def test_rounded_rotations_stay_as_they_are(tmp_path):
    write(tmp_path, lambda frames: scale(frames, 1.0002, 1.0, 1.0))
    expected = cameras_of(tiny_hall()).cam_to_world[:, :3, 0] * 1.0002
    torch.testing.assert_close(cameras_of(read(tmp_path)).cam_to_world[:, :3, 0], expected)


def shear(frame):
    frame["transform_matrix"][0][0] += 0.4


def mirror(frame):
    scale([frame], 1, 1, -1)


def flatten(frame):
    scale([frame], 1, 0, 1)


def transpose(frame):
    frame["transform_matrix"] = np.array(frame["transform_matrix"]).T.tolist()


DAMAGES = [(shear, "sheared"), (mirror, "mirror image"), (flatten, "an axis of it is zero"), (transpose, "transposed")]


@pytest.mark.parametrize(("damage", "wrong"), DAMAGES)
def test_poses_that_are_no_rotations_are_refused_by_name(tmp_path, damage, wrong):
    write(tmp_path, lambda frames: [damage(frame) for frame in frames[2:]])
    with pytest.raises(UserError, match=rf"view_002.*transforms\.json.*{wrong}"):
        read(tmp_path)


@pytest.mark.parametrize(("damage", "wrong"), DAMAGES)
def test_one_pose_that_is_no_rotation_costs_its_own_photo_only(tmp_path, damage, wrong):
    write(tmp_path, lambda frames: damage(frames[2]))
    with pytest.warns(UserWarning, match=rf"view_002.*transforms\.json.*{wrong}.* This pose is not used"):
        photos = read(tmp_path).photos
    assert [photo.cam_to_world is None for photo in photos] == [False, False, True, False, False]


def test_cameras_in_utm_coordinates_are_those_without_the_offset(tmp_path):
    there, here = write(tmp_path / "there", shift), write(tmp_path / "here", lambda frames: None)
    capture = read(there)
    assert (capture.origin, read(here).origin) == (UTM, (0, 0, 0))
    assert torch.equal(cameras_of(capture).cam_to_world, cameras_of(read(here)).cam_to_world)


def capture_at(positions):
    poses = torch.eye(4, dtype=torch.float64).repeat(len(positions), 1, 1)
    poses[:, :3, 3] = torch.tensor(positions, dtype=torch.float64).reshape(-1, 3)
    return Capture("a", tuple(Photo(str(i), lambda: torch.zeros(2, 2, 3), cam_to_world=p) for i, p in enumerate(poses)))


@pytest.mark.parametrize(
    ("positions", "origin"),
    [
        ([[900.0, 0, 0], [902.0, 0, 0]], (0, 0, 0)),  # near enough for single precision
        ([[9000.0, 0, 0], [9002.0, 0, 0]], (9000, 0, 0)),
        ([[1.0, 2, 3], [1.0, 2, 3]], (0, 0, 0)),  # no spread, no scale
        ([[9000.0, 0, 0], [9002.0, 0, 0], [9004.0, 0, 0], [0.0, 0, 0]], (9000, 0, 0)),  # a stray camera does not decide
        ([[9000.0, 0, 0], [9002.0, 0, 0], [float("nan"), 0, 0]], (9000, 0, 0)),
        ([], (0, 0, 0)),
    ],
)
def test_only_cameras_far_from_zero_are_moved(tmp_path, positions, origin):
    assert make_usable(capture_at(positions), tmp_path).origin == origin


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, 1e300, pytest.param(10**400, id="400 digits")])
def test_an_unknown_pose_costs_its_own_photo_only(tmp_path, value):
    write(tmp_path, lambda frames: frames[2]["transform_matrix"][1].__setitem__(3, value))
    with pytest.warns(UserWarning, match=r"1 of 5 photos have no usable pose.*'view_002'.*left out"):
        views = load_views(tmp_path, ViewsSettings(split="all"))
    assert (views.protocol, len(views)) == ("posed", 4)
    assert torch.equal(views.cameras.cam_to_world, cameras_of(tiny_hall()).cam_to_world[[0, 1, 3, 4]])


@pytest.mark.parametrize("value", [float("nan"), None, -1e300])
def test_poses_that_are_all_unknown_are_not_dropped_without_a_word(tmp_path, value):
    write(tmp_path, lambda frames: [frame["transform_matrix"][1].__setitem__(3, value) for frame in frames])
    with pytest.warns(UserWarning, match=r"None of the 5 poses in .*transforms\.json is valid"):
        assert load_views(tmp_path, ViewsSettings(split="all")).protocol == "intrinsics"


def test_unknown_poses_of_all_chosen_photos_are_told(tmp_path):
    write(tmp_path, lambda frames: [frame["transform_matrix"][1].__setitem__(3, None) for frame in frames[:3]])
    with pytest.warns(UserWarning, match="Only 0 of 3 photos have a usable pose"):
        assert load_views(tmp_path, ViewsSettings(split="views:0,1:2")).protocol == "intrinsics"
    with pytest.raises(UserError, match="needs cameras"):
        load_views(tmp_path, ViewsSettings(split="views:0,1:2", protocol="posed"))


def test_photos_without_any_pose_are_no_mistake(tmp_path, recwarn):
    write(tmp_path, lambda frames: [frame.pop("transform_matrix") for frame in frames])
    assert load_views(tmp_path, ViewsSettings(split="all")).protocol == "intrinsics"
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_a_frame_without_a_pose_costs_itself_only_and_none_where_cameras_are_estimated(tmp_path):
    write(tmp_path, lambda frames: frames[4].pop("transform_matrix"))
    with pytest.warns(UserWarning, match="'view_004'"):
        assert load_views(tmp_path, ViewsSettings(split="all")).protocol == "posed"
    for protocol in ("unposed", "intrinsics"):
        assert len(load_views(tmp_path, ViewsSettings(split="all", protocol=protocol))) == 5


def test_few_poses_among_many_photos_are_not_used_and_that_is_said(tmp_path):
    write(tmp_path, lambda frames: [frame.pop("transform_matrix") for frame in frames[:3]])
    with pytest.warns(UserWarning, match="Only 2 of 5 photos have a usable pose"):
        views = load_views(tmp_path, ViewsSettings(split="all"))
    assert (views.protocol, len(views)) == ("intrinsics", 5)
    with pytest.warns(UserWarning, match="3 of 5"):
        assert len(load_views(tmp_path, ViewsSettings(split="all", protocol="posed"))) == 2


def test_unknown_cameras_are_left_out_before_photos_are_thinned(tmp_path):
    write(tmp_path, lambda frames: frames[4].pop("transform_matrix"))
    with pytest.warns(UserWarning, match="'view_004'"):
        views = load_views(tmp_path, ViewsSettings(split="all", max_inputs=4))
    assert views.names == ("view_000", "view_001", "view_002", "view_003")


def test_a_frame_without_a_focal_length_costs_itself_only(tmp_path):
    write(tmp_path, lambda frames: [frames[1].pop(key) for key in ("fl_x", "fl_y")])
    with pytest.warns(UserWarning, match="no focal length.*'view_001'"):
        assert len(load_views(tmp_path, ViewsSettings(split="all"))) == 4


@pytest.mark.parametrize("key", ["fl_x", "cy", "w", "k1"])
def test_a_frame_with_unknown_intrinsics_costs_itself_only(tmp_path, key):
    write(tmp_path, lambda frames: frames[1].__setitem__(key, float("nan")))
    with pytest.warns(UserWarning, match="no focal length.*'view_001'"):
        assert len(load_views(tmp_path, ViewsSettings(split="all"))) == 4


def test_poses_without_any_focal_length_are_not_dropped_without_a_word(tmp_path):
    write(tmp_path, lambda frames: [frame.pop(key) for frame in frames for key in ("fl_x", "fl_y")])
    with pytest.warns(UserWarning, match="5 of 5 photos have a pose, but no focal length"):
        assert load_views(tmp_path, ViewsSettings(split="all")).protocol == "unposed"


def test_unknown_poses_of_llff(tmp_path):
    write_greys(tmp_path / "images", [f"{i}.png" for i in range(4)])
    down, right, back = [0.0, -1, 0], [1.0, 0, 0], [0.0, 0, 1]
    rows = [[*np.column_stack([down, right, back, [i, 0, 0], [12, 16, 20]]).ravel(), 1, 9] for i in range(4)]
    rows[1][3] = np.inf
    rows[2][4] = np.nan  # its height
    np.save(tmp_path / "poses_bounds.npy", np.array(rows))
    with (
        pytest.warns(UserWarning, match="1 of 4 photos have no usable pose"),
        pytest.warns(UserWarning, match="focal length.*'2'"),
    ):
        assert load_views(tmp_path, ViewsSettings(split="all")).names == ("0", "3")
    rows = np.array(rows)
    rows[:, 14] = np.nan
    np.save(tmp_path / "poses_bounds.npy", rows)
    with pytest.warns(UserWarning, match="photos have a pose, but no focal length"):
        assert load_views(tmp_path, ViewsSettings(split="all")).protocol == "unposed"


def test_unknown_poses_of_realestate(tmp_path):
    write_greys(tmp_path / "key", ["1.png", "2.png", "3.png"])
    rows = [[i, 1, 1, 0.5, 0.5, 0, 0, 1, 0, 0, i, 0, 1, 0, 0, 0, 0, 1, 0] for i in (1, 2, 3)]
    rows[1][10] = "nan"
    lines = "\n".join(" ".join(map(str, row)) for row in rows)
    (tmp_path / "key.txt").write_text(f"https://a.b\n{lines}\n", encoding="utf-8-sig")
    with pytest.warns(UserWarning, match="'2'"):
        assert load_views(tmp_path / "key", ViewsSettings()).names == ("1", "3")


def test_unknown_cameras_of_dtu(tmp_path):
    write_greys(tmp_path / "scan1" / "image", ["000000.png", "000001.png", "000002.png"])
    camera = np.array([[20.0, 0, 8, 0], [0, 20, 6, 0], [0, 0, 1, 0]])
    matrices = {f"world_mat_{i}": camera + [[0, 0, 0, i], [0, 0, 0, 0], [0, 0, 0, 0]] for i in range(3)}
    matrices["world_mat_1"][0, 3] = np.nan
    np.savez(tmp_path / "scan1" / "cameras.npz", **matrices)
    with pytest.warns(UserWarning, match="view 1, are not finite"):
        assert [photo.number for photo in read(tmp_path / "scan1").photos] == [0, 2]
