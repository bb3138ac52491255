"""Photo files named one by one are the scene that a folder with just these is."""

import subprocess
import sys
from pathlib import Path

import pytest
from small_captures import write_greys

from reconx_core.datasets import describe, files_of, picked, read, scene_names
from reconx_core.errors import UserError


def spec_of(*files):
    return Path(picked.spec_of(list(map(str, files))))


def test_the_same_as_a_folder_with_just_these(tmp_path):
    names = ["img10.png", "img2.png", "img2.mask.png", "b.png"]
    write_greys(tmp_path / "all" / "house", [*names, "other.png", "other.mask.png"], 30, 40)
    write_greys(tmp_path / "house", names, 30, 40)
    spec, folder = spec_of(*(tmp_path / "all" / "house" / name for name in names)), tmp_path / "house"
    assert scene_names(spec)[0][0] == scene_names(folder)[0][0] == "house"
    assert files_of(spec).keys() == files_of(folder).keys()
    ours, theirs = read(spec), read(folder)
    assert [photo.name for photo in ours.photos] == [photo.name for photo in theirs.photos] == ["b", "img2", "img10"]
    assert [photo.load_mask is None for photo in ours.photos] == [photo.load_mask is None for photo in theirs.photos]
    assert describe(str(spec)) == f"3 photos in '{tmp_path / 'all' / 'house'}'"


def test_a_mask_that_was_not_given_is_not_used(tmp_path):
    write_greys(tmp_path, ["a.png", "a.mask.png", "b.png"], 30, 40)
    assert [photo.load_mask for photo in read(spec_of(tmp_path / "b.png", tmp_path / "a.png")).photos] == [None, None]


def test_photos_of_one_name_in_two_folders(tmp_path):
    for folder in ("left", "right"):
        write_greys(tmp_path / "trip" / folder, ["a.png"], 30, 40)
    spec = spec_of(tmp_path / "trip" / "right" / "a.png", tmp_path / "trip" / "left" / "a.png")
    assert [photo.name for photo in read(spec).photos] == ["a", "a_2"]
    assert list(files_of(spec)) == ["left/a.png", "right/a.png"]
    assert picked.scene_name(spec) == "trip"


def test_what_is_no_set_of_photos_is_refused(tmp_path):
    write_greys(tmp_path, ["a.png", "a.mask.png", "b.png"], 30, 40)
    for name in ("clip.mp4", "raw.cr2", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    refused = {
        ".": "is a folder, which goes alone", "clip.mp4": "is a video, which goes alone", "raw.cr2": "not read; convert it",
        "notes.txt": "is no photo", "c.png": "is not there", "a.png": "given more than once",
        "a.mask.png": "is a single photo; give a folder of photos, several photos, or a video",
    }  # fmt: skip
    for name, sentence in refused.items():
        with pytest.raises(UserError, match=sentence):
            spec_of(tmp_path / "a.png", tmp_path / name)


def test_scenes_are_looked_for_without_torch():
    """Its import would take longer than to tell a user's mistake."""
    heavy = "[name for name in ('torch', 'scipy', 'prefect', 'mlflow') if name in sys.modules]"
    code = f"import sys; from flows import cli, evaluate, reconstruct; import reconx_core.datasets; sys.exit(str({heavy}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "[]\n"
