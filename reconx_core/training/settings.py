"""Settings of `reconx train`: one YAML file; unknown keys are an error. The field descriptions are the user documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from reconx_core.errors import UserError
from reconx_core.invalid import explain
from reconx_core.settings import PointcloudSettings, Section, Side, read_mapping

# Of pydantic's errors -> how such a value is written.
RENAMED = {"vary": "augment", "kept_clips": "clip_cache"}  # earlier names: accepted in YAML files, -S and checkpoints


class ClipSource(Section):
    """Scenes with known cameras, and which clips are sampled from each."""

    path: str = Field(description="A scene, a folder of scenes, RealEstate10K chunks, or procedural:...; $NAME is expanded.")
    frames: int = Field(8, ge=3, description="Frames per clip, including its two photos.")
    skip: tuple[int, int] = Field(
        (1, 1), description="Minimum and maximum step in photos from one frame to the next, drawn per clip."
    )
    clips: int = Field(1, ge=1, description="Clips sampled from each scene.")
    fps: float = Field(
        30.0, gt=0, description="Photos a second; over a clip's step it is the frame rate that the model is given."
    )


class TrainSettings(Section):
    seed: int = 0
    model: str = Field("tiny", description="tiny (from scratch), or the folder of a pipeline to start from.")
    data: list[ClipSource] = Field(default_factory=list)
    pointcloud: PointcloudSettings = Field(
        PointcloudSettings(backend="classical"),
        description="How the point cloud of a clip's two photos is found, with their true cameras; as in a run.",
    )
    second_photo: Literal["last", "random"] = Field(
        "last",
        description="Which frame of a clip is its second photo: the last (interpolation), or a random one in its middle half, "
        "after which the model extrapolates.",
    )
    new_clips: bool = Field(
        False, description="Whether every epoch draws clips of its own, with new starts and skips, or all have the first one's."
    )
    validation: list[ClipSource] = Field(
        default_factory=list, description="Clips for the sample grids and the validation loss; empty: grids of `data`."
    )
    size: int = Field(256, ge=64, description="Long side of the clips, in pixels.")
    clip_size: tuple[Side, Side] | None = Field(
        None,
        description="Height and width of the clips: photos are resized to cover it, then centre-cropped; replaces `size`.",
    )
    crop: tuple[Side, Side] = Field(
        (128, 128), description="Height and width of the random crop of a training step, in pixels."
    )
    frames: int = Field(8, ge=3, description="Frames per clip in a training step, including its two photos.")
    points: int = Field(8192, ge=8, description="Points of a clip's cloud that the structure encoder gets, evenly subsampled.")
    clip_cache: int = Field(
        0,
        ge=0,
        description="Number of prepared clips that each loader keeps in memory (about 11 MB each at 320 px); 0: none.",
    )
    loader_workers: int = Field(
        0, ge=0, description="Processes that read and prepare batches ahead, per training process; 0: between the steps."
    )
    augment: bool = Field(
        False,
        description="Data augmentation: random mirroring, colour jitter, time reversal and frame shuffling. For reconx-tiny, "
        "whose frames need not follow each other; a model of videos learns from frames in order.",
    )
    renders: bool = Field(
        False,
        description="Whether every frame is conditioned on its render of the point cloud (as reconx-tiny and ViewCrafter are), "
        "or, as in the paper, on the two photos alone.",
    )
    phase: Literal["all", "image", "structure"] = Field(
        "all",
        description="What is trained. image: the image cross-attention only (the paper's warm-up); structure: spatial layers, "
        "structure encoder and gates (its second phase); all: everything, from scratch.",
    )
    steps: int = Field(10_000, ge=1, description="Optimiser updates; of these the other settings count steps, too.")
    batch: int = Field(1, ge=1, description="Clips per forward pass and process.")
    accumulate: int = Field(1, ge=1, description="Forward passes of each process per optimiser update.")
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(100, ge=0, description="Warm-up steps of the learning rate.")
    decay: bool = Field(True, description="Cosine decay of the learning rate to a hundredth; False: constant.")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(0.5, gt=0)
    ema: float = Field(
        0.999,
        ge=0,
        lt=1,
        description="Decay of the exponential moving average of the weights, which is what is saved; 0: no EMA.",
    )
    drop_image: float = Field(
        0.05, ge=0, le=1, description="Dropout probability of a clip's image tokens (for classifier-free guidance)."
    )
    drop_structure: float = Field(0.05, ge=0, le=1, description="Dropout probability of a clip's structure tokens.")
    terminal_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability of the last timestep (pure noise), the most important one for few-step samplers.",
    )
    loss: Literal["mse", "log_mse"] = Field(
        "mse", description="mse: eq. 12; log_mse: the mean logarithm of each clip's error, so that hard clips do not dominate."
    )
    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="Mixed precision of the networks; the weights stay float32. auto: bf16 with CUDA, else no."
    )
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(500, ge=1)
    checkpoints: int = Field(2, ge=1, description="Newest checkpoints that are kept.")
    sample_steps: int = Field(50, ge=1, description="Denoising steps of the sample grids; reconx-tiny takes one.")
    sample_every: int = Field(500, ge=1)

    @model_validator(mode="after")
    def _extrapolates_in_order(self) -> TrainSettings:
        if self.second_photo == "random" and self.augment:
            raise ValueError("second_photo=random needs augment=false, since frames after the second photo stay there")
        return self


def current_names(values: dict[str, Any]) -> dict[str, Any]:
    """The settings with renamed keys (`RENAMED`) under their current names."""
    return {RENAMED.get(key, key): value for key, value in values.items()}


def _merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """``overrides`` replace values; those of the section `pointcloud`, the values in it."""
    # The backend is the default's also where only other settings of it are given.
    geometry = [part for part in ({"backend": "classical"}, base.get("pointcloud"), overrides.get("pointcloud")) if part]
    if not all(isinstance(part, dict) for part in geometry):
        return {**base, **overrides}  # which is refused
    return {**base, **overrides, "pointcloud": {key: value for part in geometry for key, value in part.items()}}


def load_train_settings(path: Path, overrides: dict[str, Any]) -> TrainSettings:
    """Settings from a YAML file; ``overrides`` replace its values.

    Raises:
        UserError: the file is unreadable, a key is unknown, or a value is out of range.
    """
    base = read_mapping(path, "the training settings", "training settings, such as 'steps: 500'")
    try:
        settings = TrainSettings.model_validate(_merged(current_names(base), current_names(overrides)))
    except ValidationError as error:
        raise UserError(explain(error, TrainSettings, "training setting", f" (of {path.name} or -S)")) from None
    _require_crop_in_clips(settings)
    return settings


def _require_crop_in_clips(settings: TrainSettings) -> None:
    """Raise UserError where no clip can hold the crop: better now than after all clips are made."""
    largest = settings.clip_size or (settings.size, settings.size)
    if any(side > most for side, most in zip(settings.crop, largest)):
        size = f"clip_size={list(largest)}" if settings.clip_size else f"size={settings.size}, their long side"
        raise UserError(f"A crop of {settings.crop[0]} x {settings.crop[1]} is larger than the clips ({size}).")
