"""`reconx compare A B -o compare.html`: runs side by side on one self-contained page."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flows.evaluation import comparison
from flows.evaluation.comparison import Pair
from flows.evaluation.efficiency import cost_of_scenes, scene_rows
from flows.runs.earlier import PAGE
from flows.runs.mlflow_client import make_client
from flows.runs.records import Run, shorten
from reconx_core.reporting.numbers import format_duration
from reconx_core.reporting.pages import PAGE_BYTES, open_picture, picture_uri, render_page, write_page
from reconx_core.reporting.plots import ScenePlot, reach, scene_plot, whisker
from reconx_core.reporting.report import COLUMNS, HEADLINES, StageCost, StageTotal, format_score, stage_totals

MOST_CHANGED = 6  # scenes that are shown with pictures
VIEWS = 2  # pictures of each
GAP = 4  # pixels between the panels of a picture, as reconx_core.metrics.pictures.side_by_side lays them
FULL_CHANGE = 0.1  # of colour, at which the picture of what is better and worse is fully coloured
BETTER, WORSE = (0.05, 0.45, 0.95), (0.95, 0.45, 0.05)


@dataclass(frozen=True)
class Shot:
    """One view, as every run renders it."""

    view: str
    is_target: bool
    rows: tuple[tuple[Run, float | None, dict[str, str]], ...]  # run, PSNR, panels as data URIs


@dataclass(frozen=True)
class Changed:
    """A scene that changed much: the score in every run, and pictures or why there are none."""

    scene: str
    scores: tuple[float | None, ...]
    shots: tuple[Shot, ...]
    missing: str = ""
    pages: tuple[tuple[Run, str], ...] = ()  # of two runs, as links from the comparison: the scene to look around in


def write_comparison(path: Path, runs: list[Run], pairs: list[Pair]) -> None:
    """Write the page.

    Raises:
        UserError: it cannot be written.
    """
    write_page(path, render_comparison(runs, pairs, path.parent))


def render_comparison(runs: list[Run], pairs: list[Pair], folder: Path | None = None) -> str:
    """The page's HTML. ``folder``: where it will lie, for links to the scenes' own pages."""
    key = pairs[0].key
    headlines = [key for key in HEADLINES if any(key == d.key for pair in pairs for d in pair.differences)]
    return render_page(
        "compare",
        runs=runs,
        pairs=pairs,
        key=key,
        headlines=headlines[:4],
        context=_context(runs, pairs),
        plots=[_plot(key, runs) for key in headlines[:3]],
        gains=[_gains(key, pairs) for key in headlines[:3]],
        changed=[replace(scene, pages=scene_pages(scene.scene, runs, folder)) for scene in changed_scenes(runs, pairs)],
        sizes=size_rows(runs, pairs),
        costs=stage_rows(runs),
        all_columns=COLUMNS,
        number=format_score,
        signed=signed,
        duration=format_duration,
        whisker=whisker,
        reach=reach,
        furthest=max(reach(d.mean, d.bounds, d.spread) for pair in pairs for d in pair.differences if d.key == key),
        scene_rows=_scene_rows(key, runs, pairs),
        comparison=comparison,
        shorten=shorten,
    )


def changed_scenes(runs: list[Run], pairs: list[Pair]) -> list[Changed]:
    """The scenes that changed most between A and any other run, with the views that changed most, within the page's budget."""
    room, found = PAGE_BYTES, []
    for scene in by_change(pairs)[:MOST_CHANGED]:
        changed = _changed(scene, runs, pairs[0].key)
        room -= _weight(changed.shots)
        found.append(changed if room > 0 else Changed(scene, changed.scores, (), "The page would grow too heavy with them."))
    return found


def by_change(pairs: list[Pair]) -> list[str]:
    """The scenes that A shares with any other run, by their largest change."""
    largest: dict[str, float] = {}
    for pair in pairs:
        for scene, first, second, _ in comparison.changed_most(pair):
            largest[scene] = max(largest.get(scene, 0.0), abs(second - first))
    return sorted(largest, key=lambda scene: -largest[scene])


def stage_rows(runs: list[Run]) -> list[tuple[str, list[StageTotal | None]]]:
    """Per stage the totals of each run, None where a run has none."""
    totals = [{total.stage: total for total in stage_totals(_costs(run))} for run in runs]
    stages = dict.fromkeys(stage for of_run in totals for stage in of_run)
    return [(stage, [of_run.get(stage) for of_run in totals]) for stage in stages]


def size_rows(runs: list[Run], pairs: list[Pair]) -> list[tuple[str, list[str]]]:
    """Title and a cell per run of what the stages' table does not say, over the scenes that all runs finished."""
    shared = [name for name in pairs[0].scenes if all(name in pair.scenes for pair in pairs)]
    costs = [cost_of_scenes(run.record["scenes"][name] for name in shared) for run in runs]
    return scene_rows(costs, ("cuda_peak_mib", "gaussians", "megabytes", "fps"))


def split_strip(strip: Image.Image, width: int) -> list[Image.Image]:
    """The panels, each ``width`` pixels wide, of a picture in which they stand side by side."""
    return [strip.crop((x, 0, x + width, strip.height)) for x in range(0, strip.width, width + GAP)]


def change_picture(photo: Image.Image, first: Image.Image, other: Image.Image) -> Image.Image:
    """Blue where ``other`` is closer to the photo than ``first``, orange where it is farther, over the photo in grey."""
    truth, x, y = (np.asarray(image, dtype=np.float32) / 255 for image in (photo, first, other))
    gain = (np.abs(x - truth) - np.abs(y - truth)).mean(-1, keepdims=True)
    share = np.clip(np.abs(gain) / FULL_CHANGE, 0, 1)
    grey = 0.35 + 0.4 * truth.mean(-1, keepdims=True)
    mixed = (1 - share) * grey + share * np.where(gain > 0, BETTER, WORSE)
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def find_pictures(run: Run, scene: str, into: Path) -> list[Path]:
    """The scene's pictures in their order, from the run's folder or else, downloaded to ``into``, from MLflow; or none."""
    if run.folder is not None:
        seeds = sorted((run.folder / scene).glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))
        for folder in (run.folder / scene, *seeds):
            found = sorted((folder / "pictures").glob("*.jpg"))
            if found:
                return found
    return _download_pictures(*run.tracked, scene, into / run.label) if run.tracked else []


def _download_pictures(uri: str, parent: str, scene: str, into: Path) -> list[Path]:
    from mlflow.exceptions import MlflowException

    try:
        client = make_client(uri)
        experiment = client.get_run(parent).info.experiment_id
        children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'", max_results=50_000)
        ids = [child.info.run_id for child in children if child.info.run_name == scene]
        if not ids or not client.list_artifacts(ids[0], "pictures"):
            return []
        into.mkdir(parents=True, exist_ok=True)
        return sorted(Path(client.download_artifacts(ids[0], "pictures", str(into))).glob("*.jpg"))
    except (MlflowException, OSError):  # its store or its artifacts are gone, and the page says that there are no pictures
        return []


def scene_pages(scene: str, runs: list[Run], folder: Path | None) -> tuple[tuple[Run, str], ...]:
    """The pages of the scene in the first two runs that have one, relative to ``folder``; none where there are fewer."""
    places = [(run, find_page(run, scene)) for run in runs]
    found = [(run, os.path.relpath(page, folder.resolve())) for run, page in places if page and folder is not None]
    return tuple((run, Path(page).as_posix()) for run, page in found[:2]) if len(found) > 1 else ()


def find_page(run: Run, scene: str) -> Path | None:
    """The scene's page in the run's folder; of several seeds the first one's."""
    if run.folder is None:
        return None
    seeds = sorted((run.folder / scene).glob("seed-*"), key=lambda folder: (len(folder.name), folder.name))
    places = [folder / PAGE for folder in (run.folder / scene, *seeds)]
    # The one scene of `reconx reconstruct` lies in the run's folder itself.
    places += [run.folder / PAGE] if len(run.record["scenes"]) == 1 else []
    return next((place.resolve() for place in places if place.is_file()), None)


def _changed(scene: str, runs: list[Run], key: str) -> Changed:
    having = [run for run in runs if scene in run.record["scenes"] and run.record["scenes"][scene]["error"] is None]
    with tempfile.TemporaryDirectory() as folder:
        found = [(run, _by_view(run, scene, Path(folder))) for run in having]
        lacking = [run.label for run, pictures in found if not pictures]
        shots = _shots(scene, [(run, pictures) for run, pictures in found if pictures])
    missing = f"No pictures of {', '.join(lacking)}: neither in the run's folder nor in MLflow." if lacking else ""
    return Changed(scene, tuple(_summary(run, scene).get(key) for run in runs), shots, missing)


def _by_view(run: Run, scene: str, folder: Path) -> dict[tuple[bool, str], Path]:
    """(is held out, view) -> picture. Pictures are numbered in the order in which the views were first scored."""
    views = dict.fromkeys((view["is_target"], view["view"]) for view in run.record["scenes"][scene].get("views", []))
    pictures = find_pictures(run, scene, folder)
    return dict(zip(views, pictures)) if len(views) == len(pictures) else {}


def _shots(scene: str, found: list[tuple[Run, dict[tuple[bool, str], Path]]]) -> tuple[Shot, ...]:
    """Pictures of the views that changed most, held-out ones first."""
    if len(found) < 2:
        return ()
    views = [view for view in found[0][1] if all(view in pictures for _, pictures in found)]
    scores = {view: [_psnr(run, scene, *view) for run, _ in found] for view in views}
    views.sort(key=lambda view: (not view[0], -_reach(scores[view])))
    return tuple(_shot(scene, view, scores[view], found) for view in views[:VIEWS])


def _shot(
    scene: str, view: tuple[bool, str], scores: list[float | None], found: list[tuple[Run, dict[tuple[bool, str], Path]]]
) -> Shot:
    names = ("photo", "render", "error", "depth" if view[0] else "confidence")
    strips = [
        dict(zip(names, split_strip(open_picture(pictures[view]), run.record["scenes"][scene]["size"][0])))
        for run, pictures in found
    ]
    photo, render = strips[0]["photo"], strips[0]["render"]
    for strip in strips[1:]:
        strip["photo"] = change_picture(photo, render, strip["render"])
    rows = tuple(
        (run, score, {name: picture_uri(panel) for name, panel in strip.items()})
        for (run, _), score, strip in zip(found, scores, strips)
    )
    return Shot(view[1], view[0], rows)


def _psnr(run: Run, scene: str, is_target: bool, name: str) -> float | None:
    rows = [v for v in run.record["scenes"][scene]["views"] if (v["is_target"], v["view"]) == (is_target, name)]
    return rows[-1]["psnr"]  # of a view with both, the score with the refined camera comes last


def _reach(scores: Iterable[float | None]) -> float:
    known = [score for score in scores if score is not None]
    return max(known) - min(known) if known else 0.0


def _weight(shots: tuple[Shot, ...]) -> int:
    return sum(len(uri) for shot in shots for _, _, panels in shot.rows for uri in panels.values())


def _plot(key: str, runs: list[Run]) -> ScenePlot:
    names = dict.fromkeys(name for run in runs for name in run.record["scenes"])
    scenes = {name: [_summary(run, name).get(key) for run in runs] for name in names}
    titles = [f"{run.label} {run.record['title']}" for run in runs]
    return scene_plot(f"{COLUMNS[key][0]} per scene", scenes, titles, partial(format_score, key))


def _scene_rows(key: str, runs: list[Run], pairs: list[Pair]) -> list[tuple[str, list[float | None], float | None]]:
    """(scene, score in every run, spread over seeds of the difference of two), the largest change first."""
    spreads = {row[0]: row[3] for row in comparison.changed_most(pairs[0])} if len(pairs) == 1 else {}
    return [(name, [_summary(run, name).get(key) for run in runs], spreads.get(name)) for name in by_change(pairs)]


def _summary(run: Run, scene: str) -> dict[str, float | None]:
    return run.record["scenes"].get(scene, {}).get("summary", {})


def _gains(key: str, pairs: list[Pair]) -> dict[str, str]:
    """Per scene B - A, where there are only these two."""
    if len(pairs) > 1:
        return {}
    first, second = pairs[0].first.record["scenes"], pairs[0].second.record["scenes"]
    return {name: signed(second[name]["summary"][key] - first[name]["summary"][key]) for name in pairs[0].scenes}


def signed(difference: float) -> str:
    """A difference of scores as the page shows it."""
    return f"{difference:+.3f}".replace("-", "\N{MINUS SIGN}")


def _costs(run: Run) -> list[StageCost]:
    costs = [cost for scene in run.record["scenes"].values() for cost in scene.get("costs", [])]
    return [StageCost(c["stage"], c["seconds"], c["peak_mib"], c["cached"]) for c in costs]


def _context(runs: list[Run], pairs: list[Pair]) -> list[tuple[str, str]]:
    """What has to stand beside every number."""
    scenes: list[dict[str, Any]] = [pair.first.record["scenes"][name] for pair in pairs for name in pair.scenes]
    counts = dict.fromkeys(str(len(pair.scenes)) for pair in pairs)
    seeds = dict.fromkeys(str(len(run.record.get("seeds") or [0])) for run in runs)
    return [
        ("protocol", ", ".join(dict.fromkeys(scene["protocol"] for scene in scenes))),
        ("split", ", ".join(dict.fromkeys(scene["split"] for scene in scenes))),
        ("resolution", ", ".join(dict.fromkeys(f"{scene['size'][0]} × {scene['size'][1]}" for scene in scenes)) + " px"),
        ("scenes in both" if len(pairs) == 1 else "scenes shared with A", ", ".join(counts)),
        ("seeds per run", ", ".join(seeds)),
    ]
