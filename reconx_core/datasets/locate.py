"""Where the pictures are that a file of cameras lists: as written, or as close to it as is unambiguous."""

from __future__ import annotations

import os
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TypeGuard
from urllib.parse import unquote

from reconx_core.io.images import is_image, is_unread_picture

_OMITTED = (".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".heic")  # suffixes that files of cameras may leave out, likely ones first
_LONGEST_NAME, _LONGEST_PATH = 255, 2048  # bytes; Linux allows 4,096, with the path of the folder that a scene is in


def is_path(name: object) -> TypeGuard[str]:
    """Whether an entry of a file can be a file's path: text without what systems refuse in names, neither empty nor too long.

    Opening such a path is an error of its own, which says nothing of the file that lists it.
    """
    if not isinstance(name, str) or name == "" or "\0" in name:
        return False
    try:
        path = os.fsencode(unquote(with_slashes(name)))
    except UnicodeEncodeError:  # half of a character beyond the first 65,536, which JSON can hold
        return False
    return len(path) <= _LONGEST_PATH and max(map(len, path.split(b"/"))) <= _LONGEST_NAME


def with_slashes(file_path: str) -> str:
    """A path as Windows writes it with the separators of all other systems."""
    return file_path.replace("\\", "/")


@dataclass
class PictureFinder:
    """Finds the pictures that a file lists by names of another machine or after a conversion; remembers folders' contents."""

    listings: dict[Path, dict[tuple[str, str], list[Path]]] = field(default_factory=dict)

    def find(self, folder: Path, name: str, *others: Path) -> Path | None:
        """The picture ``name`` of a folder, as written, or else where :meth:`find_near` finds it in this or other folders."""
        return self.find_written(folder, name) or self.find_near(name, folder, *others)

    def find_written(self, folder: Path, name: str) -> Path | None:
        """The picture at the place that ``name`` gives; backslashes may separate its parts, and %20 may stand for a blank."""
        return next(filter(None, (self.at(folder / n) for n in (name, *_readings(name)))), None)

    def find_near(self, name: str, *folders: Path) -> Path | None:
        """The picture at the last parts of ``name``, as many as lead to one, in the first of the folders that has it."""
        places = (place for reading in _readings(name) for place in _places(reading, folders))
        return next(filter(None, map(self.at, places)), None)

    def at(self, path: Path) -> Path | None:
        """The picture at a path, whose capitals may differ, and which may lack its suffix or have that of another format.

        None unless exactly one fits. A link to nothing is found, so that its loss is noticed.
        """
        if os.path.lexists(path) and not path.is_dir():
            return path
        if path.parent not in self.listings:
            self.listings[path.parent] = _by_likeness(path.parent)
        alike = (self.listings[path.parent].get(key, []) for key in _wanted(path))
        return next((found[0] for found in alike if len(found) == 1), None)


def find_pictures(finder: PictureFinder, folder: Path, file_paths: Sequence[str]) -> list[Path]:
    """The picture of each path. Those that are not there keep the path as written, so that it can be named.

    Paths are relative to ``folder``. If a whole path leads nowhere (it is of another machine), its last parts are tried, in
    ``folder`` and in ``folder/images``; a warning says so.
    """
    written = [finder.find_written(folder, path) for path in file_paths]
    near = [None if there else finder.find_near(path, folder, folder / "images") for there, path in zip(written, file_paths)]
    taken = Counter(found for found in (*dict.fromkeys(written), *near) if found)
    # A picture that two different paths lead to is that of one of them at most, and which one is unknown.
    near = [found if found and taken[found] == 1 else None for found in near]
    _warn_of_moved(folder, file_paths, near)
    return [a or b or folder / with_slashes(path) for a, b, path in zip(written, near, file_paths)]


def _readings(name: str) -> tuple[str, ...]:
    """What a path may mean, as it is first."""
    slashed = with_slashes(name)
    return (slashed, unquote(slashed)) if "%" in slashed else (slashed,)


def _places(name: str, folders: Sequence[Path]) -> Iterator[Path]:
    parts = [part for part in PurePosixPath(with_slashes(name)).parts if part not in ("/", "..")]
    return (folder.joinpath(*parts[start:]) for start in range(len(parts)) for folder in folders)


def _by_likeness(folder: Path) -> dict[tuple[str, str], list[Path]]:
    listing: dict[tuple[str, str], list[Path]] = {}
    # `Path.is_dir` raises an error for a folder whose name is too long, as it may be where %20 and the like are to be decoded.
    for picture in filter(is_image, folder.iterdir() if os.path.isdir(folder) else ()):
        for key in _likenesses(picture.name, picture.stem):
            listing.setdefault(key, []).append(picture)
    return listing


def _wanted(path: Path) -> tuple[tuple[str, str], ...]:
    """What the picture that is meant by a path may be listed as, the surest first."""
    if is_image(path) or is_unread_picture(path):
        return _likenesses(path.name, path.stem)
    return *(("name", unicodedata.normalize("NFC", path.name + suffix)) for suffix in _OMITTED), *_likenesses(
        path.name, path.name
    )


def _likenesses(name: str, stem: str) -> tuple[tuple[str, str], ...]:
    """What two pictures' names may have in common, most first. macOS writes ü as u and two dots, others as one character."""
    name, stem = (unicodedata.normalize("NFC", text) for text in (name, stem))
    return ("name", name), ("capitals", name.lower()), ("stem", stem), ("stem's capitals", stem.lower())


def _warn_of_moved(folder: Path, file_paths: Sequence[str], near: Sequence[Path | None]) -> None:
    moved = [(path, found) for path, found in zip(file_paths, near) if found]
    if moved:
        path, found = moved[0]
        problem = f"{len(moved)} of {len(file_paths)} pictures are not where the cameras' file says ({path})"
        warnings.warn(f"{problem}; those of the same names in '{found.parent}' are used.", stacklevel=3)
