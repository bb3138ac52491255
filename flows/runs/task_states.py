"""The tasks of a run and how far each has come, from the store's manifests alone: nothing is computed and nothing hashed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.execution.failures import failure_of, task_id
from flows.execution.plan import Planned
from flows.runs.request import Asked
from reconx_core.cache import store
from reconx_core.cache.store import MANIFEST, MEASURED
from reconx_core.settings import STAGES
from tasks.execute import PARENTS, parts_of, uses_gpu

Chain = dict[str, "Task"]  # by stage


@dataclass(frozen=True)
class Task:
    """A stage of a scene, which several plans may share."""

    name: str
    stage: str
    plan: Planned  # the first that has it
    manifest: dict[str, Any] | None = None  # of its artifact, where that is in the store
    failure: dict[str, Any] | None = None  # its last in this run, where the artifact is not
    behind: Task | None = None  # the task before it that has failed

    @property
    def state(self) -> str:
        """One of done, failed, not reached (behind a failure) and to do."""
        if self.manifest is not None:
            return "done"
        return "failed" if self.failure else "not reached" if self.behind else "to do"

    @cached_property
    def digest(self) -> str:
        """Of the artifact's files."""
        assert self.manifest is not None
        return store.told_reference(self.manifest).digest


def chains(asked: Asked, root: Path) -> list[tuple[Planned, Chain]]:
    """The tasks of every plan, in the order of the plans; plans that agree share theirs.

    An artifact counts as there by its manifest, without a look at its other files.
    """
    known: dict[str, Task] = {}
    return [(plan, _chain(asked, root, plan, known)) for plan in asked.plans]


def tasks_of(asked: Asked, root: Path) -> list[Task]:
    """Every task of a run, once."""
    return list({task.name: task for _, chain in chains(asked, root) for task in chain.values()}.values())


def measured_of(root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What was measured when the artifact was made, at least ``made``: the time at which it was, in seconds since the epoch."""
    folder = root / manifest["stage"] / manifest["key"]
    try:
        measured = json.loads((folder / MEASURED).read_text())
    except FileNotFoundError:
        measured = {}  # brought from elsewhere
    return {"made": (folder / MANIFEST).stat().st_mtime} | measured


def _chain(asked: Asked, root: Path, plan: Planned, known: dict[str, Task]) -> Chain:
    chain: Chain = {}
    for stage in STAGES:
        name = task_id(stage, plan.name, plan.source, plan.settings)
        if name not in known:
            known[name] = _look(asked, root, plan, name, stage, [chain[parent] for parent in PARENTS[stage]])
        chain[stage] = known[name]
    return chain


def _look(asked: Asked, root: Path, plan: Planned, name: str, stage: str, parents: list[Task]) -> Task:
    if all(parent.manifest for parent in parents):
        for key in _keys(asked, plan, stage, {parent.stage: parent.digest for parent in parents}):
            manifest = store.manifest_of(root, stage, key)
            if manifest is not None:
                return Task(name, stage, plan, manifest)
    failure = failure_of(root, stage, name)
    if failure is not None and failure["time"] >= asked.started:
        return Task(name, stage, plan, failure=failure)
    behind = next((parent if parent.failure else parent.behind for parent in parents if not parent.manifest), None)
    return Task(name, stage, plan, behind=behind)


def _keys(asked: Asked, plan: Planned, stage: str, digests: dict[str, str]) -> list[str]:
    """Where the artifact may lie; the workers' device may be another than that of the process that started them."""
    if stage == "views":
        key = asked.views.get(plan.row, {}).get(plan.name)
        return [key] if key else []
    around = asked.around.get(plan.row, {}).get(stage)
    if around is None:
        return []
    devices = dict.fromkeys([around["device"], *(("cuda", "cpu") if uses_gpu(stage, plan.settings) else ())])
    parts = [parts_of(stage, plan.settings, digests, {**around, "device": device}, "") for device in devices]
    return [store.artifact_key(stage=stage, scene=plan.name, **part) for part in parts]
