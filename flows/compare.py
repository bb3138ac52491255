"""`reconx compare A B`: runs paired by scene, with intervals, the spread over seeds, and whatever else differs."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy.stats import bootstrap

from flows.tables import spread_of
from flows.tracking import EXPERIMENT, make_client, tracking_uri
from reconx_core.errors import UserError
from reconx_core.report import COLUMNS, HEADLINES, format_score

RESAMPLES = 9999
FEW = 20  # scenes, below which the interval is noticeably too narrow
SKIPPED = {"gaussians", "registered"}  # not scores
_LISTED = 10  # scenes that are named in the terminal
_SECTIONS = {  # of a record -> what is said where they differ and where not
    "settings": ("Settings that differ:", "The settings are the same."),
    "weights": ("Weights that differ:", "The weights are the same."),
    "code": ("Stages whose code differs:", "The code of every stage is the same."),
    "rest": ("Revision, versions and machine that differ:", "Revision, versions and machine are the same."),
}


@dataclass(frozen=True)
class Run:
    """One of the runs, under the letter that it has in all output."""

    letter: str
    record: dict[str, Any]  # run.json
    folder: Path | None = None  # None: found in MLflow
    tracked: tuple[str, str] | None = None  # MLflow's URI and the run's id there; None: MLflow did not take it


@dataclass(frozen=True)
class Difference:
    """A score of the second run minus that of the first, over the scenes that both have."""

    key: str
    first: float
    second: float
    mean: float
    bounds: tuple[float, float] | None  # 95 % interval; None for a single scene
    spread: float | None  # standard deviation over seeds that the difference of two single-seed runs has; None: not known


@dataclass(frozen=True)
class Pair:
    """Two runs on the scenes that both finished."""

    first: Run
    second: Run
    scenes: list[str]
    differences: list[Difference]
    left_out: list[str]  # scores that cannot be compared
    key: str  # the score by which scenes are ranked


def compare(names: list[str], console: Console, out: Path | None = None) -> None:
    """Print the differences of each run from the first, paired by scene, and write the page ``out``.

    Raises:
        UserError: a run cannot be found, two share no scene or score, or a protocol, split or resolution differs.
    """
    runs = [read_run(name, chr(ord("A") + i)) for i, name in enumerate(names)]
    pairs = [pair_up(runs[0], run) for run in runs[1:]]
    for pair in pairs:
        _print_pair(console, pair)
    for run in runs:
        _print_failures(console, run)
    if out is not None:
        from flows.compare_page import write_comparison

        write_comparison(out, runs, pairs)
        console.print(f"Side by side, with pictures: {out}", soft_wrap=True)


def read_run(name: str, letter: str = "A") -> Run:
    """A run from its folder, or from MLflow by name or id (the newest of that name).

    Raises:
        UserError: nothing is there.
    """
    folder = Path(name)
    if (folder / "run.json").is_file():
        note = folder / "mlflow.json"
        told = json.loads(note.read_text()) if note.is_file() else None
        record = json.loads((folder / "run.json").read_text())
        return Run(letter, record, folder, (told["uri"], told["run"]) if told else None)
    uri = tracking_uri(Path("runs"))
    found = _find_in_mlflow(uri, name)
    if found is None:
        raise UserError(f"There is no run '{name}': neither a folder with a run.json nor a run of that name or id in MLflow.")
    return Run(letter, json.loads(Path(found[1]).read_text()), None, (uri, found[0]))


def read_record(name: str) -> dict[str, Any]:
    """The record of a run, found as `read_run` finds it.

    Raises:
        UserError: nothing is there.
    """
    return read_run(name).record


def pair_up(first: Run, second: Run) -> Pair:
    """What the two runs say of the scenes that both finished.

    Raises:
        UserError: there is no such scene, no score that all of them have, or they were scored on different terms.
    """
    scenes = shared_scenes(first, second)
    keys, left_out = _scores(first.record, second.record, scenes)
    if not keys:
        raise UserError(f"Runs {first.letter} and {second.letter} have no score in common.")
    differences = [_difference(key, first.record, second.record, scenes) for key in keys]
    return Pair(first, second, scenes, differences, left_out, next((key for key in HEADLINES if key in keys), keys[0]))


def shared_scenes(first: Run, second: Run) -> list[str]:
    """Scenes that both runs finished.

    Raises:
        UserError: there is none, or they were scored on different terms.
    """
    done = [{n for n, scene in run.record["scenes"].items() if scene["error"] is None} for run in (first, second)]
    scenes = [name for name in first.record["scenes"] if name in done[0] & done[1]]
    if not scenes:
        raise UserError(f"Runs {first.letter} and {second.letter} have no finished scene in common.")
    for name in scenes:
        for term in ("protocol", "split", "size"):
            x, y = first.record["scenes"][name][term], second.record["scenes"][name][term]
            if x != y:
                raise UserError(
                    f"The runs cannot be compared: {term} of scene {name} is {x} in {first.letter} and {y} in {second.letter}."
                )
    return scenes


def interval(differences: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean of paired differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    # The resampling is seeded: the same two runs always give the same interval. Batches keep thousands of scenes in memory.
    rng, batch = np.random.default_rng(0), max(1, 2_000_000 // len(differences))
    found = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="percentile", batch=batch, rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def seed_spread(record: dict[str, Any], scenes: list[str], key: str) -> float | None:
    """Standard deviation over seeds of a run's mean over ``scenes``; None where the run has a single seed."""
    return spread_of({name: record["scenes"][name] for name in scenes}, key)


def verdict(difference: Difference) -> str:
    """Whether the second run is `better` or `worse`, by an interval without zero, or `open`."""
    low, high = difference.bounds or (0.0, 0.0)
    if low <= 0 <= high:
        return "open"
    return "better" if (low > 0) == ("↑" in COLUMNS[difference.key][2]) else "worse"


def within_seeds(difference: Difference) -> bool:
    """Whether another seed alone changes the score by as much."""
    return difference.spread is not None and abs(difference.mean) < difference.spread


def sentences(pair: Pair) -> list[str]:
    """What the intervals and the spread say, in words."""
    letter = pair.second.letter
    told = [
        _named(f"{letter} is better:", [d for d in pair.differences if verdict(d) == "better"]),
        _named(f"{letter} is worse:", [d for d in pair.differences if verdict(d) == "worse"]),
        _named(
            "No difference shown (the interval holds 0):", [d for d in pair.differences if d.bounds and verdict(d) == "open"]
        ),
        _named("Smaller than the spread over seeds:", [d for d in pair.differences if within_seeds(d)]),
        _about_scenes(len(pair.scenes)),
        _about_seeds(pair),
        f"Not compared, as not every scene has it on equal terms: {', '.join(pair.left_out)}." if pair.left_out else "",
    ]
    return [sentence for sentence in told if sentence]


def changed_most(pair: Pair) -> list[tuple[str, float, float, float | None]]:
    """(scene, first, second, spread over seeds of their difference) by ``pair.key``, the largest change first."""
    records = [run.record["scenes"] for run in (pair.first, pair.second)]
    rows = []
    for scene in pair.scenes:
        first, second = (record[scene]["summary"][pair.key] for record in records)
        rows.append((scene, first, second, _combined([record[scene].get("spread", {}).get(pair.key) for record in records])))
    return sorted(rows, key=lambda row: -abs(row[2] - row[1]))


def changes(first: Run, second: Run) -> list[tuple[str, list[tuple[str, Any, Any]]]]:
    """What else differs: a sentence for settings, weights, code and the rest, and below it (key, first, second)."""
    told = []
    for section, (differ, same) in _SECTIONS.items():
        silent = [run.letter for run in (first, second) if section not in run.record]
        if section == "rest":
            rows = differing(_rest(first.record), _rest(second.record))
        else:
            rows = [] if silent else differing(first.record[section], second.record[section])
        unknown = silent and section != "rest"
        told.append(
            (f"{section.capitalize()} not recorded in {' and '.join(silent)}." if unknown else differ if rows else same, rows)
        )
    return told


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


def failures(run: Run) -> list[tuple[str, str, str]]:
    """(scene, stage, error) of every scene that failed."""
    scenes = run.record["scenes"].items()
    return [(name, scene.get("failed_stage") or "", scene["error"]) for name, scene in scenes if scene["error"] is not None]


def missing(pair: Pair) -> list[str]:
    """Scenes that not both runs finished."""
    return sorted({*pair.first.record["scenes"], *pair.second.record["scenes"]} - set(pair.scenes))


def _find_in_mlflow(uri: str, name: str) -> tuple[str, str] | None:
    """Id of the newest run of that name or id, and its record downloaded."""
    from mlflow.exceptions import MlflowException

    file = uri.removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not Path(file).is_file():
        return None
    client, quoted = make_client(uri), '"' + name + '"' if "'" in name else f"'{name}'"
    try:
        experiment = client.get_experiment_by_name(EXPERIMENT)
        ids = [experiment.experiment_id] if experiment else []
        runs = client.search_runs(ids, f"run_name = {quoted}", order_by=["start_time DESC"]) if ids else []
        runs = runs or (client.search_runs(ids, f"run_id = {quoted}") if ids else [])
        return (runs[0].info.run_id, client.download_artifacts(runs[0].info.run_id, "run.json")) if runs else None
    except MlflowException as error:
        raise UserError(f"MLflow at {uri} cannot be asked for '{name}': {' '.join(str(error).split())[:200]}") from error


def _scores(first: dict[str, Any], second: dict[str, Any], scenes: list[str]) -> tuple[list[str], list[str]]:
    """Keys of the scores that every scene has in both runs; titles of those that only some have or that LPIPS nets part."""
    nets = {(record.get("protocol") or {}).get("lpips") for record in (first, second)} - {None}
    keys, left_out = [], []
    for key in COLUMNS:
        values = [record["scenes"][name]["summary"].get(key) for record in (first, second) for name in scenes]
        if key in SKIPPED or not any(value is not None for value in values):
            continue
        whole = all(value is not None and math.isfinite(value) for value in values)
        if whole and not ("lpips" in key and len(nets) > 1):
            keys.append(key)
        else:
            left_out.append(COLUMNS[key][0])
    return keys, left_out


def _difference(key: str, first: dict[str, Any], second: dict[str, Any], scenes: list[str]) -> Difference:
    x, y = (np.array([record["scenes"][name]["summary"][key] for name in scenes], float) for record in (first, second))
    spread = _combined([seed_spread(record, scenes, key) for record in (first, second)])
    return Difference(key, float(x.mean()), float(y.mean()), float((y - x).mean()), interval(y - x), spread)


def _combined(spreads: list[float | None]) -> float | None:
    """Standard deviation of a difference from those of its terms; one that is not known counts as none."""
    known = [spread for spread in spreads if spread is not None]
    return math.hypot(*known) if known else None


def _rest(record: dict[str, Any]) -> dict[str, Any]:
    protocol = (record.get("protocol") or {}).get("name")
    return {**record.get("facts", {}), **{key: record.get(key) for key in ("dataset", "row", "seeds")}, "protocol": protocol}


def _named(opening: str, differences: list[Difference]) -> str:
    return f"{opening} {', '.join(COLUMNS[d.key][0] for d in differences)}." if differences else ""


def _about_scenes(count: int) -> str:
    if count < 2:
        return "A single scene says nothing about others, so there is no interval."
    few = "With few scenes the interval is too narrow: over 3 it holds the true mean 73 times in 100, over 10 89 times."
    return few if count < FEW else ""


def _about_seeds(pair: Pair) -> str:
    unknown = [r.letter for r in (pair.first, pair.second) if seed_spread(r.record, pair.scenes, pair.key) is None]
    if not unknown:
        return ""
    return f"One seed in {' and '.join(unknown)}: how far the seed alone moves a score is not known (evaluate --seeds 3 tells)."


def _print_pair(console: Console, pair: Pair) -> None:
    a, b = pair.first, pair.second
    console.print(f"{a.letter}: {escape(a.record['title'])}    {b.letter}: {escape(b.record['title'])}", soft_wrap=True)
    caption = f"{b.letter} - {a.letter}, paired over {len(pair.scenes)} scene(s); 95 % bootstrap interval"
    seeded = any(d.spread is not None for d in pair.differences)
    caption += "; seeds: standard deviation of such a difference of single-seed runs" if seeded else ""
    table = Table(caption=caption, caption_justify="left")
    for column in ("score", a.letter, b.letter, "difference", "95 % interval", *(["seeds ±"] if seeded else [])):
        table.add_column(column, justify="left" if column == "score" else "right")
    for d in pair.differences:
        table.add_row(*_row(d), *([_plain(d.spread)] if seeded else []))
    console.print(table)
    for sentence in sentences(pair):
        console.print(sentence)
    _print_scenes(console, pair)
    _print_changes(console, pair)
    console.print()


def _row(d: Difference) -> tuple[str, ...]:
    bounds = f"{d.bounds[0]:+.3f} … {d.bounds[1]:+.3f}" if d.bounds else "needs two scenes"
    title = f"{COLUMNS[d.key][0]} {COLUMNS[d.key][2]}".strip()
    return title, format_score(d.key, d.first), format_score(d.key, d.second), f"{d.mean:+.3f}", bounds


def _print_scenes(console: Console, pair: Pair) -> None:
    rows = changed_most(pair)
    title = f"{COLUMNS[pair.key][0]} per scene"
    title += f": the {_LISTED} of {len(rows)} that changed most" if len(rows) > _LISTED else ""
    table = Table(title=title, title_justify="left")
    seeded = any(spread is not None for *_, spread in rows)
    for column in ("scene", pair.first.letter, pair.second.letter, "difference", *(["seeds ±"] if seeded else [])):
        table.add_column(column, justify="left" if column == "scene" else "right")
    for scene, x, y, spread in rows[:_LISTED]:
        scores = (format_score(pair.key, x), format_score(pair.key, y), f"{y - x:+.3f}")
        table.add_row(escape(scene), *scores, *([_plain(spread)] if seeded else []))
    console.print(table)
    left_out = missing(pair)
    if left_out:
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        console.print(f"Not in both runs: {escape(', '.join(left_out[:_LISTED]))}{more}")


def _print_changes(console: Console, pair: Pair) -> None:
    for sentence, rows in changes(pair.first, pair.second):
        console.print(sentence)
        for key, x, y in rows:
            console.print(f"  {escape(key)}: {escape(shorten(x))} → {escape(shorten(y))}", soft_wrap=True)


def _print_failures(console: Console, run: Run) -> None:
    failed = failures(run)
    for name, stage, error in failed[:_LISTED]:
        where = f" in {stage}" if stage else ""
        console.print(f"[red]{run.letter}: {escape(name)} failed{where}:[/red] {escape(error)}", soft_wrap=True)
    if len(failed) > _LISTED:
        console.print(f"[red]{run.letter}: {len(failed) - _LISTED} more scenes failed.[/red]")


def _plain(spread: float | None) -> str:
    return "–" if spread is None else f"{spread:.3f}"
