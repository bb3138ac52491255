"""`reconx bundle page A.zip B.zip`: several bundles as one self-contained leaderboard, over the scenes that all have."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flows.evaluation.bundles import Bundle, BundledScene, BundleFile
from reconx_core.errors import UserError
from reconx_core.metrics import IMAGE_METRICS
from reconx_core.reporting.numbers import mean_or_none
from reconx_core.reporting.pages import PAGE_BYTES, open_picture, picture_uri, render_page, write_page
from reconx_core.reporting.report import COLUMNS, format_score

Scores = dict[str, float | None]
TERMS = ("split", "protocol", "size")


@dataclass(frozen=True)
class Row:
    """A bundle in the table: its means over the shared scenes, and its scores of each."""

    bundle: BundleFile
    label: str
    means: Scores
    scenes: dict[str, Scores]
    facts: tuple[str, ...]  # what stands beside the numbers


@dataclass(frozen=True)
class Shot:
    """A held-out view as every bundle renders it."""

    scene: str
    view: str
    renders: tuple[tuple[str, float, str], ...]  # label, PSNR, data URI


def write_leaderboard(path: Path, bundles: list[BundleFile]) -> None:
    """Write the page, the best PSNR first.

    Raises:
        UserError: the bundles share no scene, or one was scored on other terms; or the page cannot be written.
    """
    write_page(path, render_leaderboard(bundles))


def render_leaderboard(bundles: list[BundleFile]) -> str:
    """The page's HTML."""
    shared = shared_scenes(bundles)
    rows = sorted((_row(bundle, shared) for bundle in bundles), key=lambda row: -(row.means["psnr"] or 0.0))
    keys = [key for key in IMAGE_METRICS if any(row.means[key] is not None for row in rows)]
    return render_page(
        "leaderboard",
        rows=rows,
        keys=keys,
        shared=shared,
        left_out=_left_out(bundles, shared),
        context=_context(bundles[0].about, shared),
        shots=_shots(rows, shared),
        all_columns=COLUMNS,
        number=format_score,
    )


def shared_scenes(bundles: list[BundleFile]) -> list[str]:
    """The scenes that all bundles have, in the order of the first.

    Raises:
        UserError: there is none, or a scene was scored on different terms.
    """
    of_each = [{scene.scene: scene for scene in bundle.about.scenes} for bundle in bundles]
    shared = [name for name in of_each[0] if all(name in scenes for scenes in of_each)]
    if not shared:
        raise UserError("The bundles have no scene in common, so that no table could rank them.")
    for bundle, scenes in zip(bundles, of_each):
        for name in shared:
            for term, x, y in zip((*TERMS, "held-out views"), _terms(of_each[0][name]), _terms(scenes[name])):
                if x != y:
                    raise UserError(f"{term} of {name} is {_short(y)} in {bundle.path}, and {_short(x)} in {bundles[0].path}.")
        for key in ("mask", "background"):
            x, y = _setting(bundles[0].about, key), _setting(bundle.about, key)
            if x != y:
                raise UserError(f"{key} is {y} in {bundle.path}, and {x} in {bundles[0].path}: they scored other pixels.")
    return shared


def _terms(scene: BundledScene) -> tuple[object, ...]:
    return (*(getattr(scene, term) for term in TERMS), tuple(view.view for view in scene.views))


def _setting(about: Bundle, key: str) -> object:
    section = "views" if key == "mask" else "metrics"
    return about.settings.get(section, {}).get(key)


def _short(value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _row(bundle: BundleFile, shared: list[str]) -> Row:
    about = bundle.about
    scenes = {name: _mean([scene for scene in about.scenes if scene.scene == name]) for name in shared}
    means = {key: mean_or_none(scores[key] for scores in scenes.values()) for key in IMAGE_METRICS}
    seeds = len({scene.seed for scene in about.scenes})
    facts = (
        *([f"row {about.row} of the ablation"] if about.row else []),
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        f"reconx {about.facts.get('reconx', 'unknown')}",
        f"SHA-256 {bundle.sha256[:16]}",
    )
    return Row(bundle, about.label, means, scenes, facts)


def _mean(seeds: list[BundledScene]) -> Scores:
    return {key: mean_or_none(seed.summary.get(key) for seed in seeds) for key in IMAGE_METRICS}


def _left_out(bundles: list[BundleFile], shared: list[str]) -> list[str]:
    """Sentences on scenes that do not count, for want of them in one of the bundles."""
    said = []
    for bundle in bundles:
        others = sorted({scene.scene for scene in bundle.about.scenes} - set(shared))
        said += [f"{bundle.about.label}: {len(others)} more scene(s), which not all have."] if others else []
        said += [f"{bundle.about.label}: {name} failed ({why})" for name, why in bundle.about.failed.items()]
    return said


def _context(about: Bundle, shared: list[str]) -> list[tuple[str, str]]:
    """What has to stand beside every number."""
    scenes = [scene for scene in about.scenes if scene.scene in shared]
    named = (about.protocol or {}).get("title")
    return [
        *([("protocol", str(named))] if named else []),
        ("cameras", ", ".join(dict.fromkeys(scene.protocol for scene in scenes))),
        ("split", _short(tuple(dict.fromkeys(scene.split for scene in scenes)))),
        ("resolution", ", ".join(dict.fromkeys(f"{scene.size[0]} × {scene.size[1]}" for scene in scenes)) + " px"),
        ("scenes", str(len(shared))),
    ]


def _shots(rows: list[Row], shared: list[str]) -> list[Shot]:
    """The first held-out view of every scene, as far as the page's budget goes."""
    room, shots = PAGE_BYTES, []
    for name in shared:
        renders = []
        for row in rows:
            view = next(scene for scene in row.bundle.about.scenes if scene.scene == name).views[0]
            renders.append((row.label, view.psnr, picture_uri(open_picture(row.bundle.files[view.file]))))
        room -= sum(len(uri) for *_, uri in renders)
        if room < 0:
            break
        shots.append(Shot(name, view.view, tuple(renders)))
    return shots
