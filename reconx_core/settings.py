"""Settings of every stage: one pydantic model per section of ``params.yaml``; unknown keys are rejected.

The field descriptions are the user's documentation. Defaults here are the ``default`` preset; `params.yaml` repeats them
(a test keeps the two in sync).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo

from reconx_core.errors import UserError
from reconx_core.invalid import explain

STAGES = ("views", "pointcloud", "condition", "video", "confidence", "splats", "metrics")
LARGEST = 1_000_000_000  # of any number in the settings
PATHS = ("between", "extrapolate", "orbit")  # of the camera; what else `condition.path` says is a file
Side = Annotated[int, Field(ge=16)]  # of an image, pixels


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _no_absurd_number(cls, value: Any, info: ValidationInfo) -> Any:
        """No number that ends in an overflow somewhere after hours; a seed may be any."""
        if isinstance(value, int | float) and abs(value) > LARGEST and info.field_name != "seed":
            raise ValueError(f"should be at most {LARGEST:,}")
        return value


class ViewsSettings(Section):
    size: int = Field(512, ge=64, description="Long side of the images, in pixels.")
    crop: tuple[Side, Side] | None = Field(
        None, description="Height and width: photos are resized to cover it, then centre-cropped; replaces `size`."
    )
    shrink: int | None = Field(
        None, ge=1, description="Divides the size that the photos' cameras are for, 8: an eighth of it; replaces `size`."
    )
    split: str = Field(
        "auto", description="auto (dataset's own, else all photos), a name in split.json, or a rule such as spread:3."
    )
    mask: Literal["usable", "object"] = Field(
        "usable", description="Pixels on which held-out views are scored: all usable ones, or the dataset's object masks."
    )
    protocol: Literal["auto", "posed", "intrinsics", "unposed"] = Field(
        "auto", description="Which part of the given cameras may be used; auto: all that is available."
    )
    max_inputs: int = Field(12, ge=2, description="Maximum number of input views; larger captures are thinned evenly.")

    @field_validator("shrink")
    @classmethod
    def _one_size(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("crop") is not None:
            raise ValueError("crop says the size already; leave out one of them")
        return value


class PointcloudSettings(Section):
    backend: str = Field(
        "auto", description="auto (da3 where its weights are, else classical), classical, or with weights da3, dust3r or vggt."
    )
    weights: str = Field("", description="Folder or file of weights, or its name in RECONX_WEIGHTS; empty: the backend's own.")
    graph: Literal["auto", "complete", "window", "star"] = Field("auto", description="Which pairs of views are matched.")
    batch: int = Field(4, ge=1, description="Maximum number of view pairs per network call; fewer need less memory.")
    crop: Literal["auto", "none"] = Field(
        "auto", description="auto: dust3r gets the middle of square photos, 4:3, as it was trained; none: all of them."
    )
    planes: int = Field(128, ge=16, description="Depth hypotheses of the plane sweep.")
    stereo_size: int = Field(400, ge=64, description="Long side at which depth is computed.")
    sources: int = Field(4, ge=1, description="Other views that each view's pixels are compared with.")
    rounds: int = Field(2, ge=1, description="Rounds of slanted-plane refinement and filling.")
    iterations: int = Field(6, ge=1, description="Iterations of the first round of refinement.")
    exposure: Literal["auto", "off"] = Field(
        "auto",
        description="auto: photos whose exposure or white balance differ much are brought to one light; off: as they are.",
    )


class ConditionSettings(Section):
    frames_per_pair: int = Field(8, ge=0, description="Frames between two consecutive input views.")
    order: Literal["auto", "name", "overlap"] = Field(
        "auto", description="Between which views: neighbours by name or by overlap; auto: by name unless that is no sequence."
    )
    sway: float = Field(
        0.5, ge=0, le=10, description="Deviation of the camera path from the direct one, in baselines of the pair."
    )
    path: str = Field(
        "between",
        description="between the photos; extrapolate, also past the first and the last; orbit, around what they look at; or a "
        "file of cameras (docs/paths.md).",
    )
    reach: float = Field(
        1.0, gt=0, le=10, description="How far extrapolate goes past the first and the last photo, in baselines of their pair."
    )
    frames_beyond: int | None = Field(
        None, ge=0, description="Frames of extrapolate past each end; null: half of `frames_per_pair`."
    )
    degrees: float = Field(
        360.0, gt=0, le=360, description="Length of an orbit, half of it to each side of the photos' middle."
    )
    frames: int = Field(48, ge=1, description="Frames of an orbit; of a file's cameras at most so many, evenly thinned.")
    rounds: int = Field(
        1, ge=1, le=32, description="Rounds of generation; in each one an orbit goes on from what the one before has made."
    )
    advance: float = Field(
        60.0, gt=0, le=180, description="Degrees that a round goes on; the last goes all the way round, to the first photo."
    )
    unseen: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Share of its pixels that a round should see for the first time; less, and it is left out.",
    )

    @field_validator("rounds")
    @classmethod
    def _rounds_of_an_orbit(cls, value: int, info: ValidationInfo) -> int:
        if value > 1 and info.data.get("path") != "orbit":
            raise ValueError("more than one round needs condition.path=orbit")
        return value

    @property
    def beyond(self) -> int:
        """Frames of `extrapolate` past each end."""
        return self.frames_per_pair // 2 if self.frames_beyond is None else self.frames_beyond

    @property
    def path_file(self) -> Path | None:
        """The file of cameras that `path` names; None where it names a kind of path."""
        return None if self.path in PATHS else Path(self.path).expanduser()


class VideoSettings(Section):
    backend: str = Field("reconx-tiny", description="points, none, or one of the models that `reconx backends` lists.")
    weights: str = Field("", description="Folder of the model, or its name in RECONX_WEIGHTS; empty: the backend's own.")
    steps: int = Field(0, ge=0, description="Denoising steps; 0: the backend's own number.")
    guidance: float = Field(0.0, ge=0, description="Scale of classifier-free guidance, 1 is none; 0: the backend's own.")
    image_guidance: float = Field(
        0.0, ge=0, description="Its scale for the image alone; 0: as `guidance`; for reconx, viewcrafter."
    )
    structure_guidance: float = Field(0.0, ge=0, description="Its scale for the structure alone; 0: as `guidance`. reconx.")
    batch_guidance: bool = Field(True, description="Guidance's passes as one batch; False: in turn, in less memory.")
    fps: int = Field(0, ge=0, description="Frame rate that the model is given; 0: the backend's own. reconx, viewcrafter.")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Numbers in which the networks compute; auto: bfloat16 on a GPU, float32 on the CPU."
    )
    vae_slice: int = Field(8, ge=1, description="Frames that the VAE takes at once; fewer need less memory.")
    structure: bool = Field(True, description="False: no structure tokens (the paper's row without the structure condition).")
    prompt: str = Field("", description="What the clip shows, for models that read text; empty: the backend's own.")
    pixels: int = Field(0, ge=0, description="Area at which frames are generated; 0: the backend's own.")
    offload: bool = Field(False, description="On a GPU, keep only the network in use in GPU memory.")


class ConfidenceSettings(Section):
    enabled: bool = Field(True, description="False: every pixel counts the same (the paper's row without it).")
    generator: bool = Field(
        True,
        description="Geometric mean with the generator's own confidence; False: the geometry backend's alone (the paper's).",
    )
    size: int = Field(256, ge=64, description="Long side at which frames are matched with each other.")
    cameras: Literal["auto", "given", "refine", "find"] = Field(
        "auto",
        description="Generated frames' cameras: as given, refined a little, or found; auto: found if the generator had none.",
    )
    judge: bool = Field(
        True, description="Leave out or correct frames that contradict the photos or their neighbours; False: take all."
    )


class SplatsSettings(Section):
    backend: Literal["auto", "cpu", "gsplat"] = Field("auto", description="auto: gsplat if CUDA is available, else cpu.")
    init: Literal["pointmaps", "sparse", "random"] = Field(
        "pointmaps", description="Start from the pointmaps, from the SfM points, or from random depths of the photos' pixels."
    )
    pixels: Literal["distinct", "all"] = Field(
        "distinct",
        description="Which pixels of the pointmaps start a Gaussian: known ones that no other photo covers, unsure ones moved "
        "behind what is confirmed; or all of every photo, where they lie (the paper's).",
    )
    max_gaussians: int = Field(
        150_000, ge=0, description="Maximum number of initial Gaussians, from evenly skipped pixels; 0: as many as pixels."
    )
    fill: bool = Field(True, description="Coarse Gaussians in regions that no photo sees, continued from their neighbours.")
    backdrop: bool = Field(True, description="Large Gaussians behind everything, in the photos' blurred colours.")
    steps: int = Field(400, ge=0)
    coarse: float = Field(
        0.25,
        ge=0,
        le=1,
        description="Share of the steps, at the start, that see frames at half their size; none in rounds.",
    )
    sampling: Literal["balanced", "uniform"] = Field(
        "balanced",
        description="Which frame a step takes: each photo after two generated frames, at the end photos only; or all alike, in "
        "random epochs (the paper's).",
    )
    dropout: float = Field(
        0.1,
        ge=0,
        lt=1,
        description="Probability that a Gaussian is left out of a step's render, so that none alone explains a photo; of more "
        "than three photos in proportion less. 0: all take part (the paper's).",
    )
    sh_degree: int = Field(1, ge=0, le=3)
    l1_weight: float = Field(0.8, ge=0)
    ssim_weight: float = Field(0.2, ge=0)
    lpips_weight: float = Field(0.5, ge=0, description="Used only if LPIPS weights are present.")
    lpips_every: int = Field(10, ge=1, description="Steps between two LPIPS terms on the CPU, each of which counts as often.")
    lpips_crop: int = Field(
        128, ge=0, description="Crop for the LPIPS term on the CPU, in pixels, 32 or more; 0: the whole image, as on a GPU."
    )
    frame_weight: float = Field(1.0, ge=0, description="Weight of a generated frame relative to a photo.")
    confidence_floor: float = Field(0.05, ge=0, le=1, description="Minimum confidence of a generated pixel, seen or not.")

    @field_validator("lpips_crop")
    @classmethod
    def _whole_or_not_tiny(cls, value: int) -> int:
        if 0 < value < 32:
            raise ValueError("should be 0 or at least 32")
        return value


class MetricsSettings(Section):
    size: int = Field(0, ge=0, description="Long side at which views are scored; 0: that of `views`.")
    background: Literal["photo", "white"] = Field(
        "photo",
        description="What SSIM and LPIPS see outside the mask: the photo in both images, SSIM averaged inside the mask; or "
        "white in both, SSIM averaged over the whole image, as RegNeRF scores DTU.",
    )
    refine_steps: int = Field(50, ge=0, description="Steps of target camera refinement (`unposed` protocol).")
    video_frames: int = Field(
        180, ge=2, description="Frames of the clip, 30 a second: there and back, so that half of them are rendered."
    )


Contents = Literal["frames", "points", "renders", "sources"]


class ClipSection(Section):
    """Of a training clip; no section of a run."""

    contents: Contents = Field(
        "sources",
        description="What is stored beside the frames, each with what stands before it: points of the cloud; renders of the "
        "cloud; and the renders of each photo's points alone.",
    )
    second: int | None = Field(None, ge=1, description="Number of the frame that is the second photo; null: the last.")


class Settings(Section):
    seed: int = 0
    views: ViewsSettings = ViewsSettings()
    pointcloud: PointcloudSettings = PointcloudSettings()
    condition: ConditionSettings = ConditionSettings()
    video: VideoSettings = VideoSettings()
    confidence: ConfidenceSettings = ConfidenceSettings()
    splats: SplatsSettings = SplatsSettings()
    metrics: MetricsSettings = MetricsSettings()


class ClipSettings(Settings):
    """What a training clip depends on: some sections of a run, and its own."""

    clip: ClipSection = ClipSection()


def parse_settings(base: dict[str, Any], overrides: list[str] | None = None) -> Settings:
    """Settings from a nested mapping and ``stage.key=value`` overrides.

    Raises:
        UserError: unknown key (with the nearest right one), wrong type or value out of range.
    """
    merged = {key: dict(value) if isinstance(value, dict) else value for key, value in base.items()}
    for override in overrides or []:
        _apply(merged, override)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise UserError(explain(error, Settings, "setting")) from None


def load_settings(path: Path, overrides: list[str] | None = None) -> Settings:
    """Settings from a YAML file such as ``params.yaml`` or a preset."""
    return parse_settings(read_mapping(path, "the settings", "sections of settings, such as 'splats:'"), overrides)


def read_mapping(path: Path, what: str, content: str) -> dict[str, Any]:
    """The keys and values of a YAML file; ``what`` and ``content`` name it and what it should hold in errors.

    Raises:
        UserError: the file is unreadable, or holds something else.
    """
    try:
        base = read_yaml(path.read_text(encoding="utf-8-sig")) or {}
    except yaml.MarkedYAMLError as error:
        where = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"Cannot read {what} in {path}{where}: {error.problem}.") from None
    except yaml.YAMLError:
        raise UserError(f"Cannot read {what} in {path}: it is no YAML.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read {what} in {path}: {error}") from None
    if not isinstance(base, dict):
        raise UserError(f"{path} should hold {content}, but holds {type(base).__name__}.")
    return base


class _TextLoader(yaml.SafeLoader):
    """YAML whose scalars stay text, but for null: a setting's type says what they mean, or 'no' would be False everywhere."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """An error where a key is there twice: nobody means the second one alone."""
        keys = set[str]()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.tag.endswith(":str")):
            if key.value in keys:
                raise yaml.constructor.ConstructorError(None, None, f"'{key.value}' is there twice", key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep)


_TextLoader.yaml_implicit_resolvers = {
    first: kept
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    if (kept := [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))])
}


def read_yaml(text: str) -> Any:
    """Mappings and lists of text and None, for a pydantic model to read by the types of its fields.

    Raises:
        yaml.YAMLError: it is no YAML.
    """
    try:
        return yaml.load(text, Loader=_TextLoader)
    except RecursionError:
        raise yaml.YAMLError("it is too deeply nested") from None


def read_override(section: type[BaseModel], key: str, text: str) -> Any:
    """The value that ``-S key=text`` gives to a setting of ``section``: the text as it stands where the setting is text.

    Raises:
        UserError: the setting is not text, and this is no YAML.
    """
    field, text = section.model_fields.get(key), text.strip()
    quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
    if field is not None and _is_text(field) and not quoted:
        return text
    try:
        return read_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"The value of '{key}' cannot be read: {text}") from None


def _is_text(field: FieldInfo) -> bool:
    kind = field.annotation
    return kind is str or (get_origin(kind) is Literal and all(isinstance(choice, str) for choice in get_args(kind)))


def flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``{"splats": {"steps": 1}}`` as ``{"splats.steps": 1}``, the names that overrides have."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= {f"{key}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _apply(merged: dict[str, Any], override: str) -> None:
    name, sep, value = override.partition("=")
    *sections, key = name.strip().split(".")
    if not sep or len(sections) > 1:
        raise UserError(f"'-S {override}' should look like stage.key=value, for example splats.steps=500.")
    target: dict[str, Any] = merged
    kind: type[BaseModel] = Settings
    for section in sections:
        target = merged.setdefault(section, {})
        if not isinstance(target, dict):
            raise UserError(f"'{section}' in '-S {override}' is not a section of settings.")
        kind = _section(section)
    target[key] = read_override(kind, key, value)


def _section(name: str) -> type[BaseModel]:
    """The model of a section of settings; of one that is not there, whose key is then named as unknown, that of any."""
    field = Settings.model_fields.get(name)
    return type(field.default) if field is not None and isinstance(field.default, Section) else Section
