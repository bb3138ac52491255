"""What a picture's file tells beside its pixels: orientation, focal length, and whether its projection is a pinhole's.

Cameras, editors and messengers write broken EXIF, on which Pillow raises whatever its parsers end in. Such a block is ignored.
"""

from __future__ import annotations

import math
import re
from typing import Any

from PIL import ExifTags, Image

_DIAGONAL_35MM = math.hypot(36, 24)
_UNITS_PER_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # FocalPlaneResolutionUnit: inch, cm, mm, um
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GPANO = re.compile(rb"GPano:ProjectionType\W+(\w+)", re.IGNORECASE)
_LARGE = 64_000_000  # pixels
SHORTEST, LONGEST = 0.1, 50.0  # focal lengths in long sides of the picture: 169 degrees, and a telescope
_SWEPT = 6  # CustomRendered of the panoramas that phones stitch


def turn_of(picture: Image.Image) -> Image.Transpose | None:
    """How the decoded picture must be turned to be upright, None for not at all. Raises ValueError if its EXIF is broken."""
    try:
        return _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))  # type: ignore[arg-type]
    except Exception as error:
        raise ValueError(f"broken EXIF: {error}") from error


def focal_of(picture: Image.Image) -> float:
    """Focal length in pixels of the stored picture; NaN where it is unknown, no lens has it, or the EXIF is broken."""
    try:
        focal = _focal(picture, _camera_tags(picture))
    except Exception:
        return math.nan
    return focal if SHORTEST <= focal / max(picture.size) <= LONGEST else math.nan


def projection_of(picture: Image.Image) -> str | None:
    """What the file names the picture as, if that is no photo of a pinhole camera: a panorama or of a fisheye lens."""
    found = _GPANO.search(_xmp(picture))
    if found:
        return f"a panorama ({found[1].decode().lower()})"
    try:
        tags = _camera_tags(picture)
    except Exception:
        return None
    if tags.get(ExifTags.Base.CustomRendered) == _SWEPT:
        return "a panorama"
    lens = str(tags.get(ExifTags.Base.LensModel, ""))
    return f"of a fisheye lens ({lens})" if "fisheye" in lens.lower().replace("-", "") else None


def _camera_tags(picture: Image.Image) -> dict[int, Any]:
    # The EXIF of a PNG may stand behind its pixels, and Pillow decodes them to look there: not worth it for a huge one.
    large = picture.width * picture.height > _LARGE
    exif = Image.Image.getexif(picture) if large else picture.getexif()
    return exif.get_ifd(ExifTags.IFD.Exif)


def _xmp(picture: Image.Image) -> bytes:
    found = picture.info.get("xmp") or picture.info.get("XML:com.adobe.xmp") or b""
    return found.encode() if isinstance(found, str) else bytes(found)


def _focal(picture: Image.Image, tags: dict[int, Any]) -> float:
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
