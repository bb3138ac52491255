from pathlib import Path

import numpy as np
import pytest
import torch
from small_captures import SPEC, tiny_hall, write_greys

from reconx_core.datasets import detect, read, scene_names
from reconx_core.errors import UserError
from reconx_core.export.dataset import write_photos
from reconx_core.io.video import write_mp4


def test_every_format_is_recognised(tmp_path):
    assert detect(SPEC).name == "procedural"
    write_greys(tmp_path / "photos", ["a.png"])
    assert detect(tmp_path / "photos").name == "photos"
    write_greys(tmp_path / "nested" / "images", ["a.png"])
    assert detect(tmp_path / "nested").name == "photos"
    write_photos(tiny_hall(), tmp_path / "ns")
    assert detect(tmp_path / "ns").name == detect(tmp_path / "ns" / "transforms.json").name == "nerfstudio"
    write_mp4(tmp_path / "clip.mp4", [torch.zeros(16, 16, 3)])
    assert detect(tmp_path / "clip.mp4").name == "video"
    (tmp_path / "llff").mkdir()
    np.save(tmp_path / "llff" / "poses_bounds.npy", np.zeros((1, 17)))
    assert detect(tmp_path / "llff").name == "llff"


def test_a_video_is_a_capture_with_sharpness(tmp_path):
    write_mp4(tmp_path / "clip.mp4", [torch.full((16, 16, 3), i / 5) for i in range(5)])
    capture = read(tmp_path / "clip.mp4")
    assert (capture.name, len(capture.photos)) == ("clip", 5)
    assert [round(float(p.load().mean()) * 5) for p in capture.photos] == list(range(5))
    assert all(p.sharpness >= 0 for p in capture.photos)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "There is no"),
        (lambda p: p.mkdir(), "no photos"),
        (lambda p: p.write_text("hello"), "none of the formats"),
    ],
)
def test_what_cannot_be_read_is_explained(tmp_path, make, message):
    make(tmp_path / "thing")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "thing")


def test_scene_names(tmp_path):
    for name in ("b", "a10", "a2"):
        write_greys(tmp_path / name, ["x.png"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "todo.txt").touch()
    write_greys(tmp_path / ".thumbnails", ["x.png"])
    assert [name for name, _ in scene_names(tmp_path)] == ["a2", "a10", "b"]
    assert scene_names(tmp_path / "b") == [("b", tmp_path / "b")]
    assert scene_names(Path("procedural:room?seed=0..1"))[1] == ("room_1", Path("procedural:room?seed=1"))
    with pytest.raises(UserError, match="no folder of scenes"):
        scene_names(tmp_path / "notes")
    with pytest.raises(UserError, match="no folder of scenes"):
        scene_names(tmp_path / "absent")


def test_real_sets_are_all_found(real_data):
    assert len(scene_names(real_data / "posed")) >= 9
    assert {detect(path).name for _, path in scene_names(real_data / "posed")} == {"nerfstudio"}
    assert {detect(path).name for _, path in scene_names(real_data / "posefree")} == {"photos"}
