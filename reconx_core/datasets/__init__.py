"""One reader per format of dataset, and how to tell which one a path is."""

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
    procedural,
    realestate,
    unfinished,
    video,
)
from reconx_core.datasets.capture import Capture, Photo, Split, every_eighth
from reconx_core.errors import UserError
from reconx_core.io.video import is_video

__all__ = ["FORMATS", "Capture", "Format", "Photo", "Split", "detect", "every_eighth", "files_of", "read", "scene_names"]


@dataclass(frozen=True)
class Format:
    """A reader and the test by which its paths are recognised."""

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Capture]
    check: Callable[[Path], None] | None = None  # of formats with cameras: raises UserError where the scene is half downloaded
    files: Callable[[Path], dict[str, Path]] = photos.files_within


# The first that matches wins: a folder with camera data usually holds photos, too.
FORMATS = (
    Format("procedural", procedural.is_spec, procedural.read, files=lambda path: {}),
    Format(
        "realestate10k",
        lambda path: realestate.is_scene(path) or realestate.holds_scenes(path),
        realestate.read,
        realestate.check,
        realestate.files_of,
    ),
    Format("dl3dv", dl3dv.is_scene, dl3dv.read, dl3dv.check, nerfstudio.files_of),
    Format("nerfstudio", nerfstudio.is_scene, nerfstudio.read, nerfstudio.check, nerfstudio.files_of),
    Format("blender", blender.is_scene, blender.read, blender.check),
    Format("llff", llff.is_scene, llff.read, llff.check),
    Format("colmap", lambda path: colmap.find_model(path) is not None, colmap.read, colmap.check, colmap.files_of),
    Format("dtu", dtu.is_scene, dtu.read, dtu.check, dtu.files_of),
    Format("video", lambda path: path.is_file() and is_video(path), video.read, files=lambda path: {path.name: path}),
    Format("photos", photos.holds_photos, photos.read, files=photos.files_of),
)


def detect(path: Path) -> Format:
    """The format of a scene.

    Raises:
        UserError: nothing is there, or nothing that a reader knows.
    """
    found = _format_of(path)
    if found is not None:
        return found
    if path.is_dir():
        if any(path.iterdir()) and (told := unfinished.lacking(path)):
            raise UserError(f"{told} Fetch what is missing.")
        raise UserError(f"There are no photos in '{path}'; JPEG, PNG, HEIC, WebP, TIFF and BMP are read.")
    if path.exists():
        raise UserError(f"'{path}' is none of the formats that are read ({', '.join(f.name for f in FORMATS)}).")
    raise UserError(f"There is no '{path}'; give a folder of photos, a video or a dataset.")


def read(path: Path) -> Capture:
    """A scene in any known format. Raises UserError as :func:`detect` and the format's reader."""
    return detect(path).read(path)


def files_of(scene: Path) -> dict[str, Path]:
    """All the files that a scene's reader may look at, by the names under which they count; of a procedural scene, none."""
    found = _format_of(scene)
    if found is not None:
        return found.files(scene)
    return {scene.name: scene} if scene.is_file() else photos.files_within(scene)


def scene_names(dataset: Path) -> list[tuple[str, Path]]:
    """(name, path) of every scene in a dataset: itself if it is one scene, else those in its chunks or the folders in it.

    ``procedural:room?seed=0..4`` stands for five scenes. Scenes that are missing or half downloaded are left out; a warning
    names them. Hidden folders do not count.

    Raises:
        UserError: no whole scene is there, or chunks of which none can be read.
    """
    if procedural.is_spec(dataset):
        return [(procedural.scene_name(spec), spec) for spec in procedural.expand(dataset)]
    if realestate.holds_scenes(dataset):
        return realestate.scenes(dataset)
    if _format_of(dataset) is not None:
        return [(dataset.resolve().stem if dataset.is_file() else dataset.resolve().name, dataset)]
    realestate.warn_of_unfetched(dataset)
    scenes, problems = _sort(_folders(dataset))
    if not scenes and problems:
        raise UserError(f"No scene in '{dataset}' is whole. {' '.join(problems)}")
    if not scenes:
        raise UserError(f"'{dataset}' is no scene and no folder of scenes.")
    if problems:
        told = f"{len(problems)} of {len(problems) + len(scenes)} scenes in '{dataset}' are left out, since they are not whole."
        warnings.warn(f"{told} {' '.join(problems)}", stacklevel=1)
    return [(p.name, p) for p in scenes]


def _format_of(path: Path) -> Format | None:
    return next((f for f in FORMATS if f.matches(path)), None)


def _folders(dataset: Path) -> list[Path]:
    """The folders that may be a dataset's scenes, some of which stand a level below."""
    if (dataset / "cameras").is_dir() and (dataset / "frames").is_dir():
        return _folders(dataset / "frames")
    if (dataset / "Rectified").is_dir():
        return _folders(dataset / "Rectified")
    found = (p for p in dataset.glob("*") if p.is_dir() and not p.name.startswith("."))
    folders = sorted(found, key=photos.natural_key)
    return [scene for p in folders for scene in ((dl3dv.is_subset(p) and _folders(p)) or [p])]


def _sort(folders: list[Path]) -> tuple[list[Path], list[str]]:
    """The whole scenes among folders, and a sentence on each that is not; other folders are in neither."""
    formats = {p: _format_of(p) for p in folders}
    problems = {p: told for p, found in formats.items() if (told := _problem(p, found))}
    plain = [p for p, found in formats.items() if found and found.name == "photos" and p not in problems]
    posed = [p for p, found in formats.items() if found and found.check]
    problems |= {p: f"'{p}' has photos, but no cameras as the others have." for p in unfinished.outvoted(plain, posed)}
    return [p for p, found in formats.items() if found and p not in problems], list(problems.values())


def _problem(path: Path, found: Format | None) -> str | None:
    if found is None:
        return unfinished.lacking(path)
    if found.check is None:
        return unfinished.lacking_cameras(path)
    try:
        found.check(path)
    except UserError as error:
        return str(error)
    return None
