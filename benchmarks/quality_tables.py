"""The tables of ``benchmarks.quality``, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

METHODS = ("default", "photos only", "image-based", "unposed")
STAGES = ("pointcloud", "condition", "video", "confidence", "splats", "metrics")
POSE = {"registered": "found", "rot": "rotation °", "trans": "translation °"} | {
    f"auc{t}": f"AUC@{t}°" for t in (5, 10, 20, 30)
}
LLFF = {"DNGaussian": 19.12, "FSGS": 20.43, "ICO-GS": 22.20}  # PSNR, 3 views at 1/8 size, mean of the 8 scenes
Row = dict[str, Any]  # a benchmarks.quality.Result as a mapping


@dataclass
class Grid:
    """A table before it is laid out: rows of text, in sections."""

    title: str
    header: list[str]
    sections: list[list[list[str]]]
    notes: list[str] = field(default_factory=list)


def grids(rows: list[Row], size: int, protocol: str) -> list[Grid]:
    """Scores, pose accuracy and cost of all scenes, and the scene that has published figures beside it."""
    found = [scores_grid(rows, size, protocol), published_grid(rows), poses_grid(rows), costs_grid(rows)]
    return [grid for grid in found if any(grid.sections)]


def scores_grid(rows: list[Row], size: int, protocol: str) -> Grid:
    """PSNR and SSIM per scene, the means of the fair and of the 9-view splits, and on how many the default is ahead."""
    usual = [row for row in rows if not row["size"]]
    methods = [m for m in METHODS if any(m in row["scores"] for row in usual)]
    header = ["scene", "split", "views", "targets", *(name for m in methods for name in (f"{m} PSNR", "SSIM")), "lead dB"]
    groups = {"fair": [row for row in usual if row["fair"]], "9 views": [row for row in usual if row["split"] == "train_9"]}
    means = [mean_row(name, group, methods) for name, group in groups.items() if complete(group, methods)]
    title = f"Held-out views, {protocol} protocol (image-based: true cameras; unposed: none given), {size} px long side"
    notes = ["lead: default above image-based rendering; wins: scenes on which it is.", *failures(rows)]
    return Grid(title, header, [[score_row(row, methods) for row in usual], means], notes)


def score_row(row: Row, methods: list[str]) -> list[str]:
    figures = [format_figure(score(row, m, x), x) for m in methods for x in ("psnr", "ssim")]
    return [row["scene"], row["split"], str(row["inputs"]), str(row["targets"]), *figures, format_lead(lead_of(row))]


def mean_row(name: str, group: list[Row], methods: list[str]) -> list[str]:
    """Means over the scenes on which every method has a score, so that they can be compared."""
    done = complete(group, methods)
    figures = [format_figure(mean(score(row, m, x) for row in done), x) for m in methods for x in ("psnr", "ssim")]
    leads = [lead for row in done if (lead := lead_of(row)) is not None]
    wins = f"wins {sum(lead > 0 for lead in leads)} of {len(leads)}" if leads else ""
    return [f"mean, {name}", f"{len(done)} of {len(group)}", "", wins, *figures, format_lead(mean(leads) if leads else None)]


def complete(group: list[Row], methods: list[str]) -> list[Row]:
    return [row for row in group if all(score(row, m, "psnr") is not None for m in methods)]


def published_grid(rows: list[Row]) -> Grid:
    """llff_fern, 3 views at 504x378, beside figures published for the whole LLFF set."""
    fern = [row for row in rows if (row["scene"], row["split"], row["size"]) == ("llff_fern", "train_3", "504x378")]
    others = [row for row in rows if row["size"] and row not in fern]
    cells = [[score_row_label(r), *(format_figure(score(r, m, "psnr"), "psnr") for m in METHODS[:3])] for r in fern + others]
    sections = [[*line, *(f"{x:.2f}" if row in fern else "" for x in LLFF.values())] for line, row in zip(cells, fern + others)]
    note = "Published figures: mean of the 8 LLFF scenes, of which fern is one; 3 views, 504x378."
    return Grid("PSNR at other sizes", ["scene", *METHODS[:3], *LLFF], [sections] if sections else [], [note] if fern else [])


def score_row_label(row: Row) -> str:
    return f"{row['scene']} {row['split']} {row['size']}"


def poses_grid(rows: list[Row]) -> Grid:
    """Input cameras found without being given."""
    done = [row for row in rows if row["pose"]]
    lines = [[row["scene"], row["split"], *(f"{row['pose'][key]:.2f}" for key in POSE)] for row in done]
    means = [["mean", str(len(done)), *(f"{mean(row['pose'][key] for row in done):.2f}" for key in POSE)]] if done else []
    note = (
        "Relative poses over all pairs; AUC of the larger of the two angles, photos that were not registered count as failed."
    )
    return Grid("Input cameras, nothing given", ["scene", "split", *POSE.values()], [lines, means], [note])


def costs_grid(rows: list[Row]) -> Grid:
    """Seconds per stage, memory and number of Gaussians of the default settings."""
    lines = []
    for row in (r for r in rows if score(r, "default", "gaussians") is not None):
        stages = row["costs"]["default"]
        seconds = [stages[stage]["seconds"] for stage in STAGES]
        peak = max(stage["peak_mib"] for stage in stages.values())
        counts = [format_count(score(row, m, "gaussians")) for m in METHODS[:2]]
        times = [f"{s:.1f}" for s in [*seconds, sum(seconds)]]
        lines.append([row["scene"], row["split"], *counts, *times, f"{peak:.0f}"])
    header = ["scene", "split", "Gaussians", "photos only", *STAGES, "sum", "MiB"]
    note = "MiB: peak memory of the whole process; `metrics` also scores and pictures the photos."
    return Grid("Cost of the default settings: seconds per stage", header, [lines], [note])


def failures(rows: Iterable[Row]) -> list[str]:
    return [f"{r['scene']} {r['split']} {r['size']}: {what} failed: {why}" for r in rows for what, why in r["errors"].items()]


def score(row: Row, method: str, key: str) -> float | None:
    return row["scores"].get(method, {}).get(key)


def lead_of(row: Row) -> float | None:
    """By how many dB the default is above image-based rendering."""
    ours, floor = score(row, "default", "psnr"), score(row, "image-based", "psnr")
    return None if ours is None or floor is None else ours - floor


def format_lead(lead: float | None) -> str:
    return "–" if lead is None else f"{lead:+.2f}"


def format_figure(value: float | None, key: str) -> str:
    return "–" if value is None else f"{value:.3f}" if key == "ssim" else f"{value:.2f}"


def format_count(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else float("nan")


def print_grid(console: Console, grid: Grid) -> None:
    """The grid in the terminal."""
    table = Table(title=grid.title, title_justify="left")
    for index, name in enumerate(grid.header):
        table.add_column(name, justify="left" if index < 2 else "right")
    for section in grid.sections:
        for line in section:
            table.add_row(*(escape(cell) for cell in line))
        table.add_section()
    console.print(table)
    for note in grid.notes:
        console.print(escape(note), style="dim")


def markdown(grid: Grid) -> str:
    """The grid as a Markdown table under a heading."""
    rule = ["---" if i < 2 else "---:" for i in range(len(grid.header))]
    lines = [f"| {' | '.join(line)} |" for line in [grid.header, rule, *(line for part in grid.sections for line in part)]]
    return "\n".join([f"### {grid.title}\n", *lines, *(f"\n{note}" for note in grid.notes)]) + "\n"
