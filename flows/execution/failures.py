"""Failures that outlive their run: a file per task in the store, taken away when the task succeeds; for `reconx status`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from reconx_core.io.checked import find_object
from reconx_core.io.files import write_json
from reconx_core.settings import Settings
from tasks.execute import resolved_settings
from tasks.graph import ORDER, Node, named, tasks_of


def task_id(stage: str, scene: str, source: str, settings: Settings, number: int = 0) -> str:
    """Id of a task by its inputs and settings; unlike the cache key of its artifact it is known before anything is computed.

    Plans that agree in it share the task. ``number``: of the round, 0 outside of rounds.
    """
    before = [resolved_settings(each.stage, settings, each.round) for each in _until(stage, number, settings)]
    parts = [named(stage, number), scene, source, before]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


def _until(stage: str, number: int, settings: Settings) -> list[Node]:
    """The task and those before it in a run."""
    nodes = tasks_of(settings) if stage in ORDER else tasks_of(settings, [stage])
    return nodes[: [(node.stage, node.round) for node in nodes].index((stage, number)) + 1]


def keep_failure(root: Path, stage: str, name: str, scene: str, error: str) -> None:
    """Write down that the task ``name`` failed now."""
    # Where the disk is full or gone this cannot be written either, and the task's own error is the one to tell.
    with contextlib.suppress(OSError):
        write_json(_file(root, stage, name), {"scene": scene, "error": error, "time": time.time()})


def forget_failure(root: Path, stage: str, name: str) -> None:
    """The task ``name`` has succeeded."""
    _file(root, stage, name).unlink(missing_ok=True)


def failure_of(root: Path, stage: str, name: str) -> dict[str, Any] | None:
    """Scene, error and time of the last failure of the task ``name``; None where it has not failed or succeeded since."""
    failure = find_object(_file(root, stage, name))
    return failure if isinstance(failure.get("error"), str) and isinstance(failure.get("time"), (int, float)) else None


def clear_failures(root: Path, used: Container[str]) -> None:
    """Remove the failures of all tasks that are not in ``used``."""
    for file in (root / ".failed").glob("*/*.json"):
        if file.stem not in used:
            file.unlink()


def _file(root: Path, stage: str, name: str) -> Path:
    return root / ".failed" / stage / f"{name}.json"
