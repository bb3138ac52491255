"""DL3DV-10K: nerfstudio's ``transforms.json`` for the full-size pictures; often only a reduced ``images_N`` is downloaded."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconx_core.datasets.capture import Capture
from reconx_core.datasets.locate import PictureFinder, with_slashes
from reconx_core.datasets.nerfstudio import make_photos, read_frames
from reconx_core.datasets.photos import image_folders, natural_key
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError

_HASH = re.compile(r"[0-9a-f]{64}")
_SUBSET = re.compile(r"\d+K")


def is_scene(path: Path) -> bool:
    """Whether a path is a DL3DV scene (by its ``nerfstudio`` folder or name), or another scene with reduced pictures only."""
    folder = _folder(path)
    if not (folder / "transforms.json").is_file():
        return False
    named = folder == path / "nerfstudio" or is_hash(folder.absolute().name)
    return named or (not any((folder / "images").glob("*")) and len(image_folders(folder)) > 0)


def is_subset(folder: Path) -> bool:
    """Whether a folder is one of the archive's folders of scenes (``1K``, ``2K``, ...)."""
    return folder.is_dir() and _SUBSET.fullmatch(folder.name) is not None


def is_hash(name: str) -> bool:
    """Whether a name has the form of the archive's scene names (64 hex digits)."""
    return _HASH.fullmatch(name) is not None


def check(path: Path) -> None:
    """Raises UserError if the file is malformed or none of its pictures is there."""
    _available_frames(path, read_frames(_folder(path) / "transforms.json"))


def read(path: Path) -> Capture:
    """Frames in order of their names, from the largest pictures that are there; those missing are left out, with a warning.

    Raises:
        UserError: the file is malformed, no picture is there, or pictures are reduced and the file lacks the full size.
    """
    folder = _folder(path)
    file = folder / "transforms.json"
    frames = sorted(read_frames(file), key=lambda frame: natural_key(with_slashes(frame["file_path"])))
    available = _available_frames(path, frames)
    images = Path(next(iter(available.values()))["file_path"]).parent
    if images.name != "images" and any(map(_lacks_size, available.values())):
        raise UserError(f"{file} does not give the size (w, h) of the full pictures, so those in {images} have no camera.")
    if len(available) < len(frames):
        problem = f"{len(frames) - len(available)} of {len(frames)} pictures of '{path}' are not in {folder / images}"
        warnings.warn(f"{problem}; they are left out.", stacklevel=2)
    photos = make_photos(list(available.values()), file)
    numbered = tuple(replace(photo, number=number) for photo, number in zip(photos, available))
    return make_usable(Capture(path.absolute().name, numbered), file)


def _folder(path: Path) -> Path:
    """The folder in which ``transforms.json`` is, or should be."""
    if path.name == "transforms.json":
        return path.parent
    return path / "nerfstudio" if (path / "nerfstudio" / "transforms.json").is_file() else path


def _lacks_size(frame: dict[str, Any]) -> bool:
    """Whether a frame has a focal length in pixels of a picture whose size it does not tell."""
    return not ("w" in frame and "h" in frame) and ("fl_x" in frame or "fl_y" in frame)


def _available_frames(path: Path, frames: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """By their index, the frames whose picture is in the largest ``images_N`` that has any. Raises UserError if none has."""
    versions = (_in_folder(frames, images) for images in image_folders(_folder(path)))
    available = next(filter(None, versions), {})
    if not available:
        raise UserError(f"None of the {len(frames)} pictures of '{path}' is in its images or images_N folder; unpack one.")
    return available


def _in_folder(frames: list[dict[str, Any]], images: Path) -> dict[int, dict[str, Any]]:
    finder = PictureFinder()
    found = {i: finder.at(images / Path(with_slashes(frame["file_path"])).name) for i, frame in enumerate(frames)}
    there = {i: file.name for i, file in found.items() if file and file.is_file()}
    return {i: {**frames[i], "file_path": f"{images.name}/{name}"} for i, name in there.items()}
