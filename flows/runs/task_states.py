"""The tasks of a run and how far each has come, from the store's manifests alone: nothing is computed and nothing hashed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flows.execution.failures import failure_of, task_id
from flows.execution.plan import ScenePlan
from flows.runs.request import RunRequest
from reconx_core.cache import store
from reconx_core.cache.store import MANIFEST, MEASURED
from reconx_core.io.checked import find_object
from reconx_core.settings import STAGES
from tasks.execute import PARENTS, on_machine, parts_of
from tasks.machine import known_machines

States = dict[str, "TaskState"]  # by stage


@dataclass(frozen=True)
class TaskState:
    """A stage of a scene, which several plans may share."""

    name: str
    stage: str
    plan: ScenePlan  # the first that has it
    manifest: dict[str, Any] | None = None  # of its artifact, where that is in the store
    failure: dict[str, Any] | None = None  # its last in this run, where the artifact is not
    blocked_by: TaskState | None = None  # the failed task before it

    @property
    def state(self) -> str:
        """One of done, failed, not reached (after a failure) and to do."""
        if self.manifest is not None:
            return "done"
        return "failed" if self.failure else "not reached" if self.blocked_by else "to do"

    @cached_property
    def digest(self) -> str:
        """Of the artifact's files."""
        assert self.manifest is not None
        return store.reference_of_manifest(self.manifest).digest


def states_by_plan(request: RunRequest, root: Path) -> list[tuple[ScenePlan, States]]:
    """The task states of every plan, in the order of the plans; plans with the same settings share them.

    An artifact counts as done by its manifest alone; its other files are not checked.
    """
    known: dict[str, TaskState] = {}
    machines = known_machines(root)
    return [(plan, _plan_states(request, root, plan, known, machines)) for plan in request.plans]


def states_of_run(request: RunRequest, root: Path) -> list[TaskState]:
    """Every task of a run, once."""
    return list({task.name: task for _, states in states_by_plan(request, root) for task in states.values()}.values())


def measured_of(root: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """What was measured when the artifact was made, at least ``made``: the time at which it was, in seconds since the epoch."""
    folder = root / manifest["stage"] / manifest["key"]
    measured = find_object(folder / MEASURED)  # none of what was brought from elsewhere
    return {"made": (folder / MANIFEST).stat().st_mtime} | measured


def _plan_states(
    request: RunRequest, root: Path, plan: ScenePlan, known: dict[str, TaskState], machines: list[dict[str, str]]
) -> States:
    states: States = {}
    for stage in STAGES:
        name = task_id(stage, plan.name, plan.source, plan.settings)
        if name not in known:
            parents = [states[parent] for parent in PARENTS[stage]]
            known[name] = _state_of(request, root, plan, name, stage, parents, machines)
        states[stage] = known[name]
    return states


def _state_of(
    request: RunRequest, root: Path, plan: ScenePlan, name: str, stage: str, parents: list[TaskState],
    machines: list[dict[str, str]],
) -> TaskState:  # fmt: skip
    if all(parent.manifest for parent in parents):
        for key in _keys(request, plan, stage, {parent.stage: parent.digest for parent in parents}, machines):
            manifest = store.manifest_of(root, stage, key)
            if manifest is not None:
                return TaskState(name, stage, plan, manifest)
    failure = failure_of(root, stage, name)
    if failure is not None and failure["time"] >= request.started:
        return TaskState(name, stage, plan, failure=failure)
    blocked_by = next((parent if parent.failure else parent.blocked_by for parent in parents if not parent.manifest), None)
    return TaskState(name, stage, plan, blocked_by=blocked_by)


def _keys(
    request: RunRequest, plan: ScenePlan, stage: str, digests: dict[str, str], machines: list[dict[str, str]]
) -> list[str]:
    """Where the artifact may lie; the workers' machines may be others than that of the process that started the run."""
    if stage == "views":
        key = request.views.get(plan.row, {}).get(plan.name)
        return [key] if key else []
    environment = request.environment.get(plan.row, {}).get(stage)
    if environment is None:
        return []
    if "libraries" not in environment:  # of an earlier version, whose devices had no version
        machines = [{"device": device, "rasterizer": ""} for device in ("cuda", "cpu")]
    elsewhere = [on_machine(environment, stage, plan.settings, traits) for traits in machines]
    parts = [parts_of(stage, plan.settings, digests, where, "") for where in (environment, *elsewhere)]
    return list(dict.fromkeys(store.artifact_key(stage=stage, scene=plan.name, **part) for part in parts))
