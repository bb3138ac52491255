"""The files of a COLMAP model that tell of cameras, ``cameras`` and ``images`` as ``.bin`` or ``.txt``.

They are read here and not by pycolmap, which needs ``points3D`` and ends a name in a text file at its first blank.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pycolmap
from jaxtyping import Float

from reconx_core.datasets.locate import is_path
from reconx_core.errors import UserError
from reconx_core.io.files import read_text
from reconx_core.names import quoted

_FIRST = 8  # offset of the first record of a binary file, after the number of records
_PIXELS = 2**64  # widths and heights are below, which the binary format enforces, and text does not


class ModelCamera(NamedTuple):
    """Intrinsics as COLMAP has them: the camera model's name, picture size, parameters."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


class ModelImage(NamedTuple):
    """A registered image: name, number of its camera, and pose, which is not finite if the file's is none."""

    name: str
    camera: int
    world_to_cam: Float[np.ndarray, "4 4"]


def is_model(folder: Path) -> bool:
    """Whether a folder holds cameras and images files of one kind."""
    return any((folder / f"cameras{s}").is_file() and (folder / f"images{s}").is_file() for s in (".bin", ".txt"))


def check_lengths(model: Path) -> None:
    """Raises UserError for truncated binary files, whose garbage would be read as counts and poses."""
    record_ends = {"cameras": _camera_end, "images": _image_end, "points3D": _point_end}
    for file, record_end in ((model / f"{name}.bin", record_end) for name, record_end in record_ends.items()):
        if not file.is_file():
            continue
        data = file.read_bytes()
        try:
            offset = _FIRST
            for _ in range(struct.unpack_from("<Q", data)[0]):
                offset = record_end(data, offset)
        except (struct.error, ValueError):
            offset = -1
        if offset != len(data):
            raise UserError(f"The COLMAP file {file} is truncated or damaged; copy it again or export the model anew.")


def count_images(model: Path) -> int:
    """The number of images; 0 for a file that cannot be read."""
    try:
        return len(read_images(model))
    except UserError:
        return 0


def read_cameras(model: Path, suffix: str | None = None) -> dict[int, ModelCamera]:
    """Cameras by their numbers. ``suffix`` of the file: ``.bin`` or ``.txt``; None: ``.bin`` if the model has it.

    Raises:
        UserError: the file is damaged.
    """
    with _file(model, "cameras", suffix) as file:
        return dict(_binary_cameras(file.read_bytes()) if file.suffix == ".bin" else map(_text_camera, _lines(file)))


def read_images(model: Path, suffix: str | None = None) -> list[ModelImage]:
    """Registered images in the file's order; ``suffix``: see :func:`read_cameras`. Raises UserError if the file is damaged."""
    with _file(model, "images", suffix) as file:
        binary = file.suffix == ".bin"
        images = list(_binary_images(file.read_bytes()) if binary else map(_text_image, _without_points(file)))
        if wrong := [image.name for image in images if not is_path(image.name)]:
            raise ValueError(f"{quoted(wrong[0])} is no name of a picture")
        return images


@contextmanager
def _file(model: Path, name: str, suffix: str | None) -> Iterator[Path]:
    """One of the model's files; errors while it is read become UserError."""
    binary = all((model / f"{n}.bin").is_file() for n in ("cameras", "images"))
    file = model / f"{name}{suffix or ('.bin' if binary else '.txt')}"
    try:
        yield file
    except (struct.error, ValueError, IndexError, OSError) as error:
        raise UserError(f"Cannot read the COLMAP file {file}: {error}.") from None


def _lines(file: Path) -> Iterator[str]:
    """Lines that hold something. Names of files that are not UTF-8 come back as the file system has them."""
    lines = read_text(file, "surrogateescape").split("\n")
    return (line.strip() for line in lines if line.strip() and not line.startswith("#"))


def _without_points(file: Path) -> Iterator[str]:
    """The lines of images: each may be followed by one of its points, which other tools leave empty or out."""
    after_image = False
    for line in _lines(file):
        after_image = not (after_image and _lists_points(line))
        if after_image:
            yield line


def _lists_points(line: str) -> bool:
    words = line.split()
    return len(words) % 3 == 0 and all(map(_is_number, words[:12]))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _text_camera(line: str) -> tuple[int, ModelCamera]:
    number, model, width, height, *params = line.split()
    known = pycolmap.CameraModelId.__members__.get(model)
    if known is not None and len(params) != _parameter_count(known):
        raise ValueError(f"camera {number} has {len(params)} parameters, but {model} has {_parameter_count(known)}")
    size = int(width), int(height)
    if max(map(abs, size)) >= _PIXELS:
        raise ValueError(f"camera {number} has a size of {max(map(len, (width, height)))} digits, as no picture has")
    return int(number), ModelCamera(model, *size, tuple(map(float, params)))


def _text_image(line: str) -> ModelImage:
    try:
        _, w, x, y, z, tx, ty, tz, camera, name = line.split(None, 9)
        return ModelImage(name, int(camera), _matrix(tuple(map(float, (w, x, y, z, tx, ty, tz)))))
    except ValueError:
        raise ValueError(f"the line '{line[:60]}' should be number, quaternion, translation, camera, name") from None


def _binary_cameras(data: bytes) -> Iterator[tuple[int, ModelCamera]]:
    offset = _FIRST
    for _ in range(struct.unpack_from("<Q", data)[0]):
        number, model, width, height = struct.unpack_from("<IiQQ", data, offset)
        end = _camera_end(data, offset)
        params = struct.unpack_from(f"<{(end - offset - 24) // 8}d", data, offset + 24)
        yield number, ModelCamera(pycolmap.CameraModelId(model).name, width, height, params)
        offset = end


def _binary_images(data: bytes) -> Iterator[ModelImage]:
    offset = _FIRST
    for _ in range(struct.unpack_from("<Q", data)[0]):
        pose, camera = struct.unpack_from("<7d", data, offset + 4), struct.unpack_from("<I", data, offset + 60)[0]
        name = data[offset + 64 : data.index(b"\0", offset + 64)].decode("utf-8", "surrogateescape")
        yield ModelImage(name, camera, _matrix(pose))
        offset = _image_end(data, offset)


def _matrix(pose: tuple[float, ...]) -> Float[np.ndarray, "4 4"]:
    """World to camera of a quaternion (wxyz, of any length) and a translation."""
    w, x, y, z = np.array(pose[:4]) / (np.linalg.norm(pose[:4]) or np.nan)
    rotation = pycolmap.Rotation3d(np.array([x, y, z, w]))
    return np.vstack([pycolmap.Rigid3d(rotation, np.array(pose[4:])).matrix(), [0.0, 0.0, 0.0, 1.0]])


def _parameter_count(model: pycolmap.CameraModelId) -> int:
    return len(pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1).params)


def _camera_end(data: bytes, offset: int) -> int:
    """Where a camera's record ends: id, model, width, height, parameters."""
    return offset + 24 + 8 * _parameter_count(pycolmap.CameraModelId(struct.unpack_from("<i", data, offset + 4)[0]))


def _image_end(data: bytes, offset: int) -> int:
    """Where an image's record ends: id, quaternion, translation, camera, zero-terminated name, keypoints."""
    name_end = data.index(b"\0", offset + 64)
    return name_end + 9 + 24 * struct.unpack_from("<Q", data, name_end + 1)[0]


def _point_end(data: bytes, offset: int) -> int:
    """Where a point's record ends: id, position, colour, error, track."""
    return offset + 51 + 8 * struct.unpack_from("<Q", data, offset + 43)[0]
