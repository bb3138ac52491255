"""Rules that decide between two runs, written down before: ``mean difference > 0.1 dB with 95 % confidence``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from flows.evaluation.comparison import FEWEST, interval, shared_scenes
from flows.runs.records import Run
from reconx_core.errors import UserError
from reconx_core.names import quoted
from reconx_core.reporting.report import COLUMNS

FORM = "[SCORE] mean difference > NUMBER [UNIT] with NUMBER % confidence [over seeds]"
_RULE = re.compile(
    r"(?P<score>.*?)\s*\bmean difference\s*(?P<sign>[<>])\s*(?P<threshold>[+-]?\d+(\.\d+)?)\s*(?P<unit>\S+)?\s+"
    r"with\s+(?P<confidence>\d+(\.\d+)?)\s*%\s*confidence(?P<over>\s+over\s+(seeds|scenes))?",
    re.IGNORECASE,
)
ROUNDING = 1e-9  # of differences that are equal to the threshold as they are written
_UNITS = {"%": "%", "db": "dB", "°": "°", "degrees": "°"}


@dataclass(frozen=True)
class Rule:
    """The mean over scenes of the second run's score minus the first's lies beyond a threshold."""

    text: str
    key: str  # of the score
    sign: str  # < or >
    threshold: float
    confidence: float  # percent
    over: str  # what would be drawn anew: scenes or seeds


@dataclass(frozen=True)
class Decision:
    """Whether the rule holds, in a sentence."""

    holds: bool
    sentence: str


def parse_rule(text: str) -> Rule:
    """A rule of the form :data:`FORM`; without a score it is PSNR, whose unit then has to be said.

    Raises:
        UserError: it has another form, no score is called so, its unit is another, or the confidence is none.
    """
    found = _RULE.fullmatch(" ".join(text.split()))
    if found is None:
        example = "mean difference > 0.1 dB with 95 % confidence"
        raise UserError(f"The rule {quoted(text)} should look like '{FORM}', such as '{example}'.")
    key, unit = _score(found["score"]), found["unit"] or ""
    due = _unit(key)
    said = _UNITS.get(unit.lower(), unit)
    if said != due and (said or not found["score"]):
        raise UserError(
            f"The rule {quoted(text)} is of {COLUMNS[key][0]}, whose unit is {due or 'none'}, not {unit or 'none'}."
        )
    confidence = float(found["confidence"])
    if not 50 <= confidence < 100:
        raise UserError(f"The rule {quoted(text)} should have a confidence from 50 to below 100 %.")
    over = (found["over"] or "scenes").split()[-1].lower()
    return Rule(" ".join(text.split()), key, found["sign"], float(found["threshold"]), confidence, over)


def _score(name: str) -> str:
    """The key of a score by its key or title."""
    names = {title.lower(): key for key, (title, *_) in COLUMNS.items()} | {key: key for key in COLUMNS}
    key = names.get(name.lower() or "psnr")
    if key is None:
        raise UserError(f"The rule names no score that there is: {quoted(name)}; there are {', '.join(COLUMNS)}.")
    return key


def find_rule(given: str | None, run: Run) -> tuple[Rule, str] | None:
    """The rule by which to judge, and when it was written down; None where there is none.

    ``given``: a rule, or a file that holds one; without it that of the run's own record.

    Raises:
        UserError: it is no rule.
    """
    own = run.record.get("rule")
    if given is None:
        return (parse_rule(str(own)), _noted(run)) if own else None
    file = Path(given)
    if not _RULE.fullmatch(" ".join(given.split())) and file.is_file():
        return parse_rule(_text(file)), _age(file, run)
    rule = parse_rule(given)
    noted = bool(own) and parse_rule(str(own)) == rule
    return rule, _noted(run) if noted else f"not written down before {run.label}"


def _noted(run: Run) -> str:
    """That the rule is of before the run, and whether the results are, too."""
    scenes = run.record["scenes"].values()
    known = sum(any(cost["stage"] == "metrics" and cost["cached"] for cost in scene.get("costs", [])) for scene in scenes)
    earlier = f", but {known} of its {len(scenes)} scenes had been scored before" if known else ""
    return f"written down when {run.label} began{earlier}"


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The rule in {file} cannot be read: {' '.join(str(error).split())}.") from None


def _age(file: Path, run: Run) -> str:
    started = run.record.get("started")
    before = started is not None and file.stat().st_mtime <= started
    return f"in {file}, last changed {'before' if before else 'after'} {run.label} began"


def decide(rule: Rule, first: Run, second: Run) -> tuple[float | None, tuple[float, float] | None, int]:
    """Mean difference, its interval of the rule's confidence, and the number of scenes or seeds that it is over.

    Raises:
        UserError: the runs have no scene in common, or were scored on different terms.
    """
    scenes = shared_scenes(first, second)
    differences = _over_seeds if rule.over == "seeds" else _over_scenes
    values = differences(rule.key, first, second, scenes)
    if values is None or not len(values):
        return None, None, 0
    level = rule.confidence / 100
    bounds = student_interval(values, level) if rule.over == "seeds" else interval(values, level)
    return float(values.mean()), bounds, len(values)


def student_interval(values: np.ndarray, level: float) -> tuple[float, float] | None:
    """Student's interval of the mean, which holds for few values, too; None for fewer than FEWEST."""
    if len(values) < FEWEST:
        return None
    reach = float(student.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - reach, float(values.mean()) + reach


def _over_scenes(key: str, first: Run, second: Run, scenes: list[str]) -> np.ndarray | None:
    pairs = [[run.record["scenes"][name]["summary"].get(key) for run in (first, second)] for name in scenes]
    return None if any(x is None or y is None for x, y in pairs) else np.array([y - x for x, y in pairs], float)


def _over_seeds(key: str, first: Run, second: Run, scenes: list[str]) -> np.ndarray | None:
    """Per seed that both runs have, the mean over scenes of the difference."""
    records: list[list[dict[str, Any]]] = [
        [run.record["scenes"][name].get("seeds", {}) for name in scenes] for run in (first, second)
    ]
    shared = [seed for seed in records[0][0] if all(seed in seeds for run in records for seeds in run)]
    means = [[[seeds[seed].get(key) for seeds in run] for seed in shared] for run in records]
    if any(value is None for run in means for seed in run for value in seed):
        return None
    return np.array(means[1], float).mean(-1) - np.array(means[0], float).mean(-1) if shared else None


def judge(rule: Rule, written: str, first: Run, second: Run) -> Decision:
    """Whether the whole interval lies beyond the threshold, and what was measured, in a sentence.

    Raises:
        UserError: as :func:`decide`.
    """
    mean, bounds, count = decide(rule, first, second)
    named = f"'{rule.text}' ({written})"
    title, unit = COLUMNS[rule.key][0], f" {_unit(rule.key)}".rstrip()
    if mean is None:
        return Decision(False, f"Not shown: {named}; not every {rule.over[:-1]} of both runs has {title}.")
    if bounds is None:
        needs = f"an interval needs {FEWEST} {rule.over} and there {'is' if count == 1 else 'are'} {count}"
        return Decision(False, f"Not shown: {named}; {title} differs by {mean:+.3f}{unit}, but {needs}.")
    low, high = bounds
    beyond = low - rule.threshold if rule.sign == ">" else rule.threshold - high
    holds = beyond > ROUNDING
    measured = f"{title} of {second.label} - {first.label} is {mean:+.3f}{unit} over {count} {rule.over}"
    interval_said = f"{rule.confidence:g} % interval {low:+.3f} … {high:+.3f}"
    return Decision(holds, f"{'Shown' if holds else 'Not shown'}: {named}; {measured}, {interval_said}.")


def _unit(key: str) -> str:
    """Of a score; empty where it has none."""
    return COLUMNS[key][2].split()[0] if COLUMNS[key][2][:1] in ("d", "°", "%") else ""
