"""What a run is to do, scenes with their settings, and what came of each. Rows of an ablation and seeds are further scenes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reconx_core.errors import UserError
from reconx_core.names import one_line
from reconx_core.settings import Settings

if TYPE_CHECKING:
    from reconx_core.cache.store import Reference


REQUEST = "request.json"  # in a run's folder: what it computes


@dataclass(frozen=True)
class ScenePlan:
    """One scene through the stages."""

    name: str
    source: str  # see `place_of`
    settings: Settings
    row: str = ""  # of the ablation
    seeded: bool = False  # one of several seeds
    bin: str = ""  # of the protocol's, by the overlap of its views

    @property
    def label(self) -> str:
        """The scene as the user tells it from the other rows and seeds."""
        seed = f"seed {self.settings.seed}" if self.seeded else ""
        return " · ".join(part for part in (self.name, self.row, seed) if part)


@dataclass
class SceneRun:
    """The result of a scene: references of the stages that were reached, and the error that ended it, if any."""

    plan: ScenePlan
    references: dict[str, Reference] = field(default_factory=dict)
    computed: set[str] = field(default_factory=set)  # stages that were not in the store
    failed_stage: str | None = None
    error: BaseException | None = None
    to_do: int = 0  # stages that have not ended

    @property
    def name(self) -> str:
        """The scene's."""
        return self.plan.name


def place_of(scene: Path) -> str:
    """A scene's path as every process finds it, wherever it was started; a text that is no path stays as it is."""
    from reconx_core.datasets import is_place

    return str(scene.absolute() if is_place(scene) else scene)


def require_apart(plans: Collection[ScenePlan], out: Path, dataset: str = "") -> None:
    """Raise UserError where results of a run into ``out`` would come to lie among the files of a scene or of the ``dataset``.

    All that lies in a scene's folder is part of its source: the next run would take these results for it.
    """
    whole = out.resolve()
    taken = {whole} & _folders([dataset])
    taken |= _around({whole, *(whole / plan.row / plan.name for plan in plans)}) & _folders(plan.source for plan in plans)
    if taken:
        raise UserError(
            f"The results would come to lie in '{one_line(str(min(taken)))}', among the photos, and the next run would take "
            "them for these; name another folder by -o."
        )


def apart_from_store(plans: list[ScenePlan], root: Path) -> list[ScenePlan]:
    """The plans; raises UserError where the store lies among the files of a scene, which every stage would change."""
    taken = _around({root.resolve()}) & _folders(plan.source for plan in plans)
    if taken:
        raise UserError(
            f"The store would lie in '{one_line(str(min(taken)))}', among the photos, and its files would be taken for theirs; "
            "name another folder by --store."
        )
    return plans


def _folders(sources: Iterable[str]) -> set[Path]:
    from reconx_core.datasets import is_place

    return {Path(source).resolve() for source in set(sources) if source and is_place(source)}


def _around(places: set[Path]) -> set[Path]:
    """The places and all folders that they lie in."""
    return places | {folder for place in places for folder in place.parents}


def with_split(settings: Settings, rule: str) -> Settings:
    """The settings with that split."""
    return settings.model_copy(update={"views": settings.views.model_copy(update={"split": rule})})
