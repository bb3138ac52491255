"""`reconx table NAME`: the paper's tables, with our runs' rows beside the published figures."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from flows.evaluation.ablation import load_ablation, switched_settings, switches_of
from flows.evaluation.efficiency import cost_of_scenes
from flows.evaluation.published import SCORES, Entry, PaperTable, load_published
from flows.evaluation.score_tables import mean_of, spread_of
from flows.evaluation.table_formats import print_table, to_csv, to_latex, to_markdown, views_text
from flows.execution.run import PRESETS
from flows.runs.records import Run, download_run, is_run, read_run, search_mlflow
from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk, require_writable, write_atomic
from reconx_core.names import shown
from reconx_core.settings import STAGES, flatten, load_settings

Cell = tuple[str, str, str, int | None]  # method, row of the ablation, set, views
METHOD = STAGES[1:-1]  # what a method is; `views` and `metrics` belong to the protocol
_SHOWN = 5  # scenes that failed, by name; different values of a term
_NO_RUNS = "There are no runs of ours for this table yet; make one by 'reconx evaluate DATASET --protocol NAME', or name runs."
_NO_ROWS = "There are no runs of ours for this table yet; make them by 'reconx evaluate DATASET --ablation'."
_NO_LPIPS = "LPIPS is empty where a run had no LPIPS weights (docs/metrics.md says which files to put where)"
_NO_LPIPS_LOSS = f"{_NO_LPIPS}; the loss had no LPIPS term then either, so that switch changed nothing"


def table(name: str, runs: list[str], out: Path, console: Console) -> None:
    """Print a table of the paper with our rows, and write it to ``out`` as Markdown, CSV and LaTeX.

    ``runs``: each a run's folder, or its name or id in MLflow, or any of these after ``LABEL=``; none: the newest in MLflow of
    every method, set and number of views.

    Raises:
        UserError: no such table or run, a run of another table, two runs for one cell, or ``out`` cannot be written.
    """
    published = load_published(name)
    require_writable(out)
    made = add_runs(published, named_runs(name, runs) if runs else tracked_runs(name, console), newest=not runs)
    print_table(made, console)
    try:
        for ending, content in (("md", to_markdown(made)), ("csv", to_csv(made)), ("tex", to_latex(made))):
            write_atomic(out / f"{name}.{ending}", shown(content).encode())
    except OSError as error:
        raise explain_disk(error, out) from error
    console.print(f"Saved as {out / name}.md, .csv and .tex", soft_wrap=True, markup=False)


def add_runs(published: PaperTable, runs: Iterable[Run], newest: bool = False) -> PaperTable:
    """The published table with an entry for every run, and below it what the reader has to know of them.

    ``newest``: of two runs for one cell the first counts; else they are a mistake.

    Raises:
        UserError: a run does not belong here, or two runs are for one cell.
    """
    ours: dict[Cell, Entry] = {}
    remarks: dict[Cell, list[str]] = {}
    found = list(runs)
    names = set_names((_set_of(run.record) for run in found), {entry.set for entry in published.entries})
    for run in found:
        entry, sentences = entry_of(run, published, names[_set_of(run.record)])
        cell = (entry.label, entry.row, *entry.column)
        if cell in ours and not newest:
            raise UserError(f"Two of the runs are for one cell ({_where(entry)}); leave one out, or name its row: LABEL=RUN.")
        if cell not in ours:
            ours[cell], remarks[cell] = entry, sentences
    cells = _in_order(ours)
    entries = [ours[cell] for cell in cells]
    all_remarks = [remark for cell in cells for remark in remarks[cell]] + _on_all(published.name, entries)
    return replace(published, entries=(*published.entries, *entries), remarks=tuple(all_remarks))


def set_names(sets: Iterable[str], published: Container[str]) -> dict[str, str]:
    """What the table calls each set: of a dataset's path the last names, as many as tell all of them apart."""
    known = dict.fromkeys(sets)
    paths = {name: Path(name).parts for name in known if name not in published and not name.startswith("procedural:")}
    for count in range(1, max(map(len, paths.values()), default=0)):
        short = {name: str(Path(*parts[-count:])) for name, parts in paths.items()}
        if len({*short.values()}) == len(paths) and not any(name in published for name in short.values()):
            return {name: short.get(name, name) for name in known}
    return {name: name for name in known}


def _set_of(record: dict[str, Any]) -> str:
    return (record.get("protocol") or {}).get("set") or record.get("dataset") or record["title"]


def entry_of(run: Run, published: PaperTable, set_name: str) -> tuple[Entry, list[str]]:
    """A run's cells in the set called ``set_name``, and sentences on the scenes that its means are not over.

    Raises:
        UserError: the run belongs to another table.
    """
    record, ablation = run.record, published.name == "ablation"
    protocol = record.get("protocol") or {}
    _check_place(record, published.name)
    scored = {name: scene for name, scene in record["scenes"].items() if _unscored(scene) is None}
    keys = {key: score_key(key, protocol) for key in SCORES}
    entry = Entry(
        label=run.label or record.get("label") or method_label(record["settings"], switched_settings() if ablation else set()),
        row=record["row"] if ablation else "",
        set=set_name,
        views=protocol.get("views") or _input_views(scored),
        scores={key: mean_of(scored, keys[key]) for key in SCORES},
        source=f"{run.place}, git revision {record.get('facts', {}).get('git revision', 'unknown')}",
        published=False, scenes=len(scored), switches=switches_of(record["settings"]) if ablation else {},
        spread={key: spread for key in SCORES if (spread := spread_of(scored, keys[key])) is not None},
        seeds=tuple(record.get("seeds") or [record["settings"]["seed"]]),
        protocol=protocol.get("name") or _few(scene["protocol"] for scene in scored.values()), run=run.id,
        terms=_terms(protocol, scored), cost=cost_of_scenes(scored.values()),
    )  # fmt: skip
    remarks = _remarks(entry, record["scenes"], published)
    elsewhere = [f"{entry.label}: made by another method, and scored as our runs are."] if record.get("predictions") else []
    return replace(entry, whole=not remarks), remarks + elsewhere


def method_label(settings: dict[str, Any], ignored: Iterable[str] = ()) -> str:
    """The preset that a method is nearest to, and the settings in which it differs; ``ignored`` settings do not count."""
    method = _method(settings)
    found = []
    for path in sorted(PRESETS.glob("*.yaml")):
        preset = _method(load_settings(path).model_dump(mode="json"))
        if preset["pointcloud.backend"] == "auto":  # a table says where a network was used
            preset["pointcloud.backend"] = "classical"
        differing = [key for key, value in method.items() if key not in ignored and (key, value) not in preset.items()]
        found.append((len(differing), path.stem, differing))
    _, name, keys = min(found)
    return ", ".join([name, *(f"{key}={method[key]}" for key in keys)])


def named_runs(name: str, runs: list[str]) -> Iterator[Run]:
    """The runs that the user names; for the ablation also all rows of a folder that holds them.

    Raises:
        UserError: one is not there.
    """
    for text in runs:
        label, sep, place = ("", "", text) if is_run(Path(text)) else text.rpartition("=")
        if sep and not label:
            raise UserError(f"'{text}' should be a run, or LABEL=RUN.")
        rows = [Path(place) / row.name for row in load_ablation()] if name == "ablation" else []
        folders = [str(folder) for folder in rows if is_run(folder)]
        for each in folders or [place]:
            yield read_run(each, label)


def tracked_runs(name: str, console: Console) -> Iterator[Run]:
    """The evaluations in MLflow that belong to a table, newest first; those whose record is lost are printed.

    Raises:
        UserError: MLflow cannot be read.
    """
    tag = "reconx.row` LIKE '_%'" if name == "ablation" else f"reconx.table` = '{name}'"
    for run in search_mlflow(f"tags.`{tag}"):
        if run.info.status == "RUNNING":
            continue  # its record is not there yet
        try:
            found = download_run(run)
        except UserError as error:
            console.print(f"[yellow]{escape(f'Run {run.info.run_id} is left out. {error}')}[/]", soft_wrap=True)
            continue
        if name == "ablation" or not found.record.get("row"):
            yield found


def _check_place(record: dict[str, Any], name: str) -> None:
    title, other = record["title"], (record.get("protocol") or {}).get("table") or None
    if name == "ablation" and not record.get("row"):
        raise UserError(f"Run '{title}' is no row of an ablation; make one by 'reconx evaluate DATASET --ablation'.")
    if name != "ablation" and other not in (None, name):
        raise UserError(f"Run '{title}' is for another table, by its protocol: see 'reconx table {other}'.")


def _unscored(scene: dict[str, Any]) -> str | None:
    """Why a scene does not count; None if it does."""
    if scene["error"] is not None:
        return f"failed in {scene.get('failed_stage') or 'an unknown stage'}: {scene['error']}"
    return "no held-out views" if scene["summary"].get("psnr") is None else None


def _input_views(scored: dict[str, Any]) -> int | None:
    """Number of input photos where it is the same in every scene."""
    counts = {len({view["view"] for view in scene.get("views", ()) if not view["is_target"]}) for scene in scored.values()}
    return next(iter(counts)) or None if len(counts) == 1 else None


def score_key(score: str, protocol: dict[str, Any]) -> str:
    """The key in a scene's summary of a table's score: LPIPS is that of the protocol's network."""
    return "lpips_alex" if score == "lpips" and protocol.get("lpips") == "alex" else score


def _terms(protocol: dict[str, Any], scored: dict[str, Any]) -> str:
    if not scored:
        return "no scene was scored"
    scenes = list(scored.values())
    lpips = all(scene["summary"].get(score_key("lpips", protocol)) is not None for scene in scenes)
    named = protocol.get("title") or protocol.get("name")
    return " · ".join([
        *([named] if named else []),
        _few(scene["protocol"] for scene in scenes),
        f"split {_few(scene['split'] for scene in scenes)}",
        f"{_few('x'.join(map(str, scene['size'])) for scene in scenes)} px",
        f"LPIPS {protocol.get('lpips') or 'vgg'}" if lpips else "LPIPS not computed",
    ])  # fmt: skip


def _few(values: Iterable[str]) -> str:
    different = sorted(set(values))
    return ", ".join(different) if len(different) <= _SHOWN else f"{len(different)} different ones"


def _remarks(entry: Entry, scenes: dict[str, Any], published: PaperTable) -> list[str]:
    """Why an entry's numbers are not those of the whole set; nothing if they are."""
    where = _where(entry)
    beside = next((e for e in published.entries if e.column == entry.column), None)
    remarks = []
    if beside is not None and beside.scenes is None:
        remarks.append(f"{where}: {_count(entry.scenes)}; the paper does not say over how many its figure is.")
    elif beside is not None and beside.scenes != entry.scenes:
        remarks.append(f"{where}: only {entry.scenes:,} of the {beside.scenes:,} scenes that the published figure is over.")
    missing = [(name, _unscored(scene)) for name, scene in scenes.items() if _unscored(scene) is not None]
    if missing:
        named = "; ".join(f"{name} ({reason})" for name, reason in missing[:_SHOWN])
        more = f"; and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        remarks.append(f"{where}: {len(missing)} of the run's {_count(len(scenes))} not in the mean: {named}{more}.")
    return remarks


def _where(entry: Entry) -> str:
    return f"{', '.join(filter(None, (entry.label, entry.row)))} on {entry.set}, {views_text(entry.views)}"


def _count(scenes: int | None) -> str:
    return f"{scenes:,} scene" if scenes == 1 else f"{scenes:,} scenes"


def _in_order(ours: Iterable[Cell]) -> list[Cell]:
    """Methods as they first came, each with the ablation's rows in its order."""
    labels = list(dict.fromkeys(label for label, *_ in ours))
    rows = [row.name for row in load_ablation()]
    return sorted(ours, key=lambda cell: (labels.index(cell[0]), rows.index(cell[1]) if cell[1] in rows else len(rows)))


def _on_all(name: str, ours: list[Entry]) -> list[str]:
    """Sentences on all our rows together."""
    if not ours:
        return [_NO_ROWS if name == "ablation" else _NO_RUNS]
    without = any(entry.scores["lpips"] is None and entry.scenes for entry in ours)
    return [f"{_NO_LPIPS_LOSS if name == 'ablation' else _NO_LPIPS}."] if without else []


def _method(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that make a method, as ``{"splats.steps": 1}``."""
    return flatten({stage: settings.get(stage, {}) for stage in METHOD})
