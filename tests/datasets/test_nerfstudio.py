import json
import math
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from small_captures import cameras_of, tiny_hall, write_greys

from reconx_core.datasets import detect, files_of, nerfstudio
from reconx_core.errors import UserError
from reconx_core.export.dataset import write_photos
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views, views_with_depth

IDENTITY = torch.eye(4).tolist()
DEEP = "[" * 100_000  # more than Python's parser goes down
NO_PATHS = [
    pytest.param(name, id=str(i))
    for i, name in enumerate(["a\0.png", "\ud800.png", "9" * 5000, "d" * 300 + "/a.png", "d/" * 3000 + "a.png"])
]


def write(folder, frames, **top):
    write_greys(folder, [f["file_path"] for f in frames if f["file_path"].endswith(".png")])
    (folder / "transforms.json").write_text(json.dumps({**top, "frames": frames}))
    return folder


def frame(name, **entries):
    return {"file_path": name, "transform_matrix": IDENTITY, **entries}


def pose_at(x):
    return {"transform_matrix": [[1, 0, 0, x], *IDENTITY[1:]]}


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_written_scene_reads_back(tmp_path, format):
    hall = tiny_hall()
    write_photos(hall, tmp_path, format)
    back = nerfstudio.read(tmp_path)
    torch.testing.assert_close(cameras_of(back).intrinsics, cameras_of(hall).intrinsics)
    torch.testing.assert_close(cameras_of(back).cam_to_world, cameras_of(hall).cam_to_world)
    assert dict(back.splits) == dict(hall.splits)
    assert [p.name for p in back.photos] == [p.name for p in hall.photos]
    difference = back.photos[1].load() - hall.photos[1].load()
    assert difference.abs().mean() < (0.003 if format == "PNG" else 0.02)


def test_a_camera_that_looks_along_minus_z_in_opengl_looks_along_plus_z_in_opencv(tmp_path):
    matrix = torch.eye(4)
    matrix[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    write(tmp_path, [frame("a.png", transform_matrix=matrix.tolist())], fl_x=10, w=16, h=12)
    pose = nerfstudio.read(tmp_path).photos[0].cam_to_world
    assert torch.equal(pose[:3, :3], torch.diag(torch.tensor([1.0, -1.0, -1.0])))
    assert pose[:3, 3].tolist() == [1, 2, 3]


def test_intrinsics_of_a_frame_come_before_the_shared_ones(tmp_path):
    write(tmp_path, [frame("a.png"), frame("b.png", fl_x=7, cx=3, k1=0.1)], fl_x=10, fl_y=11, cx=8, cy=6, w=16, h=12, p2=0.2)
    a, b = nerfstudio.read(tmp_path).photos
    assert a.intrinsics.tolist() == [[10, 0, 8], [0, 11, 6], [0, 0, 1]]
    assert b.intrinsics.tolist() == [[7, 0, 3], [0, 11, 6], [0, 0, 1]]
    assert (a.distortion, b.distortion) == ((0, 0, 0, 0.2), (0.1, 0, 0, 0.2))


def test_instant_ngp_angle_size_from_the_picture_and_missing_extension(tmp_path):
    write_greys(tmp_path, ["a.png"])
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": math.pi / 2, "frames": [frame("./a")]}))
    photo = nerfstudio.read(tmp_path).photos[0]
    torch.testing.assert_close(photo.intrinsics, torch.tensor([[8.0, 0, 8], [0, 8, 6], [0, 0, 1]]))
    assert (photo.name, photo.size, photo.load().shape) == ("a", (12, 16), (12, 16, 3))


def test_capture_order_is_by_name_and_splits_follow(tmp_path):
    write(tmp_path, [frame("f10.png"), frame("f2.png"), frame("f1.png"), frame("f3.png")], fl_x=10, w=16, h=12)
    (tmp_path / "split.json").write_text(json.dumps({
        "rule": "by hand", "train_2": [0, 2], "test_2": [1], "train_3": [0, 1, 2], "test": [3],
        "pair_easy": {"train": [1, 0], "test_between": [3], "matches": 9},
    }))  # fmt: skip
    capture = nerfstudio.read(tmp_path)
    assert [p.name for p in capture.photos] == ["f1", "f2", "f3", "f10"]
    assert dict(capture.splits) == {"train_2": ((0, 3), (1,)), "train_3": ((0, 1, 3), (2,)), "pair_easy": ((1, 3), (2,))}
    assert capture.default_split == "train_3"


@pytest.mark.parametrize(
    ("text", "splits"),
    [
        ('{"train": [0, 2], "test": [1]}', {"train": ((0, 2), (1,))}),
        ('{"3": {"train": [0, 1], "test": [2]}}', {"3": ((0, 1), (2,))}),
        ('{"few": [0], "more": [0, 1], "val": [2], "note": "mine"}', {"few": ((0,), (2,)), "more": ((0, 1), (2,))}),
    ],
)
def test_lists_of_any_name_are_splits(tmp_path, text, splits):
    write(tmp_path, [frame(f"f{i}.png") for i in range(3)], fl_x=10, w=16, h=12)
    (tmp_path / "split.json").write_text(text)
    assert dict(nerfstudio.read(tmp_path).splits) == splits


def test_published_split_files_count_frames_as_the_file_lists_them(tmp_path):
    """As Stable Virtual Camera reads its own: by place in transforms.json, not in the order of names."""
    write(tmp_path, [frame(f"{i}.png", **pose_at(i)) for i in (3, 0, 2, 1)], fl_x=10, w=16, h=12)
    for count, train, test in ((1, [0], [1]), (2, [0, 1], [3]), (3, [0, 2, 3], [1])):
        (tmp_path / f"train_test_split_{count}.json").write_text(json.dumps({"train_ids": train, "test_ids": test}))
    capture = nerfstudio.read(tmp_path)
    assert capture.splits["train_test_split_2"] == ((0, 3), (1,))
    assert capture.splits["train_test_split_3"] == ((1, 2, 3), (0,))
    assert capture.default_split == "train_test_split_3"
    assert "train_test_split_2.json" in files_of(tmp_path)
    (tmp_path / "train_test_split_3.json").unlink()
    assert nerfstudio.read(tmp_path).default_split == "train_test_split_2"


@pytest.mark.parametrize("text", ["[1]", "{}", '{"train_ids": [0], "test_ids": ["a"]}'])
def test_published_split_files_that_are_none_are_told_in_a_sentence(tmp_path, text):
    write(tmp_path, [frame("a.png"), frame("b.png")], fl_x=10, w=16, h=12)
    (tmp_path / "train_test_split_2.json").write_text(text)
    with pytest.raises(UserError, match=r"train_test_split_2\.json: its list should list frames by their numbers"):
        nerfstudio.read(tmp_path)


def test_nerfstudios_own_split_by_file_names(tmp_path):
    names = {"train_filenames": ["a.png", "c.png"], "val_filenames": ["b.png"], "test_filenames": ["b.png"]}
    write(tmp_path, [frame("a.png"), frame("b.png"), frame("c.png")], fl_x=10, w=16, h=12, **names)
    capture = nerfstudio.read(tmp_path)
    assert dict(capture.splits) == {"filenames": ((0, 2), (1,))}
    assert capture.default_split == "filenames"


def test_mask_path(tmp_path):
    write_greys(tmp_path, ["m.png"], 12, 16)
    write(tmp_path, [frame("a.png", mask_path="m.png"), frame("b.png")], fl_x=10, w=16, h=12)
    a, b = nerfstudio.read(tmp_path).photos
    assert a.load_mask().shape == (12, 16)
    assert b.load_mask is None


def test_files_of_the_file_itself_are_those_of_its_folder(tmp_path):
    write(tmp_path, [frame("images/a.png")], fl_x=10, w=16, h=12)
    assert files_of(tmp_path / "transforms.json") == files_of(tmp_path)
    assert set(files_of(tmp_path)) == {"transforms.json", "images/a.png"}


def test_intrinsics_without_poses(tmp_path):
    write(tmp_path, [{"file_path": "a.png"}], fl_x=10, w=16, h=12)
    photo = nerfstudio.read(tmp_path).photos[0]
    assert photo.intrinsics is not None
    assert photo.cam_to_world is None


@pytest.mark.parametrize("pose", [IDENTITY, IDENTITY[:3], torch.eye(4).flatten().tolist()], ids=["4x4", "3x4", "flat"])
def test_poses_under_another_name_are_told(tmp_path, pose):
    write(tmp_path, [{"file_path": "a.png", "c2w": pose}], fl_x=10, w=16, h=12)
    with pytest.warns(UserWarning, match="gives no pose: none of its frames has a 'transform_matrix', and of 'c2w'"):
        assert nerfstudio.read(tmp_path).photos[0].cam_to_world is None


@pytest.mark.parametrize(
    ("top", "wrong"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "fisheye"),
        ({"is_fisheye": True}, "fisheye"),
        ({"k4": -1}, "k4"),
    ],
)
def test_lenses_that_cannot_be_undone_are_refused(tmp_path, top, wrong):
    write(tmp_path, [frame("a.png")], fl_x=10, w=16, h=12, **top)
    with pytest.raises(UserError, match=wrong):
        nerfstudio.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"frames": []}', '{"frames": [{"transform_matrix": 1}]}',
                                  '{"frames": [{"file_path": "a.png", "transform_matrix": [[1, 2]]}]}',
                                  '{"frames": [{"file_path": "a.png", "transform_matrix": "x"}]}'])  # fmt: skip
def test_broken_files_are_named(tmp_path, text):
    (tmp_path / "transforms.json").write_text(text)
    with pytest.raises(UserError, match=r"transforms\.json"):
        nerfstudio.read(tmp_path)


def test_a_split_that_names_frames_which_are_not_there(tmp_path):
    write(tmp_path, [frame("a.png"), frame("b.png")], fl_x=10, w=16, h=12)
    (tmp_path / "split.json").write_text('{"train_2": [0, 5]}')
    with pytest.raises(UserError, match="train_2"):
        nerfstudio.read(tmp_path)


def test_a_listed_photo_that_is_missing_leaves_the_others_usable(tmp_path):
    write_greys(tmp_path, ["a.png", "b.png"])
    frames = [frame("a.png"), frame("b.png", **pose_at(1)), frame("gone.png")]
    (tmp_path / "transforms.json").write_text(json.dumps({"camera_angle_x": 1.0, "frames": frames}))
    with pytest.warns(UserWarning, match=r"gone\.png"):
        views = load_views(tmp_path, ViewsSettings())
    assert views.names == ("a", "b")
    assert views.protocol == "posed"


def test_synthetic_nerf_scenes(tmp_path):
    for part, count in (("train", 3), ("test", 2)):
        write_greys(tmp_path / part, [f"r_{i}.png" for i in range(count)])
        frames = [frame(f"./{part}/r_{i}", **pose_at(i)) for i in range(count)]
        (tmp_path / f"transforms_{part}.json").write_text(json.dumps({"camera_angle_x": math.pi / 2, "frames": frames}))
    assert detect(tmp_path).name == "blender"
    views = load_views(tmp_path, ViewsSettings())
    assert views.is_target.tolist() == [False] * 3 + [True] * 2
    assert len(set(views.names)) == 5
    assert views.cameras.intrinsics[0, 0, 0] == pytest.approx(8)


def at(folder, names, file_paths, **top):
    """A scene whose pictures lie at ``names``, while its file says that they are at ``file_paths``."""
    write_greys(folder, names)
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 10, **top, "frames": [frame(p) for p in file_paths]}))
    return folder


@pytest.mark.parametrize(
    "file_paths",
    [
        ["images\\a.png", "images\\b.png"],
        [".\\images\\a", ".\\images\\b"],
        ["/home/me/scan/images/a.png", "/home/me/scan/images/b.png"],
        ["C:\\Users\\me\\scan\\images\\a.png", "C:\\Users\\me\\scan\\images\\b.png"],
        ["/mnt/photos/a.png", "/mnt/photos/b.png"],  # they were not in `images` there
        ["../scan/images/a.png", "../scan/images/b.png"],
        ["images/a.jpg", "images/b.jpg"],  # converted since
        ["images/A.PNG", "images/B.PNG"],
    ],
)
def test_pictures_are_found_by_paths_of_other_machines(tmp_path, file_paths):
    at(tmp_path, ["images/a.png", "images/b.png"], file_paths)
    nerfstudio.check(tmp_path)
    with warnings.catch_warnings(action="ignore"):
        photos = nerfstudio.read(tmp_path).photos
    assert [p.name for p in photos] == ["a", "b"]
    assert photos[0].load().mean() < photos[1].load().mean()


def test_where_pictures_were_found_is_said(tmp_path):
    at(tmp_path, ["images/a.png", "b.png"], ["/home/me/a.png", "b.png"])
    with pytest.warns(UserWarning, match=r"1 of 2 pictures are not where .*\(/home/me/a\.png\).*images' are used"):
        nerfstudio.read(tmp_path)


def test_the_longest_part_of_a_path_that_leads_to_a_picture_counts(tmp_path):
    at(tmp_path, ["left/0.png", "right/0.png"], ["/data/left/0.png", "/data/right/0.png"])
    with pytest.warns(UserWarning, match="2 of 2"):
        left, right = nerfstudio.read(tmp_path).photos
    assert left.load().mean() < right.load().mean()


def test_one_picture_is_never_taken_for_two_frames(tmp_path):
    at(tmp_path, ["images/0.png"], ["/data/left/0.png", "/data/right/0.png"])
    for photo in nerfstudio.read(tmp_path).photos:
        with pytest.raises(UserError, match="There is no picture"):
            photo.load()


def test_masks_splits_and_synthetic_scenes_with_backslashes(tmp_path):
    write_greys(tmp_path, ["images/a.png", "images/b.png", "m/a.png"])
    frames = [frame("images\\a.png", mask_path="m\\a.png"), frame("images\\b.png")]
    lists = {"train_filenames": ["images/a.png"], "test_filenames": ["images\\b.png"]}
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 10, **lists, "frames": frames}))
    capture = nerfstudio.read(tmp_path)
    assert capture.photos[0].load_mask().shape == (12, 16)
    assert dict(capture.splits) == {"filenames": ((0,), (1,))}
    (tmp_path / "transforms.json").rename(tmp_path / "transforms_train.json")
    assert detect(tmp_path).name == "blender"
    assert [p.load().shape for p in detect(tmp_path).read(tmp_path).photos] == [(12, 16, 3)] * 2


@pytest.mark.parametrize(
    ("given", "focals"),
    [
        ({"fl_y": 9}, (9, 9)),
        ({"camera_angle_y": math.pi / 2}, (6, 6)),
        ({"camera_angle_x": math.pi / 2, "camera_angle_y": math.pi / 2}, (8, 6)),
        ({"fl_x": 7, "camera_angle_y": math.pi / 2}, (7, 6)),
        ({"fl_x": None, "fl_y": 9}, (9, 9)),
        ({"x_fov": 90}, (8, 8)),
        ({"fl_x": "7.5"}, (7.5, 7.5)),
    ],
)
def test_intrinsics_come_from_what_is_there(tmp_path, given, focals):
    write(tmp_path, [frame("a.png")], **given)
    intrinsics = nerfstudio.read(tmp_path).photos[0].intrinsics
    torch.testing.assert_close(intrinsics.diagonal(), torch.tensor([*focals, 1.0]))
    assert intrinsics[:2, 2].tolist() == [8, 6]


def test_what_is_no_number_is_named(tmp_path):
    write(tmp_path, [frame("a.png")], fl_x="long")
    with pytest.raises(UserError, match=r"transforms\.json has fl_x = 'long'"):
        nerfstudio.read(tmp_path)


def test_brackets_without_end_are_told_in_a_sentence(tmp_path):
    (tmp_path / "transforms.json").write_text(DEEP)
    with pytest.raises(UserError, match=r"transforms\.json' is damaged, it is no JSON \(its brackets are nested too deeply\)"):
        nerfstudio.read(tmp_path)


def test_the_third_radial_coefficient_is_used(tmp_path):
    write(tmp_path, [frame("a.png"), frame("b.png", k3=0.01, **pose_at(1))], fl_x=10, w=16, h=12, k4=1e-9)
    assert [p.distortion for p in nerfstudio.read(tmp_path).photos] == [(0, 0, 0, 0), (0, 0, 0, 0, 0.01)]
    assert len(load_views(tmp_path, ViewsSettings())) == 2


def test_a_quotient_of_polynomials_is_read_where_the_model_is_named(tmp_path):
    write(tmp_path, [frame("a.png")], fl_x=10, w=16, h=12, camera_model="FULL_OPENCV", k1=0.1, k6=0.2)
    assert nerfstudio.read(tmp_path).photos[0].distortion == (0.1, 0, 0, 0, 0, 0, 0, 0.2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_of_windows(tmp_path, encoding):
    write(tmp_path, [frame("ä.png"), frame("b.png")], fl_x=10, w=16, h=12)
    for file, text in ((tmp_path / "transforms.json", None), (tmp_path / "split.json", '{"train_1": [0], "test": [1]}')):
        file.write_text(text or json.dumps(json.loads(file.read_text()), ensure_ascii=False), encoding=encoding)
    capture = nerfstudio.read(tmp_path)
    assert [p.name for p in capture.photos] == ["b", "ä"]
    assert dict(capture.splits) == {"train_1": ((1,), (0,))}


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[1, 2]", r"split\.json should hold named splits"),
        pytest.param(DEEP, r"split\.json' is damaged, .*its brackets are nested too deeply", id="deep"),
        ("null", r"split\.json should hold named splits"),
        ('{"train_3": null}', r"split\.json: split 'train_3' should list frames by their numbers.* has None"),
        ('{"train_3": [0, null]}', r"'train_3' should list frames .* has \[0, None\]"),
        ('{"train_3": [0, true]}', r"'train_3' should list frames .* has \[0, True\]"),
        ('{"pair": {"train": 5}}', r"'pair' should list frames .* has 5"),
        ('{"train_3": [0, 1, 99]}', "'train_3' names frame 99, which is none of the 2 usable"),
        ('{"train_3": [0, 1], "test": [-1]}', "'train_3' names frame -1"),
    ],
)
def test_splits_that_are_none_are_told_in_a_sentence(tmp_path, text, wrong):
    write(tmp_path, [frame("a.png"), frame("b.png")], fl_x=10, w=16, h=12)
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UserError, match=wrong):
        nerfstudio.read(tmp_path)


def test_no_held_out_frames_may_be_written_as_null(tmp_path):
    write(tmp_path, [frame("a.png"), frame("b.png")], fl_x=10, w=16, h=12, train_filenames=None, test_filenames=None)
    (tmp_path / "split.json").write_text('{"train_2": [0, 1], "test": null, "train_note": "by hand"}')
    assert dict(nerfstudio.read(tmp_path).splits) == {"train_2": ((0, 1), ())}


@pytest.mark.parametrize("value", [5, True, ["m.png"], *NO_PATHS])
def test_a_mask_path_that_is_none_is_named(tmp_path, value):
    write(tmp_path, [frame("a.png", mask_path=value)], fl_x=10, w=16, h=12)
    with pytest.raises(UserError, match=r"transforms\.json has mask_path = .*, which is no path"):
        nerfstudio.read(tmp_path)


@pytest.mark.parametrize("value", [[0, 1], 3, "a.png"])
def test_file_names_of_a_split_that_are_none(tmp_path, value):
    write(tmp_path, [frame("a.png"), frame("b.png")], fl_x=10, w=16, h=12, train_filenames=value)
    with pytest.raises(UserError, match=r"transforms\.json should list names of files as train_filenames"):
        nerfstudio.read(tmp_path)


def test_file_names_of_a_split_that_no_frame_has_are_counted(tmp_path):
    names = {"train_filenames": ["a.png", "b.png"], "val_filenames": ["c.png", "d.png"]}
    write(tmp_path, [frame("a.png"), frame("b.png"), frame("c.png")], fl_x=10, w=16, h=12, **names)
    with pytest.warns(UserWarning, match=r"1 of the 2 val_filenames in .*transforms\.json are no .* such as d\.png"):
        assert dict(nerfstudio.read(tmp_path).splits) == {"filenames": ((0, 1), (2,))}


def test_a_folder_with_escaped_letters_may_be_long_and_an_escaped_zero_is_no_picture(tmp_path):
    folder = "%C3%A4" * 100
    names = [f"{folder}/a.png", f"{folder}/b.png", f"{folder}/c.png", "%00/e.png"]
    write_greys(tmp_path / ("ä" * 100), ["a.png", "b.png"])
    frames = [frame(name, **pose_at(i)) for i, name in enumerate(names)]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames, "fl_x": 10, "w": 16, "h": 12}))
    with pytest.warns(UserWarning, match="There is no picture .*(c|e).png.* is left out"):
        assert load_views(tmp_path, ViewsSettings(split="all")).names == ("a", "b")


@pytest.mark.parametrize("model", ["opencv", "Pinhole", None])
def test_a_camera_model_in_small_letters_or_null(tmp_path, model):
    write(tmp_path, [frame("a.png")], fl_x=10, w=16, h=12, camera_model=model)
    assert nerfstudio.read(tmp_path).photos[0].intrinsics is not None


@pytest.mark.parametrize("path", [None, "", 5, *NO_PATHS])
def test_a_frame_without_a_path_costs_itself_only_and_splits_count_it(tmp_path, path):
    write(tmp_path, [frame("a.png"), frame("b.png"), frame("c.png")], fl_x=10, w=16, h=12)
    meta = json.loads((tmp_path / "transforms.json").read_text())
    meta["frames"].insert(1, frame(path))
    (tmp_path / "transforms.json").write_text(json.dumps(meta))
    (tmp_path / "split.json").write_text('{"train_2": [0, 2], "test": [3]}')
    with pytest.warns(UserWarning, match=r"1 of 4 frames in .*transforms\.json have no usable file_path, such as frame 1"):
        capture = nerfstudio.read(tmp_path)
    assert [p.name for p in capture.photos] == ["a", "b", "c"]
    assert dict(capture.splits) == {"train_2": ((0, 1), (2,))}
    (tmp_path / "split.json").write_text('{"train_2": [0, 1]}')
    with pytest.raises(UserError, match="names frame 1, which is none of"), warnings.catch_warnings(action="ignore"):
        nerfstudio.read(tmp_path)


def with_depth(folder, depth, **top):
    """Two photos of 16x12 without and with a file of depth, of half their size."""
    (folder / "depth").mkdir()
    write(folder, [frame("a.png"), frame("b.png", **pose_at(1), depth_file_path=depth)], fl_x=10, w=16, h=12, **top)
    return folder / depth


@pytest.mark.parametrize(("top", "metres"), [({}, 2.5), ({"depth_unit_scale_factor": 0.01}, 25.0)])
def test_depth_that_frames_name_is_read_in_the_unit_of_the_poses(tmp_path, top, metres):
    stored = np.full((6, 8), 2500, np.uint16)
    stored[0, 0] = 0  # not known
    Image.fromarray(stored).save(with_depth(tmp_path, "depth/b.png", **top))
    views, depth = views_with_depth(nerfstudio.read(tmp_path), ViewsSettings(split="all"))
    assert depth.shape == views.masks.shape
    assert (depth[0] == 0).all()
    assert (depth[1, :2, :2] == 0).all()
    torch.testing.assert_close(depth[1, 2:], torch.full((10, 16), metres))


def test_depth_of_numpy_is_read_and_what_is_no_number_is_not_known(tmp_path):
    stored = np.full((6, 8, 1), 2500.0)
    stored[0, :3, 0] = math.nan, math.inf, -1
    np.save(with_depth(tmp_path, "depth/b.npy"), stored)
    depth = nerfstudio.read(tmp_path).photos[1].load_depth()
    assert depth[0, :4].tolist() == [0, 0, 0, 2.5]


@pytest.mark.parametrize(
    ("stored", "message"),
    [(None, "There is no picture .*b.png"), (np.zeros((8, 6), np.uint16), "is 6x8, another shape than that of its photo"),
     (np.zeros((6, 8, 3), np.uint8), "has one number for each pixel")],
)  # fmt: skip
def test_depth_that_cannot_be_used_is_told_and_the_photo_stays(tmp_path, stored, message):
    file = with_depth(tmp_path, "depth/b.png")
    if stored is not None:
        Image.fromarray(stored).save(file)
    with pytest.warns(UserWarning, match=f"Of 1 of 2 photos no depth could be read: .*{message}"):
        views, depth = views_with_depth(nerfstudio.read(tmp_path), ViewsSettings(split="all"))
    assert (len(views), depth) == (2, None)


def test_a_unit_of_depth_that_is_none_is_a_sentence(tmp_path):
    with_depth(tmp_path, "depth/b.png", depth_unit_scale_factor=0)
    with pytest.raises(UserError, match="depth_unit_scale_factor = 0, which should be above 0"):
        nerfstudio.read(tmp_path)


def test_depth_outside_of_the_scene_is_among_its_files(tmp_path):
    scene = tmp_path / "scene"
    scene.mkdir()
    (tmp_path / "b.png").write_bytes(b"depth")
    write(scene, [frame("a.png"), frame("b.png", depth_file_path="../b.png")], fl_x=10, w=16, h=12)
    assert (tmp_path / "b.png").resolve() in {file.resolve() for file in files_of(scene).values()}
