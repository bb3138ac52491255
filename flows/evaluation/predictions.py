"""Where another method's pictures or Gaussians of a scene lie, in the layouts in which the field's programs leave them.

| program | pictures | its own photos of the same views |
| --- | --- | --- |
| gsplat's `simple_trainer` | `renders/val_step29999_0000.png` | the left half of each |
| 3DGS and what grew from it | `test/ours_30000/renders/00000.png` | `test/ours_30000/gt/` |
| nerfbaselines | `color/NAME.png`, in a folder or an archive | `gt-color/` |
| any | `NAME.png` or `0000.png`, `0001.png`, ... | |
"""

from __future__ import annotations

import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from reconx_core.errors import UserError
from reconx_core.export.formats import format_of
from reconx_core.io.images import is_image
from reconx_core.names import abbreviate, one_line

ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar")
_GSPLAT = re.compile(r"val_step(\d+)_(\d+)")


@dataclass(frozen=True)
class Found:
    """What lies there of a scene: pictures, or a file of Gaussians."""

    pictures: dict[str, Path]  # by name, below the folder that holds them and without ending
    truths: dict[str, Path]  # the program's own photos, by the same names
    splats: Path | None = None
    note: str = ""  # a choice among several, in a sentence


@dataclass(frozen=True)
class Prediction:
    """The picture of a held-out view, and the program's own photo of it."""

    view: str
    picture: Path
    truth: Path | None


def scene_places(given: Path, scenes: Sequence[str]) -> dict[str, Path]:
    """Where each scene's predictions lie: ``given/SCENE``, an archive or a file of Gaussians of that name, or ``given`` itself
    where there is one scene.

    Raises:
        UserError: nothing is there, or not of every scene.
    """
    if not given.exists():
        raise UserError(f"There is no '{given}'; give the folder of another method's pictures.")
    found = {name: place for name in scenes if (place := _place_of(given, name)) is not None}
    if len(scenes) == 1 and not found:
        return {scenes[0]: given}
    if missing := [name for name in scenes if name not in found]:
        raise UserError(f"'{given}' has no folder of {abbreviate(missing)}; leave these scenes out by --scenes.")
    return found


def _place_of(given: Path, scene: str) -> Path | None:
    if not given.is_dir():
        return None
    names = {one_line(path.name): path for path in given.iterdir()}
    endings = ("", *ARCHIVES, ".ply")
    return next((names[scene + ending] for ending in endings if scene + ending in names), None)


@contextmanager
def opened(place: Path) -> Iterator[Path]:
    """The place, or a folder with what an archive holds, for as long as the block lasts.

    Raises:
        UserError: the archive is damaged.
    """
    if not (place.is_file() and place.name.lower().endswith(ARCHIVES)):
        yield place
        return
    with TemporaryDirectory() as folder:
        try:
            if place.name.lower().endswith(".zip"):
                with zipfile.ZipFile(place) as archive:
                    archive.extractall(folder)
            else:
                with tarfile.open(place) as archive:
                    archive.extractall(folder, filter="data")
        except (OSError, EOFError, zipfile.BadZipFile, tarfile.TarError, NotImplementedError, RuntimeError) as error:
            raise UserError(f"'{place}' cannot be unpacked: {error}.") from None
        yield _only_folder(Path(folder))


def _only_folder(folder: Path) -> Path:
    """The one folder in which everything lies, as some programs pack it."""
    inside = [path for path in folder.iterdir() if not path.name.startswith((".", "__"))]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() and inside[0].name not in ("color", "renders") else folder


def find_predictions(place: Path) -> Found:
    """What lies at ``place``: of several iterations the last.

    Raises:
        UserError: neither pictures nor Gaussians that can be told from others.
    """
    if place.is_file():
        if format_of(place) is None:
            raise UserError(f"'{place}' is neither a folder of pictures, nor an archive of one, nor a .ply of Gaussians.")
        return Found({}, {}, place)
    found = _of_nerfbaselines(place) or _of_3dgs(place) or _of_gsplat(place) or _of_anyone(place) or _of_gaussians(place)
    if found is None:
        raise UserError(f"'{place}' holds no pictures and no Gaussians; docs/bundles.md says which layouts are read.")
    return found


def _of_nerfbaselines(place: Path) -> Found | None:
    pictures = _pictures(place / "color")
    return Found(pictures, _pictures(place / "gt-color")) if pictures else None


def _of_3dgs(place: Path) -> Found | None:
    own = place if place.name.startswith("ours_") else None
    steps = [own] if own else _by_number((place / "test").glob("ours_*"))
    if not steps or not (pictures := _pictures(steps[-1] / "renders")):
        return None
    return Found(pictures, _pictures(steps[-1] / "gt"), None, _chosen(place, [step.name for step in steps]))


def _of_gsplat(place: Path) -> Found | None:
    folder = place if place.name == "renders" else place / "renders"
    steps: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.glob("val_step*")):
        if (match := _GSPLAT.fullmatch(path.stem)) and is_image(path):
            steps.setdefault(int(match[1]), {})[match[2]] = path
    if not steps:
        return None
    note = _chosen(place, [f"step {step}" for step in sorted(steps)])
    return Found(steps[max(steps)], {}, None, note)


def _of_anyone(place: Path) -> Found | None:
    pictures = _pictures(place / "renders") or {path.stem: path for path in sorted(place.iterdir()) if is_image(path)}
    return Found(pictures, _pictures(place / "gt") if (place / "renders").is_dir() else {}) if pictures else None


def _of_gaussians(place: Path) -> Found | None:
    steps = _by_number(place.glob("ply/point_cloud_*.ply")) or _by_number(place.glob("point_cloud/iteration_*/point_cloud.ply"))
    if steps:
        return Found({}, {}, steps[-1], _chosen(place, [path.relative_to(place).as_posix() for path in steps]))
    files = sorted(place.glob("*.ply"))
    if len(files) > 1:
        raise UserError(f"'{place}' holds several .ply ({abbreviate([file.name for file in files])}); name the one to score.")
    return Found({}, {}, files[0]) if files else None


def _pictures(folder: Path) -> dict[str, Path]:
    """By their paths below the folder, without ending."""
    found = sorted(path for path in folder.rglob("*") if is_image(path) and path.is_file())
    named = {path.relative_to(folder).with_suffix("").as_posix(): path for path in found}
    if len(named) < len(found):
        twice = next(path for path in found if named[path.relative_to(folder).with_suffix("").as_posix()] != path)
        raise UserError(f"'{folder}' has two pictures called '{twice.stem}'; keep one.")
    return named


def _by_number(paths: Iterable[Path]) -> list[Path]:
    """By the last number in each path."""
    return sorted(paths, key=lambda path: int((re.findall(r"\d+", path.with_suffix("").as_posix()) or ["-1"])[-1]))


def _chosen(place: Path, steps: Sequence[str]) -> str:
    return f"Of {len(steps)} iterations in {place}, the last is scored: {steps[-1]}." if len(steps) > 1 else ""


def match_views(found: Found, views: Sequence[str], where: str) -> list[Prediction]:
    """A picture for every held-out view, in their order: by the views' names, or numbered from 0 in their order.

    Raises:
        UserError: pictures are missing, or there are others.
    """
    keys = _by_name(found.pictures, views) or _by_index(found.pictures, views)
    wanted = {view: keys.get(view) for view in views}
    missing = [view for view, key in wanted.items() if key is None]
    extra = sorted(set(found.pictures) - set(keys.values()))
    if missing or extra:
        parts = [f"{len(missing)} missing ({abbreviate(missing)})"] if missing else []
        parts += [f"{len(extra)} that are of no held-out view ({abbreviate(extra)})"] if extra else []
        raise UserError(f"{where}: {' and '.join(parts)}; {len(views)} views are held out: {abbreviate(list(views))}.")
    return [Prediction(view, found.pictures[key], found.truths.get(key)) for view, key in wanted.items() if key is not None]


def _by_name(pictures: dict[str, Path], views: Sequence[str]) -> dict[str, str]:
    """View -> picture of that name, with its folders or without; nothing where none has one."""
    by_last = {key.rsplit("/", 1)[-1]: key for key in pictures}
    by_last = by_last if len(by_last) == len(pictures) else {}
    stems = {view: view if "." not in view else view.rsplit(".", 1)[0] for view in views}
    found = {
        view: key
        for view in views
        for key in [next((k for k in (view, stems[view]) if k in pictures), by_last.get(view) or by_last.get(stems[view]))]
        if key is not None
    }
    # Numbers may be names of frames: then only if they are those of all views.
    return found if len(found) == len(views) or not all(key.isdigit() for key in pictures) else {}


def _by_index(pictures: dict[str, Path], views: Sequence[str]) -> dict[str, str]:
    numbers = {int(match[1]): key for key in pictures if (match := re.search(r"(\d+)$", key))}
    return {view: numbers[i] for i, view in enumerate(views) if i in numbers} if len(numbers) == len(pictures) else {}
