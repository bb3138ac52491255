"""Settings of `reconx train`: one YAML file, unknown keys refused. The field descriptions are the user's documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from reconx_core.errors import UserError
from reconx_core.settings import Section


class ClipSource(Section):
    """Scenes with true cameras, and which clips are taken from each."""

    path: str = Field(description="A scene, a folder of scenes, RealEstate10K chunks, or procedural:...; $NAME is expanded.")
    frames: int = Field(8, ge=3, description="Frames of a clip, its two photos included.")
    skip: tuple[int, int] = Field((1, 1), description="Least and most photos from one frame to the next, drawn per clip.")
    clips: int = Field(1, ge=1, description="Clips drawn from each scene.")


class TrainSettings(Section):
    seed: int = 0
    model: str = Field("tiny", description="tiny (from scratch), or the folder of a pipeline to go on from.")
    data: list[ClipSource] = Field(default_factory=list)
    validation: list[ClipSource] = Field(default_factory=list, description="Clips that samples are made of; none: of `data`.")
    size: int = Field(256, ge=64, description="Long side at which clips are made, in pixels.")
    crop: tuple[int, int] = Field((128, 128), description="Height and width of the window that a step sees, in pixels.")
    frames: int = Field(8, ge=3, description="Frames of a clip that a step sees, its two photos included.")
    points: int = Field(8192, ge=8, description="Points of a clip's cloud that the structure encoder sees, spread evenly.")
    kept_clips: int = Field(
        0, ge=0, description="Clips kept ready on the device, about 11 MB each at 320 px; others are read again at each use."
    )
    vary: bool = Field(True, description="Mirror, recolour and reverse clips at random; False: as they are.")
    phase: Literal["all", "image", "structure"] = Field(
        "all",
        description="What learns. image: the image cross-attention only (the paper's warm-up); structure: spatial layers, "
        "structure encoder and gates (its second phase); all: everything, from scratch.",
    )
    steps: int = Field(10_000, ge=1)
    batch: int = Field(1, ge=1, description="Clips per step and process.")
    accumulate: int = Field(1, ge=1, description="Steps whose gradients are added up.")
    learning_rate: float = Field(1e-4, gt=0)
    warmup: int = Field(100, ge=0, description="Steps over which the learning rate rises.")
    decay: bool = Field(True, description="Cosine decay to a hundredth over the steps; else constant.")
    weight_decay: float = Field(0.01, ge=0)
    gradient_clip: float = Field(0.5, gt=0)
    ema: float = Field(0.999, ge=0, lt=1, description="Decay of the averaged weights, which are what is saved; 0: none.")
    drop_image: float = Field(0.05, ge=0, le=1, description="Share of clips that see no image tokens.")
    drop_structure: float = Field(0.05, ge=0, le=1, description="Share of clips that see no structure tokens.")
    terminal_share: float = Field(
        0.0, ge=0, le=1, description="Share of clips at the last, purely noisy timestep: few-step samplers live there."
    )
    loss: Literal["mse", "log_mse"] = Field(
        "mse", description="mse: eq. 12; log_mse: the logarithm of each clip's, so that the hardest do not outvote the others."
    )
    precision: Literal["auto", "no", "bf16", "fp16"] = Field(
        "auto", description="Of the networks' arithmetic; the weights stay float32. auto: bf16 where CUDA is, else no."
    )
    gradient_checkpointing: bool = False
    checkpoint_every: int = Field(500, ge=1)
    sample_every: int = Field(500, ge=1)


def load_train_settings(path: Path, overrides: dict[str, Any]) -> TrainSettings:
    """Settings from a YAML file, with values that replace those in it.

    Raises:
        UserError: unreadable, an unknown key, or a value out of range.
    """
    try:
        base = yaml.safe_load(path.read_text()) or {}
        return TrainSettings.model_validate({**base, **overrides})
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"Cannot read the training settings in {path}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"Training setting '{where}' in {path}: {first['msg'].lower()}.") from None
