"""`reconx compare A B`: two runs, paired by scene, with intervals and the settings that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import bootstrap

from flows.tracking import EXPERIMENT, make_client, tracking_uri
from reconx_core.errors import UserError
from reconx_core.report import COLUMNS, format_score

RESAMPLES = 9999
SKIPPED = {"gaussians", "registered"}  # not scores


def compare(a: str, b: str, console: Console) -> None:
    """Print each score's mean difference B - A over the scenes that both have, and what differs in the settings.

    Raises:
        UserError: a run cannot be found, or they share no scene, or a protocol, split or resolution differs.
    """
    first, second = read_record(a), read_record(b)
    scenes = shared_scenes(first, second)
    table = Table(caption=f"B - A, paired over {len(scenes)} scene(s); 95 % bootstrap interval", caption_justify="left")
    for column in ("score", "A", "B", "difference", "95 % interval"):
        table.add_column(column, justify="left" if column == "score" else "right")
    for key in COLUMNS:
        pairs = [(first["scenes"][s]["summary"].get(key), second["scenes"][s]["summary"].get(key)) for s in scenes]
        if key not in SKIPPED and all(None not in pair for pair in pairs):
            table.add_row(*_row(key, np.array(pairs, dtype=float)))
    console.print(table)
    _print_scenes(console, first, second, scenes)
    _print_settings(console, first["settings"], second["settings"])
    left_out = sorted({*first["scenes"], *second["scenes"]} - set(scenes))
    if left_out:
        console.print(f"Not in both runs: {', '.join(left_out)}")


def read_record(name: str) -> dict[str, Any]:
    """The record of a run: from its folder, or from MLflow by run id or name (the newest of that name).

    Raises:
        UserError: nothing is there.
    """
    path = Path(name) / "run.json"
    if path.is_file():
        return json.loads(path.read_text())
    client = make_client(tracking_uri(Path("runs")))
    found = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([found.experiment_id], f"run_name = '{name}'", order_by=["start_time DESC"]) if found else []
    runs = runs or (client.search_runs([found.experiment_id], f"run_id = '{name}'") if found else [])
    if not runs:
        raise UserError(f"There is no run '{name}': neither a folder with a run.json nor a run of that name or id in MLflow.")
    return json.loads(Path(client.download_artifacts(runs[0].info.run_id, "run.json")).read_text())


def shared_scenes(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """Scenes that both runs finished.

    Raises:
        UserError: there is none, or they were scored on different terms.
    """
    done = [{n for n, scene in record["scenes"].items() if scene["error"] is None} for record in (first, second)]
    scenes = [name for name in first["scenes"] if name in done[0] & done[1]]
    if not scenes:
        raise UserError("The two runs have no finished scene in common.")
    for name in scenes:
        for term in ("protocol", "split", "size"):
            x, y = first["scenes"][name][term], second["scenes"][name][term]
            if x != y:
                raise UserError(f"The runs cannot be compared: {term} of scene {name} is {x} in A and {y} in B.")
    return scenes


def interval(differences: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of the mean of paired differences; None for fewer than two."""
    if len(differences) < 2:
        return None
    # The resampling is seeded: the same two runs always give the same interval.
    rng = np.random.default_rng(0)
    found = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng).confidence_interval
    return float(found.low), float(found.high)


def differing(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(key, A, B) of every setting that is not the same."""
    found = []
    for key in sorted({*first, *second}):
        x, y = first.get(key), second.get(key)
        if isinstance(x, dict) and isinstance(y, dict):
            found += differing(x, y, f"{prefix}{key}.")
        elif x != y:
            found.append((f"{prefix}{key}", x, y))
    return found


def _row(key: str, pairs: np.ndarray) -> tuple[str, ...]:
    differences = pairs[:, 1] - pairs[:, 0]
    bounds = interval(differences)
    title = f"{COLUMNS[key][0]} {COLUMNS[key][2]}".strip()
    spread = f"{bounds[0]:+.3f} … {bounds[1]:+.3f}" if bounds else "needs two scenes"
    return (
        title,
        format_score(key, pairs[:, 0].mean()),
        format_score(key, pairs[:, 1].mean()),
        f"{differences.mean():+.3f}",
        spread,
    )


def _print_scenes(console: Console, first: dict[str, Any], second: dict[str, Any], scenes: list[str]) -> None:
    key = (
        "psnr" if all("psnr" in record["scenes"][s]["summary"] for record in (first, second) for s in scenes) else "photo_psnr"
    )
    table = Table(title=f"{COLUMNS[key][0]} per scene", title_justify="left")
    for column in ("scene", "A", "B", "difference"):
        table.add_column(column, justify="left" if column == "scene" else "right")
    for scene in scenes:
        x, y = (record["scenes"][scene]["summary"][key] for record in (first, second))
        table.add_row(scene, f"{x:.2f}", f"{y:.2f}", f"{y - x:+.2f}")
    console.print(table)


def _print_settings(console: Console, first: dict[str, Any], second: dict[str, Any]) -> None:
    changed = differing(first, second)
    console.print("Settings that differ:" if changed else "The settings are the same.")
    for key, x, y in changed:
        console.print(f"  {key}: {x} → {y}")
