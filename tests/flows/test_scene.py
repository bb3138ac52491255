"""A scene whose cameras lie far from zero: scene.ply is relative to an origin, and its cameras are in their given frame."""

import errno
import io
import json
import math
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import av
import pytest
import torch
from PIL import Image
from rich.console import Console

from flows import cli, scene
from flows import export as export_flow
from flows.runs.results import origin_of
from reconx_core import datasets, export
from reconx_core.errors import UserError
from reconx_core.export.dataset import write_photos
from reconx_core.export.formats import read_gaussians
from reconx_core.io import files
from reconx_core.io.images import read_image
from reconx_core.rasterize import rasterize
from reconx_core.settings import Settings
from reconx_core.types import Cameras, Gaussians, PointCloud, Views
from tasks import views

UTM = (5e5, 5.4e6, 120.0)
HALL = "procedural:hall?seed=1&views=3&width=32&height=24"


def some_cameras() -> Cameras:
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, 0, 3] = 0.25
    return Cameras(torch.tensor([[30.0, 0, 16], [0, 30, 12], [0, 0, 1]]).repeat(2, 1, 1), poses, 32, 24)


@pytest.fixture
def folder(tmp_path):
    """What `reconx reconstruct` leaves of such a scene."""
    gaussians = Gaussians(torch.rand(5, 3), torch.rand(5, 4), torch.zeros(5, 3), torch.zeros(5), torch.zeros(5, 1, 3))
    export.write_ply(tmp_path / "scene.ply", gaussians, UTM)
    masks = torch.ones(2, 24, 32, dtype=torch.bool)
    photos = Views(torch.rand(2, 24, 32, 3), masks, ("a", "b"), masks[:, 0, 0] & False, None, torch.full((2,), torch.nan))
    cloud = PointCloud(torch.rand(3, 3), torch.rand(3, 3), torch.ones(3))
    export.write_cameras(tmp_path / "cameras", some_cameras(), photos, cloud, UTM)
    return tmp_path


def convert(source, target):
    said = io.StringIO()
    export_flow.convert(source, target, Console(file=said, width=500))
    return said.getvalue()


def write(command, source, target):
    if command == "export":
        convert(source, target)
    else:
        scene.render(source, target, None, 2, Console(file=io.StringIO()))


def test_cameras_meet_the_scene_of_each_format(folder):
    assert "relative to (500000.0, 5400000.0, 120.0)" in convert(folder, folder / "scene.splat")
    convert(folder / "scene.ply", folder / "copy.ply")
    for name in ("", "scene.ply", "copy.ply", "scene.splat"):
        cameras = scene.load_cameras(folder / "cameras" / "transforms.json", scene.scene_origin(folder / name))
        torch.testing.assert_close(cameras.cam_to_world, some_cameras().cam_to_world)


def test_a_scene_near_zero_is_as_before(tmp_path):
    write_photos(datasets.read(Path(HALL)), tmp_path, "PNG")
    expected = torch.stack([photo.cam_to_world for photo in datasets.read(tmp_path).photos])
    for origin in (None, (0.0, 0.0, 0.0)):
        assert torch.equal(scene.load_cameras(tmp_path / "transforms.json", origin).cam_to_world, expected)


@pytest.mark.parametrize("noted", [5, "123", [1, 2], ["a", 1, 2], [1, 2, math.inf], None])
def test_an_origin_that_is_no_point_is_told_in_a_sentence(folder, noted):
    file = folder / "cameras" / "transforms.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scene_origin": noted}))
    with pytest.raises(UserError, match=r"transforms\.json has scene_origin = .*, which is no point"):
        scene.load_cameras(file, None)


@pytest.mark.parametrize(("protocol", "origin"), [("auto", UTM), ("unposed", (0, 0, 0))])
def test_the_views_stage_hands_the_origin_on_where_poses_are_used(tmp_path, recwarn, protocol, origin):
    write_photos(datasets.read(Path(HALL)), tmp_path, "PNG")
    content = json.loads((tmp_path / "transforms.json").read_text())
    for frame in content["frames"]:
        for row, offset in zip(frame["transform_matrix"], UTM):
            row[3] += offset
    (tmp_path / "transforms.json").write_text(json.dumps(content))
    job = SimpleNamespace(source=tmp_path, settings=Settings.model_validate({"views": {"protocol": protocol}}))
    results = views.run(job, None)
    for name in results.keys() & {"origin.json"}:
        (tmp_path / name).write_bytes(results[name])
    assert origin_of(tmp_path) == origin
    assert any("(500000, 5400000, 120) is subtracted" in str(w.message) for w in recwarn) == (protocol == "auto")


@pytest.mark.parametrize("note", ["nan x", "1 2", "1 2 inf", ""])
def test_a_damaged_note_of_the_origin_is_told_and_left_out(folder, note):
    ply = (folder / "scene.ply").read_bytes()
    (folder / "scene.ply").write_bytes(ply.replace(b"reconx_origin 500000.0 5400000.0 120.0", f"reconx_origin {note}".encode()))
    assert "The comment reconx_origin in" in convert(folder, folder / "copy.ply")
    with pytest.warns(UserWarning, match="is not three numbers"):  # the cameras say where they are, too
        cameras = scene.load_cameras(folder / "cameras" / "transforms.json", scene.scene_origin(folder))
    torch.testing.assert_close(cameras.cam_to_world, some_cameras().cam_to_world)


def test_a_damaged_origin_of_the_cameras_is_a_sentence(folder):
    file = folder / "cameras" / "transforms.json"
    for damaged in ([1, 2], "far", None, [1, 2, "x"]):
        file.write_text(json.dumps(json.loads(file.read_text()) | {"scene_origin": damaged}))
        with pytest.raises(UserError, match=r"has scene_origin = .*, which is no point"):
            scene.load_cameras(file, None)


@pytest.mark.parametrize(
    ("command", "name"), [("export", "d.splat"), ("export", "d.ply"), ("render", "d.mp4"), ("render", "d.MP4")]
)
def test_an_output_that_is_a_folder_is_named(folder, command, name):
    (folder / name).mkdir()
    with pytest.raises(UserError, match=f"Cannot write '.*{name}': there is a folder of that name"):
        write(command, folder, folder / name)
    assert not any((folder / name).iterdir())


def test_frames_go_into_a_clip_or_a_folder_and_nothing_else(folder):
    with pytest.raises(UserError, match=r"x\.avi' should end in \.mp4"):
        write("render", folder, folder / "x.avi")
    assert not (folder / "x.avi").exists()
    (folder / "run.2").mkdir()
    for name in ("frames", "run.2"):
        write("render", folder, folder / name)
        assert len(list((folder / name).glob("*.png"))) == 2


def test_an_error_of_the_disk_is_a_sentence(folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    for command, name in (("export", "a.splat"), ("export", "a.ply"), ("render", "a.mp4"), ("render", "frames")):
        with pytest.raises(UserError, match="is full"):
            write(command, folder, folder / name)


@pytest.mark.filterwarnings("error")  # such as that of photos without cameras: the picture from above lies beside
def test_cameras_of_an_exported_path_can_be_rendered(tmp_path):
    poses = torch.eye(4).repeat(3, 1, 1)
    lens = torch.tensor([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]]).repeat(3, 1, 1)
    poses[:, 0, 3] = torch.arange(3.0)
    export.write_path(tmp_path / "path", Cameras(lens, poses, 32, 24))
    Image.new("RGB", (8, 8)).save(tmp_path / "path" / "above.png")
    back = scene.load_cameras(tmp_path / "path" / "transforms.json")
    torch.testing.assert_close(back.cam_to_world, poses)
    torch.testing.assert_close(back.intrinsics, lens)


def test_a_path_is_rendered_camera_by_camera_in_its_own_size(folder, tmp_path):
    cameras = some_cameras()
    own = Cameras(cameras.intrinsics * torch.tensor([[2.0], [2], [1]]), cameras.cam_to_world, 64, 48)
    export.write_path(folder / "path", own, UTM)
    for name in ("camera_path.json", "transforms.json", "sparse/0/images.bin"):
        out, said = tmp_path / f"frames of {Path(name).stem}", io.StringIO()
        scene.render_file(folder, out, folder / "path" / name, Console(file=said, width=500))
        assert "2 frames of 64x48" in said.getvalue()
        shown = torch.stack([read_image(out / f"{i:04d}.png") for i in range(2)])
        expected = rasterize(read_gaussians(folder / "scene.ply"), own).rgb.clamp(0, 1)
        torch.testing.assert_close(shown, expected, rtol=0, atol=0.003)  # files round to 8 bits
    scene.render_file(folder, tmp_path / "clip.mp4", folder / "path" / "camera_path.json", Console(file=io.StringIO()))
    with av.open(str(tmp_path / "clip.mp4")) as clip:
        assert clip.streams.video[0].average_rate == 24  # the file's


def test_what_a_path_leaves_out_is_told_and_told_in_runs(folder, tmp_path):
    """Told to the caller of the function that knows it, which may lie in any of our packages."""
    file = viewer_path(folder, tmp_path / "path.json")
    content = json.loads(file.read_text())
    content["camera_path"][0]["camera_to_world"][3] = math.nan
    file.write_text(json.dumps(content))
    said = io.StringIO()
    scene.render_file(folder, tmp_path / "frames", file, Console(file=said, width=500))
    assert "1 of 2 cameras" in said.getvalue()
    assert "no pose; they are left out" in said.getvalue()


def test_frames_past_the_scene_are_told(folder, tmp_path):
    file = viewer_path(folder, tmp_path / "path.json")
    content = json.loads(file.read_text())
    content["camera_path"][1]["camera_to_world"] = torch.diag(torch.tensor([-1.0, 1, -1, 1])).flatten().tolist()
    file.write_text(json.dumps(content))
    said = io.StringIO()
    scene.render_file(folder, tmp_path / "frames", file, Console(file=said, width=500))
    assert "1 of them show nothing of the scene" in said.getvalue()


@pytest.mark.parametrize("content", ["null", "7", "[]", '"x"', "true"])
def test_json_that_holds_no_cameras_is_a_sentence_to_both_options(folder, tmp_path, content):
    file = tmp_path / "path.json"
    file.write_text(content)
    for ask in (
        lambda: scene.render(folder, tmp_path / "f", file, 2, Console(file=io.StringIO())),
        lambda: scene.render_file(folder, tmp_path / "f", file, Console(file=io.StringIO())),
    ):
        with pytest.raises(UserError, match="holds no cameras"):
            ask()


def test_a_smooth_path_through_one_camera_stands_still(folder, tmp_path):
    export.write_path(folder / "path", some_cameras()[:1], UTM)
    scene.render(folder, tmp_path / "f", folder / "path" / "camera_path.json", 3, Console(file=io.StringIO()))
    assert len({(tmp_path / "f" / f"{i:04d}.png").read_bytes() for i in range(3)}) == 1


def test_a_folder_of_cameras_stands_for_its_file(folder, tmp_path):
    export.write_path(folder / "path", some_cameras(), UTM)
    back = scene.load_cameras(folder / "path" / "sparse" / "0", UTM)
    torch.testing.assert_close(back.cam_to_world, some_cameras().cam_to_world, rtol=0, atol=1e-6)


def test_cameras_without_a_lens_have_the_photos_mean_one(folder, tmp_path):
    export.write_path(folder / "path", some_cameras(), UTM)
    file = folder / "path" / "transforms.json"
    content = json.loads(file.read_text())
    for name in ("fl_x", "fl_y", "cx", "cy"):
        content.pop(name, None)
        content["frames"][1].pop(name, None)
    content["frames"][0] |= {"fl_x": 90.0, "fl_y": 90.0, "cx": 16.0, "cy": 12.0}
    file.write_text(json.dumps(content))
    photos = some_cameras()
    lenses = scene.load_cameras(file, UTM, photos).intrinsics[:, 0, 0]
    torch.testing.assert_close(lenses, torch.tensor([90.0, float(photos.intrinsics[:, 0, 0].mean())]))


def test_frames_too_large_to_render_are_refused(folder, tmp_path):
    file = viewer_path(folder, tmp_path / "path.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"render_height": 150_000, "render_width": 200_000}))
    with pytest.raises(UserError, match="asks for 200000 x 150000 pixels; at most"):
        scene.render_file(folder, tmp_path / "f", file, Console(file=io.StringIO()))


def viewer_path(folder, file):
    export.write_path(folder / "path", some_cameras(), UTM)
    return (folder / "path" / "camera_path.json").rename(file)


def test_a_smooth_path_leads_through_the_cameras_of_a_path_file_too(folder):
    export.write_path(folder / "path", some_cameras(), UTM)
    for name in ("camera_path.json", "sparse/0/images.bin"):
        back = scene.load_cameras(folder / "path" / name, UTM)
        torch.testing.assert_close(back.cam_to_world, some_cameras().cam_to_world, rtol=0, atol=1e-6)
        assert (back.width, back.height) == (32, 24)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ({"camera_path": []}, "camera_path without cameras"),
        ({"fps": "fast"}, "has fps = 'fast', which should be a number from 1 to 240"),
        ({"fps": True}, "has fps = True, which should be a number from 1 to 240"),
        ({"camera_path": [None]}, "camera_path with an entry that is no camera"),
        ({"fps": 0}, "should be a number from 1 to 240"),
        ({"camera_type": "equirectangular"}, "only perspective ones"),
    ],
)
def test_a_path_that_cannot_be_rendered_is_a_sentence_and_leaves_nothing(folder, content, sentence):
    export.write_path(folder / "path", some_cameras(), UTM)
    file = folder / "path" / "camera_path.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | content))
    with pytest.raises(UserError, match=re.escape(sentence)):
        scene.render_file(folder, folder / "frames", file, Console(file=io.StringIO()))
    with pytest.raises(UserError, match="There are no cameras at"):
        scene.render_file(folder, folder / "frames", folder / "nowhere.json", Console(file=io.StringIO()))
    assert not (folder / "frames").exists()


def test_cameras_without_a_lens_need_those_of_the_photos(folder):
    export.write_path(folder / "path", some_cameras(), UTM)
    (folder / "path" / "sparse" / "0" / "cameras.bin").unlink()
    images, out = folder / "path" / "sparse" / "0" / "images.bin", folder / "frames"
    scene.render_file(folder, out, images, Console(file=io.StringIO()))
    assert read_image(out / "0001.png").shape == (24, 32, 3)
    shutil.rmtree(folder / "cameras")
    with pytest.raises(UserError, match="need a lens and one image size"):
        scene.render_file(folder, folder / "others", images, Console(file=io.StringIO()))


def test_path_and_cameras_exclude_each_other(folder):
    with pytest.raises(UserError, match="exclude each other"):
        cli.render(folder, folder / "x.mp4", cameras=folder / "y.json", path=folder / "z.json")
