"""The run registry: which runs use the store and which artifacts they refer to, in an index per run inside the store.

An index keeps a run's artifacts for as long as the run's folder exists. A folder that cannot be seen is not for that reason
gone: it may lie on a disk that is not mounted, or on another machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from reconx_core.cache.store import MANIFEST, Reference, is_place
from reconx_core.errors import UserError
from reconx_core.io.checked import check_shape, find_object, read_object
from reconx_core.io.files import explain_disk, write_json

Entries = set[tuple[str, str]]  # (stage, key)
ARTIFACTS, INDEX = "artifacts", "index.json"  # of a DVC project: the folder of its stages, and the last file in each of theirs
CLOCKS = 60.0  # seconds by which the clocks of a machine and of its file server may differ


class FileSystem(BaseModel, frozen=True):
    """The file system of a folder, to know it again."""

    host: str
    mount: str  # where it is mounted
    id: int  # as the kernel gives it; 0 for some kinds
    inode: int  # of its root


class _Making(BaseModel):
    """What a run makes of which it does not know the keys beforehand."""

    stage: str
    since: float  # seconds since the epoch


class _Index(BaseModel):
    """Of `.runs/*.json`; versions up to 0.1.0 wrote the first two only."""

    folder: str
    artifacts: list[tuple[str, str]]
    file_system: FileSystem | None = None
    beside_store: bool = False  # on the same file system
    making: _Making | None = None
    kind: Literal["run", "project", "stage"] = "run"


@dataclass(frozen=True)
class KnownRun:
    """A run as its index tells it."""

    index: Path
    content: _Index

    @property
    def folder(self) -> Path:
        return Path(self.content.folder)

    @property
    def artifacts(self) -> Entries:
        """Those that it registered; of a stage of DVC those that lie in its folder now: DVC lays other experiments' there."""
        if self.is_stage and (self.folder / INDEX).is_file():
            return _laid(self.folder)
        return set(self.content.artifacts)

    @property
    def is_stage(self) -> bool:
        """Whether its folder is that of a stage of a DVC project; versions up to 0.1.0 did not write it down."""
        return self.content.kind == "stage" or self.folder.parent.name == ARTIFACTS

    @property
    def changed(self) -> float:
        """When it last started or ended, in seconds since the epoch."""
        return self.index.stat().st_mtime

    @property
    def is_project(self) -> bool:
        """Whether it is a DVC project, whose branches and experiments say what it uses."""
        return self.content.kind == "project"

    def makes(self, stage: str, made: float) -> bool:
        """Whether an artifact of ``stage`` that was made then may be one that it has not registered yet."""
        making = self.content.making
        return making is not None and making.stage == stage and made >= making.since

    def is_there(self) -> bool:
        """Whether its folder can be seen."""
        return _is_folder(self.folder) is True

    def is_gone(self, root: Path) -> bool:
        """Whether its folder has been deleted: it is not where it was, and the file system that held it can be seen here."""
        if _is_folder(self.folder) is not False:
            return False
        try:
            nearest = _nearest(self.folder)
            beside_store = self.content.beside_store and os.stat(nearest).st_dev == os.stat(root).st_dev
            return beside_store or _file_system(nearest) == self.content.file_system
        except OSError:
            return False


def register_end(root: Path, out: Path, references: Iterable[Reference]) -> None:
    """Keep these artifacts for as long as the folder ``out`` exists; replaces what an earlier run into ``out`` kept."""
    _write(root, out, {(reference.stage, reference.key) for reference in references})


def end_run(root: Path, out: Path, references: Iterable[Reference], say: Callable[[str], None]) -> None:
    """As :func:`register_end`, for a run with a request: where the store cannot be written to, ``say`` tells so, and garbage
    collection finds by the request what the run made.
    """
    try:
        register_end(root, out, references)
    except OSError as error:
        say(f"The store does not know that this run has ended, which matters to reconx gc only: {explain_disk(error, root)}")


def register_stage(root: Path, folder: Path, references: Iterable[Reference]) -> None:
    """Keep what lies in the folder of a DVC stage, and these artifacts until it has its index."""
    _write(root, folder, {(reference.stage, reference.key) for reference in references}, kind="stage")


def register_more(root: Path, out: Path, references: Iterable[Reference]) -> None:
    """Keep these artifacts, too. The run goes on."""
    known = _find(_index(root, out))
    kept, making = (known.artifacts, known.content.making) if known else (set(), None)
    _write(root, out, kept | {(reference.stage, reference.key) for reference in references}, making=making)


def register_start(root: Path, out: Path, making: str | None = None) -> list[tuple[str, str]]:
    """Let the store know of a run from its start on. What an earlier run into ``out`` kept stays kept until the end.

    ``making``: a stage all of whose artifacts from now to the end are kept, for a run that has no `request.json`.

    Returns:
        (stage, key) of those artifacts of the earlier run that are no longer there.
    """
    known = _find(_index(root, out))
    kept, earlier = (known.artifacts, known.content.making) if known else (set(), None)
    # An earlier start without an end was interrupted, and what it had made is wanted still.
    now = earlier or _Making(stage=making, since=time.time() - CLOCKS) if making else None
    _write(root, out, kept, making=now)
    return [(stage, key) for stage, key in sorted(kept) if not (root / stage / key).is_dir()]


def register_project(root: Path, project: Path, references: Iterable[Reference]) -> None:
    """Let the store know of a DVC project, and of artifacts that it has made; see :mod:`flows.runs.experiments`."""
    known = _find(_index(root, project))
    kept = known.artifacts if known else set()
    _write(root, project, kept | {(reference.stage, reference.key) for reference in references}, kind="project")


def keep_only(run: KnownRun, artifacts: Entries) -> None:
    """Let a project keep these artifacts only."""
    write_json(run.index, run.content.model_copy(update={"artifacts": sorted(artifacts)}).model_dump())


def is_store(root: Path) -> bool:
    """Whether runs have used the folder as their store: they register before they write anything else."""
    return (root / ".runs").is_dir()


def known_runs(root: Path) -> list[tuple[Path, Entries, float]]:
    """Folder, artifacts and time of the last start or end of every run whose folder is there, the newest first."""
    runs = [run for index in _indices(root) if (run := _find(index)) and not run.is_project and run.is_there()]
    return sorted(((run.folder, run.artifacts, run.changed) for run in runs), key=lambda run: run[2], reverse=True)


def all_runs(root: Path) -> list[KnownRun]:
    """All runs and projects that the store knows of, whether their folders are there or not.

    Raises:
        UserError: an index is damaged, so that nobody knows what its run uses.
    """
    return [_read(index) for index in _indices(root)]


def _laid(folder: Path) -> Entries:
    """The artifacts whose files lie in the folder of a DVC stage."""
    manifests = (find_object(manifest) for manifest in folder.glob(f"*/{MANIFEST}"))
    return {(about["stage"], about["key"]) for about in manifests if is_place(about.get("stage"), about.get("key"))}


def _indices(root: Path) -> Iterator[Path]:
    # Without the temporary names of `write_json`.
    return (index for index in sorted((root / ".runs").glob("*.json")) if not index.name.startswith("."))


def _read(index: Path) -> KnownRun:
    try:
        return KnownRun(index, check_shape(read_object(index), _Index, index))
    except UserError:
        raise UserError(
            f"'{index}' is damaged, so what its run uses is not known and nothing is removed; run that run again, or delete "
            "the file if no run is missed."
        ) from None


def _find(index: Path) -> KnownRun | None:
    try:
        return _read(index) if index.is_file() else None
    except UserError:
        return None


def _index(root: Path, out: Path) -> Path:
    return root / ".runs" / f"{hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:16]}.json"


def _write(root: Path, out: Path, artifacts: Entries, **more: Any) -> None:
    folder = out.resolve()
    nearest = _nearest(folder)
    beside_store = nearest.stat().st_dev == _nearest(root.resolve()).stat().st_dev
    content = _Index(
        folder=str(folder), artifacts=sorted(artifacts), file_system=_file_system(nearest), beside_store=beside_store, **more
    )
    write_json(_index(root, out), content.model_dump())


def _is_folder(path: Path) -> bool | None:
    """None where that cannot be said: no permission, a server that does not answer."""
    try:
        return path.is_dir()
    except OSError:
        return None


def _nearest(path: Path) -> Path:
    """The path, or the nearest above it that exists."""
    return next(place for place in (path, *path.parents) if place.exists())


def _file_system(folder: Path) -> FileSystem:
    mount = next(place for place in (folder, *folder.parents) if os.path.ismount(place))
    return FileSystem(host=socket.gethostname(), mount=str(mount), id=os.statvfs(mount).f_fsid, inode=mount.stat().st_ino)
