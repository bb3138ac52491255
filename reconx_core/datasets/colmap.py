"""A COLMAP model (text or binary) with its images: ``SCENE/sparse/0`` and ``SCENE/images``, or the model's own folder.

This is how 3D Gaussian Splatting publishes Tanks and Temples, and Mip-NeRF 360 its scenes, with ``images_2``, ``images_4`` ...
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import pycolmap
import torch

from reconx_core.datasets.calibrated import calibrated_photo
from reconx_core.datasets.capture import Capture, Photo, Split, every_eighth, pinhole
from reconx_core.datasets.photos import files_within, find_mask, image_folders, natural_key, unique_names
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.io.images import is_image

# index of fx fy cx cy k1 k2 p1 p2, and of some k3 k4 k5 k6, among each model's parameters; None: the value is zero
_PARAMETERS: dict[str, tuple[int | None, ...]] = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2, None, None, None, None),
    "PINHOLE": (0, 1, 2, 3, None, None, None, None),
    "SIMPLE_RADIAL": (0, 0, 1, 2, 3, None, None, None),
    "RADIAL": (0, 0, 1, 2, 3, 4, None, None),
    "OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
    "FULL_OPENCV": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
}


def find_model(path: Path) -> Path | None:
    """The folder with cameras and images files (``.bin`` or ``.txt``) of a scene."""
    candidates = (path, path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0")
    return next((c for c in candidates if _is_model(c)), None)


def holds_distortion(model: Path) -> bool:
    """Whether any camera of a model has distortion. False for a file that cannot be read: :func:`read` reports it."""
    try:
        return any(name not in ("SIMPLE_PINHOLE", "PINHOLE") for name in _camera_models(model))
    except (struct.error, ValueError, IndexError):
        return False


def check(path: Path) -> None:
    """Raises UserError if the model is missing or truncated, or if there is no picture at all."""
    model = _require_model(path)
    _check_lengths(model)
    if not any(is_image(file) for folder in (*_image_folders(path, model), path) for file in folder.rglob("*")):
        raise UserError(f"The COLMAP model in {model} has no pictures beside it, in images or images_N; fetch them, too.")


def files_of(path: Path) -> dict[str, Path]:
    """All files in the scene's folder; if ``path`` is the model's own folder, also the pictures and masks beside it."""
    folder = path.resolve()
    beside = [f for f in _image_folders(path, _require_model(path)) if not f.resolve().is_relative_to(folder)]
    return files_within(path, *beside, *(images.parent / "masks" for images in beside))


def read(path: Path) -> Capture:
    """Registered images in natural order of their names, from the folder that has most of them (of equals, the largest size).

    The split ``every_8th`` holds out every eighth image in the alphabetical order of their names. It is the default of scenes
    with a ``poses_bounds.npy`` beside the model, which are Mip-NeRF 360's; of other scenes every image is an input.

    Raises:
        UserError: no model, a broken one, a fisheye or other unsupported camera model, or no folder of images.
    """
    model = _require_model(path)
    _check_lengths(model)
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
    except (RuntimeError, ValueError) as error:
        raise UserError(f"Cannot read the COLMAP model in {model}: {str(error).splitlines()[0]}.") from None
    images = sorted((i for i in reconstruction.images.values() if i.has_pose), key=lambda i: natural_key(i.name))
    if not images:
        raise UserError(f"The COLMAP model in {model} has no registered images.")
    folder = _find_images(path, model, [image.name for image in images])
    names = unique_names([Path(image.name) for image in images])
    photos = (_photo(image, reconstruction.cameras[image.camera_id], folder / image.name, n) for image, n in zip(images, names))
    splits = {"every_8th": _every_eighth([image.name for image in images])}
    scored = (path / "poses_bounds.npy").is_file()
    return make_usable(Capture(path.resolve().name, tuple(photos), splits, "every_8th" if scored else None), model)


def _require_model(path: Path) -> Path:
    model = find_model(path)
    if model is None:
        raise UserError(f"There is no COLMAP model (cameras.bin or .txt) in '{path}', its sparse/0 or its sparse folder.")
    return model


def _every_eighth(names: list[str]) -> Split:
    """Published results count images in alphabetical order (9 after 10), not in capture order."""
    order = sorted(range(len(names)), key=lambda i: names[i])
    return Split(*(tuple(sorted(order[i] for i in part)) for part in every_eighth(len(names))))


def _is_model(folder: Path) -> bool:
    return any((folder / f"cameras{s}").is_file() and (folder / f"images{s}").is_file() for s in (".bin", ".txt"))


def _check_lengths(model: Path) -> None:
    """Raises UserError for truncated binary files: pycolmap would read garbage as counts and allocate memory for minutes."""
    record_ends = {"cameras": _camera_end, "images": _image_end, "points3D": _point_end}
    for file, record_end in ((model / f"{name}.bin", record_end) for name, record_end in record_ends.items()):
        if not file.is_file():
            continue
        data = file.read_bytes()
        try:
            offset = 8
            for _ in range(struct.unpack_from("<Q", data)[0]):
                offset = record_end(data, offset)
        except (struct.error, ValueError):
            offset = -1
        if offset != len(data):
            raise UserError(f"The COLMAP file {file} is truncated or damaged; copy it again or export the model anew.")


def _camera_models(model: Path) -> list[str]:
    """The camera models by name. Raises struct.error, ValueError or IndexError if the file is damaged."""
    if not (model / "cameras.bin").is_file():
        lines = (model / "cameras.txt").read_text(errors="replace").splitlines()
        return [line.split()[1] for line in lines if line.strip() and not line.startswith("#")]
    data, offset, names = (model / "cameras.bin").read_bytes(), 8, []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        names.append(pycolmap.CameraModelId(struct.unpack_from("<i", data, offset + 4)[0]).name)
        offset = _camera_end(data, offset)
    return names


def _camera_end(data: bytes, offset: int) -> int:
    """Where a camera's record ends: id, model, width, height, parameters."""
    model = struct.unpack_from("<i", data, offset + 4)[0]
    return offset + 24 + 8 * len(pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), 1.0, 1, 1).params)


def _image_end(data: bytes, offset: int) -> int:
    """Where an image's record ends: id, quaternion, translation, camera, zero-terminated name, keypoints."""
    name_end = data.index(b"\0", offset + 64)
    return name_end + 9 + 24 * struct.unpack_from("<Q", data, name_end + 1)[0]


def _point_end(data: bytes, offset: int) -> int:
    """Where a point's record ends: id, position, colour, error, track."""
    return offset + 51 + 8 * struct.unpack_from("<Q", data, offset + 43)[0]


def _image_folders(path: Path, model: Path) -> list[Path]:
    """Where pictures may be: ``images`` and ``images_N`` of the scene, beside the model and above it."""
    return [folder for root in dict.fromkeys((path, model, *model.resolve().parents[:3])) for folder in image_folders(root)]


def _find_images(path: Path, model: Path, names: Sequence[str]) -> Path:
    counts = {f: sum((f / name).is_file() for name in names) for f in (*_image_folders(path, model), path)}
    found = max(counts, key=lambda folder: counts[folder])  # the first of those with equal counts
    if not counts[found]:
        raise UserError(f"The images of the COLMAP model in {model} (such as {names[0]}) are not in {path / 'images'}.")
    return found


def _photo(image: pycolmap.Image, camera: pycolmap.Camera, path: Path, name: str) -> Photo:
    fx, fy, cx, cy, *distortion = _opencv_parameters(camera)
    world_to_cam = torch.eye(4, dtype=torch.float64)
    world_to_cam[:3] = torch.from_numpy(image.cam_from_world().matrix())
    return calibrated_photo(
        path,
        name,
        find_mask(path),
        intrinsics=pinhole(fx, fy, cx, cy),
        size=(camera.height, camera.width),
        distortion=tuple(distortion),
        cam_to_world=torch.linalg.inv(world_to_cam) if world_to_cam.isfinite().all() else None,
    )


def _opencv_parameters(camera: pycolmap.Camera) -> list[float]:
    indices = _PARAMETERS.get(camera.model.name)
    if indices is None:
        raise UserError(
            f"COLMAP camera {camera.camera_id} has the model {camera.model.name}; undistort the images first "
            f"(colmap image_undistorter) or use one of {', '.join(_PARAMETERS)}."
        )
    return [0.0 if index is None else float(camera.params[index]) for index in indices]
