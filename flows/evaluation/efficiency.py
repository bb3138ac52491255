"""What a run's scenes cost: time and memory of every stage, Gaussians, size of the file, speed of rendering."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from reconx_core.reporting.numbers import format_duration, mean_or_none
from reconx_core.reporting.report import StageCost, stage_totals

Cost = dict[str, float | None]  # by its name
COLUMNS: dict[str, tuple[str, Callable[[float], str]]] = {
    "seconds": ("time a scene", format_duration),
    "peak_mib": ("peak memory", lambda value: f"{value / 1024:.2f} GiB"),
    "cuda_peak_mib": ("peak GPU memory", lambda value: f"{value / 1024:.2f} GiB"),
    "gaussians": ("Gaussians", "{:,.0f}".format),
    "megabytes": ("scene.ply", "{:.1f} MB".format),
    "fps": ("frames a second", "{:,.1f}".format),
}


def cost_of_scenes(scenes: Iterable[dict[str, Any]]) -> Cost:
    """Means over the scenes that finished, of memory the peak; the stages' as ``splats.seconds`` and ``splats.peak_mib``.

    What the record does not say is left out. Seconds are those of the run that computed a result, in this run or before.
    """
    done = [scene for scene in scenes if scene["error"] is None]
    costs = [cost for scene in done for cost in scene.get("costs", [])]
    found: Cost = {}
    for total in stage_totals(StageCost(c["stage"], c["seconds"], c["peak_mib"], c["cached"]) for c in costs):
        found |= {f"{total.stage}.seconds": total.seconds / total.scenes, f"{total.stage}.peak_mib": total.peak_mib}
    seconds = [value for key, value in found.items() if key.endswith(".seconds") and value is not None]
    if costs:
        found |= {"seconds": sum(seconds), "peak_mib": max(cost["peak_mib"] for cost in costs)}
        found["cuda_peak_mib"] = max(cost.get("cuda_peak_mib") or 0.0 for cost in costs) or None
    found["gaussians"] = mean_or_none(scene["summary"].get("gaussians") for scene in done)
    found["megabytes"] = mean_or_none(scene.get("megabytes") for scene in done)
    found["fps"] = mean_or_none(scene.get("fps") for scene in done)
    return {key: value for key, value in found.items() if value is not None}


def scene_rows(costs: list[Cost], keys: Iterable[str] = tuple(COLUMNS)) -> list[tuple[str, list[str]]]:
    """Title and a cell per run of what is of the whole scene; what no run says is left out."""
    return _said((COLUMNS[key][0], [_cell(cost.get(key), COLUMNS[key][1]) for cost in costs]) for key in keys)


def cost_rows(costs: list[Cost]) -> list[tuple[str, list[str]]]:
    """As :func:`scene_rows`, and below it the stages' time and memory."""
    stages = dict.fromkeys(key.removesuffix(".seconds") for cost in costs for key in cost if key.endswith(".seconds"))
    return scene_rows(costs) + _said((stage, [_stage_cell(cost, stage) for cost in costs]) for stage in stages)


def _said(rows: Iterable[tuple[str, list[str]]]) -> list[tuple[str, list[str]]]:
    return [(title, cells) for title, cells in rows if any(cell != "–" for cell in cells)]


def _stage_cell(cost: Cost, stage: str) -> str:
    seconds, peak = (_cell(cost.get(f"{stage}.{what}"), COLUMNS[what][1]) for what in ("seconds", "peak_mib"))
    return "–" if seconds == "–" else f"{seconds}, {peak}"


def _cell(value: float | None, show: Callable[[float], str]) -> str:
    return "–" if value is None else show(value)
