"""Records of ended runs (`run.json`), found by folder or, through MLflow, by name or id."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, model_validator

from flows.runs.mlflow_client import experiment_name, make_client, tracking_uri
from reconx_core.errors import UserError
from reconx_core.io.checked import check_shape, read_object
from reconx_core.names import abbreviate

if TYPE_CHECKING:
    from mlflow.entities import Run as TrackedRun

RECORD = "run.json"
TRACKED = "mlflow.json"  # in the run's folder: where MLflow has it


@dataclass(frozen=True)
class Run:
    """An ended run."""

    record: dict[str, Any]  # run.json
    folder: Path | None = None  # None: found in MLflow
    tracked: tuple[str, str] | None = None  # MLflow's URI and the run's id there; None: MLflow did not take it
    label: str = ""  # what it is called in the output at hand

    @property
    def id(self) -> str | None:
        """In MLflow."""
        return self.tracked and self.tracked[1]

    @property
    def place(self) -> str:
        """Its folder, or else its title."""
        return str(self.folder or self.record["title"])


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class _SeenFrom(_Part):
    view: str
    is_target: bool


class _Cost(_Part):
    stage: str
    seconds: float
    peak_mib: float
    cached: bool


class _Scene(_Part):
    error: str | None
    failed_stage: str | None = None
    summary: dict[str, float | None]
    protocol: str | None = None
    split: str | None = None
    size: list[int] | None = None
    views: list[_SeenFrom] = []
    costs: list[_Cost] = []
    spread: dict[str, float] = {}

    @model_validator(mode="after")
    def _finished_on_some_terms(self) -> _Scene:
        if self.error is None and (self.protocol is None or self.split is None or self.size is None or len(self.size) != 2):
            raise ValueError("finished, but without its protocol, split or size")
        return self


class _RunSettings(_Part):
    seed: int


class _Record(_Part):
    """What the readers of a record rely on; what else it holds is theirs to look for."""

    title: str
    scenes: dict[str, _Scene]
    settings: _RunSettings
    seeds: list[int] | None = None
    row: str | None = None
    dataset: str | None = None
    protocol: dict[str, Any] | None = None
    facts: dict[str, Any] = {}
    code: dict[str, Any] = {}
    weights: dict[str, Any] = {}


class _Tracked(_Part):
    uri: str
    run: str


def is_run(folder: Path) -> bool:
    """Whether an ended run left its record there."""
    return (folder / RECORD).is_file()


def read_run(name: str, label: str = "") -> Run:
    """A run from its folder, or from MLflow by name or id (the newest of that name).

    Raises:
        UserError: nothing is there, or its record is damaged.
    """
    folder = Path(name)
    if is_run(folder):
        note = folder / TRACKED
        tracked = check_shape(read_object(note), _Tracked, note) if note.is_file() else None
        place = (tracked.uri, tracked.run) if tracked else None
        return Run(read_record(folder / RECORD), folder, place, label)
    if rows := sorted(path.name for path in folder.glob("*") if is_run(path)):
        raise UserError(
            f"'{name}' holds {len(rows)} run(s) ({abbreviate(rows)}); name one of them, such as {folder / rows[0]}."
        )
    quoted = f'"{name}"' if "'" in name else f"'{name}'"
    conditions = (f"tags.`reconx.title` = {quoted}", f"run_name = {quoted}", f"run_id = {quoted}")
    found = next((run for condition in conditions for run in search_mlflow(condition)), None)
    if found is None:
        raise UserError(f"There is no run '{name}': neither a folder with a {RECORD} nor a run of that name or id in MLflow.")
    return download_run(found, label)


def download_run(tracked: TrackedRun, label: str = "") -> Run:
    """A run with its record from MLflow.

    Raises:
        UserError: the record is not there, or is damaged.
    """
    uri, run = tracking_uri(Path("runs")), tracked.info.run_id
    try:
        file = Path(make_client(uri).download_artifacts(run, RECORD))
    except Exception as error:  # MLflow's stores raise anything
        raise UserError(f"The {RECORD} of run {run} in MLflow cannot be read ({one_line(error)}).") from None
    return Run(read_record(file), None, (uri, run), label)


def read_record(file: Path) -> dict[str, Any]:
    """A run's record, which holds at least what its readers need.

    Raises:
        UserError: it is damaged, or of no run of this version.
    """
    record = read_object(file)
    check_shape(record, _Record, file)
    return record


def search_mlflow(condition: str) -> Iterator[TrackedRun]:
    """The evaluations in MLflow that fulfil a condition of its search language, newest first; scenes' runs are left out.

    Raises:
        UserError: MLflow cannot be read.
    """
    uri = tracking_uri(Path("runs"))
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).is_file():
        return  # MLflow would make the file
    try:
        client = make_client(uri)
        found = client.get_experiment_by_name(experiment_name())
        places, token = [found.experiment_id] if found else [], None
        while places:
            page = client.search_runs(places, condition, order_by=["start_time DESC"], page_token=token)
            yield from (run for run in page if "mlflow.parentRunId" not in run.data.tags)
            token = page.token
            places = places if token else []
    except Exception as error:  # MLflow's stores raise anything
        raise UserError(f"Cannot read the runs in MLflow at {uri} ({one_line(error)}); name folders of runs instead.") from None


def differing(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, first, second) of every entry that is not the same."""
    found = []
    for key in sorted({*first, *second}):
        x, y = first.get(key), second.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differing(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append((f"{prefix}{key}", x, y))
    return found


def shorten(value: Any) -> str:
    """A setting as it is shown: a digest or revision by its first twelve digits."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}", r"\1", "none" if value is None else str(value))


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error with its type in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:limit]}"
