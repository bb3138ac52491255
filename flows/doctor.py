"""What there is and what works on this machine: `reconx backends`, `reconx doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.execution.memory import SIZES, choose_ways, describe
from flows.execution.run import resolve_settings
from reconx_core import condition, confidence, pointcloud, rasterize, video
from reconx_core.errors import UserError, pip_install
from reconx_core.losses.lpips import LAYOUTS, lpips_files, lpips_missing_reason
from reconx_core.settings import PointcloudSettings, Settings
from reconx_core.weights.choice import resolve_geometry
from reconx_core.weights.folder import weights_folder


def print_backends(console: Console) -> None:
    """Every backend of every stage, with its weights, its licence and whether it needs a GPU."""
    table = Table()
    for column in ("stage", "backend", "what it is", "weights", "licence", "GPU"):
        table.add_column(column)
    for module in (pointcloud, condition, video, confidence, rasterize):
        for info in getattr(module, "BACKENDS", {}).values():
            table.add_row(info.stage, info.name, info.summary, info.weights, info.licence, "yes" if info.needs_gpu else "no")
    console.print(table)


def doctor(root: Path, console: Console) -> None:
    """What works on this machine."""
    table = Table(show_header=False)
    for name, value in (*_machine(), *_presets(), *_versions(), *_weights(), *_store(root)):
        table.add_row(name, escape(value))
    console.print(table)


def _machine() -> list[tuple[str, str]]:
    memory = psutil.virtual_memory()
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none; every stage of the default preset runs without"
    return [
        ("python", sys.version.split()[0]),
        ("cores", str(psutil.cpu_count())),
        ("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        ("CUDA", cuda),
    ]


def _presets() -> list[tuple[str, str]]:
    """Per preset that wants a GPU, what of it fits into the one that is there, or how large one must be."""
    total = torch.cuda.get_device_properties(0).total_memory / 2**30 if torch.cuda.is_available() else None
    return [(f"preset {name}", describe_fit(resolve_settings(name, None), total)) for name in ("paper", "permissive")]


def describe_fit(settings: Settings, total: float | None) -> str:
    """How the settings' stages fit into a GPU of ``total`` GiB, or into which GPUs they do."""
    if total is not None:
        try:
            return "fits: " + describe(choose_ways(settings, round(total)), round(total), [])
        except UserError as error:
            return f"does not fit: {error}"
    return "peak " + ", ".join(f"{_peak(settings, size)} with --vram {size}" for size in SIZES)


def _peak(settings: Settings, size: int) -> str:
    try:
        return f"{max(choice.need for choice in choose_ways(settings, size)):.1f} GiB"
    except UserError:
        return "too much"


def _versions() -> list[tuple[str, str]]:
    names = ("reconx", "torch", "numba", "pycolmap", "zarr", "prefect", "dvc", "mlflow", "gsplat", "viser")
    return [(name, _version(name)) for name in names]


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        extra = {"gsplat": "cuda", "viser": "view"}.get(name)
        return f"not installed; {pip_install(extra)}" if extra else "not installed"


def _weights() -> list[tuple[str, str]]:
    geometry = resolve_geometry(PointcloudSettings()).backend
    if geometry == "classical":
        geometry += "; `reconx weights fetch da3-base` (0.5 GB, Apache-2.0) makes hard photo sets work"
    found = [f"{layout.title} and heads found" for net, layout in LAYOUTS.items() if lpips_files(net)]
    lpips = "; ".join([*found, *([missing] if (missing := lpips_missing_reason()) else [])])
    return [("weights", str(weights_folder())), ("geometry", geometry), ("LPIPS", lpips)]


def _store(root: Path) -> list[tuple[str, str]]:
    existing = next(p for p in (root.absolute(), *root.absolute().parents) if p.exists())
    usage = shutil.disk_usage(existing)
    state = "" if os.access(existing, os.W_OK) else "; READ-ONLY"
    return [("store", f"{root}{state}"), ("disk", f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free")]
