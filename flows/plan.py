"""What a run is to do: scenes with their settings. Rows of an ablation and seeds are the same scenes with other settings."""

from __future__ import annotations

from dataclasses import dataclass

from reconx_core.settings import Settings


@dataclass(frozen=True)
class Planned:
    """One scene through the stages."""

    name: str
    source: str
    settings: Settings
    row: str = ""  # of the ablation
    seeded: bool = False  # one of several seeds

    @property
    def label(self) -> str:
        """The scene as the user tells it from the other rows and seeds."""
        seed = f"seed {self.settings.seed}" if self.seeded else ""
        return " · ".join(part for part in (self.name, self.row, seed) if part)
