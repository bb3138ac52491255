"""Polycam's raw export: ``keyframes/images`` with ``keyframes/cameras``, or both as ``corrected_...`` with optimised poses.

A file per picture holds ARKit's camera to world (OpenGL axes, y up) as ``t_00`` to ``t_23``, and the intrinsics.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

from reconx_core.datasets.capture import Capture
from reconx_core.datasets.locate import PictureFinder
from reconx_core.datasets.nerfstudio import make_photos, to_number
from reconx_core.datasets.photos import find_photos, natural_key
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.io.json_files import read_json

_INTRINSICS = {"fl_x": "fx", "fl_y": "fy", "cx": "cx", "cy": "cy", "w": "width", "h": "height"}


def is_scene(path: Path) -> bool:
    """Whether a path is an export with cameras, or its folder ``keyframes``."""
    return _folders(path) is not None


def check(path: Path) -> None:
    """Raises UserError if the cameras cannot be read or have no pictures."""
    _read_frames(*_require_folders(path))


def read(path: Path) -> Capture:
    """Pictures with a camera in natural order; pictures without one, and cameras without a picture, are told in a warning.

    Raises:
        UserError: a camera's file is malformed, or there is no picture.
    """
    cameras, images = _require_folders(path)
    frames = _read_frames(cameras, images)
    _tell_choice(path, cameras, images)
    _tell_missing(path, "pictures", "cameras", len(find_photos(images)) - len(frames))
    _tell_missing(path, "cameras", "pictures", len(_camera_files(cameras)) - len(frames))
    return make_usable(Capture(path.resolve().name, make_photos(frames, cameras)), cameras)


def _tell_choice(path: Path, cameras: Path, images: Path) -> None:
    beside = [] if path == images.parent else find_photos(path)
    extra = f", and {beside[0].name} beside them is not" if beside else ""
    warnings.warn(f"Of '{path}', {images.name} with Polycam's {cameras.name} are used{extra}.", stacklevel=2)


def _tell_missing(path: Path, what: str, lack: str, count: int) -> None:
    if count > 0:
        warnings.warn(f"{count} of the {what} in '{path}' have no {lack} of their name; they are left out.", stacklevel=2)


def _folders(path: Path) -> tuple[Path, Path] | None:
    """The folders of cameras and of pictures."""
    keyframes = path if path.absolute().name == "keyframes" else path / "keyframes"
    pairs = [(keyframes / f"{kind}cameras", keyframes / f"{kind}images") for kind in ("corrected_", "")]
    return next((pair for pair in pairs if pair[1].is_dir() and find_photos(pair[1]) and _camera_files(pair[0])), None)


def _require_folders(path: Path) -> tuple[Path, Path]:
    found = _folders(path)
    if found is None:
        raise UserError(f"'{path}' has no keyframes/cameras with keyframes/images, as Polycam exports them.")
    return found


def _camera_files(cameras: Path) -> list[Path]:
    return sorted(cameras.glob("*.json"), key=natural_key)


def _read_frames(cameras: Path, images: Path) -> list[dict[str, Any]]:
    """Frames as in nerfstudio's ``transforms.json``, of the cameras that have a picture. Raises UserError if none has."""
    finder = PictureFinder()
    found = ((file, finder.find(images, f"{file.stem}.jpg")) for file in _camera_files(cameras))
    frames = [_frame(file, f"{images.name}/{picture.name}") for file, picture in found if picture is not None]
    if not frames:
        raise UserError(f"None of the cameras in {cameras} has a picture of its name in {images}.")
    return frames


def _frame(file: Path, picture: str) -> dict[str, Any]:
    camera = read_json(file)
    if not isinstance(camera, dict):
        raise UserError(f"{file} is no camera of Polycam's: it should hold t_00 to t_23, fx, fy, cx, cy, width and height.")
    try:
        pose = [[_number_or_nan(camera[f"t_{row}{column}"]) for column in range(4)] for row in range(3)]
        intrinsics = {key: to_number(camera[theirs]) for key, theirs in _INTRINSICS.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} is no camera of Polycam's: a number is missing or is none ({error}).") from None
    return {"file_path": picture, "transform_matrix": [*pose, [0.0, 0.0, 0.0, 1.0]], **intrinsics}


def _number_or_nan(value: Any) -> float:
    """Null, which JavaScript writes for NaN and infinity, counts as NaN."""
    return math.nan if value is None else to_number(value)
