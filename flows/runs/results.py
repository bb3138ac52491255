"""What a run leaves for people: the scene, the clip, pictures, scores, report and settings, gathered from the store."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from flows.execution.failures import failure_of, task_id
from flows.execution.flow import describe_error
from flows.execution.plan import ScenePlan, SceneRun
from flows.runs.earlier import COPIED, MADE, PAGE, SCENE_FILES, SCENE_RECORD
from reconx_core import export
from reconx_core.cache import store
from reconx_core.cache.code_version import code_version
from reconx_core.cache.store import Reference
from reconx_core.export.cameras import tracked_points, write_cameras
from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.geometry.exposure import straight_photos
from reconx_core.io.files import explain_disk, temporary_beside, write_atomic, write_json
from reconx_core.losses.lpips import LAYOUTS, lpips_files, lpips_missing_reason
from reconx_core.names import shown
from reconx_core.reporting.above import draw_above, reach_of
from reconx_core.reporting.numbers import mean_or_none, mean_scores
from reconx_core.reporting.report import ReportPicture, RunReport, SceneReport, StageCost, write_report
from reconx_core.reporting.scene_page import page_version, write_scene_page
from reconx_core.settings import STAGES, Settings
from reconx_core.types import Cameras, PointCloud, Pointmaps, Scores, ViewScore
from reconx_core.version import __version__
from tasks.graph import JOIN, named, tasks_of
from tasks.machine import machine

RECORD = "run.json"
MEASURED = ("fps", "megabytes")  # of a finished scene's record
ABOVE = "path/above.png"  # in a scene's folder: photos and path from above


def write_scene(run: SceneRun, root: Path, out: Path, page: bool = True) -> None:
    """Scene, clip, cameras and pictures of one finished scene, into ``out``; nothing where they lie there already.

    ``page``: with `scene.html`, the scene to look around in.

    Raises:
        UserError: the disk is full, or ``out`` cannot be written to.
    """
    made_of = _made_of(run, page)
    if _is_made(out, made_of):
        return
    folder, geometry = run.references["metrics"].folder(root), run.references["pointcloud"].folder(root)
    before = {file: file.stat().st_ino for file in _files(out)}
    try:
        origin = origin_of(run.references["views"].folder(root))
        gaussians = store.load(run.references["splats"].folder(root), "gaussians")
        export.write_ply(out / "scene.ply", gaussians, origin)
        pointmaps, cloud = store.load(geometry, "pointmaps"), store.load(geometry, "pointcloud")
        views, kept = store.load(run.references["views"].folder(root), "views"), store.load(geometry, "kept")
        photos = straight_photos(views, kept, pointmaps)
        write_cameras(out / "cameras", pointmaps.cameras, photos, cloud, origin, tracked_points(pointmaps))
        if page:
            write_scene_page(out / PAGE, run.name, gaussians, pointmaps.cameras, photos.names, photos.images, origin)
        else:
            (out / PAGE).unlink(missing_ok=True)  # an earlier run's
        _write_path(_path_of(run, root), pointmaps, cloud, origin, out)
        for name in COPIED:
            _copy(folder / name, out / name)
        for picture in (folder / "pictures").iterdir():
            _copy(picture, out / "pictures" / picture.name)
        for file in _files(out):
            if before.get(file) == file.stat().st_ino:  # not written anew: of an earlier run with other photos
                file.unlink()
        write_json(out / MADE, {"of": made_of, "files": _stamps(out)})
    except OSError as error:
        raise explain_disk(error, out) from error


def _path_of(run: SceneRun, root: Path) -> Cameras:
    """The cameras of the generated frames, of all rounds."""
    if (joined := _last_join(run)) is not None:
        return store.load(joined.folder(root), "path")
    return store.load(run.references["condition"].folder(root), "condition").cameras


def _last_join(run: SceneRun) -> Reference | None:
    """What the last round has left, where there are several."""
    return run.references.get(named(JOIN, run.plan.settings.condition.rounds))


def _write_path(path: Cameras, pointmaps: Pointmaps, cloud: PointCloud, origin: Origin, out: Path) -> None:
    """The cameras of the generated frames, for other programs and from above; an earlier run's go where there are none."""
    shutil.rmtree(out / "path", ignore_errors=True)
    if len(path):
        export.write_path(out / "path", path, origin)
        picture = io.BytesIO()
        draw_above(cloud, pointmaps.cameras, path).save(picture, "PNG")
        write_atomic(out / ABOVE, picture.getvalue())


def lay_scene(run: SceneRun, root: Path, out: Path, page: bool = True) -> dict[str, Any]:
    """The scene's files and its record, `scene.json`, into ``out``; of one that failed the record alone. Returns the record.

    ``page``: as of :func:`write_scene`.

    Raises:
        UserError: the disk is full, or ``out`` cannot be written to.
    """
    if run.error is None:
        write_scene(run, root, out, page)
    record = scene_record(run, root)
    if run.error is None:
        record["megabytes"] = (out / "scene.ply").stat().st_size / 1e6
    try:
        write_json(out / SCENE_RECORD, record)
    except OSError as error:
        raise explain_disk(error, out) from error
    return record


def origin_of(views: Path) -> Origin:
    """Where the scene's zero lies in the frame of its dataset: elsewhere only for cameras far from it."""
    file = views / "origin.json"
    if not file.is_file():
        return NO_ORIGIN
    x, y, z = json.loads(file.read_text())["origin"]
    return x, y, z


def _made_of(run: SceneRun, page: bool) -> dict[str, str]:
    """All that the files of a scene depend on: artifacts by their digests, and the code that lays them out."""
    digests = {stage: run.references[stage].digest for stage in ("views", "pointcloud", "condition", "splats", "metrics")}
    joined = _last_join(run)
    return {
        **digests,
        "page": page_version() if page else "none",
        **({} if joined is None else {JOIN: joined.digest}),
        "code": code_version(
            "flows.runs.results",
            "reconx_core.export",
            "reconx_core.geometry.undistort",
            "reconx_core.reporting.above",
            "reconx_core.reporting.scene_page",
        ),
    }


def _is_made(out: Path, made_of: dict[str, str]) -> bool:
    """Whether the files were made of this and nobody has touched them since."""
    try:
        return json.loads((out / MADE).read_text()) == {"of": made_of, "files": _stamps(out)}
    except (OSError, ValueError):
        return False


def _stamps(out: Path) -> dict[str, list[int]]:
    """Size and time of change of every file of a scene."""
    return {file.relative_to(out).as_posix(): [file.stat().st_size, file.stat().st_mtime_ns] for file in _files(out)}


def _files(out: Path) -> list[Path]:
    """The files of a scene, but for those that tell of them."""
    places = (out / name for name in SCENE_FILES if name != MADE)
    return [file for place in places for file in (place, *place.rglob("*")) if file.is_file()]


def scene_folder(plan: ScenePlan) -> Path:
    """Where in a run's folder the scene is laid."""
    return Path(plan.name, f"seed-{plan.settings.seed}") if plan.seeded else Path(plan.name)


def write_run(
    out: Path, title: str, runs: list[SceneRun], records: list[dict[str, Any]], root: Path, settings: Settings,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """`report.html`, `settings.yaml` and `run.json` of a run, into ``out``; returns what is in `run.json`.

    ``records``: of the scenes, see :func:`lay_scene`. ``settings``: the run's, from which a scene's may differ in its split.
    ``about``: how the run came about.

    Raises:
        UserError: the disk is full, or ``out`` cannot be written to.
    """
    resolved = settings.model_dump(mode="json")
    reports = tuple(
        replace(scene_report(run.plan.label, record, root), above=_laid(out, run, ABOVE), page=_page(out, run))
        for run, record in zip(runs, records)
    )
    beside = {PAGE: "the scene, to look around in", "scene.ply": "the Gaussians", "video.mp4": "the clip"}
    files = {name: what for name, what in beside.items() if (out / name).exists()}
    missing, seeds = lpips_missing_reason(), seeds_of(runs)
    nets = " and ".join(net for net in LAYOUTS if lpips_files(net)) or None
    page = RunReport(title, reports, resolved, seeds, nets, missing, facts=facts(), files=files)
    write_report(out / "report.html", page)
    record = run_record(title, runs, records, resolved, root) | dict(about or {})
    try:
        write_atomic(out / "settings.yaml", yaml.safe_dump(resolved, sort_keys=False).encode())
        write_json(out / RECORD, record)
    except OSError as error:
        raise explain_disk(error, out) from error
    return record


def _page(out: Path, run: SceneRun) -> str | None:
    """The scene's page, as the report in ``out`` links to it."""
    page = _laid(out, run, PAGE)
    return None if page is None else page.relative_to(out).as_posix()


def _laid(out: Path, run: SceneRun, name: str) -> Path | None:
    """A file of the scene, where it was laid: in the scene's own folder, or those of a single scene in the run's."""
    places = (out / scene_folder(run.plan) / name, out / name)
    return next((place for place in places if run.error is None and place.is_file()), None)


def seeds_of(runs: list[SceneRun]) -> tuple[int, ...]:
    return tuple(sorted({run.plan.settings.seed for run in runs}))


def scene_report(name: str, record: Mapping[str, Any], root: Path) -> SceneReport:
    """A scene as the report shows it, from its record and the pictures in the store: its scores, or the error that ended it."""
    costs = tuple(StageCost(**cost) for cost in record["costs"])
    if record["error"] is not None:
        return SceneReport(name, costs=costs, failed_stage=record["failed_stage"], error=record["error"])
    folder = Reference(**record["artifacts"]["metrics"]).folder(root)
    pictures = tuple(
        ReportPicture(shot["view"], shot["is_target"], {n: folder / f"panels/{i:03d}/{n}.png" for n in shot["panels"]})
        for i, shot in enumerate(json.loads((folder / "metrics.json").read_text())["pictures"])
    )
    scores = Scores(tuple(ViewScore(**view) for view in record["views"]), record["summary"], record["protocol"])
    size, notes = tuple(record["size"]), tuple(record["notes"])
    own = {key: record[key] for key in MEASURED if key in record}
    return SceneReport(name, record["split"], size, scores, pictures, folder / "video.mp4", costs, notes, **own)


def placement_notes(placement: dict[str, Any]) -> tuple[str, ...]:
    """What became of the generated frames that count, in sentences; none where all stayed as they were made and placed."""
    return (*_moved_note(placement), *_colour_note(placement))


def _reach_note(run: SceneRun, root: Path, placement: Mapping[str, Any]) -> tuple[str, ...]:
    """How far the scene goes beyond its photos, as a sentence; none where frames were asked for between these alone."""
    if run.plan.settings.condition.path == "between" or not placement["frames"]:
        return ()
    path, gone = _path_of(run, root), placement["left_out"] or {}
    kept = [i for i in range(len(path)) if _last_join(run) is not None or str(i) not in gone]  # that of rounds has no others
    photos = store.load(run.references["pointcloud"].folder(root), "pointmaps").cameras
    if not kept or len(photos) < 2:
        return ()
    far, turned = reach_of(photos, path[torch.tensor(kept)])
    return (
        f"The generated frames reach up to {far:.2g} times the photos' own distance and {turned:.0f} degrees from the nearest "
        "photo; farther out nothing was made to be seen.",
    )


def _moved_note(placement: dict[str, Any]) -> tuple[str, ...]:
    if not placement["moved"]:
        return ()
    done = "found" if placement["cameras"] == "find" else "refined"
    return (
        f"The cameras of {placement['moved']} of {placement['frames']} generated frames were {done}; in the median they are "
        f"{placement['turn']:.1f} degrees and {placement['shift']:.0%} of the photos' distance from the planned path.",
    )


def _colour_note(placement: dict[str, Any]) -> tuple[str, ...]:
    changed = [one["shift"] for one in placement["judged"] or [] if one["corrected"]]
    if not changed:
        return ()
    return (
        f"The colours of {len(changed)} of {placement['frames']} generated frames were brought to the photos', by up to "
        f"{255 * max(changed):.0f} of 255 in a frame's mean.",
    )


def run_record(
    title: str, runs: list[SceneRun], records: list[dict[str, Any]], settings: dict[str, Any], root: Path
) -> dict[str, Any]:
    """Everything that `reconx compare`, `reconx table` and MLflow need of a run, as JSON."""
    scenes: dict[str, dict[int, dict[str, Any]]] = {}
    for run, record in zip(runs, records):
        scenes.setdefault(run.name, {})[run.plan.settings.seed] = record
    manifests = _manifests(runs, root)
    whole = {name: over_seeds(seeds) for name, seeds in scenes.items()}
    return {
        "title": title,
        "settings": settings,
        "facts": facts(),
        "machines": machines_of(runs, root),
        "seeds": list(seeds_of(runs)),
        "code": {stage: manifest["code"] for stage, manifest in manifests.items() if "code" in manifest},
        "weights": {stage: manifest["weights"] for stage, manifest in manifests.items() if manifest.get("weights")},
        "scenes": whole,
        **({"bins": bins} if (bins := means_of_bins(whole)) else {}),
    }


def means_of_bins(scenes: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Per bin of the protocol how many scenes it has, how many of these finished, and the means of their scores."""
    bins: dict[str, list[dict[str, Any]]] = {}
    for scene in scenes.values():
        if scene.get("bin"):
            bins.setdefault(scene["bin"], []).append(scene)
    done = {name: [scene["summary"] for scene in of if scene["error"] is None] for name, of in bins.items()}
    return {name: {"scenes": len(of), "done": len(done[name]), "summary": mean_scores(done[name])} for name, of in bins.items()}


def over_seeds(records: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A scene's record of all its seeds: mean and standard deviation of each score; failed if a seed failed."""
    if len(records) == 1:
        return next(iter(records.values()))
    failed = next((record for record in records.values() if record["error"] is not None), None)
    whole = dict(failed or next(iter(records.values())))
    whole["costs"] = [cost for record in records.values() for cost in record["costs"]]
    whole |= {
        key: mean for key in MEASURED if (mean := mean_or_none(record.get(key) for record in records.values())) is not None
    }
    whole["seeds"] = {str(seed): record["summary"] for seed, record in records.items()}
    if failed is None:
        summaries = [record["summary"] for record in records.values()]
        whole["summary"] = mean_scores(summaries)
        known = [key for key, mean in whole["summary"].items() if mean is not None]
        whole["spread"] = {key: statistics.stdev(summary[key] for summary in summaries) for key in known}
    return whole


def _manifests(runs: list[SceneRun], root: Path) -> dict[str, dict[str, Any]]:
    """Per stage the manifest of the first scene that reached it: code and weights are the same in all scenes of a run."""
    first: dict[str, dict[str, Any]] = {}
    for stage in STAGES:
        reached = next((run.references[stage] for run in runs if stage in run.references), None)
        manifest = reached and store.manifest_of(root, stage, reached.key)
        if manifest:
            first[stage] = manifest
    return first


def facts() -> dict[str, str]:
    """Versions and the machine, for the report and MLflow."""
    return {"reconx": __version__, "git revision": git_revision(), **{k: str(v) for k, v in machine().items()}}


def machines_of(runs: list[SceneRun], root: Path) -> dict[str, str]:
    """Systems, GPUs and drivers on which the run's artifacts were computed, in whichever run that was."""
    measured = [one.get("machine", {}) for run in runs for one in _measured(run, root).values()]
    found = {key: sorted({str(about[key]) for about in measured if key in about}) for key in ("system", "gpu", "driver")}
    return {key: ", ".join(values) for key, values in found.items() if values}


def git_revision() -> str:
    """The revision of the checkout that the code runs from, with a mark where it was changed; 'none' outside of one."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "none"
    return found.stdout.strip() or "none"


def scene_record(run: SceneRun, root: Path) -> dict[str, Any]:
    """What `run.json` says of a scene: its scores, or the stage and the error that ended it; artifacts and what they took."""
    measured = _measured(run, root)
    fps = measured.get("metrics", {}).get("fps")
    costs = [cost_of(stage, taken, stage not in run.computed) for stage, taken in measured.items()]
    record = {
        "source": source_of(run, root), **({"bin": run.plan.bin} if run.plan.bin else {}),
        "split": "all photos", "size": None, "protocol": None, "summary": {}, "views": [], "notes": [],
        "artifacts": {stage: asdict(reference) for stage, reference in run.references.items()},
        "costs": [asdict(cost) for cost in costs],
        "failed_stage": run.failed_stage,
        "failed_at": _failed_at(run, root),
        "error": None if run.error is None else describe_error(run.error),
    }  # fmt: skip
    if run.error is not None:
        return record
    folder = run.references["metrics"].folder(root)
    about = json.loads((folder / "metrics.json").read_text())
    said = [note for stage in measured.values() for note in stage.get("notes", [])]
    return (
        record
        | ({} if fps is None else {"fps": fps})
        | {
            "split": json.loads((run.references["views"].folder(root) / "split.json").read_text())["split"],
            "size": about["size"],
            "protocol": about["protocol"],
            "summary": about["summary"],
            "views": [asdict(view) for view in store.load(folder, "scores")],
            "notes": [*said, *placement_notes(about["frames"]), *_reach_note(run, root, about["frames"])],
        }
    )


def cost_of(stage: str, measured: Mapping[str, Any], cached: bool) -> StageCost:
    return StageCost(
        stage, measured["seconds"], measured["peak_mib"], cached, measured.get("cuda_peak_mib", 0), measured.get("made")
    )


def source_of(run: SceneRun, root: Path) -> dict[str, str] | None:
    """Where the photos lie and their digest; None where they could not be read."""
    manifest = store.manifest_of(root, "views", run.references["views"].key) if "views" in run.references else None
    if manifest is None:
        return None
    digest = hashlib.sha256(json.dumps(manifest["source"], sort_keys=True).encode()).hexdigest()[:32]
    return {"place": shown(run.plan.source), "digest": digest}


def _failed_at(run: SceneRun, root: Path) -> float | None:
    """When the stage failed, in seconds since the epoch."""
    if run.failed_stage is None:
        return None
    node = next(node for node in tasks_of(run.plan.settings) if node.name == run.failed_stage)
    name = task_id(node.stage, run.plan.name, run.plan.source, run.plan.settings, node.round)
    return (failure_of(root, node.stage, name) or {}).get("time")


def _measured(run: SceneRun, root: Path) -> dict[str, dict[str, Any]]:
    """What the stages took; nothing where an artifact came from elsewhere."""
    found = {stage: store.measured(root, reference) for stage, reference in run.references.items()}
    return {stage: measured for stage, measured in found.items() if measured}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(target)
    try:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
