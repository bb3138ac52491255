"""`reconx bundle`: a run as one file to hand on, its scores computed again from it, and several of them as a leaderboard."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.markup import escape
from torch import Tensor

from flows.evaluate import check_dataset, find_scenes
from flows.evaluation.ablation import switched_settings
from flows.evaluation.bundle_page import write_leaderboard
from flows.evaluation.bundles import (
    FORMAT,
    BundledScene,
    BundledView,
    BundleFile,
    means_of,
    prediction_name,
    read_bundle,
    write_bundle,
)
from flows.evaluation.foreign_scores import PREDICTIONS
from flows.evaluation.paper_tables import method_label
from flows.execution.plan import with_split
from flows.execution.run import default_store
from flows.runs.earlier import SCENE_RECORD
from flows.runs.records import read_run
from flows.runs.request import find_request
from reconx_core.cache import store
from reconx_core.cache.store import Reference
from reconx_core.errors import UserError
from reconx_core.io.checked import read_object
from reconx_core.io.files import require_writable_file
from reconx_core.io.images import to_uint8
from reconx_core.losses.lpips import LAYOUTS, lpips_files
from reconx_core.metrics import IMAGE_METRICS
from reconx_core.metrics.given import held_out, score_pictures
from reconx_core.settings import Settings, parse_settings
from reconx_core.types import Views, ViewScore
from reconx_core.views import load_views

NAME = "bundle.zip"  # in the run's folder
# By which scores may differ where the same renders are scored on another machine: decoders of JPEG and libraries differ.
TOLERANCE = {"psnr": 0.01, "ssim": 0.0005, "lpips": 0.001, "lpips_alex": 0.001}
FLOAT_LOSS = 0.2  # dB of PSNR that a render may lose by its 8 bits; more is another render
_KEPT = ("dataset", "protocol", "row", "seeds", "code", "weights", "machines", "predictions")  # of a run's record


class _Made(NamedTuple):
    """A scene's renders of one seed, and the record that tells of them."""

    scene: str
    seed: int
    record: dict[str, Any]
    renders: list[bytes]
    refined: list[bool]


def make(run: Path, out: Path | None, root: Path | None, console: Console) -> None:
    """Write the bundle of a run, by default into its folder. ``root``: of the store with its renders; None: as the run says.

    Raises:
        UserError: there is no such run, its results are no longer in the store, or the file cannot be written.
    """
    read, out = read_run(str(run)), out or run / NAME
    if read.folder is None:
        raise UserError(f"'{run}' is no folder of a run; a bundle is made from the run's own folder.")
    require_writable_file(out)
    settings, place = parse_settings(read.record["settings"]), root or _store_of(read.folder, read.record)
    files: dict[str, bytes] = {}
    scenes = []
    for made in _made(read.folder, read.record, place):
        scenes.append(_bundled(made, settings, place))
        files |= {view["file"]: render for view, render in zip(scenes[-1]["views"], made.renders)}
    if not scenes:
        raise UserError(f"'{run}' has no scene with scores of held-out views.")
    failed = {name: scene["error"] for name, scene in read.record["scenes"].items() if scene["error"] is not None}
    about = {
        "format": FORMAT, "title": read.record["title"], "label": _label(read.record),
        "settings": read.record["settings"], "facts": read.record.get("facts", {}), "scenes": scenes, "failed": failed,
        "summary": means_of(scenes), **{key: read.record[key] for key in _KEPT if read.record.get(key)},
    }  # fmt: skip
    digest = write_bundle(out, about, files)
    count, seeds = (len({scene[key] for scene in scenes}) for key in ("scene", "seed"))
    told = f"{count} scene(s)" + (f", {seeds} seeds" if seeds > 1 else "")
    console.print(f"{len(files)} renders of {told} in {out}", soft_wrap=True, markup=False)
    console.print(f"SHA-256 {digest}", soft_wrap=True, markup=False)


def _label(record: dict[str, Any]) -> str:
    """What the method is called; a row of the ablation by the row's name, in place of the settings that make it."""
    row = record.get("row")
    method = record.get("label") or method_label(record["settings"], switched_settings() if row else ())
    return " · ".join(filter(None, (method, row)))


def _store_of(folder: Path, record: dict[str, Any]) -> Path:
    """A row of an ablation has its request in the folder above, and a run of predictions none."""
    if "store" in record:
        return Path(str(record["store"]))
    request = find_request(folder) or find_request(folder.resolve().parent)
    return request.store if request else default_store()


def _made(folder: Path, record: dict[str, Any], root: Path) -> Iterator[_Made]:
    """Scenes and seeds with their renders."""
    for name, scene in record["scenes"].items():
        if scene["error"] is not None or not any(view["is_target"] for view in scene["views"]):
            continue
        seeds = {int(seed): folder / name / f"seed-{seed}" for seed in scene.get("seeds", {})}
        for seed, place in (seeds or {record["settings"]["seed"]: folder / name}).items():
            own = read_object(place / SCENE_RECORD) if seeds else scene
            targets = _final([view for view in own["views"] if view["is_target"]])
            renders = _renders(own, place, root)
            if len(renders) != len(targets):
                raise UserError(f"'{place}' has {len(renders)} renders of {len(targets)} held-out views; run it again.")
            yield _Made(name, seed, own, renders, [view["refined"] for view in targets])


def _final(views: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a view that was scored before and after its camera was refined, the latter."""
    return list({view["view"]: view for view in views}.values())


def _renders(scene: dict[str, Any], place: Path, root: Path) -> list[bytes]:
    """PNGs of the held-out views: those that were given, or those that `metrics` left in the store."""
    if "metrics" not in scene["artifacts"]:
        return [path.read_bytes() for path in sorted((place / PREDICTIONS).glob("*.png"))]
    folder = Reference(**scene["artifacts"]["metrics"]).folder(root)
    try:
        shots = json.loads((folder / "metrics.json").read_text())["pictures"]
        return [(folder / f"panels/{i:03d}/render.png").read_bytes() for i, shot in enumerate(shots) if shot["is_target"]]
    except FileNotFoundError:
        raise UserError(
            f"The renders are no longer in the store {root}; name the run's store by --store, or run it again."
        ) from None


def _bundled(made: _Made, settings: Settings, root: Path) -> dict[str, Any]:
    """A scene as `bundle.json` has it: the scores are those of the 8-bit renders, as everybody can compute them again.

    Raises:
        UserError: these are not the renders that the run scored.
    """
    folder = Reference(**made.record["artifacts"]["views"]).folder(root)
    if not folder.is_dir():
        raise UserError(f"The photos of {made.scene} are no longer in the store {root}; name the run's store by --store.")
    targets = held_out(store.load(folder, "views"), settings.metrics)
    results = _scores(made.renders, targets, settings, made.refined)
    told = {view["view"]: view for view in made.record["views"] if view["is_target"]}
    for score in results:
        if abs(score.psnr - told[score.view]["psnr"]) > FLOAT_LOSS and score.psnr < 45:  # above, 8 bits alone cost more
            was, now = told[score.view]["psnr"], score.psnr
            raise UserError(
                f"The render of {score.view} in {made.scene} scores {now:.2f} dB, and in the run {was:.2f}: not the run's."
            )
    views = [
        {"view": score.view, "file": prediction_name(made.scene, made.seed, i), "refined": score.refined}
        | {key: getattr(score, key) for key in IMAGE_METRICS}
        for i, score in enumerate(results)
    ]
    kept = {key: made.record[key] for key in ("split", "protocol", "size")}
    scene = {"scene": made.scene, "seed": made.seed, **kept, "views": views}
    return scene | {"summary": means_of([scene | {"summary": view} for view in views])}


def _scores(renders: list[bytes], targets: Views, settings: Settings, refined: list[bool]) -> list[ViewScore]:
    results = score_pictures([_decoded(render) for render in renders], targets, settings.metrics, refined)
    return [score for score, _ in results]


def _decoded(render: bytes) -> Float[Tensor, "h w 3"]:
    return torch.from_numpy(np.array(Image.open(io.BytesIO(render)).convert("RGB"))).float() / 255


def verify(path: Path, data: str | None, console: Console) -> bool:
    """Check a bundle by itself and, with ``data``, compute its scores again; says which, and returns whether all agrees.

    Raises:
        UserError: it is no bundle, or the dataset lacks a scene of it.
    """
    bundle = read_bundle(path)
    problems, said = (
        list(bundle.problems),
        [f"the digests of {len(bundle.files)} renders", "the means by the scores of the views"],
    )
    if data is not None and not problems:
        settings = parse_settings(bundle.about.settings)
        check_dataset(data)
        for scene in bundle.about.scenes:
            problems += _recomputed(scene, bundle, settings, data)
        said.append(f"the scores of every view by the photos in {data}, {_about_lpips(bundle)}")
    for problem in problems:
        console.print(f"[red]{escape(problem)}[/red]", soft_wrap=True)
    if problems:
        console.print(f"{path} does not hold: {len(problems)} thing(s) disagree.", soft_wrap=True, markup=False)
        return False
    console.print(f"{path} holds. Checked: {'; '.join(said)}.", soft_wrap=True, markup=False)
    if data is None:
        console.print("Whether the scores are those of the renders, only the dataset tells: --data DATA.", soft_wrap=True)
    return True


def _recomputed(scene: BundledScene, bundle: BundleFile, settings: Settings, data: str) -> list[str]:
    """What the dataset says against the scores of a scene."""
    ((_, source),) = find_scenes(data, [scene.scene])
    views = load_views(source, with_split(settings, scene.split).views)
    targets = held_out(_eight_bits(views), settings.metrics)
    where, names = f"{scene.scene}, seed {scene.seed}", [view.view for view in scene.views]
    height, width = targets.masks.shape[1:]
    if list(targets.names) != names or (width, height) != scene.size:
        return [f"{where}: the dataset holds out {', '.join(targets.names)} at {width}x{height}, the bundle others."]
    renders = [bundle.files[view.file] for view in scene.views]
    found = _scores(renders, targets, settings, [view.refined for view in scene.views])
    return [problem for view, score in zip(scene.views, found) for problem in _score_problems(view, score, where)]


def _eight_bits(views: Views) -> Views:
    """As the store keeps photos between stages."""
    return replace(views, images=torch.from_numpy(to_uint8(views.images)).float() / 255)


def _score_problems(view: BundledView, score: ViewScore, where: str) -> list[str]:
    pairs = {key: (getattr(view, key), getattr(score, key)) for key in IMAGE_METRICS}
    return [
        f"{where}: {key} of {view.view} is {now:.4f} by its render, and {told:.4f} in the bundle."
        for key, (told, now) in pairs.items()
        if told is not None and now is not None and told != now and not abs(told - now) <= TOLERANCE[key]
    ]


def _about_lpips(bundle: BundleFile) -> str:
    views = [view for scene in bundle.about.scenes for view in scene.views]
    told = [net for net, key in zip(LAYOUTS, ("lpips", "lpips_alex")) if any(getattr(view, key) is not None for view in views)]
    unchecked = [net for net in told if not lpips_files(net)]
    if not told:
        return "PSNR and SSIM (it has no LPIPS)"
    return f"but LPIPS of {' and '.join(unchecked)}, whose weights are not here" if unchecked else "LPIPS too"


def page(paths: list[Path], out: Path, console: Console) -> None:
    """Write the leaderboard of several bundles.

    Raises:
        UserError: one is damaged, or they share no scene on the same terms; or ``out`` cannot be written.
    """
    require_writable_file(out)
    bundles = [read_bundle(path) for path in paths]
    for bundle in bundles:
        if bundle.problems:
            raise UserError(f"'{bundle.path}' does not hold: {bundle.problems[0]}")
    write_leaderboard(out, bundles)
    console.print(f"{len(bundles)} bundle(s) on one page: {out}", soft_wrap=True, markup=False)
