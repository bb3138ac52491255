"""One reader per dataset format, and detection of the format of a path.

Torch is loaded when a scene is read, not when one is looked for: its import takes longer than to tell a user's mistake.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconx_core.datasets import (
    blender,
    colmap,
    dl3dv,
    dtu,
    llff,
    nerfstudio,
    photos,
    picked,
    polycam,
    procedural_spec,
    realestate,
    unfinished,
    video,
)
from reconx_core.datasets.capture import Capture, Photo, Split, every_eighth, fits
from reconx_core.errors import UserError
from reconx_core.io.images import is_image, is_unread_picture
from reconx_core.io.video import is_video
from reconx_core.names import abbreviate, one_line, unique_shown

__all__ = [
    "FORMATS",
    "Capture",
    "Format",
    "Photo",
    "Split",
    "describe",
    "detect",
    "every_eighth",
    "files_of",
    "fits",
    "is_place",
    "read",
    "scene_names",
]


@dataclass(frozen=True)
class Format:
    """A reader and the test by which its paths are recognised."""

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Capture]
    check: Callable[[Path], None] | None = None  # formats with cameras only: raises UserError if half downloaded
    files: Callable[[Path], dict[str, Path]] = photos.files_within


def _read_procedural(path: Path) -> Capture:
    from reconx_core.datasets import procedural

    return procedural.read(path)


# The first match wins. Photos come last, because a folder with camera data usually holds photos, too.
FORMATS = (
    Format("procedural", procedural_spec.is_spec, _read_procedural, files=lambda path: {}),
    Format("photo files", picked.is_spec, picked.read, files=picked.files_of),
    Format(
        "realestate10k",
        lambda path: realestate.is_scene(path) or realestate.holds_scenes(path),
        realestate.read,
        realestate.check,
        realestate.files_of,
    ),
    Format("dl3dv", dl3dv.is_scene, dl3dv.read, dl3dv.check, nerfstudio.files_of),
    Format("nerfstudio", nerfstudio.is_scene, nerfstudio.read, nerfstudio.check, nerfstudio.files_of),
    Format("blender", blender.is_scene, blender.read, blender.check, blender.files_of),
    Format("llff", llff.is_scene, llff.read, llff.check),
    Format("colmap", lambda path: colmap.find_model(path) is not None, colmap.read, colmap.check, colmap.files_of),
    Format("dtu", dtu.is_scene, dtu.read, dtu.check, dtu.files_of),
    Format("polycam", polycam.is_scene, polycam.read, polycam.check),
    Format("video", lambda path: path.is_file() and is_video(path), video.read, files=lambda path: {path.name: path}),
    Format("photos", photos.holds_photos, photos.read, files=photos.files_of),
)


def detect(path: Path) -> Format:
    """The format of a scene.

    Raises:
        UserError: the path does not exist, or no reader recognises it.
    """
    found = _format_of(path)
    if found is not None:
        return found
    if path.is_dir():
        unread = photos.describe_unread(path)
        if not unread and any(path.iterdir()) and (problem := unfinished.describe_missing(path)):
            raise UserError(f"{problem} Fetch what is missing.")
        if below := [folder.name for folder in photos.folders_of_photos(path)]:
            raise UserError(f"The photos of '{path}' are in folders of it ({abbreviate(below)}); give one of these.")
        problem = f"There are no photos in '{path}'; JPEG, PNG, HEIC, AVIF, WebP, TIFF, JPEG 2000 and BMP are read."
        raise UserError(f"{problem} {unread}".strip())
    if path.exists():
        raise UserError(f"'{path}' is none of the formats that are read ({', '.join(f.name for f in FORMATS)}).")
    raise UserError(f"There is no '{path}'; give a folder of photos, a video or a dataset.")


def is_place(source: Path | str) -> bool:
    """Whether a scene's source is a path, not a text that stands for a procedure or for photo files."""
    return not (procedural_spec.is_spec(source) or picked.is_spec(source))


def describe(source: str) -> str:
    """A scene's or a dataset's source as a user is told of it."""
    return picked.describe(source) if picked.is_spec(source) else source


def read(path: Path) -> Capture:
    """A scene in any known format. Raises UserError as :func:`detect` and the format's reader."""
    found = detect(path)
    if found.name == "photos" and (problem := unfinished.describe_missing_cameras(path)):
        warnings.warn(f"{problem} They are estimated.", stacklevel=1)
    return found.read(path)


def files_of(scene: Path) -> dict[str, Path]:
    """All files that the scene's reader may read, by their names in the cache key; empty for a procedural scene."""
    found = _format_of(scene)
    if found is not None:
        return found.files(scene)
    return {scene.name: scene} if scene.is_file() else photos.files_within(scene)


def scene_names(dataset: Path) -> list[tuple[str, Path]]:
    """(name, path) of every scene in a dataset: itself if it is one scene, else those in its chunks or the folders in it.

    ``procedural:room?seed=0..4`` stands for five scenes. Scenes that are missing or half downloaded are left out; a warning
    names them. Hidden folders are ignored.

    Raises:
        UserError: there is no complete scene, or none of the chunks can be read.
    """
    if procedural_spec.is_spec(dataset):
        return [(procedural_spec.scene_name(spec), spec) for spec in procedural_spec.expand(dataset)]
    if picked.is_spec(dataset):
        return [(picked.scene_name(dataset), dataset)]
    if realestate.holds_scenes(dataset):
        return realestate.scenes(dataset)
    found = _format_of(dataset)
    if found is not None and not (found.name == "photos" and _is_cover_of_scenes(dataset)):
        return [(one_line(dataset.resolve().stem if dataset.is_file() else dataset.resolve().name), dataset)]
    realestate.warn_of_missing_frames(dataset)
    scenes, problems = _check_scenes(_folders(dataset))
    if not scenes and problems:
        raise UserError(f"No scene in '{dataset}' is whole. {' '.join(problems)}")
    if not scenes:
        raise UserError(f"'{dataset}' is no scene and no folder of scenes{_advice(dataset)}.")
    if problems:
        message = f"{len(problems)} of {len(problems) + len(scenes)} scenes in '{dataset}' are left out"
        warnings.warn(f"{message}, since they are not whole. {' '.join(problems)}", stacklevel=1)
    return list(zip(unique_shown(p.name for p in scenes), scenes))


def _advice(path: Path) -> str:
    """What to give in place of a single photo, or of a folder with nothing but videos; empty for all else."""
    if path.is_file() and (is_image(path) or is_unread_picture(path)):
        return "; it is a single picture: give the folder of photos, or the path of a video"
    videos = [p.name for p in path.iterdir() if is_video(p)] if path.is_dir() else []
    return f"; give the path of the video in it ({min(videos)}), or a folder of photos" if videos else ""


def _format_of(path: Path) -> Format | None:
    return next((f for f in FORMATS if f.matches(path)), None)


def _is_cover_of_scenes(dataset: Path) -> bool:
    """Whether a folder's only photo is a picture of the scenes in the folders beside it."""
    beside = (p for p in _folders(dataset) if p not in photos.mask_folders(dataset))
    if not photos.holds_one_photo(dataset) or not any(map(_format_of, beside)):
        return False
    warnings.warn(f"The one photo in '{dataset}' is no scene; the scenes are the folders beside it.", stacklevel=2)
    return True


def _folders(dataset: Path) -> list[Path]:
    """The folders that may be scenes of a dataset; some layouts hold them one level deeper."""
    if (dataset / "cameras").is_dir() and (dataset / "frames").is_dir():
        return _folders(dataset / "frames")
    if (dataset / "Rectified").is_dir():
        return _folders(dataset / "Rectified")
    found = (p for p in dataset.glob("*") if p.is_dir() and not p.name.startswith("."))
    folders = sorted(found, key=photos.natural_key)
    return [scene for p in folders for scene in ((dl3dv.is_subset(p) and _folders(p)) or [p])]


def _check_scenes(folders: list[Path]) -> tuple[list[Path], list[str]]:
    """The complete scenes among ``folders``, and a sentence for each incomplete one; other folders are in neither."""
    formats = {p: _format_of(p) for p in folders}
    problems = {p: problem for p, found in formats.items() if (problem := _problem(p, found))}
    plain = [p for p, found in formats.items() if found and found.name == "photos" and p not in problems]
    posed = [p for p, found in formats.items() if found and found.check]
    lost = unfinished.without_expected_cameras(plain, posed)
    problems |= {p: f"'{p}' has photos, but no cameras as the others have." for p in lost}
    return [p for p, found in formats.items() if found and p not in problems], list(problems.values())


def _problem(path: Path, found: Format | None) -> str | None:
    if found is None:
        return unfinished.describe_missing(path)
    if found.check is None:
        return unfinished.describe_missing_cameras(path)
    try:
        found.check(path)
    except UserError as error:
        return str(error)
    return None
