"""Cameras without pictures, in the order of a path: what `condition.path` may name.

Read are camera paths as nerfstudio's viewer writes them, ``transforms.json``, and the images file of a COLMAP model.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.datasets import nerfstudio
from reconx_core.datasets.capture import Capture, Photo, opencv_from_opengl, pinhole
from reconx_core.datasets.colmap import camera_of, opencv_parameters
from reconx_core.datasets.colmap_model import check_lengths, read_cameras, read_images
from reconx_core.datasets.photos import natural_key
from reconx_core.datasets.poses import make_usable, relative_to
from reconx_core.errors import UserError
from reconx_core.io.json_files import read_json
from reconx_core.names import quoted
from reconx_core.types import Cameras

COLMAP_SUFFIXES = (".bin", ".txt")
IN_FOLDERS = ("images.bin", "images.txt", "camera_path.json", "transforms.json")  # what a folder may stand for


def read_path(file: Path) -> Capture:
    """The cameras of a file, in the order of their path; its photos have no pictures.

    Raises:
        UserError: there is no such file, it is none of those that are read, or it holds no usable camera.
    """
    file = file_of(file)
    if not file.is_file():
        there = "is a folder without any" if file.is_dir() else "is not there"
        raise UserError(f"condition.path is between, extrapolate, orbit or a file of cameras, but '{file}' {there}.")
    photos = _colmap(file) if file.suffix in COLMAP_SUFFIXES else _json(file)
    capture = make_usable(Capture(file.stem, photos), file)
    posed = tuple(photo for photo in capture.photos if photo.cam_to_world is not None)
    if not posed:
        raise UserError(f"{file} holds no camera with a pose.")
    if len(posed) < len(photos):
        warnings.warn(
            f"{len(photos) - len(posed)} of {len(photos)} cameras in {file} have no pose; they are left out.", stacklevel=2
        )
    if any(any(photo.distortion) for photo in posed):
        warnings.warn(f"The cameras in {file} have lenses that distort; their frames are made without.", stacklevel=2)
    return Capture(capture.name, posed, origin=capture.origin)


def file_of(path: Path) -> Path:
    """The file of cameras that a path means: of a folder, such as a COLMAP model, the first that it holds."""
    return next((path / name for name in IN_FOLDERS if (path / name).is_file()), path)


def files_of_path(file: Path) -> dict[str, Path]:
    """The files that :func:`read_path` reads, by what they are: names and places do not count."""
    file = file_of(file)
    if file.suffix not in COLMAP_SUFFIXES:
        return {"cameras.json": file}
    lenses = file.with_name(f"cameras{file.suffix}")
    return {f"images{file.suffix}": file} | ({lenses.name: lenses} if lenses.is_file() else {})


def cameras_on_path(capture: Capture, like: Cameras, origin: Sequence[float]) -> Cameras:
    """The cameras relative to ``origin``, with the image size of ``like``.

    Their vertical angle of view is kept. A camera without a lens gets the mean one of ``like``.
    """
    poses = torch.stack([photo.cam_to_world for photo in capture.photos if photo.cam_to_world is not None])
    moved = relative_to(poses, [zero - own for zero, own in zip(origin, capture.origin)])
    lenses = [
        like.intrinsics.mean(0) if photo.intrinsics is None or photo.size is None
        else resized_lens(photo.intrinsics, photo.size, (like.height, like.width))
        for photo in capture.photos
    ]  # fmt: skip
    return Cameras(torch.stack(lenses), moved.float(), like.width, like.height)


def resized_lens(intrinsics: Float[Tensor, "3 3"], size: tuple[int, int], wanted: tuple[int, int]) -> Float[Tensor, "3 3"]:
    """The lens of pictures of another size (height, width) with the same vertical angle of view."""
    scale = wanted[0] / size[0]
    centred = intrinsics.double().clone() * scale
    centred[0, 2] += (wanted[1] - scale * size[1]) / 2
    centred[2, 2] = 1.0
    return centred.float()


def _json(file: Path) -> tuple[Photo, ...]:
    content = read_json(file)
    if isinstance(content, dict) and "camera_path" in content:
        return _viewer_path(content, file)
    frames = content.get("frames") if isinstance(content, dict) else None
    if not isinstance(frames, list) or not frames or not all(isinstance(frame, dict) for frame in frames):
        raise UserError(f"{file} holds no cameras: neither nerfstudio's 'camera_path' nor 'frames' of a transforms.json.")
    common = {key: value for key, value in content.items() if key != "frames"}
    # Names of pictures that are not there: what lies beside the file has no say in a path.
    return nerfstudio.make_photos([{**common, **f, **_nowhere(i, len(frames))} for i, f in enumerate(frames)], file)


def _nowhere(number: int, count: int) -> dict[str, Any]:
    return {"file_path": f"camera {number} of {count}.none", "mask_path": None}


def _viewer_path(content: dict[str, Any], file: Path) -> tuple[Photo, ...]:
    kind, listed = content.get("camera_type", "perspective"), content["camera_path"]
    if kind != "perspective":
        raise UserError(f"{file} has cameras of type {quoted(kind)}; only perspective ones can be used.")
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{file} has a camera_path without cameras; add keyframes in the viewer and export it again.")
    if not all(isinstance(camera, dict) for camera in listed):
        raise UserError(f"{file} has a camera_path with an entry that is no camera.")
    height, width = (_number(content, key, file) for key in ("render_height", "render_width"))
    if min(height, width) < 1:
        raise UserError(f"{file} has a render size of {width:g}x{height:g} pixels; it should be at least one.")
    return tuple(_viewer_camera(camera, i, round(height), round(width), file) for i, camera in enumerate(listed))


def _viewer_camera(camera: dict[str, Any], number: int, height: int, width: int, file: Path) -> Photo:
    """``fov`` is the vertical angle of view in degrees, ``camera_to_world`` 16 numbers, row by row, with OpenGL's axes."""
    fov, given = _number(camera, "fov", file), camera.get("camera_to_world")
    if not 0 < fov < 180:
        raise UserError(f"{file} has fov = {fov:.6g} in camera {number}, which should be an angle between 0 and 180 degrees.")
    try:
        pose = torch.tensor(given, dtype=torch.float64).reshape(4, 4)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{file} has a camera_to_world in camera {number} that is not 16 numbers.") from None
    focal = height / 2 / math.tan(math.radians(fov) / 2)
    return _camera(f"camera {number}", pinhole(focal, focal, width / 2, height / 2), (height, width), opencv_from_opengl(pose))


def _number(content: dict[str, Any], key: str, file: Path) -> float:
    try:
        value = nerfstudio.to_number(content.get(key))
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"{file} has {key} = {quoted(content.get(key))}, which should be a number.")
    return value


def _colmap(file: Path) -> tuple[Photo, ...]:
    """In natural order of the images' names: COLMAP's own order is that of its numbers."""
    if file.stem != "images":
        raise UserError(f"{file} is no images file of a COLMAP model; give its images.txt or images.bin.")
    if file.suffix == ".bin":
        check_lengths(file.parent)
    images = sorted(read_images(file.parent, file.suffix), key=lambda image: natural_key(image.name))
    if not images:
        raise UserError(f"{file} lists no images.")
    known = file.with_name(f"cameras{file.suffix}").is_file()
    cameras = read_cameras(file.parent, file.suffix) if known else {}
    photos = []
    for image in images:
        pose = torch.linalg.inv(torch.from_numpy(image.world_to_cam))
        if not known:
            photos.append(_camera(image.name, None, None, pose))
            continue
        camera = camera_of(image, cameras, file.parent)
        fx, fy, cx, cy, *distortion = opencv_parameters(image, camera)
        photo = _camera(image.name, pinhole(fx, fy, cx, cy), (camera.height, camera.width), pose)
        photos.append(replace(photo, distortion=tuple(distortion)))
    return tuple(photos)


def _camera(
    name: str, intrinsics: Float[Tensor, "3 3"] | None, size: tuple[int, int] | None, cam_to_world: Float[Tensor, "4 4"]
) -> Photo:
    return Photo(name, _no_picture, intrinsics=intrinsics, size=size, cam_to_world=cam_to_world)


def _no_picture() -> Tensor:
    raise LookupError("a path's camera has no picture")
