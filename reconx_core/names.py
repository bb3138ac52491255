"""Names of files as they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

FEW = 8  # names in a sentence
MOST_QUOTED = 60  # characters
# Surrogates are how Python keeps bytes of a file name that are not UTF-8, to open the file by it; control characters would
# move a terminal's cursor and change its colours and title.
_NOT_SHOWN = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What else would break a line or turn it round: tabs, ends of lines, and overrides of the direction of writing.
_NOT_IN_LINE = re.compile("[\t\n\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def shown(name: str) -> str:
    """The name with U+FFFD for every byte that is not UTF-8, which can be neither encoded nor printed, and for controls."""
    return _NOT_SHOWN.sub("\ufffd", name)


def one_line(name: str) -> str:
    """The name as :func:`shown`, and with U+FFFD for what would not stay within its line."""
    return _NOT_IN_LINE.sub("\ufffd", shown(name))


def abbreviate(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def unique_shown(names: Iterable[str]) -> list[str]:
    """The names as they are shown in a line, with a running number where they do not differ."""
    unique: list[str] = []
    taken: set[str] = set()
    for name in map(one_line, names):
        candidate, number = name, 1
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        unique.append(candidate)
    return unique


def quoted(value: object) -> str:
    """A value from a file as a sentence shows it: as Python writes it, not too long."""
    try:
        text = repr(value)
    except RecursionError:  # brackets in brackets, of which a file may hold more than Python writes
        text = "[[[..."
    return text if len(text) <= MOST_QUOTED else f"{text[:MOST_QUOTED]}..."
