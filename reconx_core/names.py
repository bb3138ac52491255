"""Names of files as they are shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

FEW = 8  # names in a sentence
MOST_QUOTED = 60  # characters
# Surrogates are how Python keeps bytes of a file name that are not UTF-8, to open the file by it; control characters would
# move a terminal's cursor and change its colours and title.
_NOT_SHOWN = re.compile("[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f-\x9f]")


def shown(name: str) -> str:
    """The name with U+FFFD for every byte that is not UTF-8, which can be neither encoded nor printed, and for controls."""
    return _NOT_SHOWN.sub("\ufffd", name)


def abbreviate(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    return ", ".join(names[:FEW]) + (f" and {len(names) - FEW} more" if len(names) > FEW else "")


def unique_shown(names: Iterable[str]) -> list[str]:
    """The names as they are shown, with a running number where they do not differ."""
    unique: list[str] = []
    taken: set[str] = set()
    for name in map(shown, names):
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
