"""DTU's scans, in the four layouts that are in circulation.

=========  ==============================================  ===================================================
layout     pictures                                        cameras
=========  ==============================================  ===================================================
MVSNet     ``Rectified/scan1_train/rect_001_3_r5000.png``  ``Cameras/00000000_cam.txt``, ``Cameras/train/...``
RegNeRF    ``Rectified/scan1/rect_001_3_r5000.png``        ``Calibration/cal18/pos_001.txt``
MVSNet     ``scan1/images/00000000.jpg``, or ``image``     ``scan1/cams/00000000_cam.txt``
IDR, NeuS  ``scan1/image/000000.png``                      ``scan1/cameras.npz`` or ``cameras_sphere.npz``
=========  ==============================================  ===================================================

Views count from 0, except in the names ``rect_001...`` and ``pos_001``, which count from 1. Object masks are in
``scan1/mask`` or, as they are published for scoring, in ``idrmasks/scan1`` or ``idrmasks/scan1/mask`` beside the scans.
"""

from __future__ import annotations

import re
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from reconx_core.datasets.capture import Capture, Photo, Split, pinhole
from reconx_core.datasets.photos import find_photos, relative_names, unique_names
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.io.files import read_text
from reconx_core.io.images import ImageError, read_focal, read_image, read_mask, read_size

if TYPE_CHECKING:
    from torch import Tensor

_SCAN = re.compile(r"(scan\d+)(?:_train)?")
_RECTIFIED = re.compile(r"rect_(\d{3})_3_r\d+\.(?:png|jpg)")  # light 3 of 7, as in published results
_CAMERA, _CALIBRATION = re.compile(r"(\d+)_cam\.txt"), re.compile(r"pos_(\d+)\.txt")
_WORLD_MAT = re.compile(r"world_mat_(\d+)")
_ARCHIVES = ("cameras.npz", "cameras_sphere.npz")
_FULL = (1200, 1600)
_CROP = (88, 160, 1024, 1280)  # top, left, height, width of MVSNet's crop, in pixels of the full picture
_SIZES = {"Cameras": _FULL, "train": (128, 160), "cal18": _FULL}  # of the pictures that cameras shared by all scans refer to
# pixelNeRF's split, as RegNeRF (google-research/regnerf) publishes it; views count from 0.
_VIEWS = 49
_INPUTS = (25, 22, 28, 40, 44, 48, 0, 8, 13)
_NOT_SCORED = (3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 36, 37, 38, 39)


class _Camera(NamedTuple):
    """A calibrated view."""

    intrinsics: Float[np.ndarray, "3 3"]
    world_to_cam: Float[np.ndarray, "3 4"]
    size: tuple[int, int] | None  # (height, width) that the intrinsics refer to; None: that of the scan's pictures


class _Unknown(ValueError):
    """A camera with NaN or infinite numbers."""


def is_scene(path: Path) -> bool:
    """Whether a folder has DTU's cameras, or its rectified pictures, whose cameras are elsewhere."""
    return path.is_dir() and (_own_cameras(path) is not None or any(_is_rectified(p) for p in path.glob("rect_*")))


def is_scan(name: str) -> bool:
    """Whether a folder is called as DTU's scans are."""
    return _SCAN.fullmatch(name) is not None


def check(path: Path) -> None:
    """Raises UserError if a scan has no cameras or no pictures."""
    _pictures(path, _camera_files(path).keys())


def files_of(path: Path) -> dict[str, Path]:
    """The pictures, cameras and object masks that a scan is read from, wherever they are."""
    source = _find_cameras(path)
    cameras = [] if source is None else [source] if source.is_file() else _in_folder(source).values()
    return relative_names(path, [*cameras, *_picture_files(path), *_mask_files(path)])


def read(path: Path) -> Capture:
    """Views in order of their numbers; those without a picture or a camera are left out with a warning.

    A scan with all of DTU's first 49 views has the splits ``train_3`` (default), ``train_6`` and ``train_9``. World units are
    the cameras' own (millimetres): ``scale_mat``, which moves the object into the unit sphere, is not applied.

    Raises:
        UserError: no cameras or no pictures, a damaged camera file, or cameras for pictures of another size.
    """
    cameras = _camera_files(path)
    pictures = _pictures(path, cameras.keys())
    _warn_of_gaps(path, pictures, cameras.keys())
    size = _first_size(pictures.values())
    masks = _numbered(_mask_files(path), pictures.keys())
    names = dict(zip(pictures, unique_names(pictures.values())))
    fitted = {
        view: _fit_camera(camera, size, f"view {view} of '{path}'")
        for view in pictures
        if (camera := _read_camera(cameras[view], view))
    }
    _warn_of_unknown(path, pictures, fitted)
    photos = tuple(
        replace(_photo(pictures[view], names[view], fitted[view], size, masks.get(view)), number=view) for view in fitted
    )
    splits = _splits(list(fitted))
    return make_usable(Capture(path.absolute().name, photos, splits, next(iter(splits), None)), path)


def decompose(projection: Float[np.ndarray, "3 4"]) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 4"]]:
    """Intrinsics (positive focal lengths, 1 at the end) and world-to-camera [R|t] of a projection matrix K[R|t] of any scale.

    Raises:
        ValueError: the matrix is not a camera's.
    """
    from scipy.linalg import rq

    _require_finite(projection)
    if projection.shape != (3, 4) or np.linalg.matrix_rank(projection[:, :3]) < 3:
        raise ValueError("a projection matrix should hold 3x4 finite numbers and have full rank")
    # A projection matrix is known up to its sign: take the one that is K times a rotation.
    projection = projection * np.sign(np.linalg.det(projection[:, :3]))
    intrinsics, rotation = rq(projection[:, :3])
    signs = np.sign(np.diag(intrinsics))
    intrinsics, rotation = intrinsics * signs, signs[:, None] * rotation
    translation = np.linalg.solve(intrinsics, projection[:, 3:])
    return intrinsics / intrinsics[2, 2], np.concatenate([rotation, translation], 1)


def _own_cameras(path: Path) -> Path | None:
    """Cameras inside the scan's folder: an archive, or a folder of files."""
    archive = next((path / name for name in _ARCHIVES if (path / name).is_file()), None)
    return archive or (path / "cams" if _in_folder(path / "cams") else None)


def _find_cameras(path: Path) -> Path | None:
    """The scan's own cameras, or those of all scans."""
    root = path.absolute().parent.parent
    shared = (root / "Cameras", root / "Cameras" / "train", root / "Calibration" / "cal18")
    return _own_cameras(path) or next((folder for folder in shared if _in_folder(folder)), None)


def _in_folder(folder: Path) -> dict[int, Path]:
    """Files of cameras by their views: ``00000000_cam.txt`` and ``cal18/pos_001.txt`` are both of view 0."""
    first, pattern = (1, _CALIBRATION) if folder.name == "cal18" else (0, _CAMERA)
    matches = {file: pattern.fullmatch(file.name) for file in folder.glob("*.txt")}
    return {int(match[1]) - first: file for file, match in matches.items() if match}


def _camera_files(path: Path) -> dict[int, Path]:
    """The file of each view's camera. Raises UserError if there is none."""
    source = _find_cameras(path)
    if source is None:
        places = "cams, cameras.npz, ../../Cameras or ../../Calibration/cal18"
        raise UserError(f"The DTU scan '{path}' has no cameras ({places}); fetch them, too.")
    if source.is_file():
        return {int(match[1]): source for name in _load_archive(source) if (match := _WORLD_MAT.fullmatch(name))}
    return _in_folder(source)


def _read_camera(file: Path, view: int) -> _Camera | None:
    """None if the camera has numbers that are not finite: it is unknown. Raises UserError if the file is damaged."""
    size = _SIZES.get(file.parent.name)
    try:
        if file.suffix == ".npz":
            return _Camera(*decompose(_load_archive(file)[f"world_mat_{view}"][:3].astype(np.float64)), None)
        if _CALIBRATION.fullmatch(file.name):
            return _Camera(*decompose(np.loadtxt(read_text(file).split("\n"))), size)
        return _Camera(*_parse_mvsnet(read_text(file, "replace")), size)
    except _Unknown:
        return None
    except (OSError, ValueError, IndexError) as error:
        raise UserError(f"The camera of view {view} in {file} is damaged ({error}); fetch it again.") from None


def _require_finite(*matrices: np.ndarray) -> None:
    if not all(np.isfinite(matrix).all() for matrix in matrices):
        raise _Unknown("its projection matrix holds numbers that are not finite")


def _load_archive(file: Path) -> Mapping[str, np.ndarray]:
    return _parse_archive(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _parse_archive(file: Path, modified: int) -> Mapping[str, np.ndarray]:
    if not zipfile.is_zipfile(file):  # NumPy would tell how to unpickle it, or read a single array
        raise UserError(f"{file} is no archive of cameras as NumPy writes it (.npz); fetch it again.")
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if _WORLD_MAT.fullmatch(name)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"Cannot read the cameras in {file} ({error}); fetch it again.") from None


def _parse_mvsnet(text: str) -> tuple[Float[np.ndarray, "3 3"], Float[np.ndarray, "3 4"]]:
    """``extrinsic`` with 16 numbers (world to camera), ``intrinsic`` with 9, and a depth range that is not used."""
    words = text.split()
    extrinsic, intrinsic = words.index("extrinsic") + 1, words.index("intrinsic") + 1
    world_to_cam = np.array(words[extrinsic : extrinsic + 16], dtype=np.float64).reshape(4, 4)[:3]
    intrinsics = np.array(words[intrinsic : intrinsic + 9], dtype=np.float64).reshape(3, 3)
    _require_finite(world_to_cam, intrinsics)
    rotation = world_to_cam[:, :3]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-3) or np.linalg.det(rotation) < 0:
        raise ValueError("its extrinsic is no rotation and translation")
    return intrinsics, world_to_cam


def _picture_files(path: Path) -> list[Path]:
    """Rectified pictures under one light, else the pictures in ``image`` or ``images``, in alphabetical order."""
    rectified = [file for file in path.glob("rect_*") if _is_rectified(file)]
    folders = (folder for folder in (path / "image", path / "images") if folder.is_dir())
    return sorted(rectified or next(filter(None, map(find_photos, folders)), []))


def _is_rectified(file: Path) -> bool:
    return _RECTIFIED.fullmatch(file.name) is not None


def _mask_files(path: Path) -> list[Path]:
    """Object masks, in alphabetical order."""
    match = _SCAN.fullmatch(path.absolute().name)
    scan = match[1] if match else path.absolute().name
    parents = [parent / below for parent in path.absolute().parents[:2] for below in ("", "submission_data")]
    published = [parent / "idrmasks" / scan for parent in parents]
    folders = [path / "mask", *(masks for folder in published for masks in (folder / "mask", folder))]
    return sorted(next(filter(None, map(find_photos, filter(Path.is_dir, folders))), []))


def _pictures(path: Path, views: Set[int]) -> dict[int, Path]:
    """The picture of each view that has one. Raises UserError if none has."""
    files = _picture_files(path)
    pictures = _numbered(files, views)
    if not pictures:
        what = f"none of its {len(files)} pictures has" if files else "no pictures (image, images or rect_001_3_r5000.png) for"
        raise UserError(f"The DTU scan '{path}' has {what} one of its {len(views)} cameras; fetch the rest.")
    return pictures


def _numbered(files: list[Path], views: Set[int]) -> dict[int, Path]:
    """Files by view number; files without numbers, or counted from 1, are taken in order if there is one for each view."""
    numbers = {number: file for file in files if (number := _number(file)) is not None}
    if len(files) == len(views) and (len(numbers) < len(files) or numbers.keys() == {view + 1 for view in views}):
        return dict(zip(sorted(views), files))
    return {number: numbers[number] for number in sorted(numbers.keys() & views)}


def _number(file: Path) -> int | None:
    if match := _RECTIFIED.fullmatch(file.name):
        return int(match[1]) - 1
    return int(file.stem) if file.stem.isdecimal() else None


def _warn_of_gaps(path: Path, pictures: Mapping[int, Path], views: Set[int]) -> None:
    """Warn of missing pictures and cameras. Shared cameras cover 64 views, of which most scans have the first 49."""
    count = len(views) if max(pictures) >= _VIEWS else _VIEWS
    missing = [view for view in sorted(views)[:count] if view not in pictures]
    if missing:
        total = len(missing) + len(pictures)
        problem = f"{len(missing)} of {total} pictures of '{path}' are missing, such as view {missing[0]}"
        warnings.warn(f"{problem}; they are left out.", stacklevel=3)
    unknown = len(_picture_files(path)) - len(pictures)
    if unknown:
        warnings.warn(f"{unknown} pictures of '{path}' have no camera; they are left out.", stacklevel=3)


def _warn_of_unknown(path: Path, pictures: Mapping[int, Path], fitted: Mapping[int, _Camera]) -> None:
    """Warn of cameras that are not finite. Raises UserError if no other is there."""
    unknown = [view for view in pictures if view not in fitted]
    if not fitted:
        raise UserError(f"The cameras of all views of '{path}' hold numbers that are not finite; fetch them again.")
    if unknown:
        problem = (
            f"The cameras of {len(unknown)} of {len(pictures)} views of '{path}', such as view {unknown[0]}, are not finite"
        )
        warnings.warn(f"{problem}; these views are left out.", stacklevel=3)


def _first_size(pictures: Iterable[Path]) -> tuple[int, int] | None:
    """(height, width) of the first readable picture; all pictures of a scan have one size."""
    for picture in pictures:
        try:
            return read_size(picture)
        except ImageError:  # reported by name when the photo itself is loaded
            continue
    return None


def _fit_camera(camera: _Camera, picture: tuple[int, int] | None, label: str) -> _Camera:
    """The camera for pictures of size ``picture``: shared cameras refer to the full picture or to MVSNet's crop of it.

    Raises:
        UserError: the intrinsics do not fit a picture of that size.
    """
    intrinsics, size = camera.intrinsics, camera.size or picture
    if size is None or picture is None:
        return camera
    if camera.size is not None:
        intrinsics, size = _convert_crop(intrinsics, camera.size, picture)
    offset = np.abs(intrinsics[:2, 2] / (size[1], size[0]) - 0.5)
    if offset.max() > 0.25:
        centre = f"({intrinsics[0, 2]:.0f}, {intrinsics[1, 2]:.0f})"
        raise UserError(f"The camera of {label} is not for a picture of {size[1]}x{size[0]}: its principal point is {centre}.")
    if abs(intrinsics[0, 1]) > 1e-3 * intrinsics[0, 0]:
        raise UserError(f"The camera of {label} has skewed pixels ({intrinsics[0, 1]:.1f}), which are not supported.")
    return _Camera(intrinsics, camera.world_to_cam, size)


def _convert_crop(
    intrinsics: Float[np.ndarray, "3 3"], size: tuple[int, int], picture: tuple[int, int]
) -> tuple[Float[np.ndarray, "3 3"], tuple[int, int]]:
    """Intrinsics and size for the full picture (4:3) or its centre crop (5:4), whichever ``picture`` has the aspect of."""
    top, left, height, width = _CROP
    corner = np.array([[0.0, 0.0, left], [0.0, 0.0, top], [0.0, 0.0, 0.0]])
    if _is_cropped(size):
        intrinsics = np.array([[width / size[1]], [height / size[0]], [1.0]]) * intrinsics + corner
    return (intrinsics - corner, (height, width)) if _is_cropped(picture) else (intrinsics, _FULL)


def _is_cropped(size: tuple[int, int]) -> bool:
    return size[1] * 4 == size[0] * 5


def _photo(file: Path, name: str, camera: _Camera, picture: tuple[int, int] | None, mask: Path | None) -> Photo:
    import torch

    fx, fy, cx, cy = camera.intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    world_to_cam = np.concatenate([camera.world_to_cam, [[0.0, 0.0, 0.0, 1.0]]])
    cropped = picture is not None and _is_cropped(picture)
    return Photo(
        name,
        partial(read_image, file, upright=False),
        focal=read_focal(file),
        intrinsics=pinhole(fx, fy, cx, cy),
        size=camera.size,
        cam_to_world=torch.from_numpy(np.linalg.inv(world_to_cam)),
        load_object_mask=None if mask is None else partial(_read_object_mask, mask, cropped),
    )


def _read_object_mask(file: Path, cropped: bool) -> Bool[Tensor, "h w"]:
    """True on the object. Masks are for full pictures, so the mask of a cropped picture is cropped, too."""
    mask = read_mask(file, upright=False)
    height, width = mask.shape
    if not cropped or _is_cropped((height, width)):
        return mask
    top, left = round(_CROP[0] * height / _FULL[0]), round(_CROP[1] * width / _FULL[1])
    return mask[top : height - top, left : width - left]


def _splits(views: list[int]) -> dict[str, Split]:
    """The first 3, 6 and 9 of RegNeRF's inputs; all are scored on the same views, none of which is an input of any."""
    if views[:_VIEWS] != list(range(_VIEWS)):
        return {}
    targets = tuple(view for view in range(_VIEWS) if view not in (*_INPUTS, *_NOT_SCORED))
    return {f"train_{count}": Split(tuple(sorted(_INPUTS[:count])), targets) for count in (3, 6, 9)}
