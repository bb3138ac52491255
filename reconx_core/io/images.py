"""Reading photos and writing pictures with Pillow: EXIF rotation and focal length, HEIC."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pillow_heif
import torch
from jaxtyping import Bool, Float
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic

pillow_heif.register_heif_opener()

SUFFIXES = (".jpg", ".jpeg", ".png", ".heic", ".heif", ".webp", ".tif", ".tiff", ".bmp")
_DIAGONAL_35MM = math.hypot(36, 24)
_UNITS_PER_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # EXIF FocalPlaneResolutionUnit: inch, cm, mm, um


class ImageError(UserError):
    """One picture cannot be read; the message names the file."""


def is_image(path: Path) -> bool:
    """Whether the file name is a picture's."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def read_image(path: Path, upright: bool = True) -> Float[Tensor, "h w 3"]:
    """A picture as float32 RGB in [0, 1]; transparent pixels are composited over white.

    ``upright`` applies the EXIF rotation. Calibrated datasets pass False: COLMAP and similar tools calibrate pixels as stored.

    Raises:
        ImageError: the file is missing, truncated or no picture.
    """
    picture = _open(path, upright)
    if picture.mode in ("I", "I;16", "I;16B", "I;16L"):
        grey = np.asarray(picture.convert("I"), dtype=np.float32) / 65535
        return torch.from_numpy(np.repeat(grey[..., None], 3, -1)).clamp(0, 1)
    if "A" in picture.getbands() or "transparency" in picture.info:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _from_pillow(picture.convert("RGB"))


def read_mask(path: Path, upright: bool = True) -> Bool[Tensor, "h w"]:
    """A mask picture: True (may be used) where it is brighter than half. Raises ImageError as :func:`read_image`."""
    return read_image(path, upright).mean(-1) > 0.5


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the stored picture, from its header. Raises ImageError if there is none."""
    try:
        with Image.open(path) as picture:
            return picture.height, picture.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"Cannot read the picture {path}: {error}.") from error


def read_focal(path: Path) -> float:
    """Focal length in pixels of the stored picture from EXIF; NaN where it is unknown or the file cannot be read."""
    try:
        with Image.open(path) as picture:
            return _focal_from_exif(picture)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return math.nan


def resize(image: Float[Tensor, "h w 3"], height: int, width: int) -> Float[Tensor, "height width 3"]:
    """Resize a picture (Lanczos, antialiased), in 8 bits like every picture on disk."""
    if image.shape[:2] == (height, width):
        return image
    return _from_pillow(_to_pillow(image).resize((width, height), Image.Resampling.LANCZOS))


def resize_images(images: Float[Tensor, "n h w 3"], height: int, width: int) -> Float[Tensor, "n height width 3"]:
    """Resize a stack of pictures (bilinear, antialiased); returns the stack itself if the size does not change."""
    if images.shape[1:3] == (height, width):
        return images
    resized = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def resize_mask(mask: Bool[Tensor, "h w"], height: int, width: int) -> Bool[Tensor, "height width"]:
    """Resize a mask; True only where (nearly) all source pixels are True."""
    if mask.shape == (height, width):
        return mask
    share = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(share) >= 250)


def to_uint8(image: Float[Tensor, "*n"]) -> np.ndarray:
    """[0, 1] to 0...255, rounded to nearest."""
    return image.detach().clamp(0, 1).mul_(255).round_().to(torch.uint8).cpu().numpy()


def write_png(path: Path, image: Float[Tensor, "h w *c"]) -> None:
    """A grey [h w] or RGB [h w 3] picture, 8 bits, atomically. Raises OSError if it cannot be written."""
    write_atomic(path, encode(image, "PNG"))


def encode(image: Float[Tensor, "h w *c"], format: str, **options: object) -> bytes:
    """The bytes of a picture file (PNG, JPEG, ...)."""
    buffer = io.BytesIO()
    _to_pillow(image).save(buffer, format, **options)
    return buffer.getvalue()


def _open(path: Path, upright: bool) -> Image.Image:
    try:
        with Image.open(path) as picture:
            picture.load()
            return ImageOps.exif_transpose(picture) if upright else picture.copy()
    except FileNotFoundError:
        raise ImageError(f"There is no picture {path}.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"Cannot read the picture {path}: {error}.") from error


def _from_pillow(picture: Image.Image) -> Float[Tensor, "h w 3"]:
    return torch.from_numpy(np.array(picture)).float().div_(255)


def _to_pillow(image: Float[Tensor, "h w *c"]) -> Image.Image:
    return Image.fromarray(to_uint8(image))


def _focal_from_exif(picture: Image.Image) -> float:
    tags = picture.getexif().get_ifd(ExifTags.IFD.Exif)
    equivalent = _positive(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if not math.isnan(equivalent):
        # The equivalent is defined over the diagonal (CIPA DCG-001), which matters for the 4:3 pictures of phones.
        return equivalent / _DIAGONAL_35MM * math.hypot(*picture.size)
    focal_mm = _positive(tags.get(ExifTags.Base.FocalLength))
    per_unit = _positive(tags.get(ExifTags.Base.FocalPlaneXResolution))
    unit = _UNITS_PER_MM.get(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2), math.nan)
    taken_width = _positive(tags.get(ExifTags.Base.ExifImageWidth, picture.width))
    return focal_mm * per_unit / unit * picture.width / taken_width


def _positive(value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return math.nan
    return number if 0 < number < math.inf else math.nan
