"""Pictures that a scene's files name outside of its folder belong to its digest, as all that lies in it."""

import json
import warnings

import pytest
import torch
from small_captures import write_greys
from test_colmap_reader import write as write_model

from reconx_core.datasets import detect, files_of, read
from tasks.execute import source_digest

POSE = torch.eye(4).tolist()


def write_transforms(scene, names, file="transforms.json", **entries):
    scene.mkdir(exist_ok=True)
    frames = [{"file_path": name, "transform_matrix": POSE, **entries} for name in names]
    (scene / file).write_text(json.dumps({"fl_x": 10, "w": 16, "h": 12, "frames": frames}))
    return scene


def with_transforms(folder):
    write_greys(folder, ["images/a.png", "images/b.png"])
    return write_transforms(folder / "scene", ["../images/a.png", "../images/b.png"])


def with_absolute_paths(folder):
    write_greys(folder, ["images/a.png", "images/b.png"])
    return write_transforms(folder / "scene", [str(folder / "images" / name) for name in ("a.png", "b.png")])


def with_backslashes(folder):
    write_greys(folder, ["images/a.png", "images/b.png"])
    return write_transforms(folder / "scene", ["..\\images\\a", "..\\images\\b"])


def with_blender(folder):
    write_greys(folder, ["images/a.png", "images/b.png"])
    write_transforms(folder / "scene", ["../images/b"], "transforms_test.json")
    return write_transforms(folder / "scene", ["../images/a"], "transforms_train.json")


def with_colmap(folder):
    write_model(folder / "scene", ["a.png", "b.png"])
    (folder / "scene" / "images").rename(folder / "images")
    (folder / "scene" / "images").mkdir()
    for file in (folder / "scene" / "sparse" / "0").glob("images.*"):
        content = file.read_bytes()
        for name in (b"a.png", b"b.png"):
            content = content.replace(name, b"../../images/" + name)
        file.write_bytes(content)
    return folder / "scene"


@pytest.mark.parametrize("write", [with_transforms, with_absolute_paths, with_backslashes, with_blender, with_colmap])
def test_a_changed_picture_outside_changes_the_digest(tmp_path, write):
    scene, picture = write(tmp_path), tmp_path / "images" / "a.png"
    assert files_of(scene)["../images/a.png"].resolve() == picture
    photo = next(photo for photo in read(scene).photos if photo.name.endswith("a"))
    before, shown = source_digest(str(scene), tmp_path / "store"), photo.load().mean()
    assert set(json.loads(before)) >= {"../images/a.png", "../images/b.png"}
    picture.write_bytes((tmp_path / "images" / "b.png").read_bytes())
    after = source_digest(str(scene), tmp_path / "store")
    assert {name for name, digest in json.loads(after).items() if json.loads(before)[name] != digest} == {"../images/a.png"}
    assert photo.load().mean() != shown  # it is what is read


def test_masks_outside_count_too(tmp_path):
    write_greys(tmp_path, ["images/a.png", "images/b.png", "images/a.mask.png", "else/m.png"])
    scene = write_transforms(tmp_path / "scene", ["../images/a.png"])
    assert {"../images/a.png", "../images/a.mask.png"} <= set(files_of(scene))
    write_transforms(scene, ["../images/a.png"], mask_path="../else/m.png")
    assert "../else/m.png" in files_of(scene)


def test_what_lies_inside_is_there_once_and_what_is_not_there_is_left_out(tmp_path):
    write_greys(tmp_path / "scene", ["images/a.png"])
    names = ["images/a.png", "../scene/images/a.png", "../gone.png", str(tmp_path / "scene" / "images" / "a.png"), "\0"]
    scene = write_transforms(tmp_path / "scene", names)
    assert set(files_of(scene)) == {"transforms.json", "images/a.png"}


@pytest.mark.parametrize("content", ["{", "[]", "5", '{"frames": 5}', '{"frames": [5]}', '{"frames": [{"file_path": 5}]}', ""])
def test_a_broken_file_counts_by_its_bytes(tmp_path, content):
    """The reader says what is wrong; here are neither errors nor warnings, which the reader would repeat."""
    (tmp_path / "transforms.json").write_text(content)
    assert detect(tmp_path).name == "nerfstudio"
    with warnings.catch_warnings(action="error"):
        assert set(files_of(tmp_path)) == {"transforms.json"}
