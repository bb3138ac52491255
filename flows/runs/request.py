"""The run request: what a run computes, in `request.json` of its folder, to find its artifacts while it runs and later.

Code, weights, device and sources are recorded as they were at the start, so that later edits do not change the cache keys.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from flows.execution.plan import REQUEST, ScenePlan, with_split
from flows.execution.sources import Digests
from flows.runs.alone import is_held
from flows.runs.registry import known_runs, register_start
from reconx_core.cache import store
from reconx_core.datasets import describe, is_place
from reconx_core.errors import UserError
from reconx_core.io.checked import check_shape, find_object, read_object
from reconx_core.io.files import explain_disk, write_json
from reconx_core.names import one_line
from reconx_core.settings import Settings, parse_settings
from tasks.execute import environment_of, parts_of
from tasks.graph import stages_of


class _Process(BaseModel):
    host: str
    pid: int = Field(ge=0, lt=2**31)
    since: float


class _Environment(TypedDict):
    """Of a stage, see :func:`tasks.execute.environment_of`."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]

    code: str
    weights: dict[str, str]
    device: str


class _Content(BaseModel):
    """Of `request.json`."""

    store: str
    source: str
    place: str
    started: float
    process: _Process
    workers: int
    rows: list[tuple[str, dict[str, Any]]]
    scenes: list[tuple[str, str, str]]
    seeds: list[int]
    seeded: bool
    views: dict[str, dict[str, str | None]]
    environment: dict[str, dict[str, _Environment | None]]
    missing: list[tuple[str, str]]


@dataclass(frozen=True)
class RunRequest:
    """What a run computes."""

    folder: Path
    store: Path
    source: str  # the dataset, or the one scene
    place: str  # where that lay; empty for what is made by a procedure, and for photos named one by one
    started: float
    process: _Process
    workers: int
    plans: tuple[ScenePlan, ...]
    views: dict[str, dict[str, str | None]]  # row -> scene -> key of its `views`, once its source has been read
    environment: dict[str, dict[str, dict[str, Any] | None]]  # row -> stage -> code, weights, device; None without its weights
    missing: frozenset[tuple[str, str]]  # (stage, key) that an earlier run into the folder had and the store lacked

    @property
    def shown(self) -> str:
        """The folder as the user names it."""
        return shown(self.folder)

    def running(self) -> bool:
        """Whether its process is alive; on another machine, whether it still touches its file in the folder, see `alone`."""
        if self.process.host != socket.gethostname():
            return self._is_heard
        try:
            return abs(psutil.Process(self.process.pid).create_time() - self.process.since) < 2
        except psutil.NoSuchProcess:
            return False

    @cached_property
    def _is_heard(self) -> bool:
        return is_held(self.folder)

    def finished(self) -> bool:
        """Whether it came to its end, with or without failures: every row has its record."""
        return all(_started(self.folder / row / "run.json") == self.started for row in {plan.row for plan in self.plans})


def record_request(
    plans: list[ScenePlan], started: float, source: str, out: Path, root: Path, workers: int = 1, rule: str | None = None
) -> None:
    """Write `request.json` into the run's folder ``out``, and register the run with the store.

    What is read of the sources meanwhile, :func:`record_sources` adds. ``started``: the start in seconds since the epoch.
    ``rule``: by which the run will be compared.

    Raises:
        UserError: ``out`` or the store cannot be written to.
    """
    rows: dict[str, Settings] = {}
    for plan in plans:
        rows.setdefault(plan.row, plan.settings)
    content: dict[str, Any] = {
        "store": str(root.absolute()), "source": describe(source), "started": started, "workers": workers,
        "place": str(Path(source).absolute()) if is_place(source) else "", "process": _process(),
        "rows": [(row, settings.model_dump(mode="json")) for row, settings in rows.items()],
        "scenes": list(dict.fromkeys((plan.name, plan.source, plan.settings.views.split) for plan in plans)),
        "seeds": list(dict.fromkeys(plan.settings.seed for plan in plans)), "seeded": any(plan.seeded for plan in plans),
        "views": {}, "environment": {}, "missing": register_start(root, out),
        **({} if rule is None else {"rule": rule}),
    }  # fmt: skip
    _write(content, out)  # already now: reading weights may take a while
    content["environment"] = {
        row: {stage: _environment(stage, settings, root) for stage in stages_of(settings)} for row, settings in rows.items()
    }
    _write(content, out)


def record_sources(out: Path, read: Digests) -> None:
    """Add the keys of `views` of the sources that were ``read`` to the request in ``out``.

    Raises:
        UserError: ``out`` cannot be written to.
    """
    content = read_object(out / REQUEST)
    for row, values in content["rows"]:
        settings, environment = parse_settings(values), content["environment"][row]["views"]
        of_row = content["views"].setdefault(row, {})
        for name, source, split in content["scenes"]:
            if source in read:
                of_row[name] = _views_key(name, with_split(settings, split), environment, read[source])
    _write(content, out)


def read_request(out: Path) -> RunRequest:
    """The request of the run in the folder ``out``.

    Raises:
        UserError: there is none, it is damaged, or it was written by another version.
    """
    file = out / REQUEST
    if not file.is_file():
        raise UserError(
            f"There is no {REQUEST} in '{out}'; give the folder of a run of reconx evaluate or reconstruct, of this version."
        )
    written = read_object(file)
    written.setdefault("environment", written.get("around"))  # its name in version 0.1.0
    content = check_shape(written, _Content, file)
    kept = {
        name: getattr(content, name) for name in ("source", "place", "started", "process", "workers", "views", "environment")
    }
    return RunRequest(out, Path(content.store), plans=_plans(content), missing=frozenset(content.missing), **kept)


def find_request(out: Path) -> RunRequest | None:
    """The request of the run in the folder ``out``; None if there is none that this version can read."""
    try:
        return read_request(out)
    except UserError:
        return None


def newest_run(root: Path, scene: str | None = None) -> RunRequest:
    """The run that was last started or ended with this store and whose folder is still there; one with the scene, if given.

    Raises:
        UserError: there is none.
    """
    runs = [request for folder, _, _ in known_runs(root) if (request := find_request(folder))]
    names: set[str] = set()
    for request in runs:
        here = {plan.name for plan in request.plans}
        if scene is None or scene in here:
            return request
        names |= here
    if scene is not None and runs:
        raise UserError(f"No run with the store {root} has a scene '{scene}'{near(scene, names)}")
    raise UserError(f"The store {root} knows of no run; name the run's folder, or its store by --store.")


def shown(folder: Path) -> str:
    """A folder as seen from here, where it is below, else by its whole path."""
    folder = folder.absolute()
    return one_line(str(folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder))


def near(name: str, known: Iterable[str]) -> str:
    """The end of a sentence on a name that is not known: names that are like it, or some that there are."""
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, 3, 0.5)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there {'is' if len(names) == 1 else 'are'} {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}."


def _write(content: dict[str, Any], out: Path) -> None:
    try:
        write_json(out / REQUEST, content)
    except OSError as error:
        raise explain_disk(error, out) from error


def _plans(content: _Content) -> tuple[ScenePlan, ...]:
    rows = [(row, parse_settings(settings)) for row, settings in content.rows]
    return tuple(
        ScenePlan(name, source, with_split(settings, split).model_copy(update={"seed": seed}), row, content.seeded)
        for row, settings in rows
        for name, source, split in content.scenes
        for seed in content.seeds
    )


def _environment(stage: str, settings: Settings, root: Path) -> dict[str, Any] | None:
    try:
        return environment_of(stage, settings, root)
    except UserError:
        return None  # the task reports it


def _views_key(scene: str, settings: Settings, environment: dict[str, Any], digest: str | Exception) -> str | None:
    if isinstance(digest, Exception):
        return None  # whatever is wrong with the source, its task reports it
    return store.artifact_key(stage="views", scene=scene, **parts_of("views", settings, {}, environment, digest))


def _process() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "since": psutil.Process().create_time()}


def _started(record: Path) -> float | None:
    return find_object(record).get("started")
