"""A table of the paper as Markdown, CSV and LaTeX, and on the screen."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.evaluation.ablation import switch_letters, switch_titles
from flows.evaluation.efficiency import Cost, cost_rows, scene_rows
from flows.evaluation.fitting import print_fitting
from flows.evaluation.published import SCORES, Entry, PaperTable
from flows.evaluation.score_tables import side_by_side
from reconx_core.reporting.report import COLUMNS, format_score

Column = tuple[str, int | None]  # set, views
CSV_COLUMNS = (
    "table", "set", "views", "method", "row", "score", "value", "spread", "scenes", "seeds", "protocol", "published", "source",
    "mlflow_run",
)  # fmt: skip
PARTIAL = "†"
_HEADING = 20  # characters in a line of the heading of a run's column
_ESCAPES = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "[": "{[}", "]": "{]}", "±": r"$\pm$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "†": r"$^\dagger$", "✓": r"$\checkmark$",
    "–": "--", "·": r"$\cdot$", "×": r"$\times$", "°": r"$^\circ$", "∞": r"$\infty$",
}  # fmt: skip


@dataclass(frozen=True)
class Block:
    """A part of a table with a heading of its own: a row per method, three scores per column."""

    title: str
    columns: list[Column]
    headings: list[str]  # of the columns
    rows: list[list[Entry]]  # entries of one method, at most one per column


def blocks(table: PaperTable) -> list[Block]:
    """One block for all sets where they have the same number of views, else one per set; in the ablation one per column."""
    columns = list(dict.fromkeys(entry.column for entry in table.entries))
    if _is_ablation(table):
        groups = [[column] for column in columns]
    elif len({views for _, views in columns}) > 1:
        groups = [[column for column in columns if column[0] == name] for name in dict.fromkeys(name for name, _ in columns)]
    else:
        groups = [columns]
    return [_block(group, table.entries) for group in groups]


def views_text(views: int | None) -> str:
    """``2 views``; the number may differ from scene to scene."""
    return "number of views varies" if views is None else f"{views} view{'' if views == 1 else 's'}"


def to_markdown(table: PaperTable) -> str:
    """A table per block, and a footnote per run that says where its cells come from."""
    ours = _ours(table)
    parts = [f"# {table.title}", _legend(table)]
    for block in blocks(table):
        heads = [*_left_headings(table), *(f"{heading} {score}" for heading in block.headings for score in _score_titles())]
        body = [[*_left(table, row), *_markdown_cells(block, row, ours)] for row in block.rows]
        rule = [":---" if i < len(_left_headings(table)) else "---:" for i in range(len(heads))]
        parts += [f"## {block.title}", "\n".join(f"| {' | '.join(map(_bar_free, line))} |" for line in (heads, rule, *body))]
    if costs := _costs(table, cost_rows):
        parts += ["## Cost of our runs", "\n".join(f"| {' | '.join(map(_bar_free, line))} |" for line in costs)]
    parts += ["\n".join(f"- {remark}" for remark in remarks)] if (remarks := _remarks(table)) else []
    parts += ["\n".join(f"[^{number}]: {trace(entry)}." for number, entry in enumerate(ours, 1))] if ours else []
    return "\n\n".join(parts) + "\n"


def to_csv(table: PaperTable) -> str:
    """One line per cell; numbers unrounded, an empty value where a score was not computed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in table.entries:
        shared = {
            "table": table.name, "set": entry.set, "views": entry.views, "method": entry.label, "row": entry.row,
            "scenes": entry.scenes, "seeds": " ".join(map(str, entry.seeds)), "protocol": entry.protocol,
            "published": str(entry.published).lower(), "source": entry.source, "mlflow_run": entry.run,
        }  # fmt: skip
        for score in SCORES:
            writer.writerow({**shared, "score": score, "value": entry.scores[score], "spread": entry.spread.get(score)})
        for key, value in entry.cost.items():
            writer.writerow({**shared, "score": key, "value": value, "spread": None})
    return text.getvalue()


def to_latex(table: PaperTable) -> str:
    r"""A ``table`` for ``\usepackage{booktabs,amssymb}``; a comment per run of a row says where its cells come from."""
    lines = [r"% \usepackage{booktabs,amssymb}", r"\begin{table}", r"\centering", rf"\caption{{{latex(table.title)}}}"]
    for block in blocks(table):
        lines += _tabular(table, block)
    lines += _costs_tabular(table)
    notes = " ".join(latex(note) for note in (_legend(table), *_remarks(table)))
    return "\n".join([*lines, rf"\par\medskip\footnotesize {notes}", r"\end{table}"]) + "\n"


def latex(text: str) -> str:
    """Plain text with everything escaped that LaTeX would take for its own."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def print_table(table: PaperTable, console: Console) -> None:
    """A line per method and number of views, which fits where the paper's wide tables would not: our runs first.

    Where there are any, the sets that none of them is of are left to the files.
    """
    console.print(table.title, style="bold")
    sets = list(dict.fromkeys(entry.set for entry in table.entries))
    shared = [name for name in sets if any(entry.set == name for entry in _ours(table))] or sets
    for name in shared:
        entries = sorted((entry for entry in table.entries if entry.set == name), key=lambda entry: entry.published)
        print_fitting(console, _screen_table(table, entries))
    if others := [name for name in sets if name not in shared]:
        named = ", ".join(others)
        console.print(f"Of {named} there are no runs of ours; the files have the figures.", soft_wrap=True, markup=False)
    _print_costs(table, console)
    letters = (
        [", ".join(f"{letter} {title}" for letter, title in switch_letters().items()) + "."] if _is_ablation(table) else []
    )
    for sentence in (*letters, _legend(table), *_remarks(table)):
        console.print(escape(sentence), soft_wrap=True)


def _costs(table: PaperTable, rows_of: Callable[[list[Cost]], list[tuple[str, list[str]]]]) -> list[list[str]]:
    """Heading, rule and a line per run of ours, as cells; nothing where no run says what it cost."""
    ours = [entry for entry in _ours(table) if entry.cost]
    rows = rows_of([entry.cost for entry in ours])
    if not rows:
        return []
    row = ["row"] if _is_ablation(table) else []
    head = ["method", *row, "set", "input"]
    named = [[entry.label, *([entry.row] if row else []), entry.set, views_text(entry.views)] for entry in ours]
    titles = [title for title, _ in rows]
    rule = [":---"] * len(head) + ["---:"] * len(titles)
    return [[*head, *titles], rule, *([*name, *(cells[i] for _, cells in rows)] for i, name in enumerate(named))]


def _print_costs(table: PaperTable, console: Console) -> None:
    """A line per kind of cost, a column per run of ours; of those for which the screen is too narrow a table of their own."""
    ours = [entry for entry in _ours(table) if entry.cost]
    rows = cost_rows([entry.cost for entry in ours])
    if not rows:
        return
    console.print("Cost of a scene, memory at its peak", style="italic")
    titles, lines = [title for title, _ in rows], [cells for _, cells in rows]
    headings = [textwrap.wrap(name, _HEADING) for name in _told_apart(ours)]
    columns = {str(i): [*headings[i], *(cells[i] for cells in lines)] for i in range(len(ours))}
    for part in side_by_side(columns, max(map(len, titles)), console.width):
        shown = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        shown.add_column("")
        for i in map(int, part):
            shown.add_column(escape("\n".join(headings[i])), justify="right", no_wrap=True)
        for title, cells in zip(titles, lines):
            shown.add_row(title, *(cells[int(i)] for i in part))
        console.print(shown)


def _told_apart(entries: list[Entry]) -> list[str]:
    """What each is called by what is not the same in all; method and set, where nothing differs."""
    parts = [(entry.label, entry.row, entry.set, views_text(entry.views)) for entry in entries]
    differing = [k for k in range(len(parts[0])) if len({part[k] for part in parts}) > 1] or [0, 2]
    return [" · ".join(part[k] for k in differing if part[k]) for part in parts]


def _screen_table(table: PaperTable, entries: list[Entry]) -> Table:
    """The entries of one set."""
    counts = list(dict.fromkeys(entry.views for entry in entries))
    title = entries[0].set if len(counts) > 1 else f"{entries[0].set}, {views_text(counts[0])}"
    shown = Table(title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    left = ["row", "".join(switch_letters())] if _is_ablation(table) else []
    for heading in (*(["views"] if len(counts) > 1 else []), "method", *left):
        shown.add_column(heading, no_wrap=heading in left, overflow="fold")
    for heading in (*_score_titles(), "scenes", "run"):
        shown.add_column(heading, justify="left" if heading == "run" else "right", no_wrap=True)
    for views in counts:
        first = ["" if views is None else str(views)] if len(counts) > 1 else []
        for entry in (entry for entry in entries if entry.views == views):
            shown.add_row(*first, *map(escape, _screen_cells(table, entry)))
        shown.add_section()
    return shown


def _screen_cells(table: PaperTable, entry: Entry) -> list[str]:
    parts = [entry.row, "".join(_ticks(entry))] if _is_ablation(table) else []
    scenes = "" if entry.scenes is None else f"{entry.scenes:,}"
    run = "published" if entry.published else (entry.run or "")[:8]
    return [entry.label, *parts, *(_cell(entry, key) for key in SCORES), scenes, run]


def trace(entry: Entry) -> str:
    """Where the cells of one of our entries come from."""
    run = f"run {entry.run}" if entry.run else "a run that is not in MLflow"
    seeds = f"seed{'s' if len(entry.seeds) > 1 else ''} {', '.join(map(str, entry.seeds))}"
    scenes = f"{entry.scenes:,} scene{'' if entry.scenes == 1 else 's'}"
    return f"{run} ({entry.source}), {scenes}, {seeds}: {entry.terms}"


def _block(columns: list[Column], entries: Iterable[Entry]) -> Block:
    rows: dict[tuple[str, str, bool], list[Entry]] = {}
    for entry in entries:
        if entry.column in columns:
            rows.setdefault((entry.label, entry.row, entry.published), []).append(entry)
    sets, views = (list(dict.fromkeys(part)) for part in zip(*columns))
    by_views = len(sets) == 1
    headings = [views_text(v) if by_views else s for s, v in columns]
    return Block(sets[0] if by_views else views_text(views[0]), columns, headings, list(rows.values()))


def _tabular(table: PaperTable, block: Block) -> list[str]:
    left = _left_headings(table)
    first = len(left) + 1
    groups = [rf"\multicolumn{{3}}{{c}}{{{latex(heading)}}}" for heading in block.headings]
    rules = "".join(rf"\cmidrule(lr){{{first + 3 * i}-{first + 3 * i + 2}}}" for i in range(len(groups)))
    lines = [
        rf"\par\medskip {latex(block.title)}\par\smallskip",
        rf"\begin{{tabular}}{{{'l' * len(left)}{'rrr' * len(groups)}}}",
        r"\toprule",
        f"{' & ' * len(left)}{' & '.join(groups)} \\\\",
        rules,
        _latex_line([*left, *_score_titles() * len(groups)]),
        r"\midrule",
    ]
    for row in block.rows:
        lines += [f"% {entry.set}, {views_text(entry.views)}: {trace(entry)}" for entry in row if not entry.published]
        lines.append(_latex_line([*_left(table, row), *_cells(block, row)]))
    return [*lines, r"\bottomrule", r"\end{tabular}"]


def _costs_tabular(table: PaperTable) -> list[str]:
    """Of the whole scene alone: with the stages' columns it would be wider than a page."""
    if not (costs := _costs(table, scene_rows)):
        return []
    head, rule, *body = costs
    return [
        r"\par\medskip Cost of a scene of our runs, memory at its peak\par\smallskip",
        rf"\begin{{tabular}}{{{''.join('r' if cell.endswith(':') else 'l' for cell in rule)}}}",
        r"\toprule",
        _latex_line(head),
        r"\midrule",
        *map(_latex_line, body),
        r"\bottomrule",
        r"\end{tabular}",
    ]


def _latex_line(cells: Iterable[str]) -> str:
    return f"{' & '.join(map(latex, cells))} \\\\"


def _left_headings(table: PaperTable) -> list[str]:
    return ["method", "row", *switch_titles().values()] if _is_ablation(table) else ["method"]


def _left(table: PaperTable, row: list[Entry]) -> list[str]:
    entry = row[0]
    method = f"{entry.label} (published)" if entry.published else entry.label
    return [method, entry.row, *_ticks(entry)] if _is_ablation(table) else [method]


def _ticks(entry: Entry) -> list[str]:
    return ["✓" if entry.switches[name] else "–" for name in switch_titles()]


def _is_ablation(table: PaperTable) -> bool:
    return table.name == "ablation"


def _score_titles() -> list[str]:
    return [f"{COLUMNS[key][0]} {COLUMNS[key][2][-1]}" for key in SCORES]


def _cells(block: Block, row: list[Entry]) -> list[str]:
    found = {entry.column: entry for entry in row}
    return [_cell(found[column], key) if column in found else "" for column in block.columns for key in SCORES]


def _markdown_cells(block: Block, row: list[Entry], ours: list[Entry]) -> list[str]:
    marks = {entry.column: f"[^{ours.index(entry) + 1}]" for entry in row if not entry.published}
    places = [column for column in block.columns for _ in SCORES]
    return [cell + marks.get(column, "") if cell else "" for column, cell in zip(places, _cells(block, row))]


def _cell(entry: Entry, key: str) -> str:
    """A score with its spread; empty where it was not computed."""
    value, spread = entry.scores[key], entry.spread.get(key)
    if value is None:
        return ""
    deviation = "" if spread is None else f" ± {format_score(key, spread)}"
    return f"{format_score(key, value)}{deviation}{'' if entry.whole else PARTIAL}"


def _ours(table: PaperTable) -> list[Entry]:
    return [entry for entry in table.entries if not entry.published]


def _legend(table: PaperTable) -> str:
    """What the columns and marks mean."""
    sources = " and ".join(dict.fromkeys(entry.source for entry in table.entries if entry.published))
    said = [f"Published figures are marked as such and stand as printed in {sources}."]
    if _ours(table):
        said.append("The other rows are runs of ours, means over scenes.")
    if any(entry.spread for entry in table.entries):
        said.append("±: standard deviation over seeds of the mean over scenes.")
    if not all(entry.whole for entry in table.entries):
        said.append(f"{PARTIAL}: not over all scenes, or not known to be over those of the published figure; see below.")
    return " ".join(said)


def _remarks(table: PaperTable) -> tuple[str, ...]:
    return tuple(dict.fromkeys(table.remarks))


def _bar_free(cell: str) -> str:
    return cell.replace("|", r"\|")
