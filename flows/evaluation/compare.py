"""`reconx compare A B`: the differences between runs in the terminal and, with -o, on a page."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.evaluation.compare_page import write_comparison
from flows.evaluation.comparison import FEWEST, Difference, Pair, changed_most, changes, failures, missing, pair_up, sentences
from flows.evaluation.efficiency import cost_of_scenes, cost_rows
from flows.evaluation.fitting import print_fitting
from flows.evaluation.rules import find_rule, judge
from flows.runs.records import Run, read_run, shorten
from reconx_core.io.files import require_writable_file
from reconx_core.reporting.report import COLUMNS, format_score

_LISTED = 10  # scenes that are named in the terminal


def compare(names: list[str], console: Console, out: Path | None = None, given: str | None = None) -> bool:
    """Print the differences of each run from the first, paired by scene, and write the page ``out``.

    ``given``: a rule, or a file with one, in place of the runs' own. Returns whether all rules hold.

    Raises:
        UserError: a run cannot be found, two share no scene or score, a protocol, split or resolution differs, or ``out``
            cannot be written.
    """
    runs = [read_run(name, chr(ord("A") + i)) for i, name in enumerate(names)]
    if out is not None:
        require_writable_file(out)
    rules = [find_rule(given, run) for run in runs[1:]]
    pairs = [pair_up(runs[0], run) for run in runs[1:]]
    for pair in pairs:
        _print_pair(console, pair)
    for run in runs:
        _print_failures(console, run)
    if out is not None:
        write_comparison(out, runs, pairs)
        console.print(f"Side by side, with pictures: {out}", soft_wrap=True, markup=False)
    decisions = [judge(*rule, runs[0], run) for rule, run in zip(rules, runs[1:]) if rule is not None]
    for decision in decisions:
        console.print(decision.sentence, soft_wrap=True, markup=False)
    return all(decision.holds for decision in decisions)


def _print_pair(console: Console, pair: Pair) -> None:
    a, b = pair.first, pair.second
    console.print(f"{a.label}: {escape(a.record['title'])}    {b.label}: {escape(b.record['title'])}", soft_wrap=True)
    caption = f"{b.label} - {a.label}, paired over {len(pair.scenes)} scene(s); 95 % bootstrap interval"
    seeded = any(d.spread is not None for d in pair.differences)
    caption += "; seeds: standard deviation of such a difference of single-seed runs" if seeded else ""
    table = Table(caption=caption, caption_justify="left")
    for column in ("score", a.label, b.label, "difference", "95 % interval", *(["seeds ±"] if seeded else [])):
        _add_column(table, column, "left" if column == "score" else "right")
    for d in pair.differences:
        table.add_row(*_row(d), *([_plain(d.spread)] if seeded else []))
    print_fitting(console, table)
    _print_bins(console, pair)
    for sentence in sentences(pair):
        console.print(sentence)
    _print_costs(console, pair)
    _print_scenes(console, pair)
    _print_changes(console, pair)
    console.print()


def _add_column(table: Table, heading: str, justify: Literal["left", "right"]) -> None:
    """Numbers stay whole, names go over several lines."""
    table.add_column(heading, justify=justify, no_wrap=justify == "right", overflow="fold")


def _row(d: Difference) -> tuple[str, ...]:
    bounds = f"{d.bounds[0]:+.3f} … {d.bounds[1]:+.3f}" if d.bounds else f"needs {FEWEST} scenes"
    title = f"{COLUMNS[d.key][0]} {COLUMNS[d.key][2]}".strip()
    return title, format_score(d.key, d.first), format_score(d.key, d.second), f"{d.mean:+.3f}", bounds


def _print_bins(console: Console, pair: Pair) -> None:
    """The differences in each bin of the protocol, where it has any."""
    if not pair.bins:
        return
    table = Table(title="By the overlap of the input views", title_justify="left")
    for column in ("overlap", "scenes", "score", pair.first.label, pair.second.label, "difference", "95 % interval"):
        _add_column(table, column, "left" if column in ("overlap", "score") else "right")
    for name, (count, differences) in pair.bins.items():
        for i, d in enumerate(differences):
            table.add_row(*((escape(name), str(count)) if i == 0 else ("", "")), *_row(d))
    print_fitting(console, table)


def _print_costs(console: Console, pair: Pair) -> None:
    """Time, memory, size and speed of the scenes that both runs finished."""
    runs = (pair.first, pair.second)
    rows = cost_rows([cost_of_scenes(run.record["scenes"][name] for name in pair.scenes) for run in runs])
    table = Table(title="Cost of a scene, memory at its peak", title_justify="left")
    for column in ("", pair.first.label, pair.second.label):
        table.add_column(column, justify="right" if column else "left")
    for title, cells in rows:
        table.add_row(title, *cells)
    console.print(table)


def _print_scenes(console: Console, pair: Pair) -> None:
    rows = changed_most(pair)
    title = f"{COLUMNS[pair.key][0]} per scene"
    title += f": the {_LISTED} of {len(rows)} that changed most" if len(rows) > _LISTED else ""
    table = Table(title=title, title_justify="left")
    seeded = any(spread is not None for *_, spread in rows)
    for column in ("scene", pair.first.label, pair.second.label, "difference", *(["seeds ±"] if seeded else [])):
        _add_column(table, column, "left" if column == "scene" else "right")
    for scene, x, y, spread in rows[:_LISTED]:
        scores = (format_score(pair.key, x), format_score(pair.key, y), f"{y - x:+.3f}")
        table.add_row(escape(scene), *scores, *([_plain(spread)] if seeded else []))
    print_fitting(console, table)
    left_out = missing(pair)
    if left_out:
        more = f" and {len(left_out) - _LISTED} more" if len(left_out) > _LISTED else ""
        console.print(f"Not in both runs: {escape(', '.join(left_out[:_LISTED]))}{more}")


def _print_changes(console: Console, pair: Pair) -> None:
    for sentence, rows in changes(pair.first, pair.second):
        console.print(sentence)
        for key, x, y in rows:
            console.print(f"  {escape(key)}: {escape(shorten(x))} → {escape(shorten(y))}", soft_wrap=True)


def _print_failures(console: Console, run: Run) -> None:
    failed = failures(run)
    for name, stage, error in failed[:_LISTED]:
        where = f" in {stage}" if stage else ""
        console.print(f"[red]{run.label}: {escape(name)} failed{where}:[/red] {escape(error)}", soft_wrap=True)
    if len(failed) > _LISTED:
        console.print(f"[red]{run.label}: {len(failed) - _LISTED} more scenes failed.[/red]")


def _plain(spread: float | None) -> str:
    return "–" if spread is None else f"{spread:.3f}"
