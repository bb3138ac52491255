"""NeRF's synthetic scenes: ``transforms_train.json`` and ``transforms_test.json`` with pictures on a transparent background."""

from __future__ import annotations

from pathlib import Path

from reconx_core.datasets.capture import Capture, Split
from reconx_core.datasets.nerfstudio import files_with_listed, make_photos, read_frames, require_pictures
from reconx_core.datasets.poses import make_usable


def is_scene(path: Path) -> bool:
    """Whether a folder holds the training views' file."""
    return (path / "transforms_train.json").is_file()


def check(path: Path) -> None:
    """Raises UserError if a file is malformed or none of its pictures is there."""
    for file in sorted(path.glob("transforms_t*.json")):
        require_pictures(file)


def files_of(path: Path) -> dict[str, Path]:
    """The files in the folder, and those that its files of views list elsewhere."""
    return files_with_listed(path, *sorted(path.glob("transforms_t*.json")))


def read(path: Path) -> Capture:
    """Training views, then test views, in the order of the files; transparent pixels become white, as in published results.

    Raises:
        UserError: a file is malformed.
    """
    train = read_frames(path / "transforms_train.json")
    test = read_frames(path / "transforms_test.json") if (path / "transforms_test.json").is_file() else []
    split = Split(tuple(range(len(train))), tuple(range(len(train), len(train) + len(test))))
    photos = make_photos([*train, *test], path / "transforms_train.json")
    capture = Capture(path.resolve().name, photos, {"train": split}, "train" if test else None)
    return make_usable(capture, path / "transforms_train.json")
