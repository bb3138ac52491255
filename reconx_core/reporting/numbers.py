"""Numbers as reports and tables show them: means over scenes, their spread over seeds, and durations."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence

_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}  # seconds


def mean_or_none(values: Iterable[float | None]) -> float | None:
    """The mean; None if there are no values or one is None."""
    given = list(values)
    known = [value for value in given if value is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(given) else None


def mean_scores(summaries: Iterable[Mapping[str, float | None]]) -> dict[str, float | None]:
    """The mean of every score over summaries (of scenes, or of seeds), in order of first appearance; None if one lacks it."""
    rows = list(summaries)
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: mean_or_none(row.get(key) for row in rows) for key in keys}


def pooled_spread(spreads: Sequence[float | None]) -> float | None:
    """Standard deviation over seeds of a mean over scenes, from each scene's; None if there are none or one is unknown.

    The scenes' random draws are independent of each other, even for the same seed, so the variances add up. This estimate uses
    all scenes' seeds and varies far less than the standard deviation of two or three means.
    """
    known = [spread for spread in spreads if spread is not None]
    if not known or len(known) < len(spreads):
        return None
    return math.sqrt(math.fsum(spread**2 for spread in known)) / len(known)


def format_duration(seconds: float) -> str:
    """`12.3 s`, `4 min 05 s` or `3 h 12 min`."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def parse_duration(text: str) -> float | None:
    """Seconds of `90`, `90s`, `30m`, `1.5h`, `30d` or `2w`; None where it says no time, or none at all."""
    read = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw]?)", text.strip())
    return float(read[1]) * _UNITS[read[2]] or None if read else None
