"""`reconx export`: a finished scene in another format, with fewer Gaussians, or as a mesh."""

from __future__ import annotations

import math
from pathlib import Path

from rich.console import Console

from flows.execution.notes import notes
from flows.runs.earlier import note_derived
from flows.scene import explained, load_cameras, load_scene, photos_beside, scene_origin
from reconx_core.errors import UserError
from reconx_core.export.finite import select_gaussians
from reconx_core.export.formats import endings, format_of, write_gaussians
from reconx_core.export.mesh import DETAIL, extract_mesh, mesh_bytes
from reconx_core.export.mesh import ENDINGS as MESH_ENDINGS
from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.export.prune import cameras_of_scene, choose, fidelity
from reconx_core.io.files import require_writable_file, write_atomic
from reconx_core.names import one_line
from reconx_core.types import Cameras, Gaussians


def convert(
    scene: Path,
    out: Path,
    console: Console,
    most: int | None = None,
    min_opacity: float | None = None,
    cameras: Path | None = None,
) -> None:
    """Gaussians to the format that ``out`` ends in; with ``most`` or ``min_opacity`` fewer of them (see `choose`).

    Raises:
        UserError: no scene, ``out`` ends in something else, or it cannot be written; no cameras to choose by, or none is left.
    """
    if format_of(out) is None:
        raise UserError(f"'{out}' should end in {endings()}; with --mesh in {' or '.join(MESH_ENDINGS)}.")
    with notes(console):
        gaussians, origin = load_scene(scene), scene_origin(scene) or NO_ORIGIN
        _require_writable(out)
        if most is not None or min_opacity is not None:
            gaussians = _pruned(gaussians, _cameras_beside(scene, cameras), most, min_opacity, console)
        with console.status(f"Writing {out.name}"), explained(out):
            written = write_gaussians(out, gaussians, origin)
        note_derived(scene, out)
    console.print(f"{written:,} Gaussians in {one_line(str(out))}{_relative(origin)}", soft_wrap=True, markup=False)


def mesh(scene: Path, out: Path, console: Console, detail: int | None = None, cameras: Path | None = None) -> None:
    """A coloured mesh of the scene's surfaces as a PLY or GLB; ``detail``: cells along the longest side
    of the scene.

    Raises:
        UserError: no scene or cameras, ``out`` ends in something else or cannot be written, or there is no surface.
    """
    if out.suffix.lower() not in MESH_ENDINGS:
        raise UserError(f"'{out}' should end in {' or '.join(MESH_ENDINGS)} for a mesh.")
    with notes(console):
        gaussians, origin = load_scene(scene), scene_origin(scene) or NO_ORIGIN
        if (own := _cameras_beside(scene, cameras)) is None:
            raise UserError("A mesh needs the scene's cameras: give a transforms.json with --cameras.")
        _require_writable(out)
        with console.status("Rendering depth and joining it"):
            found = extract_mesh(gaussians, cameras_of_scene(own), detail or DETAIL)
        with explained(out):
            write_atomic(out, mesh_bytes(found, out.suffix.lower()))
        note_derived(scene, out)
    about = f"{len(found.vertices):,} vertices and {len(found.faces):,} triangles in {one_line(str(out))}"
    console.print(f"{about}{_relative(origin)}", soft_wrap=True, markup=False)


def _require_writable(out: Path) -> None:
    """Raise UserError now where ``out`` cannot be written. Its folder is not made yet: a mistake would leave it behind."""
    if out.parent.is_dir():
        require_writable_file(out)


def _cameras_beside(scene: Path, cameras: Path | None) -> Cameras | None:
    """The cameras that were named, or those beside the scene, if there are any."""
    origin = scene_origin(scene)
    return photos_beside(scene, origin) if cameras is None else load_cameras(cameras, origin)


def _pruned(
    gaussians: Gaussians, cameras: Cameras | None, most: int | None, min_opacity: float | None, console: Console
) -> Gaussians:
    seen = None if cameras is None else cameras_of_scene(cameras)
    with console.status("Choosing the Gaussians that contribute most"):
        kept = choose(gaussians, seen, most, min_opacity)
        fewer = select_gaussians(gaussians, kept)
        if len(kept) < len(gaussians):
            loss = "" if seen is None else _loss(fidelity(fewer, gaussians, seen), len(seen))
            console.print(f"{len(kept):,} of {len(gaussians):,} Gaussians are kept{loss}.", soft_wrap=True, markup=False)
    return fewer


def _loss(psnr: float, count: int) -> str:
    same = "none of the pictures changes" if math.isinf(psnr) else f"the pictures are within {psnr:.1f} dB of those of all"
    return f"; {same} ({count} cameras)"


def _relative(origin: Origin) -> str:
    return f", relative to ({', '.join(map(str, origin))}) in the frame of the given cameras" if any(origin) else ""
