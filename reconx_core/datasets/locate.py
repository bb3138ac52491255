"""Where the pictures are that a file of cameras lists: as written, or as close to it as is unambiguous."""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

from reconx_core.io.images import SUFFIXES, is_image


def with_slashes(file_path: str) -> str:
    """A path as Windows writes it with the separators of all other systems."""
    return file_path.replace("\\", "/")


def find_pictures(folder: Path, file_paths: Sequence[str]) -> list[Path]:
    """The picture of each path. Those that are not there keep the path as written, so that it can be named.

    Paths are relative to ``folder``. If a whole path leads nowhere (it is of another machine), its last parts are tried, in
    ``folder`` and in ``folder/images``; a warning says so.
    """
    written = [picture_at(folder / path) or picture_at(folder / with_slashes(path)) for path in file_paths]
    near = [None if there else _find_near(folder, path) for there, path in zip(written, file_paths)]
    taken = Counter(found for found in (*dict.fromkeys(written), *near) if found)
    # A picture that two different paths lead to is that of one of them at most, and which one is unknown.
    near = [found if found and taken[found] == 1 else None for found in near]
    _warn_of_moved(folder, file_paths, near)
    return [a or b or folder / with_slashes(path) for a, b, path in zip(written, near, file_paths)]


def find_picture(folder: Path, file_path: str) -> Path:
    """As :func:`find_pictures` for one path, without its warning."""
    found = picture_at(folder / file_path) or picture_at(folder / with_slashes(file_path)) or _find_near(folder, file_path)
    return found or folder / with_slashes(file_path)


def picture_at(path: Path) -> Path | None:
    """The picture at a path, which may lack its suffix or have that of another format; None unless exactly one fits."""
    if path.suffix.lower() in SUFFIXES:
        return path if path.is_file() else _only(path.parent, path.stem)
    found = (path.with_name(path.name + suffix) for suffix in (".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".heic"))
    return next((p for p in found if p.is_file()), None) or _only(path.parent, path.name)


def _find_near(folder: Path, file_path: str) -> Path | None:
    return next(filter(None, map(picture_at, _places(folder, file_path))), None)


def _places(folder: Path, file_path: str) -> Iterator[Path]:
    parts = [part for part in PurePosixPath(with_slashes(file_path)).parts if part not in ("/", "..")]
    for start in range(len(parts)):
        yield folder.joinpath(*parts[start:])
        yield folder.joinpath("images", *parts[start:])


def _only(folder: Path, stem: str) -> Path | None:
    """The only picture in a folder with this stem; upper and lower case differ only if that makes it unambiguous."""
    if not folder.is_dir():
        return None
    by_stem, by_lower_stem = _pictures(folder, folder.stat().st_mtime_ns)
    alike = by_stem.get(stem) or by_lower_stem.get(stem.lower(), [])
    return alike[0] if len(alike) == 1 else None


@lru_cache(maxsize=8)
def _pictures(folder: Path, modified: int) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """The pictures of a folder by their stems, and by their stems in lower case."""
    by_stem: dict[str, list[Path]] = defaultdict(list)
    by_lower_stem: dict[str, list[Path]] = defaultdict(list)
    for file in filter(is_image, folder.iterdir()):
        by_stem[file.stem].append(file)
        by_lower_stem[file.stem.lower()].append(file)
    return by_stem, by_lower_stem


def _warn_of_moved(folder: Path, file_paths: Sequence[str], near: Sequence[Path | None]) -> None:
    moved = [(path, found) for path, found in zip(file_paths, near) if found]
    if moved:
        path, found = moved[0]
        problem = f"{len(moved)} of {len(file_paths)} pictures are not where the cameras' file says ({path})"
        warnings.warn(f"{problem}; those of the same names in '{found.parent}' are used.", stacklevel=3)
