"""A COLMAP model (text or binary) with its images: ``SCENE/sparse/0`` and ``SCENE/images``, or the model's own folder.

This is how 3D Gaussian Splatting publishes Tanks and Temples, and Mip-NeRF 360 its scenes, with ``images_2``, ``images_4`` ...
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pycolmap
import torch

from reconx_core.datasets.capture import Capture, Photo, Split, every_eighth, pinhole
from reconx_core.datasets.photos import files_within, find_mask, image_folders, natural_key, unique_names
from reconx_core.errors import UserError
from reconx_core.io.images import is_image, read_focal, read_image, read_mask

# where each model's fx fy cx cy k1 k2 p1 p2 stand among its parameters; None is zero
_PARAMETERS: dict[str, tuple[int | None, ...]] = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2, None, None, None, None),
    "PINHOLE": (0, 1, 2, 3, None, None, None, None),
    "SIMPLE_RADIAL": (0, 0, 1, 2, 3, None, None, None),
    "RADIAL": (0, 0, 1, 2, 3, 4, None, None),
    "OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
}


def find_model(path: Path) -> Path | None:
    """The folder with cameras and images files (``.bin`` or ``.txt``) of a scene."""
    candidates = (path, path / "sparse" / "0", path / "sparse", path / "colmap" / "sparse" / "0")
    return next((c for c in candidates if _is_model(c)), None)


def holds_distortion(model: Path) -> bool:
    """Whether a camera of a model has any distortion; of a file that cannot be read, False, so that :func:`read` says so."""
    try:
        return any(name not in ("SIMPLE_PINHOLE", "PINHOLE") for name in _camera_models(model))
    except (struct.error, ValueError, IndexError):
        return False


def check(path: Path) -> None:
    """Raises UserError where the model is missing or truncated, or where there is no picture at all."""
    model = _require_model(path)
    _check_lengths(model)
    if not any(is_image(file) for folder in (*_image_folders(path, model), path) for file in folder.rglob("*")):
        raise UserError(f"The COLMAP model in {model} has no pictures beside it, in images or images_N; fetch them, too.")


def files_of(path: Path) -> dict[str, Path]:
    """All files below, and the pictures and masks that lie beside a model which is given by its own folder."""
    place = path.resolve()
    beside = [f for f in _image_folders(path, _require_model(path)) if not f.resolve().is_relative_to(place)]
    return files_within(path, *beside, *(folder.parent / "masks" for folder in beside))


def read(path: Path) -> Capture:
    """Registered images in natural order of their names, from the folder that has most of them, the largest of equals.

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
    return Capture(path.resolve().name, tuple(photos), splits, "every_8th" if scored else None)


def _require_model(path: Path) -> Path:
    model = find_model(path)
    if model is None:
        raise UserError(f"There is no COLMAP model (cameras.bin or .txt) in '{path}', its sparse/0 or its sparse folder.")
    return model


def _every_eighth(names: list[str]) -> Split:
    """The field counts in alphabetical order (9 after 10), whatever the order of the capture."""
    order = sorted(range(len(names)), key=lambda i: names[i])
    return Split(*(tuple(sorted(order[i] for i in part)) for part in every_eighth(len(names))))


def _is_model(folder: Path) -> bool:
    return any((folder / f"cameras{s}").is_file() and (folder / f"images{s}").is_file() for s in (".bin", ".txt"))


def _check_lengths(model: Path) -> None:
    """pycolmap takes what is missing from a truncated binary file for counts, and allocates for minutes."""
    walks = {"cameras": _after_camera, "images": _after_image, "points3D": _after_point}
    for file, after in ((model / f"{name}.bin", after) for name, after in walks.items()):
        if not file.is_file():
            continue
        data = file.read_bytes()
        try:
            place = 8
            for _ in range(struct.unpack_from("<Q", data)[0]):
                place = after(data, place)
        except (struct.error, ValueError):
            place = -1
        if place != len(data):
            raise UserError(f"The COLMAP file {file} is truncated or damaged; copy it again or export the model anew.")


def _camera_models(model: Path) -> list[str]:
    """The camera models by name. Raises struct.error, ValueError or IndexError where the file is damaged."""
    if not (model / "cameras.bin").is_file():
        lines = (model / "cameras.txt").read_text(errors="replace").splitlines()
        return [line.split()[1] for line in lines if line.strip() and not line.startswith("#")]
    data, place, names = (model / "cameras.bin").read_bytes(), 8, []
    for _ in range(struct.unpack_from("<Q", data)[0]):
        names.append(pycolmap.CameraModelId(struct.unpack_from("<i", data, place + 4)[0]).name)
        place = _after_camera(data, place)
    return names


def _after_camera(data: bytes, place: int) -> int:
    """Id, model, width, height, parameters."""
    model = struct.unpack_from("<i", data, place + 4)[0]
    return place + 24 + 8 * len(pycolmap.Camera.create_from_model_id(1, pycolmap.CameraModelId(model), 1.0, 1, 1).params)


def _after_image(data: bytes, place: int) -> int:
    """Id, quaternion, translation, camera, name with a zero at its end, keypoints."""
    name_end = data.index(b"\0", place + 64)
    return name_end + 9 + 24 * struct.unpack_from("<Q", data, name_end + 1)[0]


def _after_point(data: bytes, place: int) -> int:
    """Id, position, colour, error, track."""
    return place + 51 + 8 * struct.unpack_from("<Q", data, place + 43)[0]


def _image_folders(path: Path, model: Path) -> list[Path]:
    """Where pictures may be: ``images`` and ``images_N`` of the scene, beside the model and above it."""
    return [folder for root in dict.fromkeys((path, model, *model.resolve().parents[:3])) for folder in image_folders(root)]


def _find_images(path: Path, model: Path, names: Sequence[str]) -> Path:
    counts = {f: sum((f / name).is_file() for name in names) for f in (*_image_folders(path, model), path)}
    found = max(counts, key=lambda folder: counts[folder])  # the first of equals
    if not counts[found]:
        raise UserError(f"The images of the COLMAP model in {model} (such as {names[0]}) are not in {path / 'images'}.")
    return found


def _photo(image: pycolmap.Image, camera: pycolmap.Camera, path: Path, name: str) -> Photo:
    fx, fy, cx, cy, *distortion = _opencv_parameters(camera)
    world_to_cam = torch.eye(4, dtype=torch.float64)
    world_to_cam[:3] = torch.from_numpy(image.cam_from_world().matrix())
    mask = find_mask(path)
    return Photo(
        name,
        partial(read_image, path, upright=False),
        None if mask is None else partial(read_mask, mask, upright=False),
        focal=read_focal(path),
        intrinsics=pinhole(fx, fy, cx, cy),
        size=(camera.height, camera.width),
        distortion=(distortion[0], distortion[1], distortion[2], distortion[3]),
        cam_to_world=torch.linalg.inv(world_to_cam).float(),
    )


def _opencv_parameters(camera: pycolmap.Camera) -> list[float]:
    places = _PARAMETERS.get(camera.model.name)
    if places is None:
        raise UserError(
            f"COLMAP camera {camera.camera_id} has the model {camera.model.name}; undistort the images first "
            f"(colmap image_undistorter) or use one of {', '.join(_PARAMETERS)}."
        )
    return [0.0 if place is None else float(camera.params[place]) for place in places]
