"""Formats of Gaussians by the ending of a file's name: writing without what cannot be shown, and reading with one sentence for
what cannot be read.
"""  # fmt: skip

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from plyfile import PlyParseError

from reconx_core.errors import UserError
from reconx_core.export.finite import finite_gaussians
from reconx_core.export.gltf import gaussians_from_glb, gaussians_to_glb, origin_of_glb
from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.export.packed import (
    gaussians_from_compressed_ply,
    gaussians_from_spz,
    gaussians_to_compressed_ply,
    gaussians_to_spz,
)
from reconx_core.export.ply import gaussians_from_ply, gaussians_to_ply, read_origin
from reconx_core.export.splat import gaussians_from_splat, gaussians_to_splat
from reconx_core.io.files import write_atomic
from reconx_core.types import Gaussians


def _from_ply(path: Path) -> Gaussians:
    """By the content: a compressed one may be called .ply, too."""
    with path.open("rb") as file:
        packed = b"element chunk" in file.read(200)
    return gaussians_from_compressed_ply(path.read_bytes()) if packed else gaussians_from_ply(path)


class Format(NamedTuple):
    encode: Callable[[Gaussians, Origin], bytes]
    decode: Callable[[Path], Gaussians]
    origin: Callable[[Path], Origin | None] | None = None  # None: the format cannot note where a scene's zero lies


FORMATS: dict[str, Format] = {
    ".compressed.ply": Format(
        lambda g, _: gaussians_to_compressed_ply(g), lambda p: gaussians_from_compressed_ply(p.read_bytes())
    ),
    ".ply": Format(gaussians_to_ply, _from_ply, read_origin),
    ".splat": Format(lambda g, _: gaussians_to_splat(g), lambda p: gaussians_from_splat(p.read_bytes())),
    ".spz": Format(lambda g, _: gaussians_to_spz(g), gaussians_from_spz),
    ".glb": Format(gaussians_to_glb, lambda p: gaussians_from_glb(p.read_bytes()), lambda p: origin_of_glb(p.read_bytes())),
}


def format_of(path: Path) -> Format | None:
    """The format that a file's name ends in, in either case; None if it is none of them."""
    return next((kind for ending, kind in FORMATS.items() if path.name.lower().endswith(ending)), None)


def endings() -> str:
    """The endings, for a sentence."""
    *first, last = FORMATS
    return f"{', '.join(first)} or {last}"


def write_gaussians(path: Path, gaussians: Gaussians, origin: Origin = NO_ORIGIN) -> int:
    """Write Gaussians atomically in the format that ``path`` ends in; returns how many: those that can be shown.

    ``origin``: where their zero lies in their dataset's frame; noted where the format can.

    Raises:
        UserError: no such format, none of the Gaussians can be shown, or they do not fit into the format.
        OSError: the file cannot be written.
    """
    if (kind := format_of(path)) is None:
        raise UserError(f"'{path}' should end in {endings()}.")
    shown = finite_gaussians(gaussians, f"the scene for {path}")
    write_atomic(path, kind.encode(shown, origin))
    return len(shown)


def read_gaussians(path: Path) -> Gaussians:
    """Gaussians of a file, without those that cannot be shown.

    Raises:
        UserError: it is missing, in no such format or damaged, or holds none.
    """
    if (kind := format_of(path)) is None:
        raise UserError(f"'{path}' should end in {endings()}.")
    try:
        gaussians = kind.decode(path)
        if not len(gaussians):
            raise ValueError("it holds no Gaussians")
    # What the readers of damaged files raise; KeyError, IndexError and TypeError of wrong references within a GLB.
    except (OSError, ValueError, EOFError, KeyError, IndexError, TypeError, struct.error, zlib.error, PlyParseError) as error:
        kind_of = path.name.lower().rsplit(".", 1)[-1].upper()
        raise UserError(f"{path} is no {kind_of} of Gaussians: {error}.") from None
    return finite_gaussians(gaussians, str(path))


def read_gaussians_origin(path: Path) -> Origin | None:
    """Where a scene's zero lies in its dataset's frame; None if that is not known, as in formats that cannot note it."""
    kind = format_of(path)
    return kind.origin(path) if kind is not None and kind.origin is not None else None
