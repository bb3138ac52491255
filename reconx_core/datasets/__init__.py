"""One reader per format of dataset, and how to tell which one a path is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconx_core.datasets import blender, colmap, dl3dv, llff, nerfstudio, photos, procedural, realestate, video
from reconx_core.datasets.capture import Capture, Photo, Split
from reconx_core.errors import UserError
from reconx_core.video_io import is_video

__all__ = ["FORMATS", "Capture", "Format", "Photo", "Split", "detect", "files_of", "read", "scene_names"]


@dataclass(frozen=True)
class Format:
    """A reader and the test by which its paths are recognised."""

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Capture]


# The first that matches wins: a folder with camera data usually holds photos, too.
FORMATS = (
    Format("procedural", procedural.is_spec, procedural.read),
    Format("realestate10k", lambda p: realestate.is_scene(p) or realestate.holds_scenes(p), realestate.read),
    Format("dl3dv", dl3dv.is_scene, dl3dv.read),
    Format("nerfstudio", lambda p: p.name == "transforms.json" or (p / "transforms.json").is_file(), nerfstudio.read),
    Format("blender", lambda p: (p / "transforms_train.json").is_file(), blender.read),
    Format("llff", lambda p: (p / "poses_bounds.npy").is_file(), llff.read),
    Format("colmap", lambda p: colmap.find_model(p) is not None, colmap.read),
    Format("video", lambda p: p.is_file() and is_video(p), video.read),
    Format("photos", photos.holds_photos, photos.read),
)


def detect(path: Path) -> Format:
    """The format of a scene.

    Raises:
        UserError: nothing is there, or nothing that a reader knows.
    """
    found = next((f for f in FORMATS if f.matches(path)), None)
    if found is not None:
        return found
    if path.is_dir():
        raise UserError(f"There are no photos in '{path}'; JPEG, PNG, HEIC, WebP, TIFF and BMP are read.")
    if path.exists():
        raise UserError(f"'{path}' is none of the formats that are read ({', '.join(f.name for f in FORMATS)}).")
    raise UserError(f"There is no '{path}'; give a folder of photos, a video or a dataset.")


def read(path: Path) -> Capture:
    """A scene in any known format. Raises UserError as :func:`detect` and the format's reader."""
    return detect(path).read(path)


def files_of(scene: Path) -> dict[str, Path]:
    """All the files that a scene's reader may look at, by the names under which they count; of a procedural scene, none."""
    if realestate.is_scene(scene):
        return realestate.files_of(scene)
    if scene.is_file():
        return {scene.name: scene}
    files = sorted(p for p in scene.rglob("*") if p.is_file() and not p.name.startswith("."))
    return {file.relative_to(scene).as_posix(): file for file in files}


def scene_names(dataset: Path) -> list[tuple[str, Path]]:
    """(name, path) of every scene in a dataset: itself if it is one scene, else those in its chunks or the folders in it.

    ``procedural:room?seed=0..4`` stands for five scenes.

    Raises:
        UserError: no scene is there, or chunks of which none can be read.
    """
    if procedural.is_spec(dataset):
        return [(procedural.scene_name(spec), spec) for spec in procedural.expand(dataset)]
    if realestate.holds_scenes(dataset):
        return realestate.scenes(dataset)
    if any(f.matches(dataset) for f in FORMATS):
        return [(dataset.resolve().stem if dataset.is_file() else dataset.resolve().name, dataset)]
    scenes = [p for p in _folders(dataset) if any(f.matches(p) for f in FORMATS)]
    if not scenes:
        raise UserError(f"'{dataset}' is no scene and no folder of scenes.")
    return [(p.name, p) for p in scenes]


def _folders(dataset: Path) -> list[Path]:
    """The folders that may be a dataset's scenes, some of which stand a level below."""
    if (dataset / "cameras").is_dir() and (dataset / "frames").is_dir():
        return _folders(dataset / "frames")
    folders = sorted((p for p in dataset.glob("*") if p.is_dir()), key=photos.natural_key)
    return [scene for p in folders for scene in (_folders(p) if dl3dv.is_subset(p) else [p])]
