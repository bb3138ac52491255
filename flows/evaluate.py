"""`reconx evaluate`: all scenes of a dataset under a protocol, for one or several seeds, or for the rows of the ablation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows.evaluation.ablation import load_ablation
from flows.evaluation.protocols import INDEX, Protocol, load_protocol, plan_protocol
from flows.execution.hooks import Hooks
from flows.execution.plan import REQUEST, ScenePlan, SceneRun, apart_from_store, place_of, require_apart
from flows.execution.run import load_params, look_up, resolve_auto, resolve_settings, run_stages
from flows.execution.workers import ONE_THREAD, Workers
from flows.runs.alone import alone_in
from reconx_core.errors import UserError
from reconx_core.io.files import as_it_was, explain_disk, short_name
from reconx_core.names import abbreviate, one_line
from reconx_core.settings import STAGES, Settings, parse_settings

if TYPE_CHECKING:
    from flows.execution.sources import Digests
    from flows.runs.growing import RunFolder
    from flows.runs.tracking import LiveRun


MOST_PAGES = 50  # scenes of which each gets a `scene.html` unless told otherwise


@dataclass(frozen=True)
class EvaluationRequest:
    """The arguments of `reconx evaluate`, resolved."""

    dataset: str
    settings: Settings
    only: tuple[str, ...] = ()  # scenes; all without any
    protocol: Protocol | None = None
    index: Path | None = None  # in place of the protocol's
    seeds: int = 1  # from the settings' seed on
    ablation: bool = False
    rule: str | None = None  # by which it will be compared
    pages: bool | None = None  # a `scene.html` of every scene; None: of few, see `MOST_PAGES`


def evaluate(request: EvaluationRequest, out: Path, root: Path, console: Console, workers: Workers = ONE_THREAD) -> int:
    """Run all stages on every scene, write results of each when it is done, and of the run; returns how many scenes failed.

    Raises:
        UserError: no such dataset or scene, ``out`` or the store cannot be written to, or another run is writing into ``out``.
    """
    check_dataset(request.dataset)
    require_apart([], out, request.dataset)
    with alone_in(out), as_it_was(out, (REQUEST, INDEX)) as keep:
        return _evaluate(request, out, root, console, workers, keep)


def _evaluate(
    request: EvaluationRequest, out: Path, root: Path, console: Console, workers: Workers, keep: Callable[[], None]
) -> int:
    start, started = time.monotonic(), time.time()
    plans = look_up(lambda: apart_from_store(make_plans(request, out), root))
    dataset, geometry = one_line(request.dataset), request.settings.pointcloud.backend
    console.print(f"Evaluating {dataset} (geometry by {geometry})", soft_wrap=True, markup=False)

    folders: dict[str, RunFolder] = {}
    live: dict[str, LiveRun] = {}

    def on_start(plans: list[ScenePlan]) -> None:
        from flows.runs import mlflow_client
        from flows.runs.request import record_request
        from flows.runs.results import facts
        from flows.runs.tracking import open_run

        mlflow_client.load()  # while Prefect's server starts
        record_request(plans, started, request.dataset, out, root, workers.side_by_side, request.rule)
        known = {"facts": facts()}
        for row in rows_of(request):
            beginning = known | opening(request, row, out / row, started)
            live[row] = opened.enter_context(open_run(beginning, out / row, console))
            of_row = [plan for plan in plans if plan.row == row]
            folders[row] = open_folder(of_row, out / row, root, live[row], wants_pages(request, len(plans)))
        keep()

    def on_sources(read: Digests) -> None:
        from flows.runs.request import record_sources

        record_sources(out, read)

    def on_scene(run: SceneRun) -> None:
        from flows.execution.notes import noted_on

        folders[run.plan.row].lay(run, noted_on(console))

    with ExitStack() as opened:
        runs = run_stages(plans, root, console, workers=workers, hooks=Hooks(on_start, on_sources, on_scene))
        return write_rows(request, runs, folders, live, out, root, console, start, started)


def write_rows(
    request: EvaluationRequest, runs: list[SceneRun], folders: dict[str, RunFolder], live: dict[str, LiveRun], out: Path,
    root: Path, console: Console, start: float, started: float,
) -> int:  # fmt: skip
    """Results of every row, from those of its scenes; returns how many scenes failed.

    Raises:
        UserError: of no scene there are photos that can be used.
    """
    from flows.evaluation import score_tables as tables
    from flows.execution.flow import is_mistake
    from flows.execution.notes import noted_on
    from flows.runs.earlier import EARLIER
    from flows.runs.registry import end_run

    say = noted_on(console)
    end_run(root, out, [reference for run in runs for reference in run.references.values()], say)
    try:
        told = put_rest_aside(request, folders, out)
    except UserError as error:
        say(f"What an earlier run left in {out} could not be put aside: {error}")
    else:
        if told:
            say(f"An earlier run into this folder made what is now in {out / EARLIER}: {abbreviate(told)}")
    unreadable = all(run.failed_stage == STAGES[0] and is_mistake(run.error) for run in runs)
    for row in rows_of(request):
        record = write_row(request, row, [run for run in runs if run.plan.row == row], folders[row], started)
        live[row].close(record)
        if not unreadable:
            tables.print_made(console, record, out / row, time.monotonic() - start, told=len(runs) > 1)
    if unreadable:
        raise _nothing_to_do(runs, out)
    if request.ablation:
        console.print(f"All rows as one table: reconx table ablation {one_line(str(out))}", soft_wrap=True, markup=False)
    return sum(run.error is not None for run in runs)


def put_rest_aside(request: EvaluationRequest, folders: dict[str, RunFolder], out: Path) -> list[str]:
    """Put aside what an earlier run into ``out`` left and this one has not made; returns the names of what was put aside.

    Raises:
        UserError: something cannot be moved.
    """
    from flows.runs import earlier

    rows = {row.name for row in load_ablation()} - folders.keys()
    for row, folder in folders.items():
        folder.put_others_aside(() if row else rows)
    told = [" · ".join(filter(None, (name, row))) for row, folder in folders.items() for name in folder.aside]
    if request.ablation:
        told += earlier.put_others_aside(out, [], rows)
    if request.ablation or (out / earlier.MADE).is_file():  # of a run with other rows, or of `reconx reconstruct`
        more = (*earlier.RUN_FILES, earlier.SCORES) if request.ablation else ()
        told += [out.name] if earlier.put_results_aside(out, Path(), more) else []
    return told


def _nothing_to_do(runs: list[SceneRun], out: Path) -> UserError:
    """Of scenes all of which failed at their photos; of several the display has told why, of a single one it has not."""
    from flows.execution.flow import describe_error

    (first, *others) = runs
    if not others and first.error is not None:
        return UserError(f"{first.plan.label} failed in {first.failed_stage}: {describe_error(first.error)}")
    count, report = len({run.name for run in runs}), out / "report.html"
    return UserError(f"Nothing was made: none of the {count} scenes can be used (why is said above and in {report}).")


def make_request(
    dataset: str | None, preset: str | None, overrides: list[str], protocol: str | None = None, views: int | None = None,
    index: Path | None = None, only: tuple[str, ...] = (), seeds: int = 1, ablation: bool = False,
) -> EvaluationRequest:  # fmt: skip
    """What the command line asks for; without a dataset and a preset, that of params.yaml.

    Raises:
        UserError: no such preset or protocol, or wrong settings.
    """
    named = None
    if protocol in ("posed", "intrinsics", "unposed"):
        overrides = [f"views.protocol={protocol}", *overrides]
    elif protocol is not None:
        named = load_protocol(protocol, views)
    if views is not None and named is None:
        raise UserError("--views chooses among those of a protocol; name one by --protocol (docs/protocols.md).")
    if dataset is None and preset is None:
        dataset, settings = load_params(overrides)
    elif dataset is None:
        raise UserError("Name the dataset when you name a preset.")
    else:
        settings = resolve_settings(preset, overrides)
    if named is not None:
        settings = resolve_auto(named.applied(settings, overrides))
    if named is None and index is not None:
        named = Protocol(name=index.stem, title=index.stem, views=(0,), index={0: str(index)})
    return EvaluationRequest(dataset, settings, only, named, index, seeds, ablation)


def checked_rule(text: str | None) -> str | None:
    """A rule for `reconx compare` as it is written down. Raises UserError if it is none."""
    if text is None:
        return None
    from flows.evaluation.rules import parse_rule  # with scipy and torch, which no mistake should wait for

    return parse_rule(text).text


def split_names(text: str) -> tuple[str, ...]:
    """The names of scenes in ``--scenes a,b``.

    Raises:
        UserError: there is none.
    """
    names = tuple(name for part in text.split(",") if (name := part.strip()))
    if not names:
        raise UserError(f"'--scenes {text}' names no scene; give one or several, separated by commas.")
    return names


def check_dataset(dataset: str) -> None:
    """Raise UserError where nothing is there."""
    if not dataset.startswith("procedural:") and not Path(dataset).exists():
        raise UserError(f"There is no '{dataset}'; give a folder of scenes, or 'procedural:room'.")


def make_plans(request: EvaluationRequest, out: Path) -> list[ScenePlan]:
    """Every scene with its settings, for every row and every seed.

    Raises:
        UserError: no scene is there, or none of that name, or the protocol has none of them, or ``out`` lies in one of them.
    """
    scenes = find_scenes(request.dataset, request.only)
    if request.protocol is None:
        chosen = [(name, source, request.settings, "") for name, source in scenes]
    else:
        chosen = plan_protocol(request.protocol, scenes, request.settings, request.index, out)
    plans = [
        ScenePlan(name, source, altered(settings, overrides, seed), row, request.seeds > 1, bin)
        for row, overrides in rows_of(request).items()
        for name, source, settings, bin in chosen
        for seed in range(request.settings.seed, request.settings.seed + request.seeds)
    ]
    require_apart(plans, out)
    return plans


def rows_of(request: EvaluationRequest) -> dict[str, tuple[str, ...]]:
    """The ablation's rows with their overrides, or one without a name and any."""
    return {row.name: row.overrides for row in load_ablation()} if request.ablation else {"": ()}


def altered(settings: Settings, overrides: Iterable[str], seed: int) -> Settings:
    """The settings with an ablation's overrides and another seed."""
    return parse_settings(settings.model_dump() | {"seed": seed}, list(overrides))


def wants_pages(request: EvaluationRequest, count: int) -> bool:
    """Whether ``count`` scenes, rows and seeds counted, get pages to look around in: some MB each."""
    return count <= MOST_PAGES if request.pages is None else request.pages


def open_folder(plans: list[ScenePlan], out: Path, root: Path, live: LiveRun, pages: bool) -> RunFolder:
    """The folder of a row, to be filled scene by scene, each of which MLflow is told of."""
    from flows.runs.growing import RunFolder

    return RunFolder(out, root, plans, lambda name, record: live.log_scene(name, record, out / name), pages)


def opening(request: EvaluationRequest, row: str, out: Path, started: float) -> dict[str, Any]:
    """What MLflow is told of a row before its first scene, beside the facts of the machine."""
    settings = row_settings(request, row).model_dump(mode="json")
    return {"title": title_of(out, row), "settings": settings} | about(request, row, started)


def write_row(request: EvaluationRequest, row: str, runs: list[SceneRun], folder: RunFolder, started: float) -> dict[str, Any]:
    """Results of one run, the only one or a row of the ablation; returns its record. ``started``: seconds since the epoch."""
    from flows.runs import results

    scenes, title = folder.records(runs), title_of(folder.out, row)
    settings, how = row_settings(request, row), about(request, row, started)
    return results.write_run(folder.out, title, runs, scenes, folder.root, settings, how)


def row_settings(request: EvaluationRequest, row: str) -> Settings:
    return altered(request.settings, rows_of(request)[row], request.settings.seed)


def title_of(out: Path, row: str) -> str:
    """The run's name in reports and MLflow."""
    folder = out.resolve()
    return one_line(f"{folder.parent.name} · {row}" if row else folder.name)


def about(request: EvaluationRequest, row: str, started: float) -> dict[str, Any]:
    """What the record of a run says of how it came about."""
    protocol = request.protocol and request.protocol.record()
    rule = {} if request.rule is None else {"rule": request.rule}
    return {"dataset": request.dataset, "protocol": protocol, "row": row or None, "started": started, **rule}


def find_scenes(dataset: str, only: Iterable[str] = ()) -> list[tuple[str, str]]:
    """(name, source) of the dataset's scenes, or of those named in ``only``, in its order.

    Raises:
        UserError: no scene is there, or none of that name.
    """
    from reconx_core.datasets import scene_names

    scenes = [(name, place_of(path)) for name, path in scene_names(Path(dataset))]
    known = dict(scenes)
    wanted = set(_with_commas(list(map(one_line, only)), known))
    if missing := sorted(wanted - known.keys()):
        raise UserError(f"'{dataset}' has no scene '{missing[0]}'; it has {abbreviate(list(known))}.")
    return [scene for scene in scenes if not wanted or scene[0] in wanted]


def _with_commas(parts: list[str], known: Container[str]) -> Iterator[str]:
    """The names of which ``--scenes a,b`` is made: what is no scene may be the beginning of one that has commas in its name."""
    while parts:
        count = 1
        if parts[0] not in known:
            ends = (end for end in range(2, len(parts) + 1) if _joined(parts[:end], known) in known)
            count = next(ends, 1)
        yield _joined(parts[:count], known)
        parts = parts[count:]


def _joined(parts: list[str], known: Container[str]) -> str:
    spaced = ", ".join(parts)
    return spaced if spaced in known else ",".join(parts)


@contextmanager
def results_folder(out: Path | None, dataset: str) -> Iterator[Path]:
    """``out``, or a new folder ``runs/DATASET-1``, or the next number that is not taken; taken back where nothing came into it.

    Two processes that ask at the same moment get two.
    """
    if out is not None:
        yield out
        return
    name = dataset.split("?")[0].replace("procedural:", "")
    with as_it_was(Path("runs"), ()):
        folder = make_next(Path("runs"), Path(name).name or Path(name).resolve().name or "run")
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                folder.rmdir()


def make_next(parent: Path, name: str) -> Path:
    """A new folder ``parent/name-1``, or with the next number that is not taken.

    Raises:
        UserError: it cannot be made.
    """
    number = 1
    while True:
        folder = parent / f"{short_name(name)}-{number}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError as error:
            if not parent.is_dir():
                raise explain_disk(error, parent) from error
            number += 1
        except OSError as error:
            raise explain_disk(error, parent) from error
