"""The run registry: which runs use the store and which artifacts they refer to, in an index per run inside the store."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from reconx_core.cache.store import Reference
from reconx_core.io.files import write_json


def register_end(root: Path, out: Path, references: Iterable[Reference]) -> None:
    """Keep these artifacts for as long as the folder ``out`` exists; replaces what an earlier run into ``out`` kept."""
    entries = sorted({(reference.stage, reference.key) for reference in references})
    write_json(_index(root, out), {"folder": str(out.resolve()), "artifacts": entries})


def register_start(root: Path, out: Path) -> list[tuple[str, str]]:
    """Let the store know of a run from its start on. What an earlier run into ``out`` kept stays kept until the end.

    Returns:
        (stage, key) of those artifacts of the earlier run that are no longer there.
    """
    index = _index(root, out)
    kept = json.loads(index.read_text())["artifacts"] if index.exists() else []
    write_json(index, {"folder": str(out.resolve()), "artifacts": kept})
    return [(stage, key) for stage, key in kept if not (root / stage / key).is_dir()]


def is_store(root: Path) -> bool:
    """Whether runs have used the folder as their store: they register before they write anything else."""
    return (root / ".runs").is_dir()


def known_runs(root: Path) -> list[tuple[Path, set[tuple[str, str]], float]]:
    """Folder, artifacts and time of the last start or end of every run whose folder is there, the newest first."""
    runs = []
    for index in (root / ".runs").glob("*.json"):
        run = json.loads(index.read_text())
        if Path(run["folder"]).is_dir():
            runs.append((Path(run["folder"]), {(stage, key) for stage, key in run["artifacts"]}, index.stat().st_mtime))
    return sorted(runs, key=lambda run: run[2], reverse=True)


def _index(root: Path, out: Path) -> Path:
    return root / ".runs" / f"{hashlib.sha256(os.fsencode(out.resolve())).hexdigest()[:16]}.json"


def forget_gone(root: Path) -> None:
    """Drop the indices of runs whose folder is gone."""
    for index in (root / ".runs").glob("*.json"):
        if not Path(json.loads(index.read_text())["folder"]).is_dir():
            index.unlink()
