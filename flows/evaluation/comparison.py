"""What two runs say of each other: scores paired by scene, with intervals, the spread over seeds, and whatever else differs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from flows.evaluation.score_tables import scenes_of_bins, spread_of
from flows.runs.records import Run, differing
from reconx_core.errors import UserError
from reconx_core.reporting.report import COLUMNS, HEADLINES

RESAMPLES = 9999
FEWEST = 3  # scenes for an interval: of two values it would be these values themselves
FEW = 20  # scenes, below which the interval is noticeably too narrow
BINNED = ("psnr", "ssim", "lpips", "lpips_alex")  # scores of which the bins of a protocol are compared
SKIPPED = {
    "gaussians", "registered", "camera_confidence", "frames_placed", "depth_known", "trusted_known", "splats_known",
}  # not scores  # fmt: skip
_SECTIONS = {  # of a record -> what is said where they differ and where not
    "settings": ("Settings that differ:", "The settings are the same."),
    "weights": ("Weights that differ:", "The weights are the same."),
    "code": ("Stages whose code differs:", "The code of every stage is the same."),
    "rest": ("Revision, versions and machine that differ:", "Revision, versions and machine are the same."),
}


@dataclass(frozen=True)
class Difference:
    """A score of the second run minus that of the first, over the scenes that both have."""

    key: str
    first: float
    second: float
    mean: float
    bounds: tuple[float, float] | None  # 95 % interval; None for fewer than FEWEST scenes
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
    bins: dict[str, tuple[int, list[Difference]]]  # of the protocol, lowest first: scenes, their main scores


def pair_up(first: Run, second: Run) -> Pair:
    """What the two runs say of the scenes that both finished.

    Raises:
        UserError: there is no such scene, no score that all of them have, or they were scored on different terms.
    """
    scenes = shared_scenes(first, second)
    keys, left_out = _scores(first.record, second.record, scenes)
    if not keys:
        raise UserError(f"Runs {first.label} and {second.label} have no score in common.")
    differences = [_difference(key, first.record, second.record, scenes) for key in keys]
    key = next((key for key in HEADLINES if key in keys), keys[0])
    return Pair(first, second, scenes, differences, left_out, key, differences_by_bin(first, second, scenes, keys))


def differences_by_bin(first: Run, second: Run, scenes: list[str], keys: list[str]) -> dict[str, tuple[int, list[Difference]]]:
    """As of all scenes, for each of the protocol's bins."""
    shared = {name: second.record["scenes"][name] for name in scenes}
    shown = [key for key in BINNED if key in keys]
    return {
        name: (len(of), [_difference(key, first.record, second.record, list(of)) for key in shown])
        for name, of in scenes_of_bins(second.record, shared).items()
    }


def shared_scenes(first: Run, second: Run) -> list[str]:
    """Scenes that both runs finished.

    Raises:
        UserError: there is none, or they were scored on different terms.
    """
    done = [{n for n, scene in run.record["scenes"].items() if scene["error"] is None} for run in (first, second)]
    scenes = [name for name in first.record["scenes"] if name in done[0] & done[1]]
    if not scenes:
        raise UserError(f"Runs {first.label} and {second.label} have no finished scene in common.")
    for name in scenes:
        for term in ("protocol", "split", "size"):
            x, y = first.record["scenes"][name][term], second.record["scenes"][name][term]
            if x != y:
                raise UserError(
                    f"The runs cannot be compared: {term} of scene {name} is {x} in {first.label} and {y} in {second.label}."
                )
    return scenes


def interval(differences: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The percentile bootstrap interval of the mean of paired differences, of 95 %; None for fewer than FEWEST."""
    if len(differences) < FEWEST:
        return None
    # The resampling is seeded: the same two runs always give the same interval. Batches keep thousands of scenes in memory.
    rng, batch = np.random.default_rng(0), max(1, 2_000_000 // len(differences))
    found = bootstrap(
        (differences,), np.mean, n_resamples=RESAMPLES, confidence_level=level, method="percentile", batch=batch, rng=rng
    )
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
    label = pair.second.label
    if same_results(pair):
        return [f"{pair.first.label} and {label} give the same results in all {len(pair.scenes)} scene(s)."]
    said = [
        _named(f"{label} is better:", [d for d in pair.differences if verdict(d) == "better"]),
        _named(f"{label} is worse:", [d for d in pair.differences if verdict(d) == "worse"]),
        _named(
            "No difference shown (the interval holds 0):", [d for d in pair.differences if d.bounds and verdict(d) == "open"]
        ),
        _named("Smaller than the spread over seeds:", [d for d in pair.differences if within_seeds(d)]),
        _about_scenes(len(pair.scenes)),
        _about_seeds(pair),
        f"Not compared, as not every scene has it on equal terms: {', '.join(pair.left_out)}." if pair.left_out else "",
    ]
    return [sentence for sentence in said if sentence]


def same_results(pair: Pair) -> bool:
    """Whether no scene's score differs, not in the last digit."""
    first, second = ([run.record["scenes"][name]["summary"] for name in pair.scenes] for run in (pair.first, pair.second))
    return not pair.left_out and all(x[d.key] == y[d.key] for d in pair.differences for x, y in zip(first, second))


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
    sections: list[tuple[str, list[tuple[str, Any, Any]]]] = []
    if foreign := [run for run in (first, second) if run.record.get("predictions")]:
        named = " and ".join(f"{run.label} ({run.record['label']})" for run in foreign)
        sections.append((f"Made by another method: {named}; compared is what scoring depends on.", []))
        first, second = (replace(run, record=_scoring_alone(run.record)) for run in (first, second))
    for section, (differ, same) in _SECTIONS.items():
        silent = [run.label for run in (first, second) if section not in run.record]
        if section == "rest":
            rows = differing(_rest(first.record), _rest(second.record))
        else:
            rows = [] if silent else differing(first.record[section], second.record[section])
        unknown = silent and section != "rest"
        sections.append(
            (f"{section.capitalize()} not recorded in {' and '.join(silent)}." if unknown else differ if rows else same, rows)
        )
    return sections


def _scoring_alone(record: dict[str, Any]) -> dict[str, Any]:
    """The record without what says how a scene was made, which that of another method does not know."""
    kept = {"settings": ("seed", "views", "metrics"), "weights": ("metrics",), "code": ("views",)}
    parts = {
        name: {key: record[name][key] for key in keys if key in record[name]} for name, keys in kept.items() if name in record
    }
    return {**record, **parts}


def failures(run: Run) -> list[tuple[str, str, str]]:
    """(scene, stage, error) of every scene that failed."""
    scenes = run.record["scenes"].items()
    return [(name, scene.get("failed_stage") or "", scene["error"]) for name, scene in scenes if scene["error"] is not None]


def missing(pair: Pair) -> list[str]:
    """Scenes that not both runs finished."""
    return sorted({*pair.first.record["scenes"], *pair.second.record["scenes"]} - set(pair.scenes))


def _scores(first: dict[str, Any], second: dict[str, Any], scenes: list[str]) -> tuple[list[str], list[str]]:
    """Keys of the scores that every scene has in both runs; titles of those that only some have."""
    keys, left_out = [], []
    for key in COLUMNS:
        values = [record["scenes"][name]["summary"].get(key) for record in (first, second) for name in scenes]
        if key in SKIPPED or not any(value is not None for value in values):
            continue
        whole = all(value is not None and math.isfinite(value) for value in values)
        if whole:
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
    machines = {f"computed on, {key}": value for key, value in record.get("machines", {}).items()}
    about = {key: record.get(key) for key in ("dataset", "row", "seeds")}
    return {**record.get("facts", {}), **machines, **about, "protocol": protocol}


def _named(opening: str, differences: list[Difference]) -> str:
    return f"{opening} {', '.join(COLUMNS[d.key][0] for d in differences)}." if differences else ""


def _about_scenes(count: int) -> str:
    if count < FEWEST:
        return f"{'A single scene says' if count == 1 else 'Two scenes say'} nothing about others: no interval, and no verdict."
    few = "With few scenes the interval is too narrow: over 3 it holds the true mean 73 times in 100, over 10 89 times."
    return few if count < FEW else ""


def _about_seeds(pair: Pair) -> str:
    unknown = [r.label for r in (pair.first, pair.second) if seed_spread(r.record, pair.scenes, pair.key) is None]
    if not unknown:
        return ""
    return f"One seed in {' and '.join(unknown)}: how far the seed alone moves a score is not known (evaluate --seeds 3 tells)."
