"""What the task of every stage does: compute the cache key, look the artifact up, else compute, measure and publish it."""

from __future__ import annotations

import importlib
import json
import os
import platform
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

from reconx_core import seeds
from reconx_core.cache import store
from reconx_core.cache.code_version import code_version, module_versions, reachable
from reconx_core.cache.digests import digests_of, group_of
from reconx_core.cache.store import Reference
from reconx_core.condition.camera_files import files_of_path, read_path
from reconx_core.datasets import files_of
from reconx_core.errors import UserError
from reconx_core.losses.lpips import LAYOUTS, Net, lpips_files
from reconx_core.names import one_line
from reconx_core.pointcloud import BACKENDS as GEOMETRY
from reconx_core.pointcloud import weights_of as geometry_weights
from reconx_core.settings import STAGES, ClipSettings, Settings
from reconx_core.video import weights_of as video_weights
from tasks.graph import JOIN, PARENTS, named
from tasks.machine import device_class, machine, note_machine, rasterizer, versions

# The sections that a stage reads: its own; `confidence` and `join` also build the geometry backend that `pointcloud` names, and
# `clip` does at once what `views` and `pointcloud` do.
SECTIONS = {stage: (stage,) for stage in PARENTS} | {
    "confidence": ("confidence", "pointcloud"),
    JOIN: ("pointcloud",),
    "clip": ("views", "pointcloud", "clip"),
}
OF_ROUNDS = ("rounds", "advance", "unseen")  # settings of `condition` that say nothing where there is one round
OWN = tuple(f"{Path(__file__).parents[1] / package}{os.sep}" for package in ("reconx_core", "tasks", "flows"))
SEEDLESS = ("views",)  # no randomness, so all seeds share its artifacts


# Collects the warnings of the stage that runs in this thread; None outside of stages.
_collect_note: ContextVar[Callable[[str], None] | None] = ContextVar("collect_note", default=None)
# What the stage that runs in this thread has measured of its own; None outside of stages.
_own_measures: ContextVar[dict[str, float] | None] = ContextVar("own_measures", default=None)


class Monitor:
    """Receives what happens to each (stage, scene), from worker threads. The base class ignores everything."""

    def planned(self, stage: str, scene: str) -> None: ...
    def started(self, stage: str, scene: str) -> None: ...
    def advanced(self, stage: str, scene: str, done: int, total: int) -> None: ...
    def finished(self, stage: str, scene: str, measured: dict[str, Any] | None, cached: bool) -> None: ...
    def failed(self, scenes: Sequence[str], stage: str, error: str) -> None: ...
    def repaired(self, stage: str, scene: str, damage: str) -> None: ...
    def say(self, note: str) -> None: ...


@dataclass(frozen=True)
class Job:
    """One stage of one scene."""

    stage: str
    scene: str
    source: str  # what `views` reads
    source_digest: str
    settings: Settings
    root: Path  # of the store
    monitor: Monitor = field(compare=False)
    label: str = ""  # of the scene in this run, if that is more than its name
    code: str = ""  # code version at the start of the run; a process with another one may not compute
    round: int = 0  # of generation, from 1; 0 outside of rounds

    def generator(self) -> torch.Generator:
        return seeds.generator(self.settings.seed, self.stage, self.scene, *([str(self.round)] if self.round > 1 else []))

    @property
    def name(self) -> str:
        """The task's among those of its scene."""
        return named(self.stage, self.round)

    @property
    def last_round(self) -> bool:
        return self.round == self.settings.condition.rounds

    def progress(self, done: int, total: int) -> None:
        self.monitor.advanced(self.name, self.shown, done, total)

    @property
    def shown(self) -> str:
        return self.label or self.scene


@dataclass(frozen=True)
class Inputs:
    """The parents' artifacts."""

    root: Path
    parents: Mapping[str, Reference]

    def __call__(self, stage: str, name: str) -> Any:
        return store.load(self.parents[stage].folder(self.root), name)

    def has(self, stage: str, name: str) -> bool:
        """Whether the parent left that file or array."""
        folder = self.parents[stage].folder(self.root)
        return (folder / name).is_file() or (folder / f"{name}.zarr").is_dir()

    def json(self, stage: str, name: str) -> Any:
        """The content of a JSON file."""
        return json.loads((self.parents[stage].folder(self.root) / name).read_text())


def resolved_settings(stage: str, settings: Settings, number: int = 0) -> dict[str, Any]:
    """The part of the settings that the stage's artifact, in round ``number``, depends on.

    How many rounds there are counts for the last one alone, so that another number keeps those before it.
    """
    seed = {} if stage in SEEDLESS else {"seed": settings.seed}
    resolved = {**seed, **{name: getattr(settings, name).model_dump(mode="json") for name in SECTIONS[stage]}}
    if "condition" in resolved:
        kept = resolved["condition"].items()
        resolved["condition"] = {key: value for key, value in kept if key not in OF_ROUNDS or (number and key != "rounds")}
    last = {"last": number == settings.condition.rounds} if number and stage in ("condition", JOIN) else {}
    return resolved | ({"round": number} if number > 1 else {}) | last


def key_parts(job: Job, parents: Mapping[str, Reference]) -> dict[str, Any]:
    """Everything that the artifact depends on. A parent counts by the digest of its output, not by its own key."""
    digests = {stage: reference.digest for stage, reference in parents.items()}
    environment = environment_of(job.stage, job.settings, job.root, job.code)
    return parts_of(job.stage, job.settings, digests, environment, job.source_digest, job.round)


def parts_of(
    stage: str, settings: Settings, parents: Mapping[str, str], environment: Mapping[str, Any], source: str, number: int = 0
) -> dict[str, Any]:
    """The parts of a cache key, from digests of the parents' outputs and the source, and from :func:`environment_of`."""
    source = "" if PARENTS[stage] else source
    resolved = resolved_settings(stage, settings, number)
    if "condition" in resolved and settings.condition.path_file is not None:  # its content counts, wherever it lies
        resolved["condition"]["path"] = "file"
    return {"settings": resolved, "parents": dict(parents), "source": source, **environment}


def environment_of(stage: str, settings: Settings, root: Path, code: str = "") -> dict[str, Any]:
    """The rest of a cache key: code version (of this process if not given), weights, versions of libraries, and what of the
    machine the bytes depend on.

    ``root``: of the store, beside which digests are remembered.

    Raises:
        UserError: the weights or the cameras that the settings ask for are not there, or their rasteriser cannot run here.
    """
    return {
        "code": code or code_of(stage),
        "weights": weights_digests(stage, settings, root),
        "libraries": versions(_modules_of(stage), unused_modules(stage, settings)),
        "device": device_class() if uses_gpu(stage, settings) else "cpu",
        **({"rasterizer": rasterizer(rasterizer_setting(stage, settings))} if rasterizes(stage) else {}),
        **({"cameras": cameras} if (cameras := path_digests(stage, settings, root)) else {}),
    }


def key_of(job: Job, parents: Mapping[str, Reference]) -> str:
    """The address of the job's artifact."""
    return store.artifact_key(stage=job.stage, scene=job.scene, **key_parts(job, parents))


def load_stages(stages: Iterable[str]) -> None:
    """Import the stages and fix their code versions: an edit during a run must not store results of old code under new keys."""
    for stage in stages:
        code_of(stage)
        module_versions(*_modules_of(stage))
        versions(_modules_of(stage))
        importlib.import_module(f"tasks.{stage}")


def code_of(stage: str) -> str:
    """Digest of the code that the stage can reach."""
    return code_version(*_modules_of(stage))


def versions_of(stages: Iterable[str]) -> dict[str, str]:
    """Versions of all libraries that the stages may compute with."""
    return {name: number for stage in stages for name, number in versions(_modules_of(stage)).items()}


def _modules_of(stage: str) -> tuple[str, ...]:
    """Where the code of a stage begins; its random generator is made here, so that no import of its own shows it."""
    drawing = [] if stage in SEEDLESS else ["reconx_core.seeds"]
    return (f"tasks.{stage}", *([f"reconx_core.{stage}"] if stage in STAGES else []), *drawing)


def require_code(stage: str, code: str) -> None:
    """Raise UserError where this process would compute the stage with other code than the run began with."""
    if code != code_of(stage):
        raise UserError(
            f"A worker on {platform.node()} has other code of {stage} than this run began with; restart the workers and run "
            "the same command again."
        )


def execute(job: Job, parents: Mapping[str, Reference]) -> tuple[Reference, bool]:
    """The job's artifact, from the store or computed and published; and whether it was computed.

    Raises:
        UserError: as the stage does; the store cannot be written; or this process has other code than the run.
    """
    parts = key_parts(job, parents)
    key = store.artifact_key(stage=job.stage, scene=job.scene, **parts)
    found, damage = find_or_repair(job, key)
    if found is not None:
        job.monitor.finished(job.name, job.shown, store.measured(job.root, found), cached=True)
        return found, False
    require_code(job.stage, parts["code"])
    job.monitor.started(job.name, job.shown)
    run = importlib.import_module(f"tasks.{job.stage}").run
    outputs, measured = measure(lambda: run(job, Inputs(job.root, parents)), job.monitor.say)
    parent_keys = {stage: parent.key for stage, parent in parents.items()}
    about = {"scene": job.scene, **parts, "parent_keys": parent_keys, "modules": module_versions(*_modules_of(job.stage))}
    measured = size_before(job.root, parents) | measured | {"made": time.time(), "damage": damage}
    note_machine(job.root)
    reference = store.publish(job.root, job.stage, key, about, outputs, measured)
    job.monitor.finished(job.name, job.shown, measured, cached=False)
    return reference, True


def size_before(root: Path, parents: Mapping[str, Reference]) -> dict[str, Any]:
    """What the stages before noted of how large the scene is: stages of as large ones take as long."""
    known = [measured for parent in parents.values() if (measured := store.measured(root, parent)) and "photos" in measured]
    return {name: known[0][name] for name in ("photos", "pixels")} if known else {}


def find_or_repair(job: Job, key: str) -> tuple[Reference | None, str]:
    """The entry at ``key``. A damaged one is removed from the store, so that it is computed again, and the damage returned."""
    try:
        return store.find(job.root, job.stage, key), ""
    except store.DamagedEntry as damage:
        job.monitor.repaired(job.name, job.shown, str(damage))
        store.remove(job.root, job.stage, key)
        return None, str(damage)


def route_warnings(say: Callable[[str], None]) -> None:
    """Send reconx's own warnings to the user: to the notes of the running stage, or to ``say`` outside of stages."""

    def show(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        if is_own_warning(category, filename):
            (_collect_note.get() or say)(one_line(str(message)))

    warnings.filterwarnings("always", module=r"(reconx_core|tasks|flows)\.")
    warnings.showwarning = show  # type: ignore[assignment]


def is_own_warning(category: type[Warning], filename: str) -> bool:
    """Whether a warning comes from reconx, be it laid to what called the function that gives it, and not from a library."""
    return issubclass(category, UserWarning) and filename.startswith(OWN)


def also_measured(**values: float) -> None:
    """What a stage measures beside its results, which differs from run to run and is therefore no part of its artifact."""
    own = _own_measures.get()
    if own is not None:
        own.update(values)


def measure(work: Callable[[], Any], say: Callable[[str], None] = lambda note: None) -> tuple[Any, dict[str, Any]]:
    """The result of ``work`` with its wall time (seconds), the process's peak memory meanwhile (MiB), its notes and measures.

    Notes are its warnings: passed to ``say`` at once, and kept so that a later run can repeat them.
    """
    notes: list[str] = []

    def collect(note: str) -> None:
        notes.append(note)
        say(note)

    own: dict[str, float] = {}
    token, own_token = _collect_note.set(collect), _own_measures.set(own)
    process, done = psutil.Process(), threading.Event()
    peak = [process.memory_info().rss]

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start = time.perf_counter()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
        _collect_note.reset(token)
        _own_measures.reset(own_token)
    return result, {
        **own,
        "notes": notes,
        "seconds": round(time.perf_counter() - start, 3),
        "peak_mib": round(max(peak[0], process.memory_info().rss) / 2**20),
        "cuda_peak_mib": round(torch.cuda.max_memory_allocated() / 2**20) if torch.cuda.is_available() else 0,
        "machine": machine(),
    }


def uses_gpu(stage: str, settings: Settings) -> bool:
    """Whether the stage uses a GPU if there is one, so that its output may differ from that of a CPU."""
    if finds_geometry(stage, settings):
        backend = GEOMETRY.get(settings.pointcloud.backend)
        return backend is not None and backend.weights != "none"
    if stage == "video":
        return settings.video.backend not in ("points", "none")
    return stage == "metrics" or (stage == "splats" and settings.splats.backend != "cpu")


def finds_geometry(stage: str, settings: Settings) -> bool:
    """Whether the stage runs the geometry backend."""
    with_points = isinstance(settings, ClipSettings) and settings.clip.contents != "frames"
    return stage in ("pointcloud", "confidence", JOIN) or (stage == "clip" and with_points)


def stages_before(stage: str) -> tuple[str, ...]:
    """The stage and all whose results it can depend on: those before it in a run."""
    return STAGES[: STAGES.index(stage) + 1] if stage in STAGES else (stage,)


@cache
def rasterizes(stage: str) -> bool:
    """Whether the stage renders Gaussians."""
    return "reconx_core.rasterize.gsplat" in reachable(_modules_of(stage))


def rasterizer_setting(stage: str, settings: Settings) -> str:
    """The rasteriser that the settings name; `metrics` has none of its own."""
    return settings.splats.backend if stage == "splats" else "auto"


def unused_modules(stage: str, settings: Settings) -> tuple[str, ...]:
    """Modules that the stage can reach and that the settings leave unused; those of geometry backends share their libraries."""
    if stage == "condition":
        return () if settings.condition.path_file is not None else ("reconx_core.condition.camera_files",)
    if stage != "video":
        return ()
    name = settings.video.backend
    used = "" if name in ("points", "none") else "wan_vace" if name == "wan-vace" else "learned"
    return tuple(f"reconx_core.video.backends.{other}" for other in ("learned", "wan_vace") if other != used)


def on_machine(environment: Mapping[str, Any], stage: str, settings: Settings, traits: Mapping[str, str]) -> dict[str, Any]:
    """An environment (see :func:`environment_of`) as it is on a machine with these traits."""
    moved = {"device": traits["device"]} if uses_gpu(stage, settings) else {}
    if "rasterizer" in environment and rasterizer_setting(stage, settings) != "cpu":
        moved["rasterizer"] = traits["rasterizer"]
    return {**environment, **moved}


def require_weights(stages: Iterable[str], settings: Settings) -> None:
    """Raise UserError where weights that the stages would load are missing: before the first of them computes."""
    for stage in stages:
        _weights_place(stage, settings)


def require_cameras(stages: Iterable[str], settings: Settings) -> None:
    """Raise UserError where the file of cameras that `condition` would read is missing or broken: before anything computes."""
    if "condition" in stages and settings.condition.path_file is not None:
        with warnings.catch_warnings(action="ignore"):  # the stage says it
            read_path(settings.condition.path_file)


def path_digests(stage: str, settings: Settings, root: Path) -> dict[str, str]:
    """Digest of every file of cameras that the stage would read; ``root``: of the store that remembers them.

    Raises:
        UserError: a file cannot be read.
    """
    file = settings.condition.path_file if stage == "condition" else None
    if file is None:
        return {}
    try:
        names = files_of_path(file)
        found = digests_of(root, group_of(file), {path.name: path for path in names.values()})
        return {name: found[path.name] for name, path in names.items()}
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}.") from None


def _weights_place(stage: str, settings: Settings) -> Path | None:
    """Where the weights of the stage's network lie; None where it has none."""
    if stage == "video":
        return video_weights(settings.video)
    return geometry_weights(settings.pointcloud) if finds_geometry(stage, settings) else None


def weights_digests(stage: str, settings: Settings, root: Path) -> dict[str, str]:
    """Digest of every file of weights that the stage would load; ``root``: of the store that remembers them.

    Raises:
        UserError: the weights that the settings ask for are not there, or cannot be read.
    """
    if (place := _weights_place(stage, settings)) is not None:
        return _digests(place, files_of(place), root)
    files = [path for net in _lpips_nets(stage, settings) for path in lpips_files(net) or ()]
    return _digests(files[0].parent, {path.name: path for path in files}, root) if files else {}


def _lpips_nets(stage: str, settings: Settings) -> Iterable[Net]:
    """The nets of LPIPS that the stage uses where their files are there."""
    if stage == "metrics":
        return LAYOUTS
    return ("vgg",) if stage == "splats" and settings.splats.lpips_weight > 0 else ()


def source_digest(source: str, root: Path) -> str:
    """Digest of everything that a reader may read of a scene: names and bytes of its files, or the text of a procedural scene.

    ``root``: of the store that remembers it.

    Raises:
        UserError: a file cannot be read.
    """
    files = files_of(Path(source))
    return json.dumps(_digests(Path(source), files, root), sort_keys=True) if files else source


def _digests(place: Path, files: Mapping[str, Path], root: Path) -> dict[str, str]:
    """Of the files that are read of ``place``, by their names in a key."""
    try:
        if len(files) == 1:  # perhaps a chunk, which many scenes share: each calls it by another name
            ((name, file),) = files.items()
            return {name: digests_of(root, group_of(file), {file.name: file})[file.name]}
        return digests_of(root, group_of(place), files)
    except OSError as error:
        raise UserError(f"Cannot read {error.filename}: {error.strerror}.") from None
