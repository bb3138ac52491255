"""DL3DV-10K: nerfstudio's ``transforms.json`` for the full pictures, of which usually only a reduced ``images_N`` is there."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from reconx_core.datasets.capture import Capture
from reconx_core.datasets.nerfstudio import make_photos, read_frames
from reconx_core.datasets.photos import image_folders, natural_key
from reconx_core.errors import UserError

_HASH = re.compile(r"[0-9a-f]{64}")
_SUBSET = re.compile(r"\d+K")


def is_scene(path: Path) -> bool:
    """Whether it is DL3DV's by its ``nerfstudio`` folder or its name, or any scene that has nothing but reduced pictures."""
    folder = _folder(path)
    if not (folder / "transforms.json").is_file():
        return False
    named = folder == path / "nerfstudio" or is_hash(folder.absolute().name)
    return named or (not any((folder / "images").glob("*")) and len(image_folders(folder)) > 0)


def is_subset(folder: Path) -> bool:
    """Whether a folder is one of those (``1K``, ``2K``, ...) into which the archive sorts its scenes."""
    return folder.is_dir() and _SUBSET.fullmatch(folder.name) is not None


def is_hash(name: str) -> bool:
    """Whether a folder's name is one of the archive's scenes'."""
    return _HASH.fullmatch(name) is not None


def check(path: Path) -> None:
    """Raises UserError where the file is malformed or there is none of its pictures."""
    _there(path, read_frames(_folder(path) / "transforms.json"))


def read(path: Path) -> Capture:
    """Frames in order of their names, from the largest pictures that are there; those missing are left out, with a warning.

    Raises:
        UserError: the file is malformed, no picture is there, or a reduced one without the size that its camera is for.
    """
    folder = _folder(path)
    file = folder / "transforms.json"
    frames = sorted(read_frames(file), key=lambda frame: natural_key(frame["file_path"]))
    there = _there(path, frames)
    images = Path(there[0]["file_path"]).parent
    if images.name != "images" and any("fl_x" in frame and not ("w" in frame and "h" in frame) for frame in there):
        raise UserError(f"{file} does not give the size (w, h) of the full pictures, so those in {images} have no camera.")
    if len(there) < len(frames):
        told = f"{len(frames) - len(there)} of {len(frames)} pictures of '{path}' are not in {folder / images}"
        warnings.warn(f"{told}; they are left out.", stacklevel=2)
    order = {Path(frame["file_path"]).name: i for i, frame in enumerate(frames)}
    photos = zip(make_photos(there, file), there)
    numbered = tuple(replace(photo, number=order[Path(frame["file_path"]).name]) for photo, frame in photos)
    return Capture(path.absolute().name, numbered)


def _folder(path: Path) -> Path:
    """Where ``transforms.json`` is, or should be."""
    if path.name == "transforms.json":
        return path.parent
    return path / "nerfstudio" if (path / "nerfstudio" / "transforms.json").is_file() else path


def _there(path: Path, frames: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The frames whose picture is in the largest ``images_N`` that has any. Raises UserError where none has."""
    folder = _folder(path)
    versions = ([_moved(frame, images) for frame in frames] for images in image_folders(folder))
    there = next((kept for moved in versions if (kept := [f for f in moved if (folder / f["file_path"]).is_file()])), [])
    if not there:
        raise UserError(f"None of the {len(frames)} pictures of '{path}' is in its images or images_N folder; unpack one.")
    return there


def _moved(frame: dict[str, Any], images: Path) -> dict[str, Any]:
    return {**frame, "file_path": f"{images.name}/{Path(frame['file_path']).name}"}
