"""GPU memory: which settings let a run's stages fit into how much (`--vram`), and what `reconx doctor` says of it.

The table's figures are peaks of the networks at full size with random weights: measured on an H200 (docs/networks.md,
docs/weights.md), or computed from their layers (`python -m benchmarks.memory`) plus what cuDNN borrowed where it was measured:
1.2 GiB for the VAE, 0.2 GiB for a step. They hold for photos of 512 px and clips of REFERENCE frames; longer clips are counted
in proportion. Networks stay on the GPU for the next scene, so that a stage's need is its own beside those loaded before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console

from reconx_core.errors import UserError
from reconx_core.settings import ConditionSettings, Settings

RESERVED = 0.5  # GiB of a card that CUDA itself takes
SIZES = (8, 12, 24, 48)  # GB that cards have
REFERENCE = {"reconx": 32, "viewcrafter": 25}  # frames of a clip; wan-vace's hardly matter: its VAE takes four at a time


@dataclass(frozen=True)
class Way:
    """One way to run a backend: its settings, and its peak in GiB, of weights and of what grows with the clip or the photos."""

    settings: Mapping[str, Any]
    weights: float
    activations: float
    measured: bool = True
    stays: bool = True  # the weights remain on the GPU for the next scene, beside those of later stages


_IN_TURN = {"video.batch_guidance": False, "video.vae_slice": 2, "video.offload": True}
# (stage, backend) -> ways, the fastest or most faithful first.
WAYS: dict[tuple[str, str], tuple[Way, ...]] = {
    ("pointcloud", "dust3r"): (  # 9 photos
        Way({"pointcloud.batch": 4}, 1.2, 2.3),
        Way({"pointcloud.batch": 2}, 1.2, 1.4),
        Way({"pointcloud.batch": 1}, 1.2, 1.1),
    ),
    ("pointcloud", "vggt"): (  # 9 photos
        Way({"pointcloud.batch": 4}, 2.4, 2.0),
        Way({"pointcloud.batch": 2}, 2.4, 1.4),
        Way({"pointcloud.batch": 1}, 2.4, 1.0),
    ),
    ("pointcloud", "da3"): (Way({}, 0.5, 1.4, measured=False),),  # 9 photos; at most what the process takes on a CPU
    ("video", "reconx"): (
        Way({"video.batch_guidance": True, "video.vae_slice": 8}, 4.8, 5.3),
        Way({"video.batch_guidance": False, "video.vae_slice": 8}, 4.8, 4.2),
        Way({"video.batch_guidance": False, "video.vae_slice": 2}, 4.8, 2.8, measured=False),
        Way(_IN_TURN, 2.7, 2.8, measured=False, stays=False),
    ),
    ("video", "viewcrafter"): (
        Way({"video.batch_guidance": True, "video.vae_slice": 8}, 4.7, 9.5, measured=False),
        Way({"video.batch_guidance": False, "video.vae_slice": 2}, 4.7, 4.7, measured=False),
        Way(_IN_TURN, 2.7, 4.7, measured=False, stays=False),
        Way({**_IN_TURN, "video.pixels": 576 * 1024 // 2}, 2.7, 2.4, measured=False, stays=False),
    ),
    ("video", "wan-vace"): (
        Way({"video.offload": False}, 4.5, 8.5, measured=False),  # before that, the text encoder alone: 10.6
        Way({"video.offload": True}, 4.0, 1.1, measured=False, stays=False),
    ),
    ("confidence", "dust3r"): (  # the pairs of a clip's 32 frames; the network is that of `pointcloud`
        Way({"pointcloud.graph": "complete"}, 1.2, 12.2),
        Way({"pointcloud.graph": "window"}, 1.2, 2.3, measured=False),
    ),
    ("splats", "gsplat"): (Way({}, 0.1, 0.9),),  # with LPIPS of 512 x 512
}


@dataclass(frozen=True)
class Choice:
    """How a stage is to run, and the GiB that it then needs."""

    stage: str
    backend: str
    way: Way
    need: float

    def __str__(self) -> str:
        return f"{self.stage} by {self.backend}: {self.need:.1f} GiB, {'measured' if self.way.measured else 'computed'}"


def fit_to_memory(settings: Settings, vram: int, overrides: list[str]) -> tuple[Settings, list[Choice]]:
    """The settings with which every stage fits into a card of ``vram`` GB, but for what ``overrides`` (of -S) say.

    Raises:
        UserError: a backend fits in no way.
    """
    choices = choose_ways(settings, vram)
    given = {override.partition("=")[0].strip() for override in overrides}
    for choice in choices:
        for name, value in choice.way.settings.items():
            if name not in given:
                settings = _changed(settings, name, value)
    return settings, choices


def apply_vram(settings: Settings, vram: int | None, overrides: list[str], console: Console) -> Settings:
    """`--vram`: as :func:`fit_to_memory`, and print what was chosen."""
    if vram is None:
        return settings
    settings, choices = fit_to_memory(settings, vram, overrides)
    console.print(describe(choices, vram, overrides), soft_wrap=True, markup=False)
    return settings


def choose_ways(settings: Settings, vram: int) -> list[Choice]:
    """Per stage whose backend the table holds, its first way that fits into a card of ``vram`` GB.

    Raises:
        UserError: a backend fits in no way.
    """
    choices: list[Choice] = []
    loaded: dict[str, float] = {}  # backend -> GiB of weights that stay
    for stage, backend in backends_of(settings):
        beside = sum(weights for name, weights in loaded.items() if name != backend)
        table = ways_of(stage, backend, settings)
        ways = [Choice(stage, backend, way, beside + need(stage, backend, way, settings)) for way in table]
        fitting = [choice for choice in ways if choice.need <= vram - RESERVED]
        if ways and not fitting:
            least = min(choice.need for choice in ways) + RESERVED
            raise UserError(
                f"{stage} by {backend} needs {least:.1f} GB of GPU memory at least, more than {vram} GB; choose another "
                "backend, or fewer condition.frames_per_pair."
            )
        choices += fitting[:1]
        if fitting and fitting[0].way.stays:
            loaded[backend] = fitting[0].way.weights * _bytes(stage, settings)
    return choices


def ways_of(stage: str, backend: str, settings: Settings) -> tuple[Way, ...]:
    """The ways of the table; a graph with fewer pairs than all stays as it is."""
    ways = WAYS.get((stage, backend), ())
    if stage == "confidence" and settings.pointcloud.graph != "complete":
        return tuple(replace(way, settings={}) for way in ways[-1:])
    return ways


def backends_of(settings: Settings) -> list[tuple[str, str]]:
    """Stage and backend of what may run on a GPU."""
    geometry, video = settings.pointcloud.backend, settings.video.backend
    matching = [("confidence", geometry)] if settings.confidence.enabled and video != "none" else []
    splats = [] if settings.splats.backend == "cpu" else [("splats", "gsplat")]
    return [("pointcloud", geometry), ("video", video), *matching, *splats]


def need(stage: str, backend: str, way: Way, settings: Settings) -> float:
    """The peak in GiB of a stage that runs in a way, at the settings' number of frames, without networks of other stages."""
    frames = longest_clip(stage, settings.condition) + 2
    if stage == "confidence":
        graph = way.settings.get("pointcloud.graph", "window")
        return way.weights + way.activations * _pairs(graph, frames) / _pairs(graph, 32)
    longer = max(1.0, frames / REFERENCE[backend]) if backend in REFERENCE else 1.0
    return _bytes(stage, settings) * (way.weights + way.activations * longer)


def longest_clip(stage: str, settings: ConditionSettings) -> int:
    """Frames of the longest clip: between two photos and past one of them, in `confidence` past both; at worst a whole path."""
    if settings.path == "extrapolate":
        return settings.frames_per_pair + settings.beyond * (2 if stage == "confidence" else 1)
    return settings.frames_per_pair if settings.path == "between" else settings.frames


def describe(choices: list[Choice], vram: int, overrides: list[str]) -> str:
    """What was chosen, in a sentence per stage."""
    changed = [f"{name}={value}" for choice in choices for name, value in choice.way.settings.items()]
    given = {override.partition("=")[0].strip() for override in overrides}
    lines = [f"For {vram} GB of GPU memory: {', '.join(changed) or 'nothing to change'}"]
    for choice in choices:
        kept = sorted(given & choice.way.settings.keys())
        lines.append(f"  {choice}{_instead(kept)}")
    return "\n".join(lines)


def _instead(kept: list[str]) -> str:
    return f"; as you say instead: {', '.join(kept)}, which may need more" if kept else ""


def _bytes(stage: str, settings: Settings) -> int:
    """How many times as much memory the stage's numbers take as the table's."""
    return 2 if stage == "video" and settings.video.dtype == "float32" else 1


def _pairs(graph: str, frames: int) -> int:
    """Ordered pairs of a clip's frames."""
    return frames * (frames - 1) if graph == "complete" else 2 * max(1, 3 * frames - 5)


def _changed(settings: Settings, name: str, value: Any) -> Settings:
    stage, key = name.split(".")
    return settings.model_copy(update={stage: getattr(settings, stage).model_copy(update={key: value})})
