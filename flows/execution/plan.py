"""What a run is to do: scenes with their settings. Rows of an ablation and seeds are the same scenes with other settings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from reconx_core.settings import Settings


@dataclass(frozen=True)
class ScenePlan:
    """One scene through the stages."""

    name: str
    source: str  # see `place_of`
    settings: Settings
    row: str = ""  # of the ablation
    seeded: bool = False  # one of several seeds

    @property
    def label(self) -> str:
        """The scene as the user tells it from the other rows and seeds."""
        seed = f"seed {self.settings.seed}" if self.seeded else ""
        return " · ".join(part for part in (self.name, self.row, seed) if part)


def place_of(scene: Path) -> str:
    """A scene's path as every process finds it, wherever it was started; the text of a procedure stays as it is."""
    from reconx_core.datasets import procedural

    return str(scene if procedural.is_spec(scene) else scene.absolute())


def with_split(settings: Settings, rule: str) -> Settings:
    """The settings with that split."""
    return settings.model_copy(update={"views": settings.views.model_copy(update={"split": rule})})
