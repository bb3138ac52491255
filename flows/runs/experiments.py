"""What the branches, tags and experiments of a DVC project use: artifacts named by the `dvc.lock` of any git reference.

`dvc.lock` has a digest per stage; DVC's cache has under it the list of the files in `artifacts/<stage>/`, and among these the
manifests of the artifacts, which say where in the store they lie.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flows.runs.status import counted
from reconx_core.cache.store import MANIFEST, is_place
from reconx_core.errors import UserError
from reconx_core.io.checked import find_object

LOCK = "dvc.lock"


@dataclass(frozen=True)
class ProjectArtifacts:
    """(stage, key) of what git's references use, and a sentence where DVC's cache lacks what says so."""

    artifacts: set[tuple[str, str]]
    missing: str = ""


def artifacts_of_project(project: Path) -> ProjectArtifacts:
    """The artifacts that any branch, tag, stash or experiment of the DVC project in the folder ``project`` refers to.

    Raises:
        UserError: git or DVC cannot read the project.
    """
    if not any((folder / ".git").exists() for folder in (project, *project.parents)):
        return ProjectArtifacts(set())  # of `dvc init --no-scm`
    outputs = [_outputs(lock) for lock in _locks(project)]
    digests = sorted({digest for of_lock in outputs for digest in of_lock or ()})
    if not outputs:
        return ProjectArtifacts(set())
    cache = _cache_of(project)
    listings = [_listing(cache, digest) for digest in digests]
    manifests = [find_object(_object(cache, digest)) for digest in {name for listing in listings for name in listing or ()}]
    artifacts = {(about["stage"], about["key"]) for about in manifests if is_place(about.get("stage"), about.get("key"))}
    lacking = outputs.count(None) + listings.count(None) + sum("key" not in about for about in manifests)
    return ProjectArtifacts(artifacts, _told(project, lacking) if lacking else "")


def _told(project: Path, lacking: int) -> str:
    return (
        f"Of {counted(lacking, 'result')} of branches and experiments of {project} DVC's cache does not say what belongs to "
        "them (dvc fetch -A brings that, dvc exp remove takes experiments away)."
    )


def _locks(project: Path) -> Iterator[str]:
    """The text of every `dvc.lock` of git's references, each once."""
    names = [name for name in _git(project, "for-each-ref", "--format=%(objectname)").split() if name]
    asked = "".join(f"{name}:./{LOCK}\n" for name in dict.fromkeys(["HEAD", *names]))
    blobs = [line.split() for line in _git(project, "cat-file", "--batch-check", text=asked).splitlines()]
    for name in dict.fromkeys(words[0] for words in blobs if len(words) == 3 and words[1] == "blob"):
        yield _git(project, "cat-file", "blob", name)


def _git(project: Path, *words: str, text: str = "") -> str:
    try:
        run = subprocess.run(["git", *words], cwd=project, input=text, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise UserError(f"Cannot run git, which knows the branches and experiments of {project}: {error.strerror}.") from None
    if run.returncode:
        reason = " ".join(run.stderr.split())
        raise UserError(
            f"git cannot read the branches and experiments of {project} ({reason}), so what they use is not known and nothing "
            "is removed."
        )
    return run.stdout


def _outputs(lock: str) -> list[str] | None:
    """The digests of the stages' folders; None of a `dvc.lock` that cannot be read, such as one half merged."""
    try:
        stages = yaml.load(lock, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["stages"]
        outputs = [out for stage in stages.values() for out in stage.get("outs", ())]
        return [out["md5"] for out in outputs if str(out.get("md5", "")).endswith(".dir")]
    except (yaml.YAMLError, AttributeError, KeyError, TypeError):
        return None


def _cache_of(project: Path) -> Path:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    try:
        with Repo(str(project)) as repo:
            return Path(repo.cache.local.path)
    except DvcException as error:
        raise UserError(f"DVC cannot read its project {project} ({error}), so nothing is removed.") from None


def _object(cache: Path, digest: str) -> Path:
    return cache / digest[:2] / digest[2:]


def _listing(cache: Path, digest: str) -> list[str] | None:
    """The digests of the manifests in a folder; None where DVC's cache does not have it."""
    try:
        files: list[dict[str, Any]] = json.loads(_object(cache, digest).read_text())
        return [file["md5"] for file in files if file["relpath"].rpartition("/")[2] == MANIFEST]
    except (OSError, ValueError, TypeError, KeyError):
        return None
