"""The commands around a finished scene: render and view; and what `export` shares with them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from flows.execution.notes import notes
from flows.runs.earlier import require_done
from reconx_core.datasets import nerfstudio
from reconx_core.datasets.poses import relative_to
from reconx_core.errors import UserError, pip_install
from reconx_core.export.formats import read_gaussians, read_gaussians_origin
from reconx_core.export.origin import NO_ORIGIN, Origin, parse_origin
from reconx_core.io import video as video_io
from reconx_core.io.files import explain_disk, require_writable, require_writable_file
from reconx_core.io.images import write_png
from reconx_core.metrics.pictures import render_path
from reconx_core.names import one_line, quoted
from reconx_core.reporting.viewer import show_scene
from reconx_core.types import Cameras, Gaussians


def load_scene(path: Path) -> Gaussians:
    """Gaussians of a file of any of our formats, or of the ``scene.ply`` in a folder.

    Raises:
        UserError: there is none, or the run that was to make it failed.
    """
    require_done(path)
    path = path / "scene.ply" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"There is no scene at '{path}'; give the scene.ply that reconx reconstruct wrote.")
    return read_gaussians(path)


def scene_origin(path: Path) -> Origin | None:
    """Where a scene's zero lies in its dataset's frame; None if that is not known, as in formats that cannot note it."""
    path = path / "scene.ply" if path.is_dir() else path
    return read_gaussians_origin(path)


def load_cameras(path: Path, origin: Origin | None = NO_ORIGIN) -> Cameras:
    """Cameras of a nerfstudio ``transforms.json`` as this project writes it (one image size, no distortion).

    They are relative to ``origin``, or if that is unknown (None) to the ``scene_origin`` that the file names.

    Raises:
        UserError: no such file, or not of that kind.
    """
    if not path.is_file():
        raise UserError(f"There are no cameras at '{path}'; give a transforms.json with --cameras.")
    capture = nerfstudio.read(path)
    photos = capture.photos
    if any(p.intrinsics is None or p.cam_to_world is None or p.size != photos[0].size for p in photos):
        raise UserError(f"The cameras in {path} need poses, intrinsics and one image size.")
    height, width = photos[0].size  # type: ignore[misc]
    intrinsics, poses = [p.intrinsics for p in photos], torch.stack([p.cam_to_world for p in photos])  # type: ignore[misc]
    noted = _noted_origin(path) if origin is None else origin
    poses = relative_to(poses, [zero - own for zero, own in zip(noted, capture.origin)]).float()
    return Cameras(torch.stack(intrinsics), poses, width, height)  # type: ignore[arg-type]


def _noted_origin(file: Path) -> Origin:
    """The ``scene_origin`` of a ``transforms.json``. Raises UserError if it is no point."""
    noted = nerfstudio.read_json(file).get("scene_origin", NO_ORIGIN)
    if (origin := parse_origin(noted)) is None:
        raise UserError(f"{file} has scene_origin = {quoted(noted)}, which is no point of three finite numbers.")
    return origin


def render(scene: Path, out: Path | None, cameras: Path | None, frames: int, console: Console) -> None:
    """A clip (``out`` ends in .mp4) or a folder of PNGs along a smooth path through the cameras; None: a clip beside the scene.

    Raises:
        UserError: no scene or cameras, ``out`` ends in something else, or it cannot be written.
    """
    folder = scene if scene.is_dir() else scene.parent
    out, beside = out or folder / "render.mp4", folder / "cameras" / "transforms.json"
    clip = _is_clip(out)
    with notes(console):
        gaussians, path = load_scene(scene), load_cameras(cameras or beside, scene_origin(scene))
    (require_writable_file if clip else require_writable)(out)
    with console.status(f"Rendering {frames} frames"), explained(out):
        images = render_path(gaussians, path, frames)
        if clip:
            video_io.write_mp4(out, images)
        else:
            for i, image in enumerate(images):
                write_png(out / f"{i:04d}.png", image)
    console.print(f"{frames} frames of {path.width}x{path.height} in {one_line(str(out))}", soft_wrap=True, markup=False)


def _is_clip(out: Path) -> bool:
    """Whether frames go into a clip, or into a folder: one that is there, or whose name does not look like a file's."""
    if out.suffix and out.suffix.lower() != ".mp4" and not out.is_dir():
        raise UserError(f"'{out}' should end in .mp4 for a clip, or have no ending for a folder of PNGs.")
    return out.suffix.lower() == ".mp4"


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """Errors of the file system, on writing ``out``, as a UserError."""
    try:
        yield
    except OSError as error:
        raise explain_disk(error, out.parent) from error


def view(scene: Path, port: int, console: Console) -> None:
    """Serve the scene as a page in the browser until interrupted.

    Raises:
        UserError: viser is not installed, or there is no scene.
    """
    require_viser()
    beside = (scene if scene.is_dir() else scene.parent) / "cameras" / "transforms.json"
    with notes(console):
        gaussians = load_scene(scene)
        cameras = load_cameras(beside, scene_origin(scene)) if beside.is_file() else None
    server = show_scene(gaussians, cameras, port)
    console.print(f"The scene is at http://localhost:{server.get_port()}; Ctrl-C ends it.")
    threading.Event().wait()


def require_viser() -> None:
    """Raise UserError before anything is loaded where the viewer cannot be shown."""
    if importlib.util.find_spec("viser") is None:
        raise UserError(f"The viewer needs viser; install it with: {pip_install('view')}")
