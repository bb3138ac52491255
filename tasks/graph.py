"""The tasks of a scene: its stages and, where frames are generated in rounds, those of every round (docs/paths.md)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from reconx_core.settings import STAGES, Settings

JOIN = "join"  # ends a round: its confident frames become views of the geometry
IN_ROUNDS = ("condition", "video", "confidence", JOIN)
ORDER = (*STAGES[: STAGES.index("splats")], JOIN, *STAGES[STAGES.index("splats") :])
PARENTS: dict[str, tuple[str, ...]] = {
    "views": (),
    "pointcloud": ("views",),
    "condition": ("views", "pointcloud"),
    "video": ("views", "pointcloud", "condition"),
    "confidence": ("views", "pointcloud", "video"),
    JOIN: ("views", "pointcloud", "condition", "confidence"),  # no stage of a run without rounds
    "splats": ("pointcloud", "confidence"),
    "metrics": ("views", "pointcloud", "confidence", "splats"),
    "clip": (),  # not a stage of a run: training data of `reconx train`
}


class Node(NamedTuple):
    """A task of a scene."""

    stage: str
    round: int  # from 1; 0 outside of rounds
    parents: dict[str, str]  # the stage whose results it reads -> the name of the task that gives them

    @property
    def name(self) -> str:
        """The stage's; from the second round on with the round's number."""
        return named(self.stage, self.round)


def named(stage: str, number: int) -> str:
    """The name of a task of round ``number``."""
    return f"{stage} {number}" if number > 1 else stage


def tasks_of(settings: Settings, stages: Iterable[str] = STAGES) -> list[Node]:
    """The tasks of a scene for these ``stages``, each after its parents.

    In rounds, `join` stands for `views` and `pointcloud` of the round after it, and for `pointcloud` and `confidence` of what
    comes after the last one.
    """
    wanted, rounds = tuple(stages), settings.condition.rounds
    plain = [Node(stage, 0, {parent: parent for parent in PARENTS[stage]}) for stage in wanted]
    if rounds == 1:
        return plain
    before = [node for node in plain if node.stage not in IN_ROUNDS and node.stage not in AFTER]
    if not set(AFTER) & set(wanted):
        return [*before, *(node for node in _round(1) if node.stage in wanted)]
    middle = [node for number in range(1, rounds + 1) for node in _round(number)]
    return [*before, *middle, *(_after(node, named(JOIN, rounds)) for node in plain if node.stage in AFTER)]


AFTER = ("splats", "metrics")  # of the last round


def stages_of(settings: Settings, stages: Iterable[str] = STAGES) -> tuple[str, ...]:
    """The stages of :func:`tasks_of`, each once."""
    return tuple(dict.fromkeys(node.stage for node in tasks_of(settings, stages)))


def _round(number: int) -> list[Node]:
    known = {"views": named(JOIN, number - 1), "pointcloud": named(JOIN, number - 1)} if number > 1 else {}
    names = {stage: named(stage, number) for stage in IN_ROUNDS} | known
    return [Node(stage, number, {parent: names.get(parent, parent) for parent in PARENTS[stage]}) for stage in IN_ROUNDS]


def _after(node: Node, last: str) -> Node:
    """A stage after the rounds; photos are scored as what they are, with the geometry of the photos."""
    joined = ("pointcloud", "confidence") if node.stage == "splats" else ("confidence",)
    return node._replace(parents=node.parents | dict.fromkeys(joined, last))
