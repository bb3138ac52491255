"""A run's folder while the run goes on: every scene's results are laid there when the scene is done, and `scores.csv` grows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.execution.plan import ScenePlan, SceneRun
from flows.runs.earlier import (
    SCENE_RECORD,
    SCORES,
    forget_earlier,
    put_derived_aside,
    put_others_aside,
    put_results_aside,
    put_seeds_aside,
)
from flows.runs.results import lay_scene, over_seeds, scene_folder
from reconx_core.errors import UserError
from reconx_core.io.checked import find_object
from reconx_core.io.files import explain_disk, write_atomic
from reconx_core.reporting.report import COLUMNS

HEAD = ("scene", "seed", "failed_stage", "error", *COLUMNS)


@dataclass
class RunFolder:
    """The folder of a run, or of a row of the ablation. ``scene_done`` gets name and record of a scene, of all its seeds."""

    out: Path
    root: Path  # of the store
    plans: list[ScenePlan]
    scene_done: Callable[[str, dict[str, Any]], None] = lambda name, record: None
    pages: bool = True  # a `scene.html` of every scene
    lines: dict[str, str] = field(default_factory=dict)  # of `scores.csv` by the scene's folder, in the order of the plans
    seeds: dict[str, list[ScenePlan]] = field(default_factory=dict)  # by scene, those that are not done
    aside: list[str] = field(default_factory=list)  # scenes of which an earlier run's results were put aside
    complaint: str = ""  # why results of a scene could not be written

    def __post_init__(self) -> None:
        for plan in self.plans:
            self.lines[str(scene_folder(plan))] = ""
            self.seeds.setdefault(plan.name, []).append(plan)
        self._write_scores()  # an earlier run's would be taken for this one's

    def lay(self, run: SceneRun, say: Callable[[str], None]) -> None:
        """The results of a scene that is done. What cannot be written now is tried again at the end; ``say`` tells so once."""
        try:
            self._lay(run)
        except UserError as error:
            if not self.complaint:
                say(f"The results of {run.plan.label} could not be written, and are tried again at the end: {error}")
            self.complaint = str(error)

    def records(self, runs: Iterable[SceneRun]) -> list[dict[str, Any]]:
        """The records of the scenes, in the order of ``runs``; results that could not be written before are written now.

        Raises:
            UserError: they still cannot.
        """
        return [self._laid(run.plan) or self._lay(run) for run in runs]

    def _lay(self, run: SceneRun) -> dict[str, Any]:
        plan = run.plan
        place = scene_folder(plan)
        if run.error is not None and put_results_aside(self.out, place):
            self.aside.append(plan.label)
        record = lay_scene(run, self.root, self.out / place, self.pages)
        if run.error is None:
            forget_earlier(self.out, place)
            self.aside += [plan.label] if put_derived_aside(self.out, place) else []
        self.lines[str(scene_folder(plan))] = score_line(plan, record)
        self._write_scores()
        waiting = self.seeds[plan.name]
        if plan in waiting:
            waiting.remove(plan)
            if not waiting:
                kept = [scene_folder(each) for each in self.plans if each.name == plan.name]
                self.aside += [plan.name] if put_seeds_aside(self.out, Path(plan.name), kept) else []
                self.scene_done(plan.name, self._over_seeds(plan.name))
        return record

    def put_others_aside(self, rows: Iterable[str] = ()) -> None:
        """Put aside what an earlier run left of scenes that this one does not have, and of the ablation's ``rows``.

        Raises:
            UserError: it cannot be moved.
        """
        self.aside += put_others_aside(self.out, [scene_folder(plan) for plan in self.plans], rows)

    def _over_seeds(self, name: str) -> dict[str, Any]:
        return over_seeds({plan.settings.seed: self._laid(plan) for plan in self.plans if plan.name == name})

    def _laid(self, plan: ScenePlan) -> dict[str, Any]:
        """The record of a scene that this run has laid; empty where it has not."""
        return find_object(self.out / scene_folder(plan) / SCENE_RECORD) if self.lines[str(scene_folder(plan))] else {}

    def _write_scores(self) -> None:
        # Whole, not appended: a reader, and whoever goes on after a kill, would meet half a line.
        try:
            write_atomic(self.out / SCORES, "".join([csv_line(HEAD), *self.lines.values()]).encode())
        except OSError as error:
            raise explain_disk(error, self.out) from error


def score_line(plan: ScenePlan, record: dict[str, Any]) -> str:
    """A scene's line: its scores by name, or what failed."""
    scores = (record["summary"].get(key) for key in COLUMNS)
    return csv_line([plan.name, plan.settings.seed, record["failed_stage"], record["error"], *scores])


def csv_line(values: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()
