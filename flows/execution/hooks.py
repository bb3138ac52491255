"""What the caller of a run hears while it goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flows.execution.plan import ScenePlan, SceneRun
    from flows.execution.sources import Digests


def _ignore(_: Any) -> None:
    """Nobody wants to hear it."""


@dataclass(frozen=True)
class Hooks:
    """Functions that a run calls."""

    on_start: Callable[[list[ScenePlan]], None] = _ignore  # nothing that is known here stands in its way
    on_sources: Callable[[Digests], None] = _ignore  # see :func:`flows.execution.sources.read_ahead`
    on_scene: Callable[[SceneRun], None] = _ignore  # its stages have ended; in a thread of its own, one after another


NO_HOOKS = Hooks()
