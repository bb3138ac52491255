"""``transforms.json`` of nerfstudio and instant-ngp, with an optional ``split.json`` beside it.

Cameras are used as given in the file. nerfstudio's ``applied_transform`` only records the transform that was applied to them
when they were converted from COLMAP; undoing it would only rotate the world.
"""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch

from reconx_core.datasets.capture import Capture, Photo, Split, opencv_from_opengl, pinhole
from reconx_core.datasets.photos import files_within, find_mask, natural_key, unique_names
from reconx_core.errors import UserError
from reconx_core.io.images import SUFFIXES, ImageError, read_focal, read_image, read_mask, read_size

_UNSUPPORTED = ("k3", "k4", "k5", "k6")
_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL")


def is_scene(path: Path) -> bool:
    """Whether a path is ``transforms.json`` or a folder that holds one."""
    return path.name == "transforms.json" or (path / "transforms.json").is_file()


def read(path: Path) -> Capture:
    """A folder that holds ``transforms.json``, or that file itself.

    Raises:
        UserError: malformed JSON, no frames, or a camera model other than OPENCV's.
    """
    file = _file(path)
    frames = read_frames(file)
    # Files list frames in any order. The names give capture order, which the video stage needs to pair neighbouring views.
    order = sorted(range(len(frames)), key=lambda i: natural_key(frames[i]["file_path"]))
    photos = make_photos([frames[i] for i in order], file)
    splits = _splits(file.with_name("split.json"), order) | _file_splits([frames[i] for i in order])
    return Capture(file.parent.resolve().name, photos, splits, _default(splits))


def check(path: Path) -> None:
    """Raises UserError if the file is malformed or none of its pictures is there."""
    require_pictures(_file(path))


def require_pictures(file: Path) -> None:
    """Raises UserError if ``file`` is malformed or none of the pictures that it lists is there."""
    frames = read_frames(file)
    if not any(_find(file.parent, frame["file_path"]).is_file() for frame in frames):
        raise UserError(f"None of the {len(frames)} pictures that {file} lists is there; fetch them, too.")


def files_of(path: Path) -> dict[str, Path]:
    """The files in the folder of ``transforms.json``."""
    return files_within(path.parent if path.is_file() else path)


def read_frames(file: Path) -> list[dict[str, Any]]:
    """The file's frames, each with the top-level entries as defaults. Raises UserError if there are none."""
    meta = read_json(file)
    frames = meta.pop("frames", None) if isinstance(meta, dict) else None
    if not frames or any("file_path" not in frame for frame in frames):
        raise UserError(f"{file} lists no frames with a 'file_path'; is it a nerfstudio transforms.json?")
    return [{**meta, **frame} for frame in frames]


def make_photos(frames: list[dict[str, Any]], file: Path) -> tuple[Photo, ...]:
    """Photos of frames whose paths are relative to ``file``; raises UserError for cameras that are not supported."""
    paths = [_find(file.parent, frame["file_path"]) for frame in frames]
    return tuple(_photo(frame, path, name, file) for frame, path, name in zip(frames, paths, unique_names(paths)))


def read_json(file: Path) -> Any:
    """Parsed JSON. Raises UserError with the file's name if it is missing or malformed."""
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read {file}: {error}.") from None


def _file(path: Path) -> Path:
    return path / "transforms.json" if path.is_dir() else path


def _find(folder: Path, file_path: str) -> Path:
    path = folder / file_path
    if path.suffix.lower() in SUFFIXES:
        return path
    found = (path.with_name(path.name + suffix) for suffix in (".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".heic"))
    return next((p for p in found if p.is_file()), path)


def _photo(frame: dict[str, Any], path: Path, name: str, file: Path) -> Photo:
    _check_model(frame, file)
    mask = file.parent / frame["mask_path"] if "mask_path" in frame else find_mask(path)
    pose = frame.get("transform_matrix")
    intrinsics, size = _intrinsics(frame, path)
    return Photo(
        name,
        partial(read_image, path, upright=False),
        None if mask is None else partial(read_mask, mask, upright=False),
        focal=read_focal(path),
        intrinsics=intrinsics,
        size=size,
        distortion=tuple(float(frame.get(key, 0.0)) for key in ("k1", "k2", "p1", "p2")),  # type: ignore[arg-type]
        cam_to_world=None if pose is None else opencv_from_opengl(_matrix(pose, file)),
    )


def _check_model(frame: dict[str, Any], file: Path) -> None:
    model = frame.get("camera_model", "OPENCV")
    if model not in _PINHOLE_MODELS or frame.get("is_fisheye"):
        raise UserError(
            f"{file} has a fisheye or other camera model ({model}); undistort the images to PINHOLE or OPENCV first."
        )
    extra = [key for key in _UNSUPPORTED if frame.get(key)]
    if extra:
        raise UserError(
            f"{file} uses the distortion {', '.join(extra)}; only k1 k2 p1 p2 are supported: undistort the images first."
        )


def _intrinsics(frame: dict[str, Any], path: Path) -> tuple[torch.Tensor | None, tuple[int, int] | None]:
    has_angle = "camera_angle_x" in frame
    if "fl_x" not in frame and not has_angle:
        return None, None
    if "w" in frame and "h" in frame:
        width, height = float(frame["w"]), float(frame["h"])
    else:
        try:
            height, width = read_size(path)
        except ImageError:  # reported by name when the photo itself is loaded
            return None, None
    fx = float(frame["fl_x"]) if "fl_x" in frame else 0.5 * width / math.tan(0.5 * float(frame["camera_angle_x"]))
    fy = float(frame.get("fl_y", fx))
    matrix = pinhole(fx, fy, float(frame.get("cx", width / 2)), float(frame.get("cy", height / 2)))
    return matrix, (round(height), round(width))


def _matrix(rows: Any, file: Path) -> torch.Tensor:
    try:
        matrix = torch.tensor(rows, dtype=torch.float32)
    except (TypeError, ValueError):
        matrix = torch.zeros(0)
    if matrix.shape == (3, 4):
        matrix = torch.cat([matrix, torch.tensor([[0.0, 0.0, 0.0, 1.0]])])
    if matrix.shape != (4, 4) or not matrix.isfinite().all():
        raise UserError(f"{file} has a transform_matrix that is not 4x4 numbers.")
    return matrix


def _splits(file: Path, order: list[int]) -> dict[str, Split]:
    """``train_N`` with ``test_N`` or ``test``; any mapping with ``train`` and ``test`` or ``test_between``."""
    if not file.is_file():
        return {}
    position_of = {index: position for position, index in enumerate(order)}
    splits: dict[str, Split] = {}
    listed = read_json(file)
    for name, value in listed.items():
        if name.startswith("train_") and isinstance(value, list):
            split = value, _first(listed, f"test_{name.removeprefix('train_')}", "test")
        elif isinstance(value, dict) and "train" in value:
            split = value["train"], _first(value, "test_between", "test")
        else:
            continue
        try:
            splits[name] = Split(*(tuple(sorted(position_of[i] for i in part)) for part in split))
        except (KeyError, TypeError) as error:
            raise UserError(f"{file}: split '{name}' names frame {error}, but there are {len(order)} frames.") from None
    return splits


def _first(mapping: dict[str, Any], *keys: str) -> list[int]:
    return next((mapping[key] for key in keys if key in mapping), [])


def _file_splits(frames: list[dict[str, Any]]) -> dict[str, Split]:
    """nerfstudio's own split, by file names."""
    listed = frames[0]
    if "train_filenames" not in listed:
        return {}
    held_out = listed.get("test_filenames") or listed.get("val_filenames") or []
    parts = [
        tuple(i for i, f in enumerate(frames) if f["file_path"] in names) for names in (listed["train_filenames"], held_out)
    ]
    return {"filenames": Split(*parts)}


def _default(splits: dict[str, Split]) -> str | None:
    """The only split, or the file's own, or ``train_3``, or the first that is listed."""
    preferred = [name for name in ("filenames", "train_3") if name in splits]
    return next(iter([*preferred, *splits]), None)
