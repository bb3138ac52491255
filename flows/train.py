"""`reconx train`: make and cache the clips like any other artifact, train the video model on them, log to MLflow."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from flows.execution.ending import stop_at_once, take_back_signals
from flows.execution.prefect_server import prefect_server
from flows.execution.run import PRESETS as RUN_PRESETS
from flows.execution.workers import scheduler_place
from flows.runs.alone import alone_in
from flows.runs.mlflow_client import experiment_name, make_client, open_experiment, reason_of, require_answer, tracking_uri
from flows.runs.registry import register_end
from flows.runs.tracking import RUNNING, end_killed, run_name_of, source_tags
from flows.training.clips import Loaders, Workshop, draw_clips, make_clips
from reconx_core.cache.store import Reference
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable, temporary_beside, write_json
from reconx_core.io.images import write_png
from reconx_core.names import one_line
from reconx_core.pointcloud import weights_of as geometry_weights
from reconx_core.settings import Contents, PointcloudSettings, read_override
from reconx_core.training.settings import RENAMED, TrainSettings, load_train_settings
from reconx_core.weights.choice import resolve_geometry

PRESETS = RUN_PRESETS / "training"
GEOMETRY = "pointcloud."  # the one section of the settings
SAMPLES = 3  # training clips in a sample grid if there are no validation clips
LOG_EVERY = 10  # steps between two logged losses


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
    chosen: dict[str, Any] = {}
    for key, _, value in pairs:
        name = RENAMED.get(key.strip(), key.strip())
        if name.startswith(GEOMETRY):
            inner = name.removeprefix(GEOMETRY)
            chosen.setdefault("pointcloud", {})[inner] = read_override(PointcloudSettings, inner, value)
        else:
            chosen[name] = read_override(TrainSettings, name, value)
    settings = load_train_settings(path, chosen)
    return settings.model_copy(update={"pointcloud": resolve_geometry(settings.pointcloud)})


def train(settings: TrainSettings, out: Path, root: Path, console: Console, workers: int = 1, dask: str | None = None) -> None:
    """Make the clips, train, and write the pipeline to ``out/model``.

    Of several processes (`accelerate launch`) the main one does all but the training itself, while the others wait.
    ``workers``, ``dask``: who makes the clips, see :func:`flows.execution.run.run_stages`.

    Raises:
        UserError: no data, no usable clip, a checkpoint with other settings, weights of the geometry that are missing, or
            folders that cannot be written.
    """
    if dask is not None:
        scheduler_place(dask)
    require_writable(root)
    require_writable(out)
    take_back_signals()
    with stop_at_once(console), ExitStack() as stack:
        from reconx_core.training.checkpoints import find_checkpoint
        from reconx_core.training.processes import join_processes, share

        processes = join_processes()
        find_checkpoint(settings, out, processes.num_processes)  # one with other settings is told before all that takes time
        main = processes.is_main_process
        console = console if main else Console(quiet=True)
        if main:
            stack.enter_context(alone_in(out))
        # One server for the clips of all epochs: Prefect's events stay with the first of a process.
        wait_for_server = stack.enter_context(prefect_server(root) if main else nullcontext(lambda: None))
        from reconx_core.training import loop
        from reconx_core.training.samples import recipe_of

        pipeline = initial_pipeline(settings)
        if settings.phase == "structure" and pipeline.structure_encoder is None:
            pipeline.add_structure(settings.seed)
            console.print("The model gets the structure encoder and its attention, at first worth nothing (PAPER.md 3).")
        studio = Studio(settings, contents_of(pipeline, settings), Workshop(root, out, console, workers, dask))
        wait_for_server()
        count, shown = share(studio.open)
        log = stack.enter_context(Log(out, settings, console, shown)) if main else None
        clips = loop.EpochClips(count, lambda epoch: share(lambda: studio.clips(epoch)))
        loop.train(pipeline, clips, settings, out, log)
        if log is not None:
            pipeline.register_to_config(trained_pixels=recipe_of(pipeline, settings).pixels)
            save_pipeline(pipeline, out / "model")
        processes.destroy_process_group()
    console.print(f"The model is in {one_line(str(out / 'model'))}", soft_wrap=True, markup=False)


def contents_of(pipeline: Any, settings: TrainSettings) -> Contents:
    """What clips hold for the pipeline's model: nothing that it does not read.

    Raises:
        UserError: the weights of the geometry that it needs are missing.
    """
    from reconx_core.training.batches import reads_of

    reads = reads_of(pipeline, settings)
    contents: Contents = "sources" if reads.sources else "renders" if reads.renders else "points" if reads.points else "frames"
    if contents != "frames":
        geometry_weights(settings.pointcloud)
    return contents


@dataclass
class Studio:
    """Makes the clips of a run, on the main process."""

    settings: TrainSettings
    contents: Contents
    shop: Workshop
    kept: list[Reference] = field(default_factory=list)  # of the clips to show
    known: dict[int, Loaders] = field(default_factory=dict)  # by epoch, the newest

    def open(self) -> tuple[int, Loaders]:
        """How many clips an epoch has, and loaders of those to show: without validation clips some of the first epoch's."""
        first, validation = (
            draw_clips(sources, self.settings, self.contents) for sources in (self.settings.data, self.settings.validation)
        )
        count, shown = len(first.plans), make_clips(validation, self.shop, self.kept) if self.settings.validation else []
        if shown or not self.settings.new_clips:
            return count, shown or self.clips(0)[:SAMPLES]
        return count, make_clips(first.only(SAMPLES), self.shop, self.kept)  # a run that goes on needs no more of them

    def clips(self, epoch: int) -> Loaders:
        """Loaders of an epoch's clips."""
        if epoch not in self.known:
            wanted = draw_clips(self.settings.data, self.settings, self.contents, epoch)
            kept = list(self.kept)
            self.known = {epoch: make_clips(wanted, self.shop, kept)}
            register_end(self.shop.root, self.shop.out, kept)  # those of earlier epochs may go
        return self.known[epoch]


def initial_pipeline(settings: TrainSettings) -> Any:
    """The pipeline to train: `tiny` with random weights, or loaded from a folder."""
    from reconx_core.video.backends.learned import hide_progress_bars

    hide_progress_bars()
    if settings.model == "tiny":
        from reconx_core.video.diffusion.tiny import tiny_pipeline

        return tiny_pipeline(settings.seed)
    from reconx_core.video.diffusion.pipeline import ReconXPipeline

    if not (Path(settings.model) / "model_index.json").is_file():
        raise UserError(f"There is no model in '{settings.model}'; name the folder of a pipeline by -S model=FOLDER.")
    return ReconXPipeline.from_pretrained(settings.model, local_files_only=True, use_safetensors=True)


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Save the pipeline in half precision: to a temporary folder that then replaces ``folder``."""
    fresh = temporary_beside(folder)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, "cpu", torch.float16)  # diffusers' own warns of modules to keep, and there are none
    pipeline.save_pretrained(fresh, safe_serialization=True)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


@dataclass
class Log:
    """Logs a training run: losses and scores to the console and MLflow, sample grids as images.

    A block that is left by an error leaves a failed run; one that was killed is marked so by the next into its folder.
    """

    out: Path
    settings: TrainSettings
    console: Console
    shown: Loaders
    losses: list[float] = field(default_factory=list)
    client: Any = None
    run: str = ""
    began: float = field(default_factory=time.monotonic)
    lost: bool = False  # MLflow, after its first error

    def __post_init__(self) -> None:
        self._observe(self._open)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self.finish("FINISHED" if error is None else "FAILED")

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
        from reconx_core.training.batches import prepared_clips, reads_of
        from reconx_core.training.validation import validation_loss

        ready = prepared_clips(self.shown, reads_of(objective.pipeline, self.settings), 0)
        return validation_loss(objective, ready, self.settings)

    def finish(self, status: str = "FINISHED") -> None:
        """End the run in MLflow; one that MLflow has lost in the middle has failed there, if it can still be told."""
        self._observe(lambda: self._end(status))
        if self.lost and self.run:
            with contextlib.suppress(Exception):  # MLflow's stores raise anything, and the user knows already
                require_answer(tracking_uri(self.out.parent))
                self._end("FAILED")

    def _end(self, status: str) -> None:
        self.client.set_terminated(self.run, status)
        (self.out / RUNNING).unlink(missing_ok=True)

    def _open(self) -> None:
        from flows.runs.results import git_revision

        uri = tracking_uri(self.out.parent)
        self.client = make_client(uri)
        experiment = open_experiment(self.client, self.out.resolve().parent, experiment_name("reconx-train"), self._say)
        end_killed(self.client, uri, self.out)
        tags, name = source_tags({"git revision": git_revision()}), run_name_of({"title": self.out.resolve().name})
        self.run = self.client.create_run(experiment, tags=tags, run_name=name).info.run_id
        write_json(self.out / RUNNING, {"uri": uri, "run": self.run})
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
