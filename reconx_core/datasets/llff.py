"""LLFF's ``poses_bounds.npy`` beside ``images`` or ``images_N``, scored on every eighth view."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from reconx_core.datasets import colmap
from reconx_core.datasets.calibrated import calibrated_photo
from reconx_core.datasets.capture import Capture, Photo, Split, every_eighth, pinhole
from reconx_core.datasets.photos import find_mask, find_photos, image_folders, unique_names
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


def is_scene(path: Path) -> bool:
    """Whether there is ``poses_bounds.npy`` and no undistorted COLMAP model, which is more precise and is read instead.

    Mip-NeRF 360's scenes have both. LLFF's own scenes have a COLMAP model with distortion, which ``poses_bounds.npy`` and
    published results leave out.
    """
    model = colmap.find_model(path)
    return (path / "poses_bounds.npy").is_file() and (model is None or colmap.holds_distortion(model))


def read(path: Path) -> Capture:
    """Photos in the order of the poses, with the splits ``every_8th`` (default) and ``train_3``, ``train_6``, ``train_9``.

    Raises:
        UserError: the file is no LLFF array, no folder has one image for each pose, or the COLMAP model is incomplete.
    """
    _require_complete_model(path)
    poses, heights, widths, focals = _load(path / "poses_bounds.npy")
    files = _find_images(path, len(poses))
    cameras = zip(files, unique_names(files), poses, heights.tolist(), widths.tolist(), focals.tolist())
    photos = tuple(_photo(file, name, pose, h, w, f) for file, name, pose, h, w, f in cameras)
    return make_usable(Capture(path.resolve().name, photos, _splits(len(photos)), "every_8th"), path / "poses_bounds.npy")


def check(path: Path) -> None:
    """Raises UserError if the poses cannot be read, pictures are missing, or the COLMAP model beside them is incomplete."""
    _require_complete_model(path)
    _find_images(path, len(_load(path / "poses_bounds.npy")[0]))


def opencv_from_llff(poses: Float[Tensor, "n 3 4"]) -> Float[Tensor, "n 4 4"]:
    """LLFF's camera axes are (down, right, backwards)."""
    import torch

    down, right, backwards, origin = poses.unbind(-1)
    top = torch.stack([right, down, -backwards, origin], -1)
    return torch.cat([top, top.new_tensor([0.0, 0.0, 0.0, 1.0]).expand(len(top), 1, 4)], 1)


def _require_complete_model(path: Path) -> None:
    """Raises UserError for an incomplete COLMAP model: a complete one decides which cameras are read."""
    if (path / "sparse").is_dir() and colmap.find_model(path) is None:
        raise UserError(
            f"The COLMAP model in {path / 'sparse'} is not whole; fetch it, or remove sparse to use poses_bounds.npy."
        )


def _load(file: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    import torch

    array = _load_array(file)
    if array.ndim != 2 or array.shape[1] != 17 or array.dtype.kind not in "fiu" or not np.isfinite(array[:, :15]).any():
        raise UserError(f"{file} should hold n rows of 17 numbers (LLFF), but has shape {array.shape} of {array.dtype}.")
    matrices = torch.from_numpy(array[:, :15].astype(np.float64).reshape(-1, 3, 5))
    height, width, focal = matrices[:, :, 4].float().unbind(-1)
    return opencv_from_llff(matrices[:, :, :4]), height, width, focal


def _load_array(file: Path) -> np.ndarray:
    """The array in a file. Raises UserError for an archive of arrays, pickled objects, and what is no file of NumPy's."""
    try:
        array = np.load(file, allow_pickle=False)
    except OSError as error:
        raise UserError(f"Cannot read {file}: {error}.") from None
    except (ValueError, EOFError, zipfile.BadZipFile):
        array = None  # NumPy's own words are on how to unpickle it
    if not isinstance(array, np.ndarray):
        size = file.stat().st_size
        raise UserError(f"{file} ({size} bytes) is no array of numbers as LLFF stores it (.npy); download or export it again.")
    return array


def _find_images(path: Path, count: int) -> list[Path]:
    """The images of the largest size that has one for each pose, in LLFF's (plain alphabetical) order."""
    for folder in image_folders(path):
        files = sorted(find_photos(folder), key=lambda p: p.name)
        if len(files) == count:
            return files
    raise UserError(f"'{path}' has {count} poses, but neither images nor any images_N folder has as many photos.")


def _photo(file: Path, name: str, pose: Tensor, height: float, width: float, focal: float) -> Photo:
    if not all(map(math.isfinite, (height, width, focal))):
        return calibrated_photo(file, name, find_mask(file), None, None, pose)
    size = (round(height), round(width))
    return calibrated_photo(file, name, find_mask(file), pinhole(focal, focal, size[1] / 2, size[0] / 2), size, pose)


def _splits(count: int) -> dict[str, Split]:
    """Sparse inputs as RegNeRF and FSGS choose them: evenly spaced among the views that are not held out."""
    full = every_eighth(count)
    pick = {n: np.linspace(0, len(full.inputs) - 1, n).round().astype(int) for n in (3, 6, 9) if n <= len(full.inputs)}
    return {"every_8th": full} | {f"train_{n}": Split(tuple(full.inputs[i] for i in p), full.targets) for n, p in pick.items()}
