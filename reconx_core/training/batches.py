"""The batches of a forward pass: frames, crop and augmentation of every sample are drawn from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reconx_core.training.schedule import Schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.clip import even_indices
from reconx_core.video.diffusion.structure_points import farthest_point_sample, normalise_points
from reconx_core.video.hole_filling import fill_holes
from reconx_core.video.sources import frame_sources

if TYPE_CHECKING:  # the processes that load batches have no model, and need not wait for diffusers
    from reconx_core.video.diffusion.pipeline import ReconXPipeline


@dataclass(frozen=True)
class Reads:
    """What a model reads of a clip."""

    points: int = 0  # for the structure encoder; 0: it has none
    ratio: int = 8  # points per structure token
    renders: bool = False
    filled: bool = False  # the renders' holes, as `generate_clip` fills them for models that add to renders
    sources: bool = False


@dataclass(frozen=True)
class Prepared:
    """A preprocessed clip: holes filled, sources computed, the photos inserted. Images are bytes to save memory."""

    pictures: UInt8[Tensor, "f k 3 h w"]  # k: the frame, and if the model reads them its render and its sources
    visibility: UInt8[Tensor, "f j h w"]  # j: the render and the sources
    points: Float[Tensor, "2 p 3"]  # in the frame of the first and of the last camera
    colours: Float[Tensor, "p 3"]
    second: int  # the frame that is the second photo
    fps: float | None = None


@dataclass(frozen=True)
class Batch:
    """Clips of equal size. What the model does not read is None."""

    seeds: Int[Tensor, " b"]  # of the noise, the timestep and the dropout of each sample; on the CPU
    ends: Int[Tensor, "b 2"]  # the frames that are the photos; on the CPU
    frames: Float[Tensor, "b f 3 h w"]
    renders: Float[Tensor, "b f 3 h w"] | None = None  # the photos in their places
    visibility: Float[Tensor, "b f h w"] | None = None
    sources: Float[Tensor, "b f s 4 h w"] | None = None  # those of the two photos are not used
    points: Float[Tensor, "b p 3"] | None = None
    colours: Float[Tensor, "b p 3"] | None = None
    farthest: Int[Tensor, "b t"] | None = None  # the points that become tokens (`StructureEncoder.sample`)
    fps: Float[Tensor, " b"] | None = None  # None: the network's default

    def to(self, device: torch.device) -> Batch:
        """The batch on a device, but for what is read on the CPU."""
        moved = {name: value for name, value in vars(self).items() if name not in ("seeds", "ends") and value is not None}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in moved.items()})

    def pin_memory(self) -> Batch:
        """For torch's DataLoader: in memory from which a GPU copies while it computes."""
        return replace(self, **{name: value.pin_memory() for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class Sample:
    """One element of a batch: a crop of some of a clip's frames."""

    pictures: Float[Tensor, "f k 3 h w"]
    visibility: Float[Tensor, "f j h w"]
    points: Float[Tensor, "p 3"]
    colours: Float[Tensor, "p 3"]
    second: int
    fps: float | None


def takes_renders(pipeline: ReconXPipeline, settings: TrainSettings) -> bool:
    """Whether the model is conditioned on renders; one that diffuses the difference from them cannot be without."""
    return settings.renders or pipeline.config.residual


def reads_of(pipeline: ReconXPipeline, settings: TrainSettings) -> Reads:
    """What the pipeline's model reads of clips."""
    encoder = pipeline.structure_encoder
    points, ratio = (0, 8) if encoder is None else (settings.points, encoder.config["ratio"])
    return Reads(points, ratio, takes_renders(pipeline, settings), pipeline.config.residual, pipeline.config.sources > 0)


def prepared_clips(load: Sequence[Callable[[], Clip]], reads: Reads, cache_size: int) -> list[Callable[[], Prepared]]:
    """Loaders of prepared clips; the ``cache_size`` most recently used clips stay in memory."""
    make = lru_cache(cache_size)(lambda index: prepare(load[index](), reads))
    return [partial(make, index) for index in range(len(load))]


def prepare(clip: Clip, reads: Reads) -> Prepared:
    """Preprocess a clip for a model; what it reads must be in the clip."""
    pictures, visibility = [clip.images[:, None]], [clip.images.new_zeros(len(clip), 0, *clip.images.shape[1:3])]
    if reads.renders:
        assert clip.renders is not None
        assert clip.visibility is not None
        filled = fill_holes(clip.renders, clip.visibility) if reads.filled else (clip.renders, clip.visibility)
        if reads.sources:
            assert clip.alone is not None
            assert clip.alone_visibility is not None
            sources = frame_sources(*filled, (clip.alone, clip.alone_visibility))
        renders, seen = insert_photos(*filled, clip.images, clip.ends)
        pictures, visibility = [*pictures, renders[:, None]], [*visibility, seen[:, None]]
        if reads.sources:
            pictures, visibility = [*pictures, sources[..., :3]], [*visibility, sources[..., 3]]
    together = torch.cat(pictures, 1).movedim(-1, 2)
    return Prepared(in_bytes(together), in_bytes(torch.cat(visibility, 1)), *clouds(clip, reads.points), clip.ends[1], clip.fps)


def clouds(clip: Clip, count: int) -> tuple[Float[Tensor, "2 p 3"], Float[Tensor, "p 3"]]:
    """``count`` of the clip's points, seen from its first and from its last camera, and their colours."""
    if not count:
        return torch.zeros(2, 0, 3), torch.zeros(0, 3)
    assert clip.points is not None
    assert clip.colours is not None
    chosen = even_indices(len(clip.points), count)
    seen = [normalise_points(clip.points[chosen], camera) for camera in clip.cameras.cam_to_world[[0, -1]]]
    return torch.stack(seen), clip.colours[chosen]


def in_bytes(values: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    return (values.clamp(0, 1) * 255).round().byte()


def draw_batch(
    load: Sequence[Callable[[], Prepared]], schedule: Schedule, update: int, part: int, settings: TrainSettings, reads: Reads
) -> Batch:
    """The samples of this process in the ``part``-th forward pass of an update; missing clips are replaced by others."""
    indices = schedule.indices(part)
    clips = [load[schedule.clip(update, index) % len(load)]() for index in indices]
    draws = [torch.Generator().manual_seed(schedule.draw("sample", update, index)) for index in indices]
    samples = [draw_sample(clip, settings.frames, settings.crop, settings.augment, draw) for clip, draw in zip(clips, draws)]
    return join(samples, [schedule.draw("noise", update, index) for index in indices], reads)


def join(samples: Sequence[Sample], seeds: Sequence[int], reads: Reads) -> Batch:
    """Samples as a batch; without their frame rates if one is not known."""
    pictures, visibility, points, colours = (
        torch.stack([getattr(sample, name) for sample in samples]) for name in ("pictures", "visibility", "points", "colours")
    )
    rates = [sample.fps for sample in samples]
    batch = Batch(torch.tensor(seeds), torch.tensor([[0, sample.second] for sample in samples]), pictures[:, :, 0])
    if reads.renders:
        batch = replace(batch, renders=pictures[:, :, 1], visibility=visibility[:, :, 0])
    if reads.sources:
        batch = replace(batch, sources=torch.cat([pictures[:, :, 2:], visibility[:, :, 1:, None]], 3))
    if reads.points:
        tokens = reads.points // reads.ratio
        farthest = torch.stack([farthest_point_sample(sample.points, tokens) for sample in samples])
        batch = replace(batch, points=points, colours=colours, farthest=farthest)
    return batch if None in rates else replace(batch, fps=torch.tensor(rates))


def draw_sample(clip: Prepared, frames: int, crop: tuple[int, int], augment: bool, generator: torch.Generator) -> Sample:
    """A crop of some of the clip's frames; with ``augment`` also time reversal, frame shuffling, mirroring and colour jitter.

    Shuffling imitates `condition.sway`: the frames of a run leave the straight path to alternating sides, so consecutive
    frames need not be neighbours.
    """
    order = pick_frames(len(clip.pictures), frames, clip.second, generator if augment else None)
    backwards = augment and chance(0.5, generator)
    order = order.flip(0) if backwards else order
    if augment and chance(0.5, generator):
        order[1:-1] = order[1:-1][torch.randperm(frames - 2, generator=generator)]
    top, left = pick_window(clip.pictures.shape[-2:], crop, generator)
    part = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    pictures, visibility = (pictures[part][order] / 255 for pictures in (clip.pictures, clip.visibility))
    second = frames - 1 if backwards else order.tolist().index(clip.second)
    sample = Sample(pictures, visibility, clip.points[int(backwards)], clip.colours, second, clip.fps)
    return jitter_colours(flip(sample, generator), generator) if augment else sample


def flip(sample: Sample, generator: torch.Generator) -> Sample:
    """Horizontal flip with probability 1/2."""
    if not chance(0.5, generator):
        return sample
    points = sample.points * sample.points.new_tensor([-1.0, 1.0, 1.0])
    return replace(sample, pictures=sample.pictures.flip(-1), visibility=sample.visibility.flip(-1), points=points)


def jitter_colours(sample: Sample, generator: torch.Generator) -> Sample:
    """Random gamma, gain per channel and, with probability 0.3, channel permutation; the same for all colours of the clip."""
    gain = 1 + 0.3 * (torch.rand(3, generator=generator) - 0.5)
    gamma = float(torch.exp(0.6 * (torch.rand((), generator=generator) - 0.5)))
    order = torch.randperm(3, generator=generator).tolist() if chance(0.3, generator) else [0, 1, 2]

    def changed(colours: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return ((colours[..., order].clamp(0, 1) ** gamma) * gain).clamp(0, 1)

    pictures = changed(sample.pictures.movedim(2, -1)).movedim(-1, 2)
    return replace(sample, pictures=pictures, colours=changed(sample.colours))


def chance(share: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < share)


def insert_photos(
    renders: Float[Tensor, "f h w 3"], visibility: Float[Tensor, "f h w"], images: Float[Tensor, "f h w 3"],
    ends: tuple[int, int],
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:  # fmt: skip
    """Replace the renders at the photos' places ``ends`` by the photos, with visibility 1."""
    renders, visibility = renders.clone(), visibility.clone()
    renders[list(ends)], visibility[list(ends)] = images[list(ends)], 1.0
    return renders, visibility


def pick_frames(count: int, frames: int, second: int, generator: torch.Generator | None) -> Int[Tensor, " f"]:
    """``frames`` indices in order, the first and the last frame and the ``second`` photo among them.

    Without a generator they are evenly spaced, but for the one that moves to ``second``; with one, they are random.

    Raises:
        ValueError: the clip has fewer frames.
    """
    if count < frames:
        raise ValueError(f"frames: expected clips of at least {frames}, got {count}")
    if generator is None:
        order = torch.linspace(0, count - 1, frames).round().long()
        if second < count - 1:
            order[1 + (order[1:-1] - second).abs().argmin()] = second
        return order
    between = 1 + torch.randperm(count - 2, generator=generator)[: frames - 2].sort().values
    return torch.cat([torch.tensor([0]), between, torch.tensor([count - 1])])


def pick_window(shape: Sequence[int], crop: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    """Top and left of a random crop.

    Raises:
        ValueError: the crop is larger than the image.
    """
    room = [side - wanted for side, wanted in zip(shape, crop)]
    if min(room) < 0:
        raise ValueError(f"crop: expected at most {tuple(shape)}, got {crop}")
    top, left = (int(torch.randint(r + 1, (), generator=generator)) for r in room)
    return top, left
