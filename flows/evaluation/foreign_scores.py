"""Scores of a scene that another method made: its files compared with our held-out views, scored, and laid beside a record."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from flows.evaluation.predictions import Found, Prediction, match_views
from flows.execution.plan import SceneRun
from flows.runs.earlier import SCENE_RECORD
from flows.runs.records import RECORD
from flows.runs.results import facts, machines_of, origin_of, scene_report, source_of
from reconx_core.cache import store
from reconx_core.cache.store import Reference
from reconx_core.errors import UserError
from reconx_core.export.formats import read_gaussians, read_gaussians_origin
from reconx_core.export.origin import NO_ORIGIN
from reconx_core.io.files import explain_disk, write_atomic, write_json
from reconx_core.io.images import encode, read_image, read_size
from reconx_core.losses.lpips import LAYOUTS, lpips_files, lpips_missing_reason
from reconx_core.metrics import given
from reconx_core.metrics.pictures import Picture, side_by_side
from reconx_core.reporting.report import ReportPicture, RunReport, SceneReport, write_report
from reconx_core.types import Gaussians, Scores, Views, ViewScore
from tasks.execute import weights_digests

PREDICTIONS = "predictions"  # in a scene's folder: the renders as they were scored, one for each held-out view
Say = Callable[[str], None]
Results = list[tuple[ViewScore, Picture]]


@dataclass(frozen=True)
class ForeignScene:
    """A scene that can be scored."""

    run: SceneRun  # whose `views` are in the store
    found: Found
    predictions: list[Prediction]  # one for each held-out view; none where there are Gaussians
    where: str  # of it in a sentence

    def views(self, root: Path) -> Views:
        """Inputs and held-out views."""
        loaded: Views = store.load(self.run.references["views"].folder(root), "views")
        return loaded

    def gaussians(self, root: Path) -> Gaussians:
        """Those of the file, in the frame of ``views``: that of the dataset, or near its cameras where these are far away."""
        assert self.found.splats is not None
        gaussians, own = read_gaussians(self.found.splats), read_gaussians_origin(self.found.splats) or NO_ORIGIN
        ours = origin_of(self.run.references["views"].folder(root))
        return gaussians if own == ours else replace(gaussians, means=gaussians.means + torch.tensor(own) - torch.tensor(ours))


def check_scene(run: SceneRun, found: Found, root: Path, say: Say) -> ForeignScene:
    """The scene, its pictures, sizes and photos compared with ours: before anything is scored.

    Raises:
        UserError: pictures are missing, too many, of another size or of other photos.
    """
    scene = ForeignScene(run, found, [], f"Predictions of {run.name}")
    if found.note:
        say(found.note)
    views = scene.views(root)
    try:
        targets = given.held_out(views, run.plan.settings.metrics)
        if found.splats is not None:
            given.require_seen(scene.gaussians(root), views)
            return scene
    except UserError as error:
        raise UserError(f"{scene.where}: {error}") from None
    predictions = match_views(found, targets.names, scene.where)
    _compare_photos(predictions, targets, scene.where, say)
    return replace(scene, predictions=predictions)


def _compare_photos(predictions: list[Prediction], targets: Views, where: str, say: Say) -> None:
    """Sizes, and the program's own photos where it left them: these tell another order of views, another crop or lens."""
    lowest = (float("inf"), "")
    for i, prediction in enumerate(predictions):
        _, truth = pictures_of(prediction, targets, where)
        if truth is not None:
            lowest = min(lowest, (given.agreement(truth, targets, i), prediction.view))
            _require_ours(truth, targets, i, where)
    if lowest[0] < given.FULL_AGREEMENT:
        say(
            f"{where}: its own photos differ from ours, most in {lowest[1]} ({lowest[0]:.1f} dB), which its scores suffer from."
        )


def _require_ours(truth: Float[Tensor, "h w 3"], targets: Views, i: int, where: str) -> None:
    agreement, photo = given.agreement(truth, targets, i), f"{where}: its own photo for {targets.names[i]}"
    if agreement < given.FULL_AGREEMENT and (other := given.like_another(truth, targets, i)) is not None:
        raise UserError(f"{photo} shows {other}: another split, or another order of views.")
    if agreement < given.LEAST_AGREEMENT:
        raise UserError(f"{photo} is not ours ({agreement:.1f} dB): another split, crop, undistortion or scene.")


def pictures_of(
    prediction: Prediction, targets: Views, where: str
) -> tuple[Float[Tensor, "h w 3"], Float[Tensor, "h w 3"] | None]:
    """The render, and the program's own photo if there is one, at the size of ``targets``.

    Raises:
        UserError: it is no picture, or of a size that is no whole multiple.
    """
    (height, width), picture = targets.masks.shape[1:], read_image(prediction.picture)
    truth, (h, w) = None if prediction.truth is None else read_image(prediction.truth), picture.shape[:2]
    if w % 2 == 0 and w * height == 2 * width * h:  # twice as wide: photo and render side by side
        truth, picture = picture[:, : w // 2], picture[:, w // 2 :]
    try:
        return given.fitted(picture, height, width), None if truth is None else given.fitted(truth, height, width)
    except ValueError:
        raise UserError(
            f"{where}: {prediction.picture.name} is {w}x{h}, and the held-out views are {width}x{height}; render them at that "
            "size or a whole multiple of it, or choose their size by -S views.size or -S metrics.size."
        ) from None


def score_scene(scene: ForeignScene, out: Path, root: Path) -> tuple[dict[str, Any], SceneReport]:
    """The scene's record, and what the report shows of it; pictures, renders and the record are laid into ``out``.

    Raises:
        UserError: a file is damaged, Gaussians lie in another frame, or ``out`` cannot be written.
    """
    views, settings = scene.views(root), scene.run.plan.settings.metrics
    targets, gaussians, notes = given.held_out(views, settings), None, [scene.found.note] if scene.found.note else []
    if scene.found.splats is not None:
        gaussians = scene.gaussians(root)
        results = given.score_gaussians(gaussians, views, settings)
    else:
        renders = [pictures_of(prediction, targets, scene.where)[0] for prediction in scene.predictions]
        results = given.score_pictures(renders, targets, settings)
        notes += _reduced(scene.predictions[0], targets.masks.shape[1])
    scores, (height, width) = given.scores_of(results, views, gaussians), targets.masks.shape[1:]
    record = _record(scene.run, scores, (width, height), notes, root)
    panels = _lay(results, record, out)
    pictures = tuple(ReportPicture(picture.name, picture.is_target, panels[i]) for i, (_, picture) in enumerate(results))
    return record, SceneReport(scene.run.name, record["split"], (width, height), scores, pictures, notes=tuple(notes))


def _reduced(prediction: Prediction, height: int) -> list[str]:
    """What was done to larger pictures."""
    factor = read_size(prediction.picture)[0] // height
    larger = f"The pictures are {factor} times as large as the held-out views"
    return [f"{larger}: averaged over {factor}x{factor} pixels."] if factor > 1 else []


def _record(run: SceneRun, scores: Scores, size: tuple[int, int], notes: list[str], root: Path) -> dict[str, Any]:
    """As the records of our own scenes, without stages that made it."""
    split = json.loads((run.references["views"].folder(root) / "split.json").read_text())["split"]
    return {
        "source": source_of(run, root), "split": split, "size": list(size), "protocol": scores.protocol,
        "summary": scores.summary, "views": [asdict(view) for view in scores.views], "notes": notes, "costs": [],
        "artifacts": {stage: asdict(reference) for stage, reference in run.references.items()},
        "failed_stage": None, "failed_at": None, "error": None,
    }  # fmt: skip


def _lay(results: Results, record: dict[str, Any], out: Path) -> list[dict[str, bytes | Path]]:
    """`scene.json`, pictures to look at and, as they are, the renders of held-out views; returns the panels for the report."""
    made = [{name: encode(panel, "PNG") for name, panel in picture.panels.items()} for _, picture in results]
    renders = [panels["render"] for panels, (_, picture) in zip(made, results) if picture.is_target]
    try:
        for i, (_, picture) in enumerate(results):
            write_atomic(out / f"pictures/{i:03d}.jpg", encode(side_by_side(picture), "JPEG", quality=92))
        for i, render in enumerate(renders):
            write_atomic(out / PREDICTIONS / f"{i:04d}.png", render)
        write_json(out / SCENE_RECORD, record)
    except OSError as error:
        raise explain_disk(error, out) from error
    return [dict(panels) for panels in made]


def write_run(
    how: dict[str, Any], records: dict[str, dict[str, Any]], reports: dict[str, SceneReport], runs: list[SceneRun], out: Path,
    root: Path,
) -> dict[str, Any]:  # fmt: skip
    """`report.html`, `settings.yaml` and `run.json` of all scenes, into ``out``; returns what is in `run.json`.

    ``how``: what the record says beside the scenes. ``reports``: of the scenes that did not fail.

    Raises:
        UserError: the disk is full, or ``out`` cannot be written to.
    """
    shown = tuple(reports.get(name) or scene_report(name, record, root) for name, record in records.items())
    nets = " and ".join(net for net in LAYOUTS if lpips_files(net)) or None
    seed, own = how["settings"]["seed"], {section: values for section, values in how["settings"].items() if section != "seed"}
    write_report(out / "report.html", RunReport(how["title"], shown, own, (seed,), nets, lpips_missing_reason(), facts()))
    weights = weights_digests("metrics", runs[0].plan.settings, root)
    code = _code_of_views(runs, root)
    record = how | {"machines": machines_of(runs, root), "seeds": [seed], "code": code, "scenes": records}
    record |= {"store": str(root.resolve())}  # of the photos; it has no request, which says that of other runs
    record |= {"weights": {"metrics": weights} if weights else {}}
    try:
        write_atomic(out / "settings.yaml", yaml.safe_dump(how["settings"], sort_keys=False).encode())
        write_json(out / RECORD, record)
    except OSError as error:
        raise explain_disk(error, out) from error
    return record


def _code_of_views(runs: list[SceneRun], root: Path) -> dict[str, str]:
    reference: Reference | None = next((run.references["views"] for run in runs if "views" in run.references), None)
    manifest = reference and store.manifest_of(root, "views", reference.key)
    return {"views": manifest["code"]} if manifest else {}
