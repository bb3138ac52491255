"""`reconx train`: make and cache the clips like any other artifact, train the video model on them, log to MLflow."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from flows.execution.run import PRESETS as RUN_PRESETS
from flows.execution.run import stop_at_once
from flows.runs.tracking import make_client, open_experiment, reason_of, tracking_uri
from reconx_core import datasets
from reconx_core.cache import store
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable
from reconx_core.io.images import write_png
from reconx_core.seeds import generator
from reconx_core.settings import Settings, parse_settings, read_override
from reconx_core.training.settings import RENAMED, ClipSource, TrainSettings, load_train_settings
from reconx_core.types import Clip
from tasks.execute import Job, Monitor, execute, source_digest

PRESETS = RUN_PRESETS / "training"
STAGES = ("views", "pointcloud", "clip")
SAMPLES = 3  # training clips in a sample grid if there are no validation clips
LOG_EVERY = 10  # steps between two logged losses


@dataclass
class RepairMonitor(Monitor):
    """Prints only repairs of damaged artifacts."""

    console: Console

    def repaired(self, stage: str, scene: str, damage: str) -> None:
        self.console.print(f"{stage} of {scene} is made again: {damage}")


def resolve_train_settings(preset: str, overrides: list[str] | None) -> TrainSettings:
    """Settings of a training run: a preset's name or a YAML file, with ``key=value`` overrides.

    Raises:
        UserError: there is no such preset, or a setting is invalid.
    """
    path = next((p for p in (PRESETS / f"{preset}.yaml", Path(preset)) if p.is_file()), None)
    if path is None:
        names = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise UserError(f"There is no training preset '{preset}'; there are {names}, or give the path of a YAML file.")
    pairs = [override.partition("=") for override in overrides or []]
    if wrong := [key for key, sep, _ in pairs if not sep]:
        raise UserError(f"'-S {wrong[0]}' should look like key=value, for example steps=500.")
    named = [(RENAMED.get(key.strip(), key.strip()), value) for key, _, value in pairs]
    return load_train_settings(path, {key: read_override(TrainSettings, key, value) for key, value in named})


def train(settings: TrainSettings, out: Path, root: Path, console: Console) -> None:
    """Make the clips, train, and write the pipeline to ``out/model``.

    Of several processes (`accelerate launch`) the main one does all but the training itself, while the others wait.

    Raises:
        UserError: no data, no usable clip, a checkpoint with other settings, or folders that cannot be written.
    """
    require_writable(root)
    require_writable(out)
    with stop_at_once(console):
        from reconx_core.training import loop
        from reconx_core.training.processes import join_processes, share

        processes = join_processes()
        main = processes.is_main_process
        console = console if main else Console(quiet=True)
        clips, shown = share(lambda: make_all_clips(settings, root, console))
        pipeline = initial_pipeline(settings)
        if settings.phase == "structure" and pipeline.structure_encoder is None:
            pipeline.add_structure(settings.seed)
            console.print("The model gets the structure encoder and its attention, at first worth nothing (PAPER.md 3).")
        log = Log(out, settings, console, shown) if main else None
        loop.train(pipeline, clips, settings, out, log)
        if log is not None:
            save_pipeline(pipeline, out / "model")
            log.finish()
        processes.destroy_process_group()
    console.print(f"The model is in {out / 'model'}", soft_wrap=True)


def make_all_clips(
    settings: TrainSettings, root: Path, console: Console
) -> tuple[list[Callable[[], Clip]], list[Callable[[], Clip]]]:
    """Loaders of the clips to train on, and of those to show: without validation clips some of the former."""
    clips = make_clips(settings.data, settings, root, console)
    return clips, make_clips(settings.validation, settings, root, console) or clips[:SAMPLES]


def initial_pipeline(settings: TrainSettings) -> Any:
    """The pipeline to train: `tiny` with random weights, or loaded from a folder."""
    if settings.model == "tiny":
        from reconx_core.video.diffusion.tiny import tiny_pipeline

        return tiny_pipeline(settings.seed)
    from reconx_core.video.diffusion.pipeline import ReconXPipeline

    if not (Path(settings.model) / "model_index.json").is_file():
        raise UserError(f"There is no model in '{settings.model}'; give 'tiny' or the folder of a pipeline.")
    return ReconXPipeline.from_pretrained(settings.model, local_files_only=True, use_safetensors=True)


def make_clips(sources: list[ClipSource], settings: TrainSettings, root: Path, console: Console) -> list[Callable[[], Clip]]:
    """Loaders of all clips, computed or found in the store; clips whose photos do not overlap are skipped and reported."""
    wanted = [clip for number, source in enumerate(sources) for clip in choose_clips(source, settings.seed, number)]
    loaders: list[Callable[[], Clip]] = []
    with console.status("Making clips") as status:
        for number, (name, path, split, fps) in enumerate(wanted):
            status.update(f"Making clips: {number + 1} of {len(wanted)}")
            try:
                reference = make_clip(name, path, split, settings, root, console)
            except UserError as error:
                console.print(f"Left out: {name} {split}: {error}", soft_wrap=True)
                continue
            loaders.append(partial(load_clip, reference.folder(root), fps))
    console.print(f"{len(loaders)} of {len(wanted)} clips")
    return loaders


def load_clip(folder: Path, fps: float) -> Clip:
    """A stored clip and its frame rate."""
    return replace(store.load(folder, "clip"), fps=fps)


def choose_clips(source: ClipSource, seed: int, number: int) -> Iterator[tuple[str, str, str, float]]:
    """Scene name, path, split and frames a second of each clip of a source, sampled with the seed."""
    expanded = os.path.expandvars(source.path)
    if "$" in expanded:
        raise UserError(f"The training data '{expanded}' names an environment variable that is not set.")
    for name, path in datasets.scene_names(Path(expanded)):
        count = len(datasets.read(path).photos)
        draw = generator(seed, "clips", str(number), name)
        for _ in range(source.clips):
            skips = [skip for skip in range(source.skip[0], source.skip[1] + 1) if skip * (source.frames - 1) < count]
            if not skips:
                raise UserError(f"'{name}' has {count} photos, too few for clips of {source.frames} frames.")
            skip = skips[int(torch.randint(len(skips), (), generator=draw))]
            start = int(torch.randint(count - skip * (source.frames - 1), (), generator=draw))
            yield name, str(path), f"clip:{start}:{skip}:{source.frames}", source.fps / skip


def make_clip(name: str, path: str, split: str, settings: TrainSettings, root: Path, console: Console) -> store.Reference:
    """Compute the clip's artifact, after those of its views and its point cloud."""
    chosen = [f"views.size={settings.size}", f"views.split={split}", "views.protocol=posed"]
    stereo = ["pointcloud.backend=classical", f"pointcloud.stereo_size={min(400, settings.size)}"]
    job_settings: Settings = parse_settings({"seed": settings.seed}, [*chosen, *stereo])
    digest, references = source_digest(path), dict[str, store.Reference]()
    for stage in STAGES:
        job = Job(stage, f"{name} {split}", path, digest, job_settings, root, RepairMonitor(console))
        references[stage], _ = execute(job, references)
    return references["clip"]


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Save the pipeline in half precision: to a temporary folder that then replaces ``folder``."""
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            part.to("cpu", torch.float16)
    pipeline.save_pretrained(fresh, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


@dataclass
class Log:
    """Logs a training run: losses and scores to the console and MLflow, sample grids as images."""

    out: Path
    settings: TrainSettings
    console: Console
    shown: list[Callable[[], Clip]]
    losses: list[float] = field(default_factory=list)
    client: Any = None
    run: str = ""
    began: float = field(default_factory=time.monotonic)
    lost: bool = False  # MLflow, after its first error

    def __post_init__(self) -> None:
        self._observe(self._open)

    def step(self, number: int, loss: float) -> None:
        """Record a loss; every LOG_EVERY steps log the mean of the last ones."""
        self.losses.append(loss)
        if (number + 1) % LOG_EVERY == 0:
            mean = sum(self.losses[-LOG_EVERY:]) / len(self.losses[-LOG_EVERY:])
            self._observe(lambda: self.client.log_metric(self.run, "loss", mean, step=number + 1))
            seconds_per_step = (time.monotonic() - self.began) / len(self.losses)
            progress = f"step {number + 1} of {self.settings.steps}  loss {mean:.4f}  {seconds_per_step:.2f} s a step"
            self.console.print(progress)

    def sample(self, number: int, objective: Any) -> None:
        """Log a grid of true, rendered and generated frames of a few clips, their PSNR, and the validation loss."""
        from reconx_core.training.samples import sample_grid

        grid, scores = sample_grid(objective.pipeline, [load() for load in self.shown], self.settings)
        path = self.out / "samples" / f"{number:06d}.png"
        write_png(path, grid)
        told = [f"{name} {value:.2f} dB" for name, value in scores.items()]
        if self.settings.validation:
            scores["validation_loss"] = self._validation_loss(objective)
            told.append(f"validation loss {scores['validation_loss']:.4f}")
        self._observe(lambda: self._log_sample(number, path, scores))
        self.console.print(f"step {number}: {', '.join(told)}")

    def _validation_loss(self, objective: Any) -> float:
        from reconx_core.training.batches import prepared_clips
        from reconx_core.training.validation import validation_loss

        blends, device = objective.pipeline.config.sources > 0, objective.pipeline.device
        return validation_loss(objective, prepared_clips(self.shown, self.settings.points, blends, device, 0), self.settings)

    def finish(self) -> None:
        self._observe(lambda: self.client.set_terminated(self.run))

    def _open(self) -> None:
        self.client = make_client(tracking_uri(self.out.parent))
        experiment = open_experiment(self.client, self.out.resolve().parent, "reconx-train", self._say)
        self.run = self.client.create_run(experiment, run_name=self.out.name).info.run_id
        for key, value in self.settings.model_dump(mode="json").items():
            self.client.log_param(self.run, key, str(value)[:500])

    def _log_sample(self, number: int, path: Path, scores: dict[str, float]) -> None:
        for name, value in scores.items():
            self.client.log_metric(self.run, name, value, step=number)
        self.client.log_artifact(self.run, str(path), "samples")

    def _observe(self, log: Callable[[], object]) -> None:
        """Log to MLflow; after an error of MLflow's, training goes on without it."""
        if self.lost:
            return
        try:
            log()
        except Exception as error:  # MLflow's stores raise anything
            self.lost = True
            self._say(f"MLflow does not take the run ({reason_of(error)}); training goes on without it.")

    def _say(self, note: str) -> None:
        self.console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
