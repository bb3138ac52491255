"""A result bundle: one zip with a run's renders of the held-out views, their scores, and all that says how they came about.

`bundle.json` holds scores, settings and versions; `predictions/SCENE/SEED/0000.png` the renders in the order of the scene's
views; `SHA256SUMS` the digest of each of them, as `sha256sum -c` reads it. The same run gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image
from pydantic import BaseModel, ConfigDict

from reconx_core.errors import UserError
from reconx_core.io.checked import check_shape
from reconx_core.io.files import explain_disk, write_atomic
from reconx_core.metrics import IMAGE_METRICS
from reconx_core.reporting.numbers import mean_or_none

FORMAT = "reconx bundle 1"
ABOUT, SUMS = "bundle.json", "SHA256SUMS"
MOST_BYTES = 1 << 28  # of one file of a bundle, unpacked
_WHEN = (1980, 1, 1, 0, 0, 0)  # the first that a zip can say
_TOLERANCE = 1e-6  # between a mean and the mean of its terms, relative


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow")


class BundledView(_Part):
    """A held-out view: its render and the render's scores."""

    view: str
    file: str
    refined: bool
    psnr: float
    ssim: float
    lpips: float | None
    lpips_alex: float | None


class BundledScene(_Part):
    """A scene of one seed."""

    scene: str
    seed: int
    split: str
    protocol: str
    size: tuple[int, int]  # width, height
    views: list[BundledView]
    summary: dict[str, float | None]


class Bundle(_Part):
    """What `bundle.json` says."""

    format: str
    title: str
    label: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    scenes: list[BundledScene]
    failed: dict[str, str]  # scene -> why
    summary: dict[str, float | None]  # means over scenes, of a scene over its seeds
    dataset: str | None = None
    protocol: dict[str, Any] | None = None
    row: str | None = None  # of the ablation


@dataclass(frozen=True)
class BundleFile:
    """A bundle that was read, and what is wrong with it."""

    path: Path
    about: Bundle
    files: dict[str, bytes]  # its renders
    sha256: str  # of the whole file
    problems: list[str]  # sentences; none where all agrees


def prediction_name(scene: str, seed: int, number: int) -> str:
    """Where the render of a view lies; any scene's name becomes one folder."""
    return f"predictions/{quote(scene, safe=' ')}/seed-{seed}/{number:04d}.png"


def write_bundle(path: Path, about: Mapping[str, Any], files: Mapping[str, bytes]) -> str:
    """Write a bundle atomically; returns the SHA-256 of its bytes.

    Raises:
        UserError: it cannot be written.
    """
    content = dict(sorted({**files, ABOUT: (json.dumps(about, indent=1, sort_keys=True) + "\n").encode()}.items()))
    content[SUMS] = "".join(f"{_sha256(data)}  {name}\n" for name, data in content.items()).encode()
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_STORED) as archive:  # renders are packed already, and packers differ
        for name, data in content.items():
            entry = zipfile.ZipInfo(name, _WHEN)
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, data)
    try:
        write_atomic(path, memory.getvalue())
    except OSError as error:
        raise explain_disk(error, path.parent) from error
    return _sha256(memory.getvalue())


def read_bundle(path: Path) -> BundleFile:
    """A bundle with what its own digests and means say against it.

    Raises:
        UserError: there is none, or it is none of this version.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.file_size > MOST_BYTES for entry in archive.infolist()):
                raise UserError(f"'{path}' holds files of more than {MOST_BYTES >> 20} MiB, as no bundle does.")
            names = archive.namelist()
            content = {name: archive.read(name) for name in names}
        about = json.loads(content[ABOUT])
        listed = _listed(content[SUMS].decode())
    except OSError as error:
        raise UserError(f"Cannot read '{path}': {error.strerror or error}.") from None
    except (zipfile.BadZipFile, KeyError, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"'{path}' is no bundle, or damaged ({error}).") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UserError(f"'{path}' is no bundle of this version ({FORMAT}).")
    bundle = check_shape(about, Bundle, path)
    twice = [f"{name} is there twice." for name in sorted(set(names)) if names.count(name) > 1]
    renders = {name: data for name, data in content.items() if name not in (ABOUT, SUMS)}
    problems = twice + _digest_problems(content, listed) + _view_problems(bundle, renders) + _mean_problems(bundle)
    return BundleFile(path, bundle, renders, _sha256(path.read_bytes()), problems)


def means_of(scenes: list[dict[str, Any]]) -> dict[str, float | None]:
    """Means over scenes of the scores of held-out views; of a scene over its seeds."""
    by_scene: dict[str, list[dict[str, float | None]]] = {}
    for scene in scenes:
        by_scene.setdefault(scene["scene"], []).append(scene["summary"])
    return {
        key: mean_or_none(mean_or_none(seed.get(key) for seed in seeds) for seeds in by_scene.values()) for key in IMAGE_METRICS
    }


def _listed(sums: str) -> dict[str, str]:
    """File -> digest."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in sums.splitlines())}


def _digest_problems(content: Mapping[str, bytes], listed: Mapping[str, str]) -> list[str]:
    there = set(content) - {SUMS}
    wrong = [name for name in sorted(there & set(listed)) if _sha256(content[name]) != listed[name]]
    return [
        *(f"{name} is missing." for name in sorted(set(listed) - there)),
        *(f"{name} is not listed in {SUMS}." for name in sorted(there - set(listed))),
        *(f"{name} is not what its SHA-256 says." for name in wrong),
    ]


def _view_problems(bundle: Bundle, files: Mapping[str, bytes]) -> list[str]:
    """Renders without scores, scores without renders, and sizes."""
    told = {view.file: (scene, view) for scene in bundle.scenes for view in scene.views}
    problems = [f"{name} is the render of no view." for name in sorted(set(files) - set(told))]
    for name, (scene, view) in told.items():
        size, of = _size_of(files[name]) if name in files else None, f"{name}, the render of {view.view} in {scene.scene},"
        if size is None:
            problems.append(f"{of} is {'no picture' if name in files else 'missing'}.")
        elif size != scene.size:
            problems.append(f"{of} is {size[0]}x{size[1]}, and was scored at {scene.size[0]}x{scene.size[1]}.")
    if len(told) < sum(len(scene.views) for scene in bundle.scenes):
        problems.append("Two views have the same render.")
    return problems


def _size_of(data: bytes) -> tuple[int, int] | None:
    try:
        with Image.open(io.BytesIO(data)) as picture:
            return picture.size
    except Exception:  # decoders raise errors of many kinds
        return None


def _mean_problems(bundle: Bundle) -> list[str]:
    """Means that do not follow from the scores of the views, or of the scenes."""
    problems = []
    for scene in bundle.scenes:
        found = {key: mean_or_none(getattr(view, key) for view in scene.views) for key in IMAGE_METRICS}
        problems += _differing(found, scene.summary, f"{scene.scene}, seed {scene.seed}")
    return problems + _differing(means_of([scene.model_dump() for scene in bundle.scenes]), bundle.summary, "all scenes")


def _differing(found: Mapping[str, float | None], told: Mapping[str, float | None], where: str) -> list[str]:
    return [
        f"{where}: mean {key} is {told.get(key)}, and by its terms {value}."
        for key, value in found.items()
        if not _same(value, told.get(key))
    ]


def _same(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
