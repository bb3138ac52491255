"""The machine that computes: what of it counts in cache keys, and what is only recorded beside results."""

from __future__ import annotations

import json
import platform
import re
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from reconx_core.cache.code_version import libraries
from reconx_core.cache.store import artifact_key
from reconx_core.io.files import write_json
from reconx_core.rasterize import resolve_backend

MACHINES = ".machines"  # in the store
_DISTRIBUTIONS = {"PIL": "pillow", "skimage": "scikit-image"}  # where it is not called as the module is
# Shapes of arrays, folders of downloads and the bytes of a file: whatever their version, results are the same.
_NOT_COMPUTING = {"jaxtyping", "huggingface_hub", "safetensors"}
_BY_RASTERIZER = {"gsplat"}  # optional, and counted with the rasteriser where that is what is used


@cache
def versions(modules: tuple[str, ...], without: tuple[str, ...] = ()) -> dict[str, str]:
    """Version of every installed library that ``modules`` can reach and compute with; see `code_version.libraries`.

    Without the build (``+cpu``, ``+cu126``), which stands with the device: on a CPU builds compute the same.
    """
    names = libraries(modules, without) - _NOT_COMPUTING - _BY_RASTERIZER
    found = {_DISTRIBUTIONS.get(name, name): installed(_DISTRIBUTIONS.get(name, name)) for name in sorted(names)}
    return {name: number.partition("+")[0] for name, number in found.items() if number}


@cache
def installed(distribution: str) -> str:
    """The version of an installed distribution, as this process met it first; empty if there is none."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def device_class() -> str:
    """``cpu``, or ``cuda`` with the version that PyTorch is built for."""
    return f"cuda {torch.version.cuda}" if torch.cuda.is_available() else "cpu"


def rasterizer(backend: str) -> str:
    """What ``backend`` (see `resolve_backend`) stands for on this machine, with the version of gsplat.

    Where gsplat is asked for and cannot run, the stage says so.
    """
    resolved = resolve_backend(backend) if backend == "auto" else backend
    return f"gsplat {installed('gsplat') or 'missing'}" if resolved == "gsplat" else resolved


def machine() -> dict[str, str | int]:
    """The machine of the measurements, with the versions of all that computes."""
    every = ("reconx_core", *(f"reconx_core.{stage}" for stage in ("views", "pointcloud", "video", "splats", "metrics")))
    return {
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cores": psutil.cpu_count() or 0,
        **versions(every),
        "torch": torch.__version__,
        **({"gsplat": installed("gsplat")} if installed("gsplat") else {}),
        **_gpu(),
    }


def _gpu() -> dict[str, str]:
    if not torch.cuda.is_available():
        return {}
    return {"gpu": torch.cuda.get_device_name(), "driver": _driver(), "cuda": str(torch.version.cuda)}


@cache
def _driver() -> str:
    """The version of NVIDIA's driver, which PyTorch does not tell."""
    for place in (Path("/sys/module/nvidia/version"), Path("/proc/driver/nvidia/version")):
        with suppress(OSError):
            if found := re.search(r"\b\d+\.\d+(\.\d+)*", place.read_text()):
                return found[0]
    return "unknown"


# --- machines that computed for a store --------------------------------------------------------------------------------


def own_traits() -> dict[str, str]:
    """What of this machine counts in keys and may be another for each worker of a run."""
    return {"device": device_class(), "rasterizer": rasterizer("auto")}


def note_machine(root: Path) -> None:
    """Leave in the store what of this machine counts in keys, so that others find what it computed."""
    traits = own_traits()
    place = root / MACHINES / f"{artifact_key(**traits)}.json"
    if not place.exists():
        with suppress(OSError):  # the artifact itself says that the disk is full
            write_json(place, traits)


def known_machines(root: Path) -> list[dict[str, str]]:
    """The traits of all that computed for this store."""
    found: list[Any] = []
    for place in sorted((root / MACHINES).glob("*.json")):
        with suppress(OSError, ValueError):
            found.append(json.loads(place.read_text()))
    return [traits for traits in found if isinstance(traits, dict) and {"device", "rasterizer"} <= traits.keys()]
