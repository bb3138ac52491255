"""`reconx evaluate DATA --predictions DIR`: what another method made of a dataset, scored as our own scenes are.

Of our stages only `views` runs, through the store: the split, the sizes and the masks. The scores are taken from the files.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from flows.evaluate import EvaluationRequest, about, check_dataset, make_plans, title_of
from flows.evaluation.predictions import ARCHIVES, Found, find_predictions, opened, scene_places
from flows.evaluation.protocols import INDEX
from flows.execution.plan import REQUEST
from flows.execution.run import look_up, run_stages
from flows.runs.alone import alone_in
from flows.runs.records import RECORD
from reconx_core.errors import UserError
from reconx_core.io.files import as_it_was
from reconx_core.names import one_line, shown
from reconx_core.settings import Settings

OWN = ("views", "metrics")  # sections of the settings that say how another method is scored


def require_no_method(overrides: list[str]) -> None:
    """Raise UserError where a setting is of a stage that does not run."""
    for text in overrides:
        if text.partition("=")[0].partition(".")[0] not in (*OWN, "seed"):
            raise UserError(f"'{text}' is of a stage that does not run with --predictions: only views and metrics can be set.")


def own_settings(settings: Settings) -> dict[str, Any]:
    """What of the settings counts for another method's scores."""
    dumped = settings.model_dump(mode="json")
    return {"seed": settings.seed, **{section: dumped[section] for section in OWN}}


def score_predictions(
    request: EvaluationRequest, given: Path, label: str | None, out: Path, root: Path, console: Console
) -> int:
    """Score what lies in ``given``, and write results as those of a run into ``out``; returns how many scenes failed.

    ``label``: what the method is called; None: the name of the folder.

    Raises:
        UserError: as of an evaluation; or pictures are missing, too many, of another size or of other photos.
    """
    check_dataset(request.dataset)
    if any((out / name).exists() for name in (RECORD, REQUEST)):
        raise UserError(f"'{out}' holds another run; name a new folder by -o.")
    with alone_in(out), as_it_was(out, (INDEX,)) as keep, ExitStack() as stack:
        make = look_up(lambda: make_plans(request, out))
        places = scene_places(given, [plan.name for plan in make()])
        found = {name: find_predictions(stack.enter_context(opened(place))) for name, place in places.items()}
        return _score(make, found, _how(request, given, label, out), out, root, console, keep)


def _how(request: EvaluationRequest, given: Path, label: str | None, out: Path) -> dict[str, Any]:
    """What the record says beside the scenes."""
    name = given.resolve().name
    plain = next((name.removesuffix(end) for end in (*ARCHIVES, ".ply") if name.endswith(end)), name)
    own = {"title": title_of(out, ""), "label": one_line(label or plain), "predictions": shown(str(given))}
    return own | {"settings": own_settings(request.settings)} | about(request, "", time.time())


def _score(
    make: Callable[[], Any], found: dict[str, Found], how: dict[str, Any], out: Path, root: Path,
    console: Console, keep: Callable[[], None],
) -> int:  # fmt: skip
    console.print(f"Scoring {how['predictions']} as {how['label']}", soft_wrap=True, markup=False)
    start = time.monotonic()
    runs = run_stages(make, root, console, ("views",))

    from flows.evaluation import score_tables
    from flows.evaluation.foreign_scores import check_scene, score_scene, write_run
    from flows.execution.notes import noted_on
    from flows.runs.registry import end_run
    from flows.runs.results import facts, scene_record
    from flows.runs.tracking import open_run

    say = noted_on(console)
    scenes = {run.name: check_scene(run, found[run.name], root, say) for run in runs if run.error is None}
    if not scenes:
        raise UserError("Nothing was scored: no scene's photos can be used (why is said above).")
    keep()
    end_run(root, out, [reference for run in runs for reference in run.references.values()], say)
    how |= {"facts": facts()}
    records, reports = {run.name: scene_record(run, root) for run in runs if run.error is not None}, {}
    with open_run(how, out, console) as live:
        for name, scene in scenes.items():
            records[name], reports[name] = score_scene(scene, out / name, root)
        ordered = {run.name: records[run.name] for run in runs}
        record = write_run(how, ordered, reports, runs, out, root)
        for name, one in ordered.items():
            live.log_scene(name, one, out / name)
        live.close(record)
    score_tables.print_made(console, record, out, time.monotonic() - start, told=len(runs) > 1)
    return len(runs) - len(scenes)
