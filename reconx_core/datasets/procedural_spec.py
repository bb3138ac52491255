"""What follows ``procedural:``, read without the code that makes such scenes."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from urllib.parse import parse_qsl

from reconx_core.errors import UserError

PREFIX = "procedural:"
SCENES = ("room", "hall")
_MOST_SCENES = 100_000  # of a range of seeds: each is a row of the results
_WHOLE_ARC = 330  # degrees from one input to the next
_LONGEST_SEED = 18  # digits of one in a range
_RANGE = re.compile(r"seed=(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Spec:
    """What follows ``procedural:``. ``seed`` decides the scene, the rest how it is photographed."""

    scene: str = "room"
    seed: int = 0
    views: int = 3  # inputs along the arc
    targets: int = 1  # held-out views between two inputs
    arc: float = 12.0  # degrees from one input to the next
    width: int = 512
    height: int = 384
    fov: float = 65.0  # horizontal, degrees


# What a scene can be photographed with, in as much memory as a computer has.
_LIMITS = {
    "views": (2, 1000),
    "targets": (0, 1000),
    "arc": (0, _WHOLE_ARC),
    "width": (16, 16_384),
    "height": (16, 16_384),
    "fov": (10, 120),
}


def is_spec(path: Path | str) -> bool:
    return str(path).startswith(PREFIX)


def parse(path: Path | str) -> Spec:
    """The spec of ``procedural:room?key=value&...``.

    Raises:
        UserError: no scene is named, or a scene, key or value does not exist, or a key is given twice.
    """
    scene, _, query = str(path).removeprefix(PREFIX).partition("?")
    known = {f.name: type(f.default) for f in fields(Spec) if f.name != "scene"}
    values: dict[str, float | int] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UserError(f"'{path}': there is no '{key}'; the keys are {', '.join(known)}.")
        if key in values:
            raise UserError(f"'{path}': '{key}' is given more than once; give it once.")
        try:
            values[key] = known[key](text)
        except ValueError:
            raise UserError(f"'{path}': '{key}={text}' should be a number.") from None
    if scene not in SCENES:
        problem = f"there is no scene '{scene}'" if scene else "no scene is named"
        raise UserError(f"'{path}': {problem}; there are {', '.join(SCENES)}.")
    spec = replace(Spec(), scene=scene, **values)  # type: ignore[arg-type]
    if wrong := next((key for key, (least, most) in _LIMITS.items() if not least <= getattr(spec, key) <= most), None):
        least, most = _LIMITS[wrong]
        raise UserError(f"'{path}': {wrong} should be from {least} to {most}, not {getattr(spec, wrong)}.")
    return spec


def expand(path: Path | str) -> list[Path]:
    """One scene for each seed of ``seed=0..4``. Raises UserError for a range of no seed, or of too many."""
    found = _RANGE.search(str(path))
    if not found:
        return [Path(str(path))]
    if max(map(len, found.groups())) > _LONGEST_SEED:
        raise UserError(f"'{path}': a seed of a range should have at most {_LONGEST_SEED} digits.")
    first, last = map(int, found.groups())
    if last < first:
        raise UserError(f"'{path}': the range of seeds ends before it begins, so it has no scene; give {last}..{first}.")
    if last - first >= _MOST_SCENES:
        count = f"{last - first + 1:,} scenes"
        raise UserError(f"'{path}': the range of seeds is {count}; at most {_MOST_SCENES:,} are made at a time.")
    return [Path(str(path).replace(found[0], f"seed={seed}")) for seed in range(first, last + 1)]


def scene_name(path: Path | str) -> str:
    """A name for folders and tables, such as ``room_3``."""
    spec = parse(path)
    return f"{spec.scene}_{spec.seed}"
