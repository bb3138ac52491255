"""The batches of a forward pass: frames, crop and augmentation of every sample are drawn from a seed of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reconx_core.training.schedule import Schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.types import Clip
from reconx_core.video.clip import even_indices
from reconx_core.video.diffusion.structure_encoder import normalise_points
from reconx_core.video.hole_filling import fill_holes
from reconx_core.video.sources import frame_sources


@dataclass(frozen=True)
class Prepared:
    """A preprocessed clip: holes filled, sources computed, the photos inserted. Images are bytes to save memory."""

    pictures: UInt8[Tensor, "f k 3 h w"]  # k: the frame, its render, and its sources
    visibility: UInt8[Tensor, "f j h w"]  # j: the render and the sources
    points: Float[Tensor, "2 p 3"]  # in the frame of the first and of the last camera
    colours: Float[Tensor, "p 3"]
    fps: float | None = None


@dataclass(frozen=True)
class Batch:
    """Clips of equal size; the first and the last frame of each are its photos."""

    seeds: Int[Tensor, " b"]  # of the noise, the timestep and the dropout of each sample; on the CPU
    frames: Float[Tensor, "b f 3 h w"]
    renders: Float[Tensor, "b f 3 h w"]  # holes filled; the first and the last are the photos
    visibility: Float[Tensor, "b f h w"]
    sources: Float[Tensor, "b f s 4 h w"]  # those of the two photos are not used
    points: Float[Tensor, "b p 3"]
    colours: Float[Tensor, "b p 3"]
    fps: Float[Tensor, " b"] | None = None  # None: the network's default

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; the seeds stay where they are drawn from."""
        moved = {name: value.to(device) for name, value in vars(self).items() if name != "seeds" and value is not None}
        return replace(self, **moved)


@dataclass(frozen=True)
class Sample:
    """One element of a batch: a crop of some of a clip's frames."""

    pictures: Float[Tensor, "f k 3 h w"]
    visibility: Float[Tensor, "f j h w"]
    points: Float[Tensor, "p 3"]
    colours: Float[Tensor, "p 3"]


def prepared_clips(
    load: Sequence[Callable[[], Clip]], points: int, blends: bool, device: torch.device, cache_size: int
) -> list[Callable[[], Prepared]]:
    """Loaders of prepared clips; the ``cache_size`` most recently used clips stay on the device."""
    make = lru_cache(cache_size)(lambda index: prepare(load[index](), points, blends, device))
    return [partial(make, index) for index in range(len(load))]


def prepare(clip: Clip, points: int, blends: bool, device: torch.device) -> Prepared:
    """Preprocess a clip: ``points`` of its cloud, and the sources if the model blends them (``blends``)."""
    images, renders, visibility = (x.to(device) for x in (clip.images, clip.renders, clip.visibility))
    filled = fill_holes(renders, visibility)
    sources = images.new_zeros(*images.shape[:1], 0, *images.shape[1:3], 4)
    if blends:
        sources = frame_sources(*filled, (clip.alone.to(device), clip.alone_visibility.to(device)))
    renders, visibility = insert_photos(*filled, images)
    pictures = torch.cat([images[:, None], renders[:, None], sources[..., :3]], 1).movedim(-1, 2)
    seen = torch.cat([visibility[:, None], sources[..., 3]], 1)
    chosen, ends = even_indices(len(clip.points), points), clip.cameras.cam_to_world[[0, -1]]
    clouds = torch.stack([normalise_points(clip.points[chosen], end) for end in ends])
    return Prepared(in_bytes(pictures), in_bytes(seen), clouds.to(device), clip.colours[chosen].to(device), clip.fps)


def in_bytes(values: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    return (values.clamp(0, 1) * 255).round().byte()


def draw_batch(
    load: Sequence[Callable[[], Prepared]], schedule: Schedule, update: int, part: int, settings: TrainSettings
) -> Batch:
    """The samples of this process in the ``part``-th forward pass of an update."""
    indices = schedule.indices(part)
    clips = [load[schedule.clip(update, index)]() for index in indices]
    draws = [torch.Generator().manual_seed(schedule.draw("sample", update, index)) for index in indices]
    samples = [draw_sample(clip, settings.frames, settings.crop, settings.augment, draw) for clip, draw in zip(clips, draws)]
    return join(samples, [clip.fps for clip in clips], [schedule.draw("noise", update, index) for index in indices])


def join(samples: Sequence[Sample], rates: Sequence[float | None], seeds: Sequence[int]) -> Batch:
    """Samples as a batch; without their frame rates if one is not known."""
    pictures, visibility, points, colours = (
        torch.stack(parts) for parts in zip(*(vars(sample).values() for sample in samples))
    )
    sources = torch.cat([pictures[:, :, 2:], visibility[:, :, 1:, None]], 3)
    fps = None if None in rates else torch.tensor(rates, device=pictures.device)
    numbers = torch.tensor(seeds)
    return Batch(numbers, pictures[:, :, 0], pictures[:, :, 1], visibility[:, :, 0], sources, points, colours, fps)


def draw_sample(clip: Prepared, frames: int, crop: tuple[int, int], augment: bool, generator: torch.Generator) -> Sample:
    """A crop of some of the clip's frames; with ``augment`` also time reversal, frame shuffling, mirroring and colour jitter.

    Shuffling imitates `condition.sway`: the frames of a run leave the straight path to alternating sides, so consecutive
    frames need not be neighbours.
    """
    order = pick_frames(len(clip.pictures), frames, generator if augment else None)
    backwards = augment and chance(0.5, generator)
    order = order.flip(0) if backwards else order
    if augment and chance(0.5, generator):
        order[1:-1] = order[1:-1][torch.randperm(frames - 2, generator=generator)]
    top, left = pick_window(clip.pictures.shape[-2:], crop, generator)
    part = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    chosen = order.to(clip.pictures.device)
    pictures, visibility = (pictures[part][chosen] / 255 for pictures in (clip.pictures, clip.visibility))
    sample = Sample(pictures, visibility, clip.points[int(backwards)], clip.colours)
    return jitter_colours(flip(sample, generator), generator) if augment else sample


def flip(sample: Sample, generator: torch.Generator) -> Sample:
    """Horizontal flip with probability 1/2."""
    if not chance(0.5, generator):
        return sample
    points = sample.points * sample.points.new_tensor([-1.0, 1.0, 1.0])
    return replace(sample, pictures=sample.pictures.flip(-1), visibility=sample.visibility.flip(-1), points=points)


def jitter_colours(sample: Sample, generator: torch.Generator) -> Sample:
    """Random gamma, gain per channel and, with probability 0.3, channel permutation; the same for all colours of the clip."""
    gain = (1 + 0.3 * (torch.rand(3, generator=generator) - 0.5)).to(sample.pictures.device)
    gamma = float(torch.exp(0.6 * (torch.rand((), generator=generator) - 0.5)))
    order = torch.randperm(3, generator=generator).tolist() if chance(0.3, generator) else [0, 1, 2]

    def changed(colours: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return ((colours[..., order].clamp(0, 1) ** gamma) * gain).clamp(0, 1)

    pictures = changed(sample.pictures.movedim(2, -1)).movedim(-1, 2)
    return replace(sample, pictures=pictures, colours=changed(sample.colours))


def chance(share: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < share)


def insert_photos(
    renders: Float[Tensor, "f h w 3"], visibility: Float[Tensor, "f h w"], images: Float[Tensor, "f h w 3"]
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:
    """Replace the first and the last render by the photos, with visibility 1."""
    renders, visibility = renders.clone(), visibility.clone()
    renders[[0, -1]], visibility[[0, -1]] = images[[0, -1]], 1.0
    return renders, visibility


def pick_frames(count: int, frames: int, generator: torch.Generator | None) -> Int[Tensor, " f"]:
    """Indices of both photos and of ``frames - 2`` frames between, in order: random ones, or evenly spaced without a generator.

    Raises:
        ValueError: the clip has fewer frames.
    """
    if count < frames:
        raise ValueError(f"frames: expected clips of at least {frames}, got {count}")
    if generator is None:
        return torch.linspace(0, count - 1, frames).round().long()
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
