"""The command `render`; and what `export` and `view` share with it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from flows.execution.notes import noted_on, notes
from flows.runs.earlier import note_derived, require_done
from reconx_core.condition.camera_files import COLMAP_SUFFIXES, cameras_on_path, file_of, read_path, resized_lens
from reconx_core.datasets.capture import Capture
from reconx_core.errors import UserError
from reconx_core.export.formats import read_gaussians, read_gaussians_origin
from reconx_core.export.origin import NO_ORIGIN, Origin, parse_origin
from reconx_core.io import video as video_io
from reconx_core.io.files import explain_disk, require_writable, require_writable_file
from reconx_core.io.images import write_png
from reconx_core.io.json_files import read_json
from reconx_core.metrics.pictures import render_path
from reconx_core.names import one_line, quoted
from reconx_core.rasterize import rasterize
from reconx_core.types import Cameras, Gaussians

FPS = 30  # of a clip whose path names no frame rate
MOST_PIXELS = 2**26  # of a rendered frame
BARE = 0.01  # share of a frame below which next to nothing of the scene is in it


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


def load_cameras(path: Path, origin: Origin | None = NO_ORIGIN, photos: Cameras | None = None) -> Cameras:
    """The cameras of any file that `condition.path` takes, in the order of their path and in the size that it names.

    ``photos`` give lens and size to a file without; a camera without a lens has the photos' mean one, or else the file's.
    They are relative to ``origin``, or if that is unknown (None) to the ``scene_origin`` that the file names.

    Raises:
        UserError: there is no such file, it is none of those, or it has no lens and there are no ``photos``.
    """
    file = file_of(path)
    if not file.is_file():
        raise UserError(f"There are no cameras at '{path}'; save a path in scene.html, or give a transforms.json.")
    capture = read_path(file)
    if origin is None:
        origin = NO_ORIGIN if file.suffix in COLMAP_SUFFIXES else _noted_origin(file)
    like = _common_size(capture, photos)
    if like is None:
        raise UserError(f"The cameras in {file} need a lens and one image size.")
    if like.width * like.height > MOST_PIXELS:
        raise UserError(f"{file} asks for {like.width} x {like.height} pixels; at most {MOST_PIXELS:,} can be rendered.")
    return cameras_on_path(capture, like, origin)


def _common_size(capture: Capture, photos: Cameras | None) -> Cameras | None:
    """Cameras of the one size that the file's have, with the photos' mean lens or else the file's own.

    The photos themselves where the file has no size, or several.
    """
    known = [(p.intrinsics, p.size) for p in capture.photos if p.intrinsics is not None and p.size is not None]
    if len({size for _, size in known}) != 1:
        return photos
    height, width = known[0][1]
    if photos is None:
        lens = torch.stack([lens for lens, _ in known]).float().mean(0)
    else:
        lens = resized_lens(photos.intrinsics.mean(0), (photos.height, photos.width), (height, width))
    return Cameras(lens[None], torch.eye(4)[None], width, height)


def _noted_origin(file: Path) -> Origin:
    """The ``scene_origin`` of a file of cameras. Raises UserError if it is no point."""
    content = read_json(file)
    noted = content.get("scene_origin", NO_ORIGIN) if isinstance(content, dict) else NO_ORIGIN
    if (origin := parse_origin(noted)) is None:
        raise UserError(f"{file} has scene_origin = {quoted(noted)}, which is no point of three finite numbers.")
    return origin


def render(scene: Path, out: Path | None, cameras: Path | None, frames: int, console: Console) -> None:
    """A clip (``out`` ends in .mp4) or a folder of PNGs along a smooth path through the cameras; None: a clip beside the scene.

    Raises:
        UserError: no scene or cameras, ``out`` ends in something else, or it cannot be written.
    """
    out = out or clip_beside(scene)
    _is_clip(out)
    with notes(console):
        gaussians, origin = load_scene(scene), scene_origin(scene)
        photos = None if cameras is None else photos_beside(scene, origin)
        through = load_cameras(cameras or cameras_beside(scene), origin, photos)
    _require_place(out)
    with console.status(f"Rendering {frames} frames"):
        _write_frames(render_path(gaussians, through, frames), out, FPS)
    note_derived(scene, out)
    _say_made(frames, through, out, console)


def render_file(scene: Path, out: Path | None, path: Path, console: Console) -> None:
    """As :func:`render`, with a frame for each camera of the file ``path``, in its size and at its frame rate.

    Raises:
        UserError: as :func:`render`, or there is no such path.
    """
    out = out or clip_beside(scene)
    _is_clip(out)
    with notes(console):
        gaussians, origin = load_scene(scene), scene_origin(scene)
        cameras = load_cameras(path, origin, photos_beside(scene, origin))
        fps = _frame_rate(path)
    _require_place(out)
    covered: list[float] = []

    def frames() -> Iterator[Float[Tensor, "h w 3"]]:
        for i in range(len(cameras)):
            shown = rasterize(gaussians, cameras[[i]])
            covered.append(float((shown.alpha > 0.5).float().mean()))
            yield shown.rgb[0].clamp(0, 1)

    with console.status(f"Rendering {len(cameras)} frames"), torch.no_grad():
        _write_frames(frames(), out, fps)
    note_derived(scene, out)
    _say_made(len(cameras), cameras, out, console)
    if bare := sum(share < BARE for share in covered):
        noted_on(console)(f"{bare} of them show nothing of the scene: their cameras look past it.")


def clip_beside(scene: Path) -> Path:
    """Where frames go if nothing is said."""
    return (scene if scene.is_dir() else scene.parent) / "render.mp4"


def cameras_beside(scene: Path) -> Path:
    """Where the cameras of a scene's photos lie."""
    return (scene if scene.is_dir() else scene.parent) / "cameras" / "transforms.json"


def photos_beside(scene: Path, origin: Origin | None) -> Cameras | None:
    """The cameras of a scene's photos, if they lie beside it; ``origin``: as of :func:`load_cameras`."""
    beside = cameras_beside(scene)
    return load_cameras(beside, origin) if beside.is_file() else None


def _frame_rate(path: Path) -> float:
    """The frames a second that a file of cameras names."""
    file = file_of(path)
    content = {} if file.suffix in COLMAP_SUFFIXES else read_json(file)
    fps = content.get("fps", FPS)
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 1 <= fps <= 240:
        raise UserError(f"{file} has fps = {quoted(fps)}, which should be a number from 1 to 240.")
    return fps


def _require_place(out: Path) -> None:
    (require_writable_file if _is_clip(out) else require_writable)(out)


def _write_frames(frames: Iterable[Float[Tensor, "h w 3"]], out: Path, fps: float) -> None:
    """A clip, or PNGs in a folder."""
    with explained(out):
        if _is_clip(out):
            video_io.write_mp4(out, frames, fps)
        else:
            for i, image in enumerate(frames):
                write_png(out / f"{i:04d}.png", image)


def _say_made(frames: int, cameras: Cameras, out: Path, console: Console) -> None:
    made = f"{frames} frames of {cameras.width}x{cameras.height} in {one_line(str(out))}"
    console.print(made, soft_wrap=True, markup=False)


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
