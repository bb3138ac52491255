"""A folder of photos, with optional masks in ``masks/NAME.png`` or ``NAME.mask.png`` (bright pixels may be used)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from reconx_core.datasets.capture import Capture, Photo
from reconx_core.io.images import is_image, read_focal, read_image, read_mask
from reconx_core.names import unique_shown

_IMAGES = re.compile(r"images(?:_(\d+))?")


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sort key under which img2 comes before img10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def find_photos(folder: Path) -> list[Path]:
    """The pictures directly inside a folder, naturally sorted; masks are not photos."""
    return sorted((p for p in folder.iterdir() if p.is_file() and is_image(p) and not _is_mask(p)), key=natural_key)


def image_folders(scene: Path) -> list[Path]:
    """``images``, ``images_2``, ``images_4``, ... of a scene: the largest pictures first."""
    found = {match: p for p in scene.glob("images*") if p.is_dir() and (match := _IMAGES.fullmatch(p.name))}
    return [found[match] for match in sorted(found, key=lambda match: int(match[1] or 1))]


def holds_photos(path: Path) -> bool:
    """Whether there are photos in a folder or in its ``images`` folder."""
    return path.is_dir() and bool(_find(path))


def find_mask(photo: Path) -> Path | None:
    """The mask that belongs to a photo, if there is one."""
    names = (f"{photo.stem}.png", f"{photo.name}.png", f"{photo.stem}.jpg")
    folders = [photo.parent / "masks", *_masks_beside(photo.parent)]
    candidates = [photo.with_name(f"{photo.stem}.mask.png"), *(folder / name for folder in folders for name in names)]
    return next((c for c in candidates if c.is_file()), None)


def unique_names(paths: Iterable[Path]) -> list[str]:
    """Stems as they are shown, with a running number where they do not differ."""
    return unique_shown(path.stem for path in paths)


def read(path: Path) -> Capture:
    """The photos in ``path`` or in its ``images`` folder, in natural order."""
    files = _find(path)
    return Capture(path.resolve().name, tuple(_photo(f, n) for f, n in zip(files, unique_names(files))))


def files_of(path: Path) -> dict[str, Path]:
    """All files in the folder, and the masks beside a folder that is itself called ``images``."""
    return files_within(path, *_masks_beside(path.absolute()))


def files_within(scene: Path, *beside: Path) -> dict[str, Path]:
    """All files except hidden ones in the scene's folder and the folders ``beside``, by their paths relative to the scene."""
    return relative_names(
        scene, (file for folder in (scene, *beside) for file in _walk(folder) if not file.name.startswith("."))
    )


def relative_names(scene: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Files by their paths relative to the scene, such as ``../masks/a.png``, in alphabetical order."""
    return dict(sorted((Path(os.path.relpath(file, scene)).as_posix(), file) for file in files))


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder. Links to folders are followed, because pictures are often linked."""
    seen: set[str] = set()
    for current, folders, files in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(current))
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(current, name)) not in seen]
        yield from (file for name in files if (file := Path(current, name)).is_file())


def _find(path: Path) -> list[Path]:
    return find_photos(path) or (find_photos(path / "images") if (path / "images").is_dir() else [])


def _photo(path: Path, name: str) -> Photo:
    mask = find_mask(path)
    load_mask = None if mask is None else partial(read_mask, mask)
    return Photo(name, partial(read_image, path), load_mask, focal=read_focal(path))


def _masks_beside(folder: Path) -> list[Path]:
    return [folder.parent / "masks"] if _IMAGES.fullmatch(folder.name) else []


def _is_mask(path: Path) -> bool:
    return path.stem.endswith(".mask")
