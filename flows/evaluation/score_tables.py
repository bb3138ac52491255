"""The tables at the end of a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from reconx_core.names import abbreviate, one_line
from reconx_core.reporting.numbers import format_duration, mean_or_none, pooled_spread
from reconx_core.reporting.report import COLUMNS, format_score

HEADLINE = (
    "psnr", "ssim", "lpips", "lpips_alex", "photo_psnr", "photo_ssim", "rotation_error", "auc_30", "depth_error",
    "trusted_error", "f_score", "gaussians",
)  # fmt: skip


def print_made(console: Console, record: dict[str, Any], out: Path, seconds: float, told: bool = False) -> None:
    """What was made, where, how good, and how long it took. ``told``: of failures, so that their names are enough."""
    print_scores(console, record)
    print_failures(console, record["scenes"], told)
    if all(scene["error"] is not None for scene in record["scenes"].values()):
        console.print(f"Nothing was made; {out / 'report.html'} says why, too.", soft_wrap=True, markup=False)
        return
    console.print(f"Made in {format_duration(seconds) if seconds >= 100 else f'{seconds:.0f} s'}:")
    done = [name for name, scene in record["scenes"].items() if scene["error"] is None]
    folders = [out] if (out / "scene.ply").exists() else [out / name for name in done[:_SHOWN]]
    for folder in dict.fromkeys([*folders, out]):
        for name, what in _FILES.items():
            if (folder / name).exists():
                console.print(f"  {escape(one_line(str(folder / name)))}  [dim]{what}[/dim]", soft_wrap=True)
    if len(done) > len(folders) > 1:
        others = f"{len(done) - len(folders)} scenes in {one_line(str(out))}"
        console.print(f"  and the same for the other {others}", soft_wrap=True, markup=False)


_TITLES = {
    "psnr": "PSNR dB", "photo_psnr": "photo PSNR dB", "photo_ssim": "photo SSIM", "rotation_error": "pose °",
    "depth_error": "depth error %", "trusted_error": "trusted error %",
}  # fmt: skip
_NARROWEST = 8  # characters for the names of scenes
_ROWS = 60  # of the table at most
_SHOWN = 3  # scenes whose files are listed one by one
_FILES = {
    "scene.ply": "the Gaussians, for any viewer that reads 3DGS files",
    "video.mp4": "a clip along the camera path",
    "scene.html": "the scene to look around in, in any browser",
    "report.html": "scores, pictures, video and settings on one page",
    "cameras": "the photos' cameras for COLMAP and nerfstudio",
    "pictures": "photo, render and error of every view side by side",
    "scores.csv": "a line of scores for every scene",
    "run.json": "scores and digests, for reconx compare",
    "settings.yaml": "the settings; use them again with --preset",
}


def print_scores(console: Console, record: dict[str, Any]) -> None:
    """One row per scene, the mean below, and what has to stand beside every number.

    Columns for which the screen is too narrow follow in a table of their own, below.
    """
    scenes = record["scenes"]
    done = {name: scene for name, scene in scenes.items() if scene["error"] is None}
    keys = [key for key in HEADLINE if any(scene["summary"].get(key) is not None for scene in done.values())]
    if done:
        means = means_shown(record, done)
        columns = {key: _column(key, done, listed(done, keys[0]), means) for key in keys}
        names = ["scene", *map(escape, (*listed(done, keys[0]), *means))]
        for part in side_by_side(columns, max(map(cell_len, names)), console.width):
            console.print(_table(names, [columns[key] for key in part], len(means)))
        console.print(escape(caption(record, done)), style="dim italic", soft_wrap=True)
        if len(done) > _ROWS:
            console.print(f"The lowest, middle and highest {COLUMNS[keys[0]][0]} of {len(done)}; all are in scores.csv.")


def means_shown(record: dict[str, Any], done: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scenes of every mean below the table: of all, where there are several, and of the protocol's bins."""
    binned = scenes_of_bins(record, done)
    means = {f"{name} overlap ({len(of)})": of for name, of in binned.items()}
    return ({"mean": done} if len(done) > 1 else {}) | means


def scenes_of_bins(record: dict[str, Any], scenes: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Those of the scenes that are in each of the protocol's bins, the lowest first; bins without any are left out."""
    ranges = (record.get("protocol") or {}).get("bins") or {}
    names = sorted(ranges, key=lambda name: ranges[name][0])
    bins = {name: {key: scene for key, scene in scenes.items() if scene.get("bin") == name} for name in names}
    return {name: of for name, of in bins.items() if of}


def side_by_side(columns: Mapping[str, Sequence[str]], name_width: int, width: int) -> list[list[str]]:
    """The keys of the columns, in groups that fit beside the names into ``width`` characters; each has at least one."""
    groups: list[list[str]] = []
    room = 0
    for key, cells in columns.items():
        needed = max(map(len, cells)) + 3  # two blanks and a line
        if needed > room:
            groups.append([])
            room = width - min(name_width, max(_NARROWEST, width // 4)) - 4
        groups[-1].append(key)
        room -= needed
    return groups


def _column(key: str, done: dict[str, Any], names: Iterable[str], means: Mapping[str, dict[str, Any]]) -> list[str]:
    """Title, the scenes' scores, and their means."""
    scenes = [done[name] for name in names]
    cells = [cell(key, scene["summary"].get(key), scene.get("spread", {}).get(key)) for scene in scenes]
    below = [cell(key, mean_of(of, key), spread_of(of, key)) for of in means.values()]
    return [_TITLES.get(key, COLUMNS[key][0]), *cells, *below]


def _table(names: list[str], columns: list[list[str]], means: int) -> Table:
    """The last ``means`` rows, below a line, are means."""
    table = Table(names[0])
    table.columns[0].overflow = "fold"
    for title, *_ in columns:
        table.add_column(title, justify="right", no_wrap=True)
    for i, name in enumerate(names[1:], 1):
        if means and i == len(names) - means:
            table.add_section()
        table.add_row(name, *(column[i] for column in columns))
    return table


def listed(scenes: dict[str, Any], key: str) -> list[str]:
    """The scenes that the table shows: all, or where there are very many those with the lowest, middle and highest score."""
    if len(scenes) <= _ROWS:
        return list(scenes)
    ranked = sorted(scenes, key=lambda name: scenes[name]["summary"].get(key) or 0.0)
    middle = len(ranked) // 2
    return [*ranked[:3], *ranked[middle - 1 : middle + 2], *ranked[-3:]]


def print_failures(console: Console, scenes: dict[str, Any], told: bool) -> None:
    """The scenes that failed; why, unless the user was told when it happened."""
    failed = {name: scene for name, scene in scenes.items() if scene["error"] is not None}
    if failed and told:
        names = f": {abbreviate(list(failed))}" if len(failed) < len(scenes) else "."
        line = f"{len(failed)} of {len(scenes)} scenes failed (why is said above and in scores.csv){names}"
        console.print(f"[red]{escape(line)}[/red]", soft_wrap=True)
    for name, scene in {} if told else failed.items():
        console.print(f"[red]{escape(name)} failed in {scene['failed_stage']}:[/red] {escape(scene['error'])}", soft_wrap=True)


def cell(key: str, value: float | None, spread: float | None) -> str:
    """A score, and where there are several seeds their standard deviation."""
    return format_score(key, value) + (f" ± {format_score(key, spread)}" if spread is not None and key != "gaussians" else "")


def caption(record: dict[str, Any], done: dict[str, Any]) -> str:
    """Protocol, split, resolution, LPIPS net, scenes and seeds."""
    named = (record.get("protocol") or {}).get("title")
    protocols = ", ".join(sorted({scene["protocol"] for scene in done.values()}))
    splits = named or few(scene["split"] for scene in done.values())
    sizes = ", ".join(sorted({"x".join(map(str, scene["size"])) for scene in done.values()}))
    nets = {"vgg": "photo_lpips", "alex": "photo_lpips_alex"}
    computed = [net for net, key in nets.items() if any(scene["summary"].get(key) is not None for scene in done.values())]
    lpips = " and ".join(computed) or "not computed"
    count = f"{len(done)} of {len(record['scenes'])}" if len(done) < len(record["scenes"]) else str(len(done))
    seeds = record.get("seeds") or [record["settings"]["seed"]]
    seed_list = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    return f"protocol {protocols} · split {splits} · {sizes} px · LPIPS {lpips} · scenes {count} · {seed_list}"


def few(values: Iterable[str]) -> str:
    """The different values, or how many there are."""
    different = sorted(set(values))
    return ", ".join(different) if len(different) <= _SHOWN else f"{len(different)} different ones"


def spread_of(scenes: dict[str, Any], key: str) -> float | None:
    """Standard deviation over seeds of the mean over scenes; None with one seed."""
    return pooled_spread([scene.get("spread", {}).get(key) for scene in scenes.values()])


def mean_of(scenes: dict[str, Any], key: str) -> float | None:
    """The mean over scenes; None if there are none or one lacks the score."""
    return mean_or_none(scene["summary"].get(key) for scene in scenes.values())
