"""`reconx why SCENE STAGE`: why a stage was computed, found in the store, or not reached."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.execution.plan import ScenePlan
from flows.execution.run import default_store
from flows.runs.records import differing
from flows.runs.registry import known_runs
from flows.runs.request import RunRequest, find_request, near, newest_run, read_request, shown
from flows.runs.status import moment
from flows.runs.task_states import States, TaskState, measured_of, states_by_plan
from reconx_core.cache import store
from reconx_core.errors import UserError
from reconx_core.names import abbreviate, one_line
from reconx_core.reporting.numbers import format_duration
from reconx_core.settings import STAGES
from tasks.graph import JOIN, ORDER

Manifest = dict[str, Any]
_PARTS = ("settings", "parents", "source", "code", "weights", "libraries", "device", "rasterizer", "cameras")  # of a key
_MACHINE = ("gpu", "driver", "python", "cores")  # of what is recorded of it and does not count


def why(
    scene: str,
    stage: str,
    out: Path | None,
    root: Path | None,
    console: Console,
    row: str | None = None,
    seed: int | None = None,
) -> None:
    """Print what came of a stage in the run ``out`` (default: the newest with the scene in the store ``root``), and why.

    ``row`` and ``seed`` choose among several.

    Raises:
        UserError: no such run, scene, stage, row or seed, or one must be chosen.
    """
    if stage.partition(" ")[0] not in ORDER:
        raise UserError(f"There is no stage '{stage}'; there are {', '.join(STAGES)}.")
    scene = one_line(scene)  # as the run calls it
    request = newest_run(root or default_store(), scene) if out is None else read_request(out)
    where = root or request.store
    for line in explain(request, where, choose(request, where, scene, stage, row, seed), stage):
        console.print(escape(one_line(line)), soft_wrap=True)


def choose(request: RunRequest, root: Path, scene: str, stage: str, row: str | None, seed: int | None) -> States:
    """The task states of the one plan that is meant; several plans that share the stage's task count as one.

    Raises:
        UserError: there is no such plan, or there are several.
    """
    found = states_by_plan(replace(request, plans=tuple(plan for plan in request.plans if plan.name == scene)), root)
    if not found:
        raise UserError(f"The run {request.shown} has no scene '{scene}'{near(scene, {plan.name for plan in request.plans})}")
    rows, seeds = _options(plan for plan, _ in found)
    if row is not None and rows == [""]:
        raise UserError(f"The run {request.shown} has no rows, as only an ablation has them; leave out --row.")
    if row is not None and row not in rows:
        raise UserError(f"The run {request.shown} has no row '{row}'{near(row, rows)}")
    if seed is not None and seed not in seeds:
        raise UserError(f"The run {request.shown} has no seed {seed}; there are {', '.join(map(str, seeds))}.")
    meant = [(p, c) for p, c in found if row in (None, p.row) and seed in (None, p.settings.seed)]
    if any(stage not in states for _, states in meant):
        names = ", ".join(meant[0][1])
        raise UserError(f"The run {request.shown} has no task '{stage}' of '{scene}'; there are {names}.")
    if len({states[stage].name for _, states in meant}) > 1:
        rows, seeds = _options(plan for plan, _ in meant)
        options = [f"--row ({', '.join(rows)})"] if len(rows) > 1 else []
        options += [f"--seed ({', '.join(map(str, seeds))})"] if len(seeds) > 1 else []
        raise UserError(f"The run {request.shown} has several '{stage}' of '{scene}'; name one by {' and '.join(options)}.")
    return meant[0][1]


def explain(request: RunRequest, root: Path, states: States, stage: str) -> list[str]:
    """Sentences on what came of a stage and why."""
    task = states[stage]
    what = f"{task.node.name} of {task.plan.label}"
    if task.manifest is None:
        return _unreached(request, states, task, what)
    measured = measured_of(root, task.manifest)
    if measured["made"] < request.started:
        return _reused(request, root, task, what)
    took = f" in {format_duration(measured['seconds'])}" if "seconds" in measured else ""
    sentences = [f"{what} was computed in this run ({request.shown}), done {moment(measured['made'])}{took}."]
    if measured.get("damage"):
        return [
            *sentences,
            f"The store had it already, but damaged ({measured['damage']}); nothing that it depends on had changed.",
        ]
    if (task.stage, task.manifest["key"]) in request.missing | _kept_before(request, root, measured["made"]):
        return [
            *sentences,
            "An earlier run had made it, but it was missing from the store; nothing that it depends on had changed.",
        ]
    earlier = nearest(root, task.manifest, request.started)
    if earlier is None:
        return [*sentences, f"The store had no earlier {stage} of {task.plan.name}."]
    sentences.append(f"Compared with the nearest earlier one, of {_origin(root, earlier)}, this differs:")
    lines = changes(root, earlier, task.manifest, set()) + machines(root, earlier, task.manifest)
    return [*sentences, *(f"  {line}" for line in lines)]


def nearest(root: Path, manifest: Manifest, before: float) -> Manifest | None:
    """Of the earlier artifacts of the same stage and scene the one that differs in the fewest parts, the newest of equals."""
    stage, key = manifest["stage"], manifest["key"]
    others = (store.manifest_of(root, stage, folder.name) for folder in (root / stage).iterdir() if folder.name != key)
    earlier = [other for other in others if other and other.get("scene") == manifest["scene"]]
    times = {other["key"]: measured_of(root, other)["made"] for other in earlier}
    earlier = [other for other in earlier if times[other["key"]] < before]
    return min(earlier, key=lambda other: (_distance(other, manifest), -times[other["key"]]), default=None)


def changes(root: Path, first: Manifest, second: Manifest, reported: set[str]) -> list[str]:
    """A line per part of the key that differs; below a parent whose bytes do, indented, what changed there.

    ``reported``: the stages whose changes are in the lines already; extended.
    """
    lines = [f"{part} not recorded in the earlier one" for part in _PARTS if part in second and part not in first]
    both = [part for part in _PARTS if part in first and part in second]
    if first["schema"] != second["schema"]:
        lines.append(f"the store's format: {first['schema']} -> {second['schema']}")
    for part in both:
        if first[part] != second[part]:
            lines += _parents(root, first, second, reported) if part == "parents" else _part(part, first, second)
    return lines


def machines(root: Path, first: Manifest, second: Manifest) -> list[str]:
    """A line on what differs between the machines that made two artifacts and is no part of the key."""
    here, there = (measured_of(root, manifest).get("machine", {}) for manifest in (first, second))
    named = [(key, here.get(key), there.get(key)) for key in _MACHINE]
    lines = [f"{key} {_value(x)} -> {_value(y)}" for key, x, y in named if x != y]
    return [f"beside that, the machine: {', '.join(lines)}"] if lines and here and there else []


def _part(part: str, first: Manifest, second: Manifest) -> list[str]:
    if part == "settings":
        return [f"{key}: {_value(x)} -> {_value(y)}" for key, x, y in differing(first[part], second[part])]
    if part == "libraries":
        return [f"{name} {_value(x)} -> {_value(y)}" for name, x, y in differing(first[part], second[part])]
    if part in ("weights", "cameras"):
        return [f"{part}: {_files(first[part], second[part])}"]
    if part == "source":
        return [_source(first[part], second[part])]
    if part == "code":
        known = "modules" in first and "modules" in second
        return [f"code: {_files(first['modules'], second['modules'])}" if known else "code; which files is not recorded"]
    return [f"{part}: {first[part]} -> {second[part]}"]


def _parents(root: Path, first: Manifest, second: Manifest, reported: set[str]) -> list[str]:
    lines, again = [], []
    for stage in [stage for stage in ORDER if first["parents"].get(stage) != second["parents"].get(stage)]:
        if stage not in first["parents"] or stage not in second["parents"]:
            lines.append(f"{stage} is {'no longer' if stage in first['parents'] else 'now'} among what it reads")
        elif stage in reported:
            again.append(stage)
        else:
            reported.add(stage)
            lines += _parent(root, stage, first, second, reported)
    # Changes that were reported already are repeated only if nothing else explains the difference.
    return lines or ([f"the bytes of {', '.join(again)} changed, see above"] if again else [])


def _parent(root: Path, stage: str, first: Manifest, second: Manifest, reported: set[str]) -> list[str]:
    """The line on a parent that changed and, below it, why."""
    old, new = (manifest.get("parent_keys", {}).get(stage) for manifest in (first, second))
    if old is None or new is None:
        return [f"the bytes of {stage} changed; from which artifacts is not recorded"]
    if old == new:
        return [f"the bytes of {stage} changed, although it was computed from the same: it does not repeat itself exactly"]
    ends = [store.manifest_of(root, stage, key) or store.manifest_of(root, JOIN, key) for key in (old, new)]
    if ends[0] is None or ends[1] is None:
        return [
            f"the bytes of {stage} changed; {'the earlier' if ends[0] is None else 'that'} artifact is no longer in the store"
        ]
    return [f"the bytes of {stage} changed, because", *(f"  {line}" for line in changes(root, ends[0], ends[1], reported))]


def _reused(request: RunRequest, root: Path, task: TaskState, what: str) -> list[str]:
    """On an artifact that the run found, and on parents that were made anew and came out as before."""
    parents = task.parents
    inputs = f"the bytes of {', '.join(parents)}" if parents else "input files"
    sentences = [
        f"{what} was found in the store by this run ({request.shown}); it was made {_origin(root, task.manifest or {})}.",
        f"Nothing that it depends on has changed since: {inputs}, settings, code, weights, libraries, device.",
    ]
    anew = [stage for stage, parent in parents.items() if _made(root, parent) >= request.started]
    return [*sentences, *(f"{stage} was computed anew in this run and gave the same bytes as before." for stage in anew)]


def _unreached(request: RunRequest, states: States, task: TaskState, what: str) -> list[str]:
    cause = task if task.failure else task.blocked_by
    if cause is not None and cause.failure is not None:
        failed = f"failed at {moment(cause.failure['time'])}: {cause.failure['error']}"
        return [f"{what} {failed}" if cause is task else f"{what} was not reached, because {cause.node.name} {failed}"]
    if request.finished():
        return [f"{what} is no longer in the store; the same command computes it again."]
    waiting = next(name for name, other in states.items() if other.manifest is None)
    until = "it is its turn" if waiting == task.node.name else f"{waiting} comes first"
    if not request.running():
        return [
            f"{what} was not reached: the run {request.shown} stopped before its end; the same command goes on with {waiting}."
        ]
    return [f"{what} is still to do; {until}."]


def _kept_before(request: RunRequest, root: Path, made: float) -> set[tuple[str, str]]:
    """What other runs had when they ended, before the time ``made``."""
    others = [(kept, ended) for folder, kept, ended in known_runs(root) if folder != request.folder.resolve()]
    return {entry for kept, ended in others if ended < made for entry in kept}


def _origin(root: Path, manifest: Manifest) -> str:
    """When an artifact was made and, if that is known, by which run."""
    made, entry = measured_of(root, manifest)["made"], (manifest["stage"], manifest["key"])
    makers = [
        folder
        for folder, kept, ended in known_runs(root)
        if entry in kept and (request := find_request(folder)) and request.started <= made <= ended
    ]
    return f"{moment(made)}{f' by the run {shown(makers[0])}' if makers else ''}"


def _made(root: Path, task: TaskState) -> float:
    return measured_of(root, task.manifest)["made"] if task.manifest else 0.0


def _distance(first: Manifest, second: Manifest) -> int:
    """In how many settings, parents and other parts two artifacts differ."""
    same = [part for part in _PARTS if part in first and part in second]
    nested = sum(len(differing(first[part], second[part])) for part in same if part in ("settings", "parents"))
    rest = sum(first[part] != second[part] for part in same if part not in ("settings", "parents"))
    return nested + rest + sum(part in second and part not in first for part in _PARTS)


def _source(first: str, second: str) -> str:
    """What changed in a source: files, or the text of a procedure."""
    try:
        return f"input files: {_files(json.loads(first), json.loads(second))}"
    except ValueError:
        return f"source: {first} -> {second}"


def _files(first: Mapping[str, str], second: Mapping[str, str]) -> str:
    changed = [name for name in second if name in first and first[name] != second[name]]
    ways = (
        ("changed", changed),
        ("added", [n for n in second if n not in first]),
        ("gone", [n for n in first if n not in second]),
    )
    return "; ".join(f"{abbreviate(names)} {way}" for way, names in ways if names)


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def _options(plans: Iterable[ScenePlan]) -> tuple[list[str], list[int]]:
    """Rows and seeds that there are, in their order."""
    known = list(plans)
    return list(dict.fromkeys(plan.row for plan in known)), list(dict.fromkeys(plan.settings.seed for plan in known))
