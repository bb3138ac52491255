"""Photo files named one by one, as one scene: the same as a folder with just these."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from reconx_core.datasets.capture import Capture
from reconx_core.datasets.photos import find_mask, masks_among, natural_key, photo_of, unique_names
from reconx_core.errors import UserError
from reconx_core.io.images import is_image, is_unread_picture
from reconx_core.io.video import is_video
from reconx_core.names import shown

PREFIX = "photos:"
ADVICE = "give a folder of photos, several photos, or a video"


def is_spec(path: Path | str) -> bool:
    """Whether this is no path, but a text from :func:`spec_of`."""
    return str(path).startswith(f"{PREFIX}[")


def spec_of(files: Iterable[str]) -> str:
    """A text that stands for these photos wherever a scene's path may stand, in their natural order.

    Raises:
        UserError: a file is missing, no photo, or given twice, or all but one are masks.
    """
    given = list(map(Path, files))
    for file in given:
        _require_photo(file)
    paths = [os.path.abspath(file) for file in given]
    if twice := next((path for path, count in Counter(paths).items() if count > 1), None):
        raise UserError(f"'{twice}' is given more than once; give every photo once.")
    chosen = sorted(map(Path, paths), key=lambda file: (natural_key(file.name), natural_key(file)))
    if len(chosen) - len(_masks(chosen)) < 2:
        raise UserError(f"'{chosen[0]}' is a single photo; {ADVICE}.")
    return PREFIX + json.dumps(list(map(str, chosen)))


def refuse_single_photo(file: Path) -> None:
    """Raise UserError where the file is a picture: a scene needs several."""
    if is_image(file):
        raise UserError(f"'{file}' is a single photo; {ADVICE}.")
    if is_unread_picture(file):
        _require_photo(file)


def paths_of(spec: Path | str) -> list[Path]:
    """The files of a text from :func:`spec_of`, masks among them."""
    return [Path(name) for name in json.loads(str(spec).removeprefix(PREFIX))]


def scene_name(spec: Path | str) -> str:
    """That of the folder that holds the photos, or of the nearest one that holds theirs."""
    return shown(_folder(paths_of(spec)).resolve().name or "photos")


def describe(spec: Path | str) -> str:
    """Such as ``3 photos in 'house'``."""
    files = paths_of(spec)
    return f"{len(files) - len(_masks(files))} photos in '{_folder(files)}'"


def read(spec: Path | str) -> Capture:
    """The photos; masks among them are used as in a folder of photos."""
    files = paths_of(spec)
    masks = _masks(files)
    pictures = [file for file in files if file not in masks]
    found = (mask if (mask := find_mask(file)) in masks else None for file in pictures)
    return Capture(scene_name(spec), tuple(map(photo_of, pictures, found, unique_names(pictures))))


def files_of(spec: Path | str) -> dict[str, Path]:
    """The files by their names, under which a folder with just these has them; by their paths where names are not enough."""
    files = paths_of(spec)
    folder = _folder(files)
    return {file.relative_to(folder).as_posix(): file for file in files}


def _folder(files: Sequence[Path]) -> Path:
    return Path(os.path.commonpath([file.parent for file in files]))


def _masks(files: Sequence[Path]) -> set[Path]:
    """Those of the files that are masks of others."""
    return {*masks_among(files), *filter(None, map(find_mask, files))} & set(files)


def _require_photo(file: Path) -> None:
    """Raise UserError with what to give instead."""
    if not file.exists():
        what = "is a link to a file that is not there" if file.is_symlink() else "is not there"
        raise UserError(f"'{file}' {what}; {ADVICE}.")
    if file.is_dir() or is_video(file):
        kind = "folder" if file.is_dir() else "video"
        raise UserError(f"'{file}' is a {kind}, which goes alone; give one {kind}, or photos only.")
    if is_unread_picture(file):
        raise UserError(f"'{file}' is in a format that is not read; convert it to JPEG, PNG or TIFF.")
    if not is_image(file):
        raise UserError(f"'{file}' is no photo; {ADVICE}.")
