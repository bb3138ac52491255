"""A capture as a folder of pictures, ``transforms.json`` and ``split.json``, so that demos read it like a user's own data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from PIL import ExifTags, Image

from reconx_core.datasets.capture import DISTORTION, Capture, Photo
from reconx_core.export.nerfstudio import frame
from reconx_core.io.files import write_atomic, write_json
from reconx_core.io.images import encode


def write_photos(capture: Capture, folder: Path, format: Literal["JPEG", "PNG"] = "JPEG", cameras: bool = True) -> list[Path]:
    """Writes ``images/NAME`` and, with ``cameras``, ``transforms.json`` and ``split.json``; returns the pictures' paths.

    JPEGs carry the focal length in EXIF, as a camera's do.
    """
    suffix = {"JPEG": ".jpg", "PNG": ".png"}[format]
    paths = [folder / "images" / f"{photo.name}{suffix}" for photo in capture.photos]
    for photo, path in zip(capture.photos, paths):
        image = photo.load()
        options: dict[str, Any] = {} if format == "PNG" else {"quality": 95, "exif": _exif(photo, image.shape[1])}
        write_atomic(path, encode(image, format, **options))
    if cameras:
        write_json(folder / "transforms.json", {"camera_model": _camera_model(capture), "frames": _frames(capture, paths)})
        splits = {name: {"train": list(s.inputs), "test": list(s.targets)} for name, s in capture.splits.items()}
        write_json(folder / "split.json", splits)
    return paths


def _camera_model(capture: Capture) -> str:
    return "FULL_OPENCV" if any(len(photo.distortion) > 5 for photo in capture.photos) else "OPENCV"


def _frames(capture: Capture, paths: list[Path]) -> list[dict[str, Any]]:
    frames = []
    for photo, path in zip(capture.photos, paths):
        if photo.intrinsics is None or photo.cam_to_world is None or photo.size is None:
            raise ValueError(f"Photo.intrinsics, cam_to_world and size: expected of {photo.name}, got None")
        calibrated = frame(f"images/{path.name}", photo.intrinsics, photo.cam_to_world, photo.size)
        frames.append(calibrated | dict(zip(DISTORTION, photo.distortion)))
    return frames


def _exif(photo: Photo, width: int) -> Image.Exif:
    """Focal length and sensor of a camera whose sensor is 36 mm wide."""
    exif = Image.Exif()
    if photo.intrinsics is not None and photo.size is not None:
        exif.get_ifd(ExifTags.IFD.Exif).update(
            {
                ExifTags.Base.FocalLength: float(photo.intrinsics[0, 0]) / photo.size[1] * 36,
                ExifTags.Base.FocalPlaneXResolution: width / 3.6,
                ExifTags.Base.FocalPlaneResolutionUnit: 3,
                ExifTags.Base.ExifImageWidth: width,
            }
        )
    return exif
