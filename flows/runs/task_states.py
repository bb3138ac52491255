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
from tasks.execute import on_machine, parts_of
from tasks.graph import Node, tasks_of
from tasks.machine import known_machines

States = dict[str, "TaskState"]  # by the tasks' names, each after its parents


@dataclass(frozen=True)
class TaskState:
    """A stage of a scene, which several plans may share."""

    name: str
    node: Node
    plan: ScenePlan  # the first that has it
    parents: dict[str, TaskState]  # by the stage whose results they give
    manifest: dict[str, Any] | None = None  # of its artifact, where that is in the store
    failure: dict[str, Any] | None = None  # its last in this run, where the artifact is not
    blocked_by: TaskState | None = None  # the failed task before it

    @property
    def stage(self) -> str:
        return self.node.stage

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
    for node in tasks_of(plan.settings):
        name = task_id(node.stage, plan.name, plan.source, plan.settings, node.round)
        if name not in known:
            parents = {stage: states[task] for stage, task in node.parents.items()}
            known[name] = _state_of(request, root, plan, name, node, parents, machines)
        states[node.name] = known[name]
    return states


def _state_of(
    request: RunRequest, root: Path, plan: ScenePlan, name: str, node: Node, parents: dict[str, TaskState],
    machines: list[dict[str, str]],
) -> TaskState:  # fmt: skip
    if all(parent.manifest for parent in parents.values()):
        for key in _keys(request, plan, node, {stage: parent.digest for stage, parent in parents.items()}, machines):
            manifest = store.manifest_of(root, node.stage, key)
            if manifest is not None:
                return TaskState(name, node, plan, parents, manifest)
    failure = failure_of(root, node.stage, name)
    if failure is not None and failure["time"] >= request.started:
        return TaskState(name, node, plan, parents, failure=failure)
    open_ones = (parent for parent in parents.values() if not parent.manifest)
    blocked_by = next((parent if parent.failure else parent.blocked_by for parent in open_ones), None)
    return TaskState(name, node, plan, parents, blocked_by=blocked_by)


def _keys(
    request: RunRequest, plan: ScenePlan, node: Node, digests: dict[str, str], machines: list[dict[str, str]]
) -> list[str]:
    """Where the artifact may lie; the workers' machines may be others than that of the process that started the run."""
    stage = node.stage
    if stage == "views":
        key = request.views.get(plan.row, {}).get(plan.name)
        return [key] if key else []
    environment = request.environment.get(plan.row, {}).get(stage)
    if environment is None:
        return []
    if "libraries" not in environment:  # of an earlier version, whose devices had no version
        machines = [{"device": device, "rasterizer": ""} for device in ("cuda", "cpu")]
    elsewhere = [on_machine(environment, stage, plan.settings, traits) for traits in machines]
    parts = [parts_of(stage, plan.settings, digests, where, "", node.round) for where in (environment, *elsewhere)]
    return list(dict.fromkeys(store.artifact_key(stage=stage, scene=plan.name, **part) for part in parts))
