"""The paper's tables as data: what is published, and the one shape that published figures and ours share."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml

from flows.evaluation.ablation import load_ablation
from reconx_core.errors import UserError

SCORES = ("psnr", "ssim", "lpips")
_FILE = Path(__file__).with_name("published.yaml")


@dataclass(frozen=True)
class Entry:
    """What one method scored on one set with one number of input views: published, or a run of ours."""

    label: str  # the method
    row: str  # of the ablation, else empty
    set: str
    views: int | None  # None: not the same in every scene
    scores: dict[str, float | None]  # of SCORES; None: not computed
    source: str  # where the figures stand
    published: bool
    scenes: int | None  # that the scores are means over; None: not known
    switches: dict[str, bool] = field(default_factory=dict)  # of the ablation
    spread: dict[str, float] = field(default_factory=dict)  # standard deviation over seeds of the mean over scenes
    seeds: tuple[int, ...] = ()
    protocol: str = ""
    run: str | None = None  # id in MLflow
    terms: str = ""  # what has to stand beside the numbers: protocol, split, size, LPIPS net
    cost: dict[str, float | None] = field(default_factory=dict)  # of a run's scenes; nothing of published figures
    whole: bool = True  # False: not over the scenes of the published figure

    @property
    def column(self) -> tuple[str, int | None]:
        return self.set, self.views


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper with our rows: published entries first."""

    name: str
    title: str
    entries: tuple[Entry, ...]
    remarks: tuple[str, ...] = ()  # sentences below the table


def load_published(name: str) -> PaperTable:
    """The published entries of a table, in its order.

    Raises:
        UserError: there is no such table.
    """
    tables = yaml.safe_load(_FILE.read_text())
    if name not in tables:
        *others, last = tables
        raise UserError(f"There is no table '{name}'; there are {', '.join(others)} and {last}.")
    table = tables[name]
    switches = {row.name: row.switches for row in load_ablation()}
    entries = []
    for about in table["sets"]:
        for key, figures in about["figures"].items():
            label, row = (table["method"], key) if "method" in table else (key, "")
            entries += [
                Entry(
                    label, row, about["set"], views, dict(zip(SCORES, values)), about["source"], True, about.get("scenes"),
                    switches.get(row, {}),
                )
                for views, values in figures.items()
            ]  # fmt: skip
    return PaperTable(name, table["title"], tuple(entries))
