"""One reader per format of dataset, and how to tell which one a path is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from reconx_core.datasets import nerfstudio, photos, procedural
from reconx_core.datasets.capture import Capture, Photo, Split
from reconx_core.errors import UserError

__all__ = ["FORMATS", "Capture", "Format", "Photo", "Split", "detect", "read"]


@dataclass(frozen=True)
class Format:
    """A reader and the test by which its paths are recognised."""

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Capture]


# The first that matches wins: a folder with camera data usually holds photos, too.
FORMATS = (
    Format("procedural", procedural.is_spec, procedural.read),
    Format("nerfstudio", lambda p: p.name == "transforms.json" or (p / "transforms.json").is_file(), nerfstudio.read),
    Format("photos", lambda p: p.is_dir(), photos.read),
)


def detect(path: Path) -> Format:
    """The format of a scene.

    Raises:
        UserError: nothing is there, or nothing that a reader knows.
    """
    found = next((f for f in FORMATS if f.matches(path)), None)
    if found is not None:
        return found
    if path.exists():
        raise UserError(f"'{path}' is none of the formats that are read ({', '.join(f.name for f in FORMATS)}).")
    raise UserError(f"There is no '{path}'; give a folder of photos, a video or a dataset.")


def read(path: Path) -> Capture:
    """A scene in any known format. Raises UserError as :func:`detect` and the format's reader."""
    return detect(path).read(path)
