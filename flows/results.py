"""What a run leaves for people: the scene, the clip, pictures, scores, report and settings, gathered from the store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from flows.pipeline import SceneRun, describe_error
from flows.progress import Taken
from reconx_core import __version__, export, store
from reconx_core.export.cameras import write_cameras
from reconx_core.files import explain_disk, write_atomic, write_json
from reconx_core.lpips import lpips_missing_reason
from reconx_core.report import ReportPicture, RunReport, SceneReport, StageCost, write_report
from reconx_core.settings import Settings
from reconx_core.types import Scores
from tasks.execute import machine

RECORD = "run.json"
AllTaken = Mapping[tuple[str, str], Taken]  # by (stage, scene)


def write_scene(run: SceneRun, root: Path, out: Path) -> None:
    """Scene, clip, cameras and pictures of one finished scene, into ``out``.

    Raises:
        UserError: the disk is full, or ``out`` cannot be written to.
    """
    folder, geometry = run.references["metrics"].folder(root), run.references["pointcloud"].folder(root)
    try:
        export.write_ply(out / "scene.ply", store.load(run.references["splats"].folder(root), "gaussians"))
        cameras, cloud = store.load(geometry, "pointmaps").cameras, store.load(geometry, "pointcloud")
        photos = store.load(run.references["views"].folder(root), "views").inputs().select(store.load(geometry, "kept"))
        write_cameras(out / "cameras", cameras, photos, cloud)
        for name in ("video.mp4", "scores.parquet", "metrics.json"):
            _copy(folder / name, out / name)
        for picture in (folder / "pictures").iterdir():
            _copy(picture, out / "pictures" / picture.name)
    except OSError as error:
        raise explain_disk(error, out) from error


def write_run(out: Path, title: str, runs: list[SceneRun], settings: Settings, root: Path, taken: AllTaken) -> dict[str, Any]:
    """`report.html`, `settings.yaml` and `run.json` of a run, into ``out``; returns what is in `run.json`."""
    resolved = settings.model_dump(mode="json")
    reports = tuple(scene_report(run, root, taken) for run in runs)
    files = {"scene.ply": "the Gaussians", "video.mp4": "the clip"} if (out / "scene.ply").exists() else {}
    missing = lpips_missing_reason()
    page = RunReport(
        title, reports, resolved, (settings.seed,), None if missing else "vgg", missing, facts=facts(), files=files
    )
    write_report(out / "report.html", page)
    write_atomic(out / "settings.yaml", yaml.safe_dump(resolved, sort_keys=False).encode())
    record = run_record(title, runs, reports, resolved)
    write_json(out / RECORD, record)
    return record


def scene_report(run: SceneRun, root: Path, taken: AllTaken) -> SceneReport:
    """A scene as the report shows it: its scores, or the stage and the error that ended it."""
    costs = _costs(run, taken)
    if run.error is not None:
        return SceneReport(run.name, costs=costs, failed_stage=run.failed_stage, error=describe_error(run.error))
    folder = run.references["metrics"].folder(root)
    about = json.loads((folder / "metrics.json").read_text())
    pictures = tuple(
        ReportPicture(shot["view"], shot["is_target"], {n: folder / f"panels/{i:03d}/{n}.png" for n in shot["panels"]})
        for i, shot in enumerate(about["pictures"])
    )
    split = json.loads((run.references["views"].folder(root) / "split.json").read_text())["split"]
    notes = (*_notes(run, taken), *(f"Photo {name} could not be placed and is left out." for name in about["left_out"]))
    scores = Scores(store.load(folder, "scores"), about["summary"], about["protocol"])
    return SceneReport(run.name, split, tuple(about["size"]), scores, pictures, folder / "video.mp4", costs, notes)


def run_record(title: str, runs: list[SceneRun], reports: tuple[SceneReport, ...], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that `reconx compare` and MLflow need of a run, as JSON."""
    scenes = {run.name: _scene_record(run, report) for run, report in zip(runs, reports)}
    return {"title": title, "settings": settings, "facts": facts(), "scenes": scenes}


def facts() -> dict[str, str]:
    """Versions and the machine, for the report and MLflow."""
    return {"reconx": __version__, "git revision": git_revision(), **{k: str(v) for k, v in machine().items()}}


def git_revision() -> str:
    """The revision of the checkout that the code runs from, with a mark where it was changed; 'none' outside of one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return found.stdout.strip() or "none"


def _scene_record(run: SceneRun, report: SceneReport) -> dict[str, Any]:
    scores = report.scores
    return {
        "split": report.split,
        "size": report.size,
        "protocol": scores and scores.protocol,
        "summary": scores.summary if scores else {},
        "views": [asdict(view) for view in scores.views] if scores else [],
        "notes": report.notes,
        "artifacts": {stage: asdict(reference) for stage, reference in run.references.items()},
        "costs": [asdict(cost) for cost in report.costs],
        "failed_stage": report.failed_stage,
        "error": report.error,
    }


def _costs(run: SceneRun, taken: AllTaken) -> tuple[StageCost, ...]:
    known = [(stage, taken[stage, run.name]) for stage in run.references if (stage, run.name) in taken]
    return tuple(StageCost(stage, t.measured["seconds"], t.measured["peak_mib"], t.cached) for stage, t in known if t.measured)


def _notes(run: SceneRun, taken: AllTaken) -> tuple[str, ...]:
    known = [taken[stage, run.name].measured or {} for stage in run.references if (stage, run.name) in taken]
    return tuple(note for measured in known for note in measured.get("notes", []))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
