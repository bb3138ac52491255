"""Reading photos and writing pictures with Pillow: EXIF rotation and focal length, HEIC, photos of 200 megapixels."""

from __future__ import annotations

import io
import math
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pillow_heif
from jaxtyping import Bool, Float
from PIL import Image

from reconx_core.errors import UserError
from reconx_core.io.exif import focal_of, projection_of, turn_of
from reconx_core.io.files import write_atomic

if TYPE_CHECKING:
    from torch import Tensor

pillow_heif.register_heif_opener()

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".heic", ".heif", ".hif", ".webp", ".avif", ".tif", ".tiff"),
    *(".bmp", ".jp2", ".ppm", ".pgm", ".pnm", ".tga"),
)
# Not read: of raw files Pillow would find the small preview only, and of the others the first picture or nothing.
_RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".k25", ".kdc", ".mef", ".mos"),
    *(".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
)
_UNREAD = (*_RAW, ".insp", ".exr", ".hdr", ".gif", ".jxl", ".jxr", ".psd", ".svg", ".xcf", ".eps", ".ico", ".dds", ".qoi")
_MOST_LOADED = 64_000_000  # pixels that are kept of a photo; more are reduced while the file is decoded
_MOST_DECODED = 2**29  # pixels that may be in memory for that: 2 GiB in Pillow
# What may be white: cameras store 12 bits in files of 16, where a photo of true 16 bits would be nearly black.
_WHITES = {"F": (1.0, 255.0), "I": (255.0, 4095.0, 65535.0)}
_PAGED = ("TIFF", "WEBP", "PNG")  # formats whose further pictures are other photos, and not a view for the other eye
_LIMIT = threading.Lock()
_POINTERS = {b"version https://git-lfs": "git lfs pull", b"/annex/objects/": "git annex get"}
_TURNED_BACK = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
_SIDEWAYS = (*_TURNED_BACK, Image.Transpose.TRANSPOSE, Image.Transpose.TRANSVERSE)
_NUMBERED = 25 / 255  # brightness that no pixel of a map of numbered objects exceeds, and some of every other mask
_CUT_OUT = 2  # colours, of 16, of a mask's opaque pixels; more are those of a photo
_INVERTED = "dynamic_mask_"  # instant-ngp's masks are white where a pixel may not be used


class ImageError(UserError):
    """One picture cannot be read; the message names the file."""


def is_image(path: Path) -> bool:
    """Whether the file name is a picture's."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def is_unread_picture(path: Path) -> bool:
    """Whether the file name is that of a picture in a format that is not read, such as a camera's raw files."""
    return path.suffix.lower() in _UNREAD and not path.name.startswith(".")


def read_image(path: Path, upright: bool = True) -> Float[Tensor, "h w 3"]:
    """A picture as float32 RGB in [0, 1]; transparent pixels are composited over white.

    Of more than 64 megapixels it is reduced to a half, a quarter, ..., so that memory is bounded.
    ``upright`` applies the EXIF rotation. Calibrated datasets pass False: COLMAP and similar tools calibrate pixels as stored.

    Raises:
        ImageError: the file is missing, truncated or no picture.
    """
    return _to_rgb(_open(path, upright), path)


def _to_rgb(picture: Image.Image, path: Path) -> Float[Tensor, "h w 3"]:
    import torch

    if picture.mode in ("F", "I", "I;16", "I;16B", "I;16L"):
        deep = picture if picture.mode == "F" else picture.convert("I")
        grey = _shares(np.asarray(deep, dtype=np.float32), _WHITES[deep.mode], path)
        return torch.from_numpy(np.repeat(grey[..., None], 3, -1)).clamp(0, 1)
    if _is_transparent(picture):
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return _from_pillow(picture.convert("RGB"))


def _is_transparent(picture: Image.Image) -> bool:
    return "A" in picture.getbands() or "transparency" in picture.info


def _shares(grey: Float[np.ndarray, "h w"], whites: tuple[float, ...], path: Path) -> Float[np.ndarray, "h w"]:
    """Brightness as shares of white, the least of the ``whites`` that no pixel exceeds; a warning tells where that is a guess.

    Raises:
        ImageError: none fits the picture's numbers.
    """
    darkest, brightest = float(grey.min(initial=0.0)), float(grey.max(initial=0.0))
    if not np.isfinite(grey).all() or darkest < 0 or brightest > whites[-1]:
        limits = f"{darkest:.6g} to {brightest:.6g}"
        raise ImageError(f"{path} has pixels from {limits}, whose white is unknown; convert it to 8 or 16 bits, or to 0...1.")
    # Integers of at most 1 are a black picture, or a mask.
    white = whites[-1] if brightest <= 1 < whites[0] else next(white for white in whites if brightest <= white)
    # Of two values, 0 and another one, it is a mask, of which only that counts.
    if white not in (1.0, 65535.0) and len(np.unique(grey)) > 2:
        warnings.warn(f"{path} has no pixel brighter than {brightest:.6g}, so {white:.0f} is taken for white.", stacklevel=3)
    return grey / np.float32(white)


def read_mask(path: Path, upright: bool = True) -> Bool[Tensor, "h w"]:
    """A mask picture: True (may be used) where it is brighter than half. Raises ImageError as :func:`read_image`.

    Of a mask with two values only, 0 and another one, the other is True: many programs write 0 and 1; of one that is all but
    black, as maps of numbered objects are, all that is not 0. What is transparent may not be used, and of a cut-out in a
    photo's colours what is opaque may.
    """
    picture = _open(path, upright)
    grey = _opaque_grey(picture) if _is_transparent(picture) else _to_rgb(picture, path).mean(-1)
    brightest = grey.max()
    two_values = brightest <= 0.5 and bool(((grey == 0) | (grey == brightest)).all())
    mask = grey > (0.0 if two_values or brightest <= _NUMBERED else 0.5)
    return ~mask if path.name.startswith(_INVERTED) else mask


def _opaque_grey(picture: Image.Image) -> Float[Tensor, "h w"]:
    """Brightness of a mask with transparent pixels, which become 0; of a cut-out, 1 where it is opaque."""
    rgba = _from_pillow(picture.convert("RGBA"))
    grey, opaque = rgba[..., :3].mean(-1), rgba[..., 3] > 0.5
    if bool((rgba[..., 3] == rgba[0, 0, 3]).all()):  # then it says nothing
        return grey
    return opaque.float() if len((grey[opaque] * 15).round().unique()) > _CUT_OUT else grey * opaque


def read_depth(path: Path) -> Float[Tensor, "h w"]:
    """A map of depth as its numbers are stored: a grey picture of 8 or 16 bits or floats, or an array of NumPy (``.npy``).

    0 where it is not known; so become NaN, infinite and negative numbers, which programs write there.

    Raises:
        ImageError: the file is missing, damaged or of another kind.
    """
    import torch

    with _errors_of(path):
        if path.suffix.lower() == ".npy":
            stored = np.load(path, allow_pickle=False).squeeze()
        else:
            stored = np.asarray(_open(path, upright=False))
        if stored.ndim != 2 or stored.dtype.kind not in "iuf":
            raise ValueError("a map of depth has one number for each pixel")
        depth = np.nan_to_num(stored.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    return torch.from_numpy(depth.clip(min=0))


def read_size(path: Path) -> tuple[int, int]:
    """(height, width) of the stored picture, from its header. Raises ImageError if there is none."""
    with _errors_of(path), _opened(path) as picture:
        width, height = reversed(picture.size) if _turn_by_pillow(picture) in _SIDEWAYS else picture.size
        return height, width


def read_focal(path: Path) -> float:
    """Focal length in pixels of the picture as it is loaded, from EXIF; NaN where it or the file cannot be read."""
    try:
        with _opened(path) as picture:
            return focal_of(picture) / _reduction(picture)
    except Exception:  # reported when the picture itself is loaded
        return math.nan


def read_turn(path: Path) -> Image.Transpose | None:
    """How the stored picture must be turned to be upright; None for not at all, or where the file or its EXIF is damaged."""
    try:
        with _opened(path) as picture:
            return turn_of(picture)
    except Exception:  # reported when the picture itself is loaded
        return None


def require_pinhole(path: Path) -> None:
    """Raises ImageError if the file says that the picture is a panorama or of a fisheye lens."""
    with _errors_of(path), _opened(path) as picture:
        projection = projection_of(picture)
    if projection is not None:
        raise ImageError(
            f"{path} is {projection}, which no pinhole camera fits; give ordinary photos or perspective cuts of it."
        )


def resize(image: Float[Tensor, "h w 3"], height: int, width: int) -> Float[Tensor, "height width 3"]:
    """Resize a picture (Lanczos, antialiased), in 8 bits like every picture on disk."""
    if image.shape[:2] == (height, width):
        return image
    return _from_pillow(_to_pillow(image).resize((width, height), Image.Resampling.LANCZOS))


def resize_images(images: Float[Tensor, "n h w 3"], height: int, width: int) -> Float[Tensor, "n height width 3"]:
    """Resize a stack of pictures (bilinear, antialiased); returns the stack itself if the size does not change."""
    if images.shape[1:3] == (height, width):
        return images
    import torch

    resized = torch.nn.functional.interpolate(images.permute(0, 3, 1, 2), (height, width), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous()


def resize_for_network(images: Float[Tensor, "n h w 3"], height: int, width: int) -> Float[Tensor, "n height width 3"]:
    """Resize a stack of pictures as DUSt3R and VGGT were trained: in 8 bits, Lanczos to shrink, bicubic to enlarge."""
    if images.shape[1:3] == (height, width):
        return images
    import torch

    method = Image.Resampling.LANCZOS if max(height, width) < max(images.shape[1:3]) else Image.Resampling.BICUBIC
    return torch.stack([_from_pillow(_to_pillow(image).resize((width, height), method)) for image in images])


def resize_mask(mask: Bool[Tensor, "h w"], height: int, width: int) -> Bool[Tensor, "height width"]:
    """Resize a mask; True only where (nearly) all source pixels are True."""
    if mask.shape == (height, width):
        return mask
    import torch

    share = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(share) >= 250)


def to_uint8(image: Float[Tensor, "*n"]) -> np.ndarray:
    """[0, 1] to 0...255, rounded to nearest."""
    import torch

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
    if path.suffix.lower() in _RAW:
        raise ImageError(f"{path} is a camera's raw file, which is not read; convert it to JPEG, PNG or TIFF.")
    with _errors_of(path), _opened(path) as picture:
        pages = getattr(picture, "n_frames", 1) if picture.format in _PAGED else 1
        if pages > 1:
            warnings.warn(f"{path} holds {pages} pictures; the first is used, and the others are not.", stacklevel=3)
        turned = _turn_by_pillow(picture)
        decoded = _decode(picture)
        turn = _turn_of(picture, path) if upright else turned and _TURNED_BACK.get(turned, turned)
        return decoded.copy() if turn is None else decoded.transpose(turn)


def _turn_by_pillow(picture: Image.Image) -> Image.Transpose | None:
    """How Pillow turns a picture while it decodes it, which it does with TIFF only; ``size`` is then that of the turned one."""
    return turn_of(picture) if picture.format == "TIFF" else None


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture, not yet decoded. Pillow's limit of pixels is lifted for this alone: :func:`_decode` has its own."""
    with _LIMIT:
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            opened = Image.open(path)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    with opened as picture:
        yield picture


@contextmanager
def _errors_of(path: Path) -> Iterator[None]:
    """Turns errors into ImageError."""
    try:
        yield
    except ImageError:
        raise
    except FileNotFoundError:
        what = "The picture {} is a link to a file that is not there" if path.is_symlink() else "There is no picture {}"
        raise ImageError(f"{what.format(path)}.") from None
    except Exception as error:  # decoders raise errors of many kinds on damaged files
        raise ImageError(_pointer(path) or f"Cannot read the picture {path}: {error}.") from error


def _pointer(path: Path) -> str | None:
    """A sentence if only a pointer to the picture is there, as Git LFS and git-annex leave them."""
    try:
        with path.open("rb") as file:
            start = file.read(256)
    except OSError:
        return None
    command = next((command for sign, command in _POINTERS.items() if sign in start), None)
    return command and f"{path} is only a pointer to the picture; fetch it with {command}."


def _turn_of(picture: Image.Image, path: Path) -> Image.Transpose | None:
    try:
        return turn_of(picture)
    except ValueError:
        warnings.warn(f"The EXIF data of {path} cannot be read; the photo is used as stored.", stacklevel=2)
        return None


def _reduction(picture: Image.Image) -> int:
    """The power of two by which both sides are divided when the picture is loaded."""
    excess = picture.width * picture.height / _MOST_LOADED
    return 1 if excess <= 1 else 2 ** math.ceil(math.log2(excess) / 2)


def _decode(picture: Image.Image) -> Image.Image:
    """The picture's pixels, reduced if they are too many. Raises ValueError if they would not fit in memory before that."""
    factor, (width, height) = _reduction(picture), picture.size
    if factor == 1:
        picture.load()
        return picture
    picture.draft(None, (width // factor, height // factor))  # a JPEG decodes to 1/2, 1/4 or 1/8 by itself
    if picture.width * picture.height > _MOST_DECODED:
        raise ValueError(f"it has {width * height / 1e6:.0f} megapixels; reduce it to at most {_MOST_DECODED / 1e6:.0f}")
    rest = factor // round(width / picture.width)
    return picture if rest == 1 else _reducible(picture).reduce(rest)


def _reducible(picture: Image.Image) -> Image.Image:
    """The picture in a mode whose pixels can be averaged."""
    if picture.mode.startswith("I;"):
        return picture.convert("I")
    if picture.mode in ("1", "P", "PA") or "transparency" in picture.info:
        return picture.convert("RGBA")
    return picture


def _from_pillow(picture: Image.Image) -> Float[Tensor, "h w 3"]:
    import torch

    return torch.from_numpy(np.array(picture)).float().div_(255)


def _to_pillow(image: Float[Tensor, "h w *c"]) -> Image.Image:
    return Image.fromarray(to_uint8(image))
