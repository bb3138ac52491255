"""Positions of the marks in plots. The templates draw them as SVG; positions are in percent, so that a plot fits any screen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

MAX_NAMED_ROWS = 40  # up to this many scenes, each has a row with its name; more are ranked from left to right


@dataclass(frozen=True)
class Mark:
    """One run's score of one scene."""

    run: int
    at: float  # percent of the axis
    title: str  # tooltip


@dataclass(frozen=True)
class Row:
    """One scene."""

    name: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class ScenePlot:
    """A score per scene, for one or several runs."""

    title: str
    ticks: tuple[tuple[float, str], ...]  # percent of the axis, label
    rows: tuple[Row, ...]  # by the first run's score, highest first
    named: bool


@dataclass(frozen=True)
class Whisker:
    """A difference with its interval, on an axis whose middle is zero; percent."""

    at: float
    low: float
    high: float
    spread: float  # half the width of the band around zero; 0 where it is not known


def scene_plot(
    title: str, values: Mapping[str, Sequence[float | None]], runs: Sequence[str], form: Callable[[float], str]
) -> ScenePlot:
    """The plot of ``values``: for each scene a score per run, None if a run has none.

    An infinite score is drawn at the end of the axis.
    """
    known = {name: row for name, row in values.items() if any(value is not None for value in row)}
    low, high, ticks = axis([value for row in known.values() for value in row if value is not None])
    rows = []
    for name, row in sorted(known.items(), key=lambda item: -next(v for v in item[1] if v is not None)):
        marks = [
            Mark(run, _percent(value, low, high), " · ".join((name, *filter(None, (runs[run],)), form(value))))
            for run, value in enumerate(row)
            if value is not None
        ]
        rows.append(Row(name, tuple(marks)))
    labelled = tuple((_percent(v, low, high), label) for v, label in ticks)
    return ScenePlot(title, labelled, tuple(rows), named=len(rows) <= MAX_NAMED_ROWS)


def axis(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    """Limits of an axis that holds the finite ``values``, and its labelled ticks: steps of 1, 2 or 5 times a power of ten."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    step = _step((high - low) or abs(high) / 10 or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    decimals = max(0, -math.floor(math.log10(step)))
    return first * step, last * step, [(i * step, f"{i * step:.{decimals}f}") for i in range(first, last + 1)]


def reach(mean: float, bounds: tuple[float, float] | None, spread: float | None) -> float:
    """The largest distance from zero of a difference, its interval and the spread over seeds."""
    return max(map(abs, (mean, spread or 0.0, *(bounds or ()))))


def whisker(mean: float, bounds: tuple[float, float] | None, spread: float | None, furthest: float) -> Whisker:
    """Their positions on a symmetric axis on which ``furthest`` is near the end (43 of 50 percent from the middle)."""
    low, high = bounds or (mean, mean)
    at, low, high = (50 + 43 * value / (furthest or 1.0) for value in (mean, low, high))
    return Whisker(at, low, high, 43 * (spread or 0.0) / (furthest or 1.0))


def _step(length: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that divides ``length`` into at most six."""
    power = 10.0 ** math.floor(math.log10(length / 6))
    return next(factor * power for factor in (1, 2, 5, 10) if length / (factor * power) <= 6 * (1 + 1e-9))


def _percent(value: float, low: float, high: float) -> float:
    return min(100.0, max(0.0, 100 * (value - low) / (high - low)))
