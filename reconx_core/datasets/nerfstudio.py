"""``transforms.json`` of nerfstudio and instant-ngp, with an optional ``split.json`` or ``train_test_split_N.json`` beside it.

Cameras are used as given in the file. nerfstudio's ``applied_transform`` only records the transform that was applied to them
when they were converted from COLMAP; undoing it would only rotate the world.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reconx_core.datasets.calibrated import calibrated_photo, upright_size
from reconx_core.datasets.capture import DISTORTION, Capture, Photo, Split, opencv_from_opengl, pinhole
from reconx_core.datasets.locate import PictureFinder, find_pictures, is_path, with_slashes
from reconx_core.datasets.photos import (
    files_within,
    find_mask,
    natural_key,
    unique_names,
    warn_of_unlisted,
    with_outside,
)
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.io.images import ImageError, read_size
from reconx_core.io.json_files import read_json
from reconx_core.names import quoted, shown

if TYPE_CHECKING:
    from torch import Tensor

# nerfstudio's k4 is a polynomial's, OpenCV's a quotient's: only where the model is named is it known which one is meant.
_QUOTIENT = ("k4", "k5", "k6")
_QUOTIENT_MODEL = "FULL_OPENCV"
_MILLIMETRE = 0.001  # nerfstudio's unit of depth where the file names none, of poses in metres
_INDEX = "index in the file"  # of a frame; splits name frames by it
_PUBLISHED = "train_test_split_"  # and the number of inputs: files of the field's splits
_HELD_OUT = ("test", "val")  # how the names of lists of held-out views begin
_NEGLIGIBLE = 1e-6  # moves nothing by a hundredth of a pixel
_FOCALS = ("fl_x", "fl_y", "camera_angle_x", "camera_angle_y", "x_fov", "y_fov")
_INTRINSICS = (*_FOCALS, "cx", "cy", "w", "h", *DISTORTION)
_PINHOLE_MODELS = ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", _QUOTIENT_MODEL)


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
    frames = sorted(frames, key=lambda frame: natural_key(with_slashes(frame["file_path"])))
    photos, pictures = _photos_and_pictures(frames, file)
    warn_of_unlisted(pictures, file)
    order = [frame[_INDEX] for frame in frames]
    splits = _splits(file.with_name("split.json"), order) | _file_splits(frames, file) | _published_splits(file, order)
    return make_usable(Capture(file.parent.resolve().name, photos, splits, _default(splits)), file)


def check(path: Path) -> None:
    """Raises UserError if the file is malformed or none of its pictures is there."""
    require_pictures(_file(path))


def require_pictures(file: Path) -> None:
    """Raises UserError if ``file`` is malformed or none of the pictures that it lists is there."""
    frames = read_frames(file)
    finder = PictureFinder()
    found = (finder.find(file.parent, frame["file_path"], file.parent / "images") for frame in frames)
    if not any(picture and picture.is_file() for picture in found):
        raise UserError(f"None of the {len(frames)} pictures that {file} lists is there; fetch them, too.")


def files_of(path: Path) -> dict[str, Path]:
    """The files in the folder of ``transforms.json``, and the pictures and masks that it lists elsewhere."""
    return files_with_listed(path.parent if path.is_file() else path, _file(path))


def files_with_listed(scene: Path, *lists: Path) -> dict[str, Path]:
    """All files in the scene's folder, and those outside of it that files of frames (``lists``) name."""
    return with_outside(scene, files_within(scene), (picture for file in lists for picture in _listed(file)))


def _listed(file: Path) -> Iterator[Path]:
    """What the frames of a file name, where it is there; without the reader's warnings, and none of a broken file."""
    finder = PictureFinder()
    try:
        frames = read_json(file)["frames"]
        names = [frame.get(key) for frame in frames for key in ("file_path", "mask_path", "depth_file_path")]
    except (UserError, LookupError, TypeError, AttributeError):  # the reader raises it in a sentence
        return
    for name in filter(is_path, names):
        if found := finder.find_written(file.parent, name):
            yield found


def read_frames(file: Path) -> list[dict[str, Any]]:
    """The file's frames, each with the top-level entries as defaults, and its index among all as :data:`_INDEX`.

    Frames without a path that a file can have are left out with a warning. Raises UserError if fewer than two others remain.
    """
    meta = read_json(file)
    listed = meta.pop("frames", None) if isinstance(meta, dict) else None
    frames = listed if isinstance(listed, list) else []
    lost = [i for i, frame in enumerate(frames) if not _is_frame(frame)]
    if not frames or (lost and len(frames) - len(lost) < 2):
        raise UserError(f"{file} lists no frames with a 'file_path'; is it a nerfstudio transforms.json?")
    if lost:
        message = (
            f"{len(lost)} of {len(frames)} frames in {file} have no usable file_path, such as frame {lost[0]} (counted from 0)"
        )
        warnings.warn(f"{message}; they are left out.", stacklevel=2)
    _tell_other_poses(frames, file)
    return [{**meta, **frame, _INDEX: i} for i, frame in enumerate(frames) if i not in set(lost)]


def _tell_other_poses(frames: list[Any], file: Path) -> None:
    """Warn where poses seem to stand under a name that says nothing of their convention."""
    known = [frame for frame in frames if isinstance(frame, dict)]
    if any(frame.get("transform_matrix") is not None for frame in known):
        return
    names = [name for frame in known for name, value in frame.items() if _is_matrix(value)]
    if names:
        reason = (
            f"none of its frames has a 'transform_matrix', and of {quoted(names[0])} the direction of the axes is not known"
        )
        warnings.warn(f"{file} gives no pose: {reason}.", stacklevel=3)


def _is_matrix(value: Any) -> bool:
    """3x4 or 4x4, in rows or flat."""
    if not isinstance(value, list):
        return False
    rows = len(value) in (3, 4) and all(isinstance(row, list) and len(row) == 4 for row in value)
    return rows or (len(value) in (12, 16) and all(isinstance(number, (int, float)) for number in value))


def _is_frame(frame: Any) -> bool:
    return isinstance(frame, dict) and is_path(frame.get("file_path"))


def make_photos(frames: list[dict[str, Any]], file: Path) -> tuple[Photo, ...]:
    """Photos of frames whose paths are relative to ``file``, with poses for :func:`make_usable`.

    Raises:
        UserError: a camera is not supported.
    """
    return _photos_and_pictures(frames, file)[0]


def _photos_and_pictures(frames: list[dict[str, Any]], file: Path) -> tuple[tuple[Photo, ...], list[Path]]:
    """As :func:`make_photos`, and where the pictures are."""
    finder = PictureFinder()
    paths = find_pictures(finder, file.parent, [frame["file_path"] for frame in frames])
    masks = [_mask(frame, path, file, finder) for frame, path in zip(frames, paths)]
    depths = [_depth(frame, file, finder) for frame in frames]
    photos = tuple(_photo(*about, file) for about in zip(frames, paths, unique_names(paths), masks, depths))
    if all(photo.intrinsics is None for photo in photos):
        _require_finite(frames[0], file)
    return photos, paths


def _require_finite(frame: dict[str, Any], file: Path) -> None:
    """Raises UserError if an intrinsic number is not finite: where it is so in every frame, no program failed on just some."""
    for key in _INTRINSICS:
        value = _number(frame, key, file)
        if value is not None and not math.isfinite(value):
            raise UserError(f"{file} has {key} = {value}, which is not finite; correct it, or remove it if it is unknown.")


def _file(path: Path) -> Path:
    return path / "transforms.json" if path.is_dir() else path


def _mask(frame: dict[str, Any], picture: Path, file: Path, finder: PictureFinder) -> Path | None:
    """The mask that the frame names, found or not, or the one that lies with its picture."""
    name, folder = frame.get("mask_path"), file.parent
    if name is None or name == "":
        return find_mask(picture)
    if not is_path(name):
        raise UserError(f"{file} has mask_path = {quoted(name)}, which is no path.")
    return finder.find(folder, name, folder / "images") or folder / with_slashes(name)


def _depth(frame: dict[str, Any], file: Path, finder: PictureFinder) -> tuple[Path, float] | None:
    """The file of depth that the frame names, found or not, and its unit in that of the poses."""
    name, unit = frame.get("depth_file_path"), _number(frame, "depth_unit_scale_factor", file)
    if name is None or name == "":
        return None
    if not is_path(name):
        raise UserError(f"{file} has depth_file_path = {quoted(name)}, which is no path.")
    if unit is not None and not 0 < unit < math.inf:
        raise UserError(f"{file} has depth_unit_scale_factor = {unit:.6g}, which should be above 0.")
    return finder.find_written(file.parent, name) or file.parent / with_slashes(name), _MILLIMETRE if unit is None else unit


def _photo(
    frame: dict[str, Any], path: Path, name: str, mask: Path | None, depth: tuple[Path, float] | None, file: Path
) -> Photo:
    _check_model(frame, file)
    pose = frame.get("transform_matrix")
    intrinsics, size = _intrinsics(frame, path, file)
    return calibrated_photo(
        path,
        name,
        mask,
        intrinsics=intrinsics,
        size=size,
        distortion=_distortion(frame, file),
        cam_to_world=None if pose is None else opencv_from_opengl(_matrix(pose, file)),
        depth=depth,
    )


def _model(frame: dict[str, Any]) -> Any:
    """The camera model's name in capitals; null counts as missing."""
    model = frame.get("camera_model")
    return "OPENCV" if model is None else model.upper() if isinstance(model, str) else model


def _check_model(frame: dict[str, Any], file: Path) -> None:
    model = _model(frame)
    if model not in _PINHOLE_MODELS or frame.get("is_fisheye"):
        raise UserError(
            f"{file} has a fisheye or other camera model ({quoted(model)}); undistort the images to PINHOLE or OPENCV first."
        )
    used = [key for key in _QUOTIENT if abs(_number(frame, key, file) or 0.0) > _NEGLIGIBLE]
    if used and model != _QUOTIENT_MODEL:
        raise UserError(
            f"{file} uses the distortion {', '.join(used)}; only k1 k2 k3 p1 p2 are supported: undistort the images first."
        )


def _distortion(frame: dict[str, Any], file: Path) -> tuple[float, ...]:
    """OpenCV's coefficients: four, and more only where they are used."""
    values = tuple(_number(frame, key, file) or 0.0 for key in DISTORTION)
    if _model(frame) == _QUOTIENT_MODEL and any(values[5:]):
        return values
    return values[:5] if values[4] else values[:4]


def _intrinsics(frame: dict[str, Any], path: Path, file: Path) -> tuple[Tensor | None, tuple[int, int] | None]:
    """From a focal length or an angle of view, of either axis; the other axis is taken to have the same focal length.

    None where neither is given, or a number is not finite: a program that failed on a frame leaves such.
    """
    known = (_number(frame, key, file) for key in _INTRINSICS)
    if not all(value is None or math.isfinite(value) for value in known):
        return None, None
    if all(_number(frame, key, file) is None for key in _FOCALS):
        return None, None
    size = _calibrated_size(frame, path, file)
    if size is None:
        return None, None
    height, width = size
    fx, fy = _focal(frame, "x", width, file), _focal(frame, "y", height, file)
    cx, cy = _number(frame, "cx", file), _number(frame, "cy", file)
    fx, fy = (fy if fx is None else fx, fx if fy is None else fy)
    if fx is None or fy is None:
        return None, None
    matrix = pinhole(fx, fy, width / 2 if cx is None else cx, height / 2 if cy is None else cy)
    return matrix, (round(height), round(width))


def _focal(frame: dict[str, Any], axis: str, length: float, file: Path) -> float | None:
    """The focal length in pixels along an axis; ``x_fov`` is instant-ngp's, in degrees. Raises UserError if it is none."""
    focal = _number(frame, f"fl_{axis}", file)
    if focal is not None:
        return focal  # checked with the other intrinsics
    for key, half_turn, unit in ((f"camera_angle_{axis}", math.pi, "radians"), (f"{axis}_fov", 180.0, "degrees")):
        angle = _number(frame, key, file)
        if angle is None:
            continue
        if not 0 < angle < half_turn:
            limits = f"an angle of view in {unit} between 0 and {half_turn:.4g}"
            hint = "; it looks like degrees" if unit == "radians" and half_turn <= angle < 180 else ""
            raise UserError(f"{file} has {key} = {angle:.6g}, which should be {limits}{hint}.")
        return 0.5 * length / math.tan(0.5 * (angle if unit == "radians" else math.radians(angle)))
    return None


def _calibrated_size(frame: dict[str, Any], path: Path, file: Path) -> tuple[float, float] | None:
    """(height, width) that the camera is for: as stated, or the picture's; None if that cannot be read."""
    width, height = _number(frame, "w", file), _number(frame, "h", file)
    if width and height:
        return height, width
    try:
        return upright_size(path, _number(frame, "cx", file), _number(frame, "cy", file)) or read_size(path)
    except ImageError:  # reported by name when the photo itself is loaded
        return None


def _number(frame: dict[str, Any], key: str, file: Path) -> float | None:
    """An entry of a frame; None where it is missing or null. Raises UserError if it is no number."""
    value = frame.get(key)
    try:
        return None if value is None else to_number(value)
    except (TypeError, ValueError):
        raise UserError(f"{file} has {key} = {quoted(value)}, which is no number.") from None


def to_number(value: Any) -> float:
    """A number of a JSON file, which some programs write as text. Raises TypeError or ValueError for all else.

    One beyond double precision is infinite, however it is written: JSON's 1e400 is, but an integer of 400 digits is not yet.
    """
    if isinstance(value, bool):
        raise TypeError("true and false are no numbers")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _matrix(rows: Any, file: Path) -> Tensor:
    """In float64; null, which JavaScript writes for NaN and infinity, counts as NaN."""
    import torch

    try:
        numbers = [[math.nan if value is None else to_number(value) for value in row] for row in rows]
        matrix = torch.tensor(numbers, dtype=torch.float64)
    except (TypeError, ValueError):
        matrix = torch.zeros(0)
    if matrix.shape == (3, 4):
        matrix = torch.cat([matrix, matrix.new_tensor([[0.0, 0.0, 0.0, 1.0]])])
    if matrix.shape != (4, 4):
        raise UserError(f"{file} has a transform_matrix that is not 4x4 numbers.")
    return matrix


def _splits(file: Path, order: list[int]) -> dict[str, Split]:
    """Any list of frames, such as ``train_N`` with ``test_N`` or ``test``; any mapping with ``train`` and ``test`` or
    ``test_between``.
    """
    if not file.is_file():
        return {}
    position_of = {index: position for position, index in enumerate(order)}
    splits: dict[str, Split] = {}
    listed = read_json(file)
    if not isinstance(listed, dict):
        raise UserError(f'{file} should hold named splits, such as {{"train_3": [0, 1, 2], "test": [3]}}.')
    for name, value in listed.items():
        number = name.removeprefix("train_")
        if (name != number and number.isdigit()) or (isinstance(value, list) and not name.startswith(_HELD_OUT)):
            split = value, _first(listed, f"test_{number}", *_HELD_OUT)
        elif isinstance(value, dict) and "train" in value:
            split = value["train"], _first(value, "test_between", "test")
        else:
            continue
        splits[name] = Split(*(_positions(part, position_of, f"{file}: split '{name}'") for part in split))
    return splits


def _published_splits(file: Path, order: list[int]) -> dict[str, Split]:
    """``train_test_split_N.json`` beside the file, as ReconFusion and Stable Virtual Camera publish them, by their names.

    Their numbers are of the frames as ``file`` lists them, in whichever order.
    """
    position_of = {index: position for position, index in enumerate(order)}
    splits: dict[str, Split] = {}
    for path in sorted(file.parent.glob(f"{_PUBLISHED}*.json"), key=natural_key):
        listed = read_json(path)
        parts = [listed.get(key) if isinstance(listed, dict) else None for key in ("train_ids", "test_ids")]
        splits[path.stem] = Split(*(_positions(part, position_of, f"{path}: its list") for part in parts))
    return splits


def _first(mapping: dict[str, Any], *keys: str) -> Any:
    """The first of the entries that is there; null counts as missing."""
    return next((mapping[key] for key in keys if mapping.get(key) is not None), [])


def _positions(part: Any, position_of: dict[int, int], label: str) -> tuple[int, ...]:
    """Indices of a file's frames as places in capture order. Raises UserError if they are none."""
    if not isinstance(part, list) or not all(type(i) is int for i in part):  # a bool is an int to isinstance
        raise UserError(f"{label} should list frames by their numbers, such as [0, 1, 2], but has {quoted(part)}.")
    if absent := [i for i in part if i not in position_of]:
        raise UserError(
            f"{label} names frame {absent[0]}, which is none of the {len(position_of)} usable ones, counted from 0."
        )
    return tuple(sorted(position_of[i] for i in part))


def _file_splits(frames: list[dict[str, Any]], file: Path) -> dict[str, Split]:
    """nerfstudio's own split, by file names."""
    if frames[0].get("train_filenames") is None:
        return {}
    kept = _named(frames, "train_filenames", file)
    held_out = _named(frames, "test_filenames", file) or _named(frames, "val_filenames", file)
    return {"filenames": Split(kept, held_out)}


def _named(frames: list[dict[str, Any]], key: str, file: Path) -> tuple[int, ...]:
    """The frames that a list of file names means; a warning tells of names that are no frame's."""
    listed = frames[0].get(key) or []
    if not isinstance(listed, list) or not all(isinstance(name, str) for name in listed):
        raise UserError(f"{file} should list names of files as {key}, but has {quoted(listed)}.")
    names = dict.fromkeys(map(with_slashes, listed))
    paths = [with_slashes(frame["file_path"]) for frame in frames]
    if lost := [name for name in names if name not in set(paths)]:
        message = f"{len(lost)} of the {len(names)} {key} in {file} are no frame's file_path, such as {shown(lost[0])}"
        warnings.warn(f"{message}; they are left out.", stacklevel=2)
    return tuple(i for i, path in enumerate(paths) if path in names)


def _default(splits: dict[str, Split]) -> str | None:
    """The only split, or the file's own, or that of three inputs, or the first; a published one of a single input is none."""
    preferred = [name for name in ("filenames", "train_3", "train_test_split_3") if name in splits]
    several = [name for name, split in splits.items() if len(split.inputs) > 1 or not name.startswith(_PUBLISHED)]
    return next(iter([*preferred, *several]), None)
