"""A folder of photos, with optional masks in ``masks/NAME.png``, or beside the photo as ``NAME.mask.png`` or ``NAME_mask.png``.

Bright pixels of a mask may be used; of instant-ngp's ``dynamic_mask_NAME.png``, dark ones.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Float

from reconx_core.datasets.capture import Capture, Photo
from reconx_core.errors import UserError
from reconx_core.io.images import SUFFIXES, is_image, is_unread_picture, read_focal, read_image, read_mask, require_pinhole
from reconx_core.io.video import is_video
from reconx_core.names import abbreviate, unique_shown

if TYPE_CHECKING:
    from torch import Tensor

_IMAGES = re.compile(r"images(?:_(\d+))?", re.IGNORECASE)
_PLACES = ("keyframes/corrected_images", "keyframes/images")  # of Polycam's photos
_MASK_MARKS = ("{}.mask", "{}_mask", "{}-mask", "dynamic_mask_{}", "mask_{}")
_MASK = re.compile(r"(.+)[._-]mask|(?:dynamic_)?mask_(.+)", re.IGNORECASE)


def natural_key(path: Path | str) -> list[tuple[int, int, str]]:
    """Sort key under which img2 comes before img10."""
    parts = re.split(r"(\d+)", str(path).lower())
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def find_photos(folder: Path) -> list[Path]:
    """The pictures directly inside a folder, naturally sorted; masks are not photos."""
    return [p for p in _named_as_photos(folder) if p.is_file()]


def image_folders(scene: Path) -> list[Path]:
    """``images``, ``images_2``, ``images_4``, ... of a scene: the largest pictures first."""
    inside = sorted(scene.iterdir()) if scene.is_dir() else []
    found = {match: p for p in inside if (match := _IMAGES.fullmatch(p.name)) and p.is_dir()}
    return [found[match] for match in sorted(found, key=lambda match: int(match[1] or 1))]


def holds_photos(path: Path) -> bool:
    """Whether there are photos in a folder or in its ``images`` folder."""
    return path.is_dir() and bool(find_photos(_folder_of_photos(path)))


def holds_one_photo(path: Path) -> bool:
    """Whether there is one photo only, directly in a folder."""
    return path.is_dir() and _folder_of_photos(path) == path and len(_named_as_photos(path)) == 1


def require_two(path: Path) -> None:
    """Raise UserError for a scene of photos that has one only."""
    if len(_named_as_photos(_folder_of_photos(path))) == 1:
        problem = f"'{path}' holds a single photo; at least two photos of the same place are needed."
        raise UserError(f"{problem} {describe_unread(path)}".strip())


def folders_of_photos(path: Path) -> list[Path]:
    """The folders in a folder that hold photos, in natural order; hidden ones are ignored."""
    folders = (p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted((p for p in folders if find_photos(p)), key=natural_key)


def find_mask(photo: Path) -> Path | None:
    """The mask that belongs to a photo, if there is one; it may be a link to nothing, so that its loss is noticed."""
    marked = [mark.format(name) for mark in _MASK_MARKS for name in (photo.stem, photo.name)]
    beside = _pictures_named(photo.parent, marked)
    apart = (m for folder in mask_folders(photo.parent) for m in _pictures_named(folder, [photo.stem, photo.name, *marked]))
    return next(beside, None) or next(apart, None)


def mask_folders(folder: Path) -> list[Path]:
    """Where the masks of a folder's photos may be, apart from beside them."""
    names = ("masks", "mask")
    inside = folders_named(folder, names)
    match = _IMAGES.fullmatch(folder.name)
    if match is None:
        return inside
    return inside + folders_named(folder.parent, (*names, *([f"masks_{match[1]}"] if match[1] else [])))


def folders_named(parent: Path, names: Sequence[str]) -> list[Path]:
    """The folders in ``parent`` that have one of these names, in their order; capitals do not count."""
    listed = sorted(os.listdir(parent), reverse=True) if os.path.isdir(parent) else []
    found = sorted((name for name in listed if name.lower() in names), key=lambda name: names.index(name.lower()))
    return [folder for name in found if (folder := parent / name).is_dir()]


def warn_of_unlisted(pictures: Sequence[Path], source: Path) -> None:
    """Warns of photos that lie with the ``pictures`` that ``source`` lists, and that it does not list.

    A file of cameras of which no picture is there, as that of a path, is no list of photos.
    """
    if not any(picture.is_file() for picture in pictures):
        return
    folders = {folder: folder.resolve() for folder in dict.fromkeys(p.parent for p in pictures) if os.path.isdir(folder)}
    # By stem: of a photo in two formats one is listed.
    listed = {(folders[p.parent], p.stem) for p in pictures if p.parent in folders}
    places = dict.fromkeys(folders.values())
    others = [p for place in places for p in find_photos(place) if (place, p.stem) not in listed]
    if others:
        message = (
            f"{len(others)} photo(s) beside the {len(pictures)} that {source} lists have no camera, such as {others[0].name}"
        )
        warnings.warn(f"{message}; they are left out.", stacklevel=2)


def describe_unread(path: Path) -> str:
    """Sentences on a scene's pictures that are not read for their format or because they are links to nothing; may be empty."""
    entries = sorted((p for place in _places(path) for p in place.iterdir()), key=natural_key)
    read = {p.stem for p in entries if is_image(p) and p.is_file()}  # cameras store a raw file and a JPEG of one photo
    raw = [p.name for p in entries if is_unread_picture(p) and p.stem not in read]
    lost = [p.name for p in entries if is_image(p) and p.is_symlink() and not p.exists()]
    sentences = []
    if lost:
        sentences.append(f"{_count(lost)} in '{path}' are links to files that are not there; fetch what they point to.")
    if raw:
        sentences.append(f"{_count(raw)} in '{path}' are in a format that is not read; convert them to JPEG, PNG or TIFF.")
    return " ".join(sentences)


def unique_names(paths: Iterable[Path]) -> list[str]:
    """Stems as they are shown, with a running number where they do not differ."""
    return unique_shown(path.stem for path in paths)


def read(path: Path) -> Capture:
    """The photos in ``path``, or in its ``images`` folder where more are there, in natural order.

    What is left out, and pictures that count as masks for their names alone, are named in warnings.
    """
    folder = _folder_of_photos(path)
    files = find_photos(folder)
    masks = [find_mask(file) for file in files]
    _warn_of_other_photos(path, folder)
    if unread := describe_unread(path):
        warnings.warn(f"Left out: {unread}", stacklevel=1)
    _warn_of_masks(folder, [mask for mask in masks if mask is not None])
    return Capture(path.resolve().name, tuple(photo_of(*about) for about in zip(files, masks, unique_names(files))))


def files_of(path: Path) -> dict[str, Path]:
    """All files in the folder, and the masks beside a folder that is itself called ``images``."""
    return files_within(path, *mask_folders(path.absolute()))


def files_within(scene: Path, *beside: Path) -> dict[str, Path]:
    """All files except hidden ones in the scene's folder and the folders ``beside``, by their paths relative to the scene."""
    return relative_names(
        scene, (file for folder in (scene, *beside) for file in _walk(folder) if not file.name.startswith("."))
    )


def with_outside(scene: Path, files: Mapping[str, Path], pictures: Iterable[Path]) -> dict[str, Path]:
    """A scene's ``files``, and those of the ``pictures`` that lie outside of its folder, with the masks beside them."""
    folder = os.path.abspath(scene)
    outside = [picture for picture in pictures if not Path(os.path.abspath(picture)).is_relative_to(folder)]
    masks = (mask for picture in outside if (mask := find_mask(picture)))
    return {**files, **relative_names(scene, (file for file in (*outside, *masks) if file.is_file()))}


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


def _named_as_photos(folder: Path) -> list[Path]:
    """The pictures directly inside a folder and the links to pictures that are not there, without masks."""
    pictures = [p for p in folder.iterdir() if is_image(p) and (p.is_file() or p.is_symlink())]
    masks = set(masks_among(pictures))
    return sorted((p for p in pictures if p not in masks), key=natural_key)


def _places(path: Path) -> list[Path]:
    """The folder itself and those in it where photos usually are."""
    inside = folders_named(path, ("images",))
    return [path, *inside, *(place for name in _PLACES if (place := path / name).is_dir())]


def _folder_of_photos(path: Path) -> Path:
    """Of the usual places the one with most photos: a ``preview.jpg`` in the folder itself is no scene."""
    return max(_places(path), key=lambda place: len(_named_as_photos(place)))


def _warn_of_other_photos(path: Path, folder: Path) -> None:
    others = [str(p.relative_to(path)) for place in _places(path) if place != folder for p in find_photos(place)]
    if others:
        chosen = "its own photos" if folder == path else f"the photos in {folder.relative_to(path)}"
        warnings.warn(f"Of '{path}', {chosen} are used; {_count(others)} beside them are not.", stacklevel=2)
    if videos := sorted(p.name for place in _places(path) for p in place.iterdir() if is_video(p)):
        warnings.warn(
            f"Of '{path}', the photos are used and not {abbreviate(videos)}; give the path of a video to use that.",
            stacklevel=2,
        )
    if below := [place.name for place in folders_of_photos(path) if place not in (*_places(path), *mask_folders(folder))]:
        warnings.warn(f"Photos in folders of '{path}' are not used: {abbreviate(below)}.", stacklevel=2)


def _warn_of_masks(folder: Path, masks: Sequence[Path]) -> None:
    """Warn of masks that were told by their names, and of folders of masks that belong to no photo."""
    marked = [m.name for m in masks if m.parent == folder and not m.stem.endswith(".mask")]
    if marked:
        warnings.warn(
            f"{_count(marked)} in '{folder}' are used as masks of the photos that they are named after.", stacklevel=2
        )
    for place in mask_folders(folder):
        if place.is_dir() and any(map(is_image, place.iterdir())) and not any(m.parent == place for m in masks):
            warnings.warn(f"No mask in '{place}' is named after a photo (NAME.png), so none is used.", stacklevel=2)


def _count(names: Sequence[str]) -> str:
    """The subject of a sentence on several files, one of which is named."""
    return f"{len(names)} file(s), such as {names[0]},"


def photo_of(path: Path, mask: Path | None, name: str) -> Photo:
    load_mask = None if mask is None else partial(read_mask, mask)
    return Photo(name, partial(_load, path), load_mask, focal=read_focal(path))


def _load(path: Path) -> Float[Tensor, "h w 3"]:
    require_pinhole(path)
    return read_image(path)


def masks_among(pictures: Sequence[Path]) -> Iterator[Path]:
    """``NAME.mask.png``, and those named as a mask of another picture: ``a_mask.png`` without an ``a.jpg`` is a photo."""
    names = {name.lower() for p in pictures for name in (p.stem, p.name)}
    for picture in pictures:
        match = _MASK.fullmatch(picture.stem)
        if picture.stem.endswith(".mask") or (match and (match[1] or match[2]).lower() in names):
            yield picture


def _pictures_named(folder: Path, stems: Iterable[str]) -> Iterator[Path]:
    """The folder's pictures with these stems, in their order; capitals do not count."""
    listed = {name.lower(): name for name in os.listdir(folder)} if os.path.isdir(folder) else {}
    wanted = (f"{stem}{suffix}".lower() for stem in stems for suffix in (".png", *SUFFIXES))
    return (folder / listed[name] for name in wanted if name in listed)
