"""Photos for which a camera is known: as they are stored, or turned upright where only then the camera fits."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Bool, Float
from PIL.Image import Transpose

from reconx_core.datasets.capture import Photo, fits
from reconx_core.io.images import ImageError, read_depth, read_focal, read_image, read_mask, read_size, read_turn

if TYPE_CHECKING:
    from torch import Tensor

# Calibrating programs read pixels as stored, and so do we. But those who turn or convert pictures first calibrate the
# upright picture and leave the EXIF rotation of the original; the size that the camera is for tells them apart.
# The turns that swap height and width, as the axes to flip once rows and columns are swapped:
_SIDEWAYS: dict[Transpose | None, tuple[int, ...]] = {
    Transpose.TRANSPOSE: (),
    Transpose.ROTATE_270: (1,),
    Transpose.TRANSVERSE: (0, 1),
    Transpose.ROTATE_90: (0,),
}


def calibrated_photo(
    path: Path,
    name: str,
    mask: Path | None,
    intrinsics: Float[Tensor, "3 3"] | None,
    size: tuple[int, int] | None,
    cam_to_world: Float[Tensor, "4 4"] | None,
    distortion: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0),
    depth: tuple[Path, float] | None = None,
) -> Photo:
    """A photo whose picture, mask and camera agree; ``size`` is (height, width) of the picture that the camera is for.

    ``depth``: a file of z-depth, and its unit in that of the poses.
    """
    return Photo(
        name,
        partial(_read_picture, path, size),
        None if mask is None else partial(_read_mask, mask, path, size),
        focal=read_focal(path),
        intrinsics=intrinsics,
        size=size,
        distortion=distortion,
        cam_to_world=cam_to_world,
        load_depth=None if depth is None else partial(_read_depth, *depth, path, size),
    )


def upright_size(path: Path, cx: float | None, cy: float | None) -> tuple[int, int] | None:
    """(height, width) of a picture after its EXIF rotation if the principal point shows that the camera is for that.

    None if it is for the picture as stored, or nothing tells. Raises ImageError if there is no picture.
    """
    if cx is None or cy is None:
        return None
    height, width = read_size(path)
    distances = [abs(cx - w / 2) + abs(cy - h / 2) for h, w in ((height, width), (width, height))]
    return (width, height) if distances[1] < distances[0] and read_turn(path) in _SIDEWAYS else None


def _read_picture(path: Path, size: tuple[int, int] | None) -> Float[Tensor, "h w 3"]:
    image = read_image(path, upright=False)
    return _turned(image, read_turn(path)) if _needs_turn(image.shape, path, size) else image


def _read_mask(mask: Path, photo: Path, size: tuple[int, int] | None) -> Bool[Tensor, "h w"]:
    """A mask is turned as its photo is, unless it is upright already."""
    pixels = read_mask(mask, upright=False)
    return _turned(pixels, read_turn(photo)) if _needs_turn(pixels.shape, photo, size) else pixels


def _read_depth(depth: Path, unit: float, photo: Path, size: tuple[int, int] | None) -> Float[Tensor, "h w"]:
    """Turned as its photo is, unless it is upright already. Raises ImageError also where its shape is another."""
    pixels = read_depth(depth) * unit
    upright = _turned(pixels, read_turn(photo)) if _needs_turn(pixels.shape, photo, size) else pixels
    if size is not None and not fits(upright.shape, size):
        height, width = pixels.shape
        raise ImageError(f"{depth} is {width}x{height}, another shape than that of its photo, {size[1]}x{size[0]}.")
    return upright


def _needs_turn(shape: Sequence[int], photo: Path, size: tuple[int, int] | None) -> bool:
    if size is None or fits(shape, size) or not fits((shape[1], shape[0]), size):
        return False
    return read_turn(photo) in _SIDEWAYS


def _turned(pixels: Tensor, turn: Transpose | None) -> Tensor:
    """As the EXIF orientation says that the picture is to be seen."""
    import torch

    return torch.flip(pixels.transpose(0, 1), _SIDEWAYS[turn])
