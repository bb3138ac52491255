"""Splits by rule: which photos of a scene are inputs and which are held out, given how many there are."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from reconx_core.datasets import Split, every_eighth
from reconx_core.errors import UserError

FORMS = {
    "clip": "clip:START:SKIP:FRAMES, for example clip:0:2:16",
    "views": "views:INPUTS:TARGETS, for example views:58,133:84,102,129",
    "every8": "every8:INPUTS, for example every8:3",
    "spread": "spread:INPUTS, for example spread:6",
    "gap": "gap:FRAMES, for example gap:201",
    "outside": "outside:INPUTS, for example outside:2",
    "ring": "ring:INPUTS, for example ring:2",
}


def is_rule(name: str) -> bool:
    """Whether a split's name is a rule, not the name of a split that the dataset defines."""
    return name.split(":")[0] in FORMS and ":" in name


def split_by_rule(name: str, photos: int) -> Split:
    """The split that a rule makes of ``photos`` photos, which count from 0 in capture order.

    ``clip:START:SKIP:FRAMES``: every SKIP-th photo from START on; the first and the last are inputs, those between targets.
    ``views:INPUTS:TARGETS``: as listed. ``every8:N``: 0, 8, 16, ... are held out, N inputs are spread evenly over the others
    (LLFF, RegNeRF). ``spread:N``: N inputs are spread evenly over all, every eighth of the others is held out (the paper's
    Table III). ``gap:FRAMES``: two inputs FRAMES apart in the middle of the capture, three targets evenly between (`hard`).
    ``outside:N``: N evenly spaced inputs around the middle, as far apart as the capture allows; held out are the photos before
    and after them that are no farther than the inputs are from each other. ``ring:N``: of a capture all the way round, N inputs
    a twelfth of it apart; held out are those half-way between the twelfths, all around.

    Raises:
        UserError: the rule is malformed, or there are too few photos for it.
    """
    kind, *parts = name.split(":")
    try:
        numbers = [[int(number) for number in part.split(",")] for part in parts]
        if kind == "views":
            inputs, targets = numbers
            split = Split(tuple(sorted(inputs)), tuple(targets))
        else:
            split = _RULES[kind](photos, *(number for (number,) in numbers))
    except (ValueError, TypeError):
        raise UserError(f"The split '{name}' should look like {FORMS[kind]}.") from None
    if len(split.inputs) < 2 or not set(split.inputs) | set(split.targets) <= set(range(photos)):
        ring = "2 to 12 inputs and 24 photos or more, all the way round; here are"
        wanted = ring if kind == "ring" else "at least two inputs and no view beyond the last of"
        raise UserError(f"The split '{name}' needs {wanted} {photos} photos.")
    return split


def explicit(split: Split) -> str:
    """The ``views:`` rule that lists the split."""
    return f"views:{','.join(map(str, split.inputs))}:{','.join(map(str, split.targets))}"


def _clip(photos: int, start: int, skip: int, frames: int) -> Split:
    if start < 0 or skip < 1 or frames < 2:
        return Split((), ())
    chosen = range(start, start + skip * (frames - 1) + 1, skip)
    return Split((chosen[0], chosen[-1]), tuple(chosen[1:-1]))


def _every8(photos: int, count: int) -> Split:
    inputs, targets = every_eighth(photos)
    return Split(_evenly(inputs, count), targets)


def _spread(photos: int, count: int) -> Split:
    inputs = _evenly(tuple(range(photos)), count)
    return Split(inputs, tuple(i for i in range(photos) if i not in inputs)[::8])


def _gap(photos: int, frames: int) -> Split:
    first = (photos - 1 - frames) // 2
    targets = tuple(first + round(frames * share) for share in (0.25, 0.5, 0.75))
    return Split((first, first + frames), targets) if frames > 3 and first >= 0 else Split((), ())


def _outside(photos: int, count: int) -> Split:
    gap = (photos - 1) // (count + 1)
    first, length = (photos - 1 - (count - 1) * gap) // 2, (count - 1) * gap
    before, after = range(first - gap, first), range(first + length + 1, first + length + gap + 1)
    return Split(tuple(range(first, first + length + 1, gap)), (*before, *after)) if gap else Split((), ())


def _ring(photos: int, count: int) -> Split:
    places = [round(photos * half / 24) for half in range(24)]
    whole = photos >= 24 and 1 < count <= 12
    return Split(tuple(places[: 2 * count : 2]), tuple(places[1::2])) if whole else Split((), ())


def _evenly(among: tuple[int, ...], count: int) -> tuple[int, ...]:
    if not 0 < count <= len(among):
        return ()
    return tuple(among[i] for i in np.linspace(0, len(among) - 1, count).round().astype(int))


_RULES: dict[str, Callable[..., Split]] = {
    "clip": _clip, "every8": _every8, "spread": _spread, "gap": _gap, "outside": _outside,
    "ring": _ring,
}  # fmt: skip
