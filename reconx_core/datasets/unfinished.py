"""Partly downloaded scenes: how they are recognised in a folder of scenes, and what they lack.

A folder without any sign of a partial download is either no scene or a scene of photos without cameras.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from reconx_core.datasets import dl3dv, dtu
from reconx_core.io.images import is_image

_PICTURES = re.compile(r"images?(?:_\d+)?")
_REDUCED = re.compile(r"images_\d+")
_CAMERAS = re.compile(r"sparse|colmap|cams|nerfstudio|transforms.*\.json|poses_bounds\.npy|cameras(?:_sphere)?\.npz")


def describe_missing(folder: Path) -> str | None:
    """A sentence on what is missing from a folder that no reader accepts; None if it does not look like a scene at all."""
    entries = _entries(folder)
    if not entries:
        return f"'{folder}' is empty."
    named_like_scene = any(_PICTURES.fullmatch(entry.name) or _CAMERAS.fullmatch(entry.name) for entry in entries)
    if not (named_like_scene or dl3dv.is_hash(folder.name) or dtu.is_scan(folder.name)):
        return None
    folders = [entry for entry in entries if entry.is_dir() and _PICTURES.fullmatch(entry.name)]
    pictures = any(is_image(file) for pictures_folder in folders for file in pictures_folder.iterdir())
    return f"'{folder}' has {'pictures, but no' if pictures else 'neither pictures nor'} cameras."


def describe_missing_cameras(photos: Path) -> str | None:
    """A sentence on the cameras that are missing from a folder of photos; None if there is no sign that it should have any."""
    traces = [e.name for e in _entries(photos) if _CAMERAS.fullmatch(e.name) or _REDUCED.fullmatch(e.name)]
    if traces:
        return f"'{photos}' has photos and {' and '.join(traces)}, but no whole set of cameras."
    if dl3dv.is_hash(photos.name) or (photos.parent.name == "frames" and (photos.parent.parent / "cameras").is_dir()):
        return f"'{photos}' has photos, but no cameras."
    return None


def without_expected_cameras(photos: Sequence[Path], posed: Sequence[Path]) -> list[Path]:
    """Folders of photos that should have cameras, because most scenes with the same layout have them."""
    bare, complete = Counter(map(_has_images_folder, photos)), Counter(map(_has_images_folder, posed))
    return [folder for folder in photos if complete[_has_images_folder(folder)] > bare[_has_images_folder(folder)]]


def _has_images_folder(scene: Path) -> bool:
    return (scene / "images").is_dir()


def _entries(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
