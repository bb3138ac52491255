"""Names of files that are not UTF-8: opened by their bytes, shown with replacement characters, never in the way."""

import io
import os
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reconx_core
from flows.cli import print_any_name
from reconx_core import datasets
from reconx_core.cache import store
from reconx_core.errors import UserError
from reconx_core.names import one_line, quoted, shown, unique_shown
from reconx_core.reporting.pages import write_page
from reconx_core.types import PointCloud
from tasks.execute import measure, route_warnings

CAFE = os.fsdecode(b"caf\xe9")


def write_photo(path, level):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), level, dtype=np.uint8)).save(path)


def test_a_name_stays_within_its_line(tmp_path):
    assert one_line("a\nb\tc\u2028d\u202ee\x1b[2J") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffd[2J"
    assert unique_shown(["a\nb", "a\tb"]) == ["a\ufffdb", "a\ufffdb_2"]
    assert str(UserError("Cannot read 'a\n b';\ntry \x1b[2Jagain.")) == "Cannot read 'a b'; try \ufffd[2Jagain."
    for name in ("a\nb", "c"):
        for i in range(2):
            write_photo(tmp_path / name / f"{i}.png", i)
    assert [name for name, _ in datasets.scene_names(tmp_path)] == ["a\ufffdb", "c"]


def test_brackets_without_end_are_quoted():
    nested: list[object] = []
    for _ in range(10_000):
        nested = [nested]
    assert quoted(nested) == "[[[..."


def test_shown_and_unique():
    assert shown(CAFE) == "caf\ufffd"
    assert shown("café") == "café"
    assert unique_shown([CAFE, os.fsdecode(b"caf\xe8"), "a", "a"]) == ["caf\ufffd", "caf\ufffd_2", "a", "a_2"]


def test_photos_and_scenes_have_names_that_can_be_shown_and_their_files_are_opened(tmp_path):
    for scene in (CAFE, os.fsdecode(b"caf\xe8")):
        for name, level in ((f"{CAFE}.png", 1), (f"{os.fsdecode(b'caf' + bytes([0xE8]))}.png", 2)):
            write_photo(tmp_path / scene / name, level)
    scenes = datasets.scene_names(tmp_path)
    assert [name for name, _ in scenes] == ["caf\ufffd", "caf\ufffd_2"]
    photos = datasets.read(scenes[0][1]).photos
    assert [photo.name for photo in photos] == ["caf\ufffd", "caf\ufffd_2"]
    assert sorted(round(float(photo.load()[0, 0, 0] * 255)) for photo in photos) == [1, 2]


def test_sentences_and_notes_can_be_shown():
    assert str(UserError(f"There is no {CAFE}.")) == "There is no caf\ufffd."
    noted = []
    with warnings.catch_warnings():
        route_warnings(noted.append)
        code = compile(f"import warnings\nwarnings.warn({CAFE!r})", str(Path(reconx_core.__file__).with_name("x.py")), "exec")
        _, measured = measure(lambda: exec(code, {"__name__": "reconx_core.x"}), noted.append)
    assert noted == measured["notes"] == ["caf\ufffd"]


@pytest.mark.parametrize(("encoding", "printed"), [("utf-8", "caf\ufffd ·\n"), ("ascii", "caf? ?\n"), ("latin-1", "caf? ·\n")])
def test_any_name_can_be_printed(monkeypatch, encoding, printed):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    monkeypatch.setattr(sys, "stdout", stream)
    print_any_name()
    print(f"{CAFE} ·")
    stream.flush()
    assert stream.buffer.getvalue().decode(encoding) == printed


def test_store_in_such_a_folder(tmp_path):
    cloud = PointCloud(torch.rand(3, 3), torch.zeros(3, 3), torch.ones(3))
    reference = store.publish(tmp_path / CAFE, "pointcloud", "key", {}, {"cloud": cloud, "mask": torch.ones(2)}, {})
    folder = store.find(tmp_path / CAFE, "pointcloud", "key").folder(tmp_path / CAFE)
    assert reference.folder(tmp_path / CAFE) == folder
    assert torch.equal(store.load(folder, "cloud").xyz, cloud.xyz)
    assert torch.equal(store.load(folder, "mask"), torch.ones(2))


def test_pages_hold_such_names(tmp_path):
    write_page(tmp_path / CAFE, f"<p>{CAFE}</p>")
    assert (tmp_path / CAFE).read_text(encoding="utf-8") == "<p>caf\ufffd</p>"
