"""What an earlier run into the same folder left and this one does not make is moved to `.earlier/`.

There nobody takes it for this run's, and nothing is lost. The same places there as in the run's folder; what moves there
replaces what moved there before.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from reconx_core.errors import UserError
from reconx_core.io.checked import find_object
from reconx_core.io.files import explain_disk, write_json

EARLIER = ".earlier"
SCENE_RECORD = "scene.json"  # in a scene's folder
MADE = ".made.json"  # in a scene's folder: what its files were made of, and how they were left
DERIVED = ".derived.json"  # in a scene's folder: what `render`, `export` and `view` made of it there, and of which scene
PAGE = "scene.html"  # in a scene's folder: to look around in
COPIED = ("video.mp4", "scores.parquet", "metrics.json")
SCENE_FILES = ("scene.ply", PAGE, "cameras", "path", "pictures", MADE, *COPIED)
RUN_FILES = ("run.json", "report.html", "settings.yaml")
SCORES = "scores.csv"


def put_results_aside(out: Path, place: Path, more: Iterable[str] = ()) -> bool:
    """Move a scene's results, in the folder ``place`` of ``out``, and files with the names ``more``; whether there were any.

    Raises:
        UserError: they cannot be moved.
    """
    folder, aside = out / place, out / EARLIER / place
    more = (*more, *_derived(folder), DERIVED)
    # Elsewhere "cameras" may be anybody's, as in a dataset that is the run's folder, too.
    made = SCENE_FILES if any((folder / name).is_file() for name in ("scene.ply", MADE)) else ()
    there = [name for name in (*made, *more) if os.path.lexists(folder / name)]
    if not there:
        return False
    if made and find_object(folder / SCENE_RECORD).get("error", "none there") is None:
        there.append(SCENE_RECORD)
    try:
        _remove(aside, (*SCENE_FILES, SCENE_RECORD, *more))
        _move(folder, aside, there)
    except OSError as error:
        raise explain_disk(error, out) from error
    return True


def put_derived_aside(out: Path, place: Path) -> bool:
    """Move what was made of the scene that lay in the folder ``place`` of ``out`` before this one; whether there was any.

    Raises:
        UserError: it cannot be moved.
    """
    folder, aside = out / place, out / EARLIER / place
    there = [name for name in _derived(folder) if os.path.lexists(folder / name)]
    if not there or find_object(folder / DERIVED).get("of") == _scene_of(folder):
        return False
    try:
        _remove(aside, (*there, DERIVED))
        _move(folder, aside, [*there, DERIVED])
    except OSError as error:
        raise explain_disk(error, out) from error
    return True


def note_derived(scene: Path, made: Path) -> None:
    """Write down, beside a ``scene`` that a run made, that ``made`` is of it; only where it lies in the scene's folder."""
    folder, whole = (scene if scene.is_dir() else scene.parent).resolve(), made.resolve()
    of = _scene_of(folder)
    if of is None or not whole.is_relative_to(folder) or not (scene.is_dir() or scene.name == "scene.ply"):
        return
    name = whole.relative_to(folder)
    if name.parts[:1] in ((), *((own,) for own in SCENE_FILES)):
        return
    same = find_object(folder / DERIVED).get("of") == of
    with contextlib.suppress(OSError):  # the file itself could be written
        write_json(folder / DERIVED, {"of": of, "files": sorted({name.as_posix(), *(_derived(folder) if same else ())})})


def _derived(folder: Path) -> list[str]:
    """Names in a scene's folder of what was made of it or of an earlier one."""
    names = find_object(folder / DERIVED).get("files")
    paths = [Path(name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [path.as_posix() for path in paths if path.parts and not path.is_absolute() and ".." not in path.parts]


def _scene_of(folder: Path) -> list[str] | None:
    """What a scene that a run laid consists of: digests of its Gaussians and of its cameras."""
    of = find_object(folder / MADE).get("of")
    return [str(of.get(stage)) for stage in ("splats", "pointcloud")] if isinstance(of, dict) else None


def _move(folder: Path, aside: Path, names: Iterable[str]) -> None:
    for name in names:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(folder / name, aside / name)


def put_row_aside(out: Path, row: str) -> None:
    """Move the folder of a row of the ablation.

    Raises:
        UserError: it cannot be moved.
    """
    aside = out / EARLIER / row
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.rename(out / row, aside)
    except OSError as error:
        raise explain_disk(error, out) from error


def forget_earlier(out: Path, place: Path) -> None:
    """This run has results of its own at ``place``."""
    aside = out / EARLIER / place
    _remove(aside, (*SCENE_FILES, SCENE_RECORD, *RUN_FILES))
    with contextlib.suppress(OSError):  # not empty
        for folder in [aside, *aside.parents][: len(place.parts) + 1]:
            folder.rmdir()


def _remove(folder: Path, names: Iterable[str]) -> None:
    for place in (folder / name for name in names):
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                place.unlink()


def put_seeds_aside(out: Path, name: Path, kept: Collection[Path]) -> bool:
    """Of a scene, move results of seeds that are not ``kept``, or of none of several; whether there were any.

    Folders go with what was in them, unless something else is there.
    """
    others = [place for place in (*(name / seed.name for seed in _seeds(out / name)), name) if place not in kept]
    moved = False
    for place in others:
        moved |= put_results_aside(out, place)
        if "failed_stage" in find_object(out / place / SCENE_RECORD):
            (out / place / SCENE_RECORD).unlink()
        with contextlib.suppress(OSError):
            (out / place).rmdir()
    return moved


def put_others_aside(out: Path, places: Collection[Path], rows: Iterable[str] = ()) -> list[str]:
    """Move results of scenes in ``out`` that are not at ``places``, and folders of ``rows``; returns the names of both.

    Only what a run made, and no folders that are a run's own.
    """
    moved = []
    for folder in sorted(out.iterdir()) if out.is_dir() else ():
        name = Path(folder.name)
        kept = [place for place in places if place.parts[0] == folder.name]
        if folder.name in rows and _is_row(folder):
            put_row_aside(out, folder.name)
            moved.append(folder.name)
        elif (kept or _is_scene(folder)) and put_seeds_aside(out, name, kept):
            moved.append(folder.name)
    return moved


def _is_scene(folder: Path) -> bool:
    return _is_ours(folder) and any(_has_record(place) for place in (folder, *_seeds(folder)))


def _is_row(folder: Path) -> bool:
    return _is_ours(folder) and any((folder / name).is_file() for name in ("run.json", SCORES))


def _is_ours(folder: Path) -> bool:
    # A run of its own, in a folder that happens to lie here, has a request.
    return folder.is_dir() and not folder.is_symlink() and not (folder / "request.json").exists()


def _has_record(folder: Path) -> bool:
    return "failed_stage" in find_object(folder / SCENE_RECORD) or (folder / MADE).is_file()


def _seeds(folder: Path) -> Iterator[Path]:
    return (seed for seed in sorted(folder.glob("seed-*")) if seed.is_dir() and _has_record(seed))


def require_done(scene: Path) -> None:
    """Raise UserError where the record beside a scene, `scene.ply` or its folder, says that its run failed."""
    folder = scene if scene.is_dir() else scene.parent
    record = find_object(folder / SCENE_RECORD)
    if (scene == folder or scene.name == "scene.ply") and record.get("error") is not None:
        raise UserError(f"The scene in '{folder}' failed in {record.get('failed_stage')}: {record['error']}{_hint(folder)}")


def _hint(folder: Path) -> str:
    """Where the scene of an earlier run is."""
    whole = folder.absolute()
    for out in (whole, *whole.parents[:2]):
        place = out / EARLIER / whole.relative_to(out)
        if (place / "scene.ply").is_file():
            return f" (An earlier run's is in '{place}'.)"
    return ""
