"""What a training step sees: frames, window and mirroring of a few clips, all drawn from (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from reconx_core.types import Clip
from reconx_core.video.clip import spread
from reconx_core.video.diffusion.structure_encoder import normalise_points
from reconx_core.video.hole_filling import fill_holes
from reconx_core.video.sources import frame_sources


@dataclass(frozen=True)
class Prepared:
    """A clip as steps draw from it: holes filled, sources made, the photos in their places; in bytes, so that many fit."""

    looks: UInt8[Tensor, "f k 3 h w"]  # the frame, its render, and its sources
    visibility: UInt8[Tensor, "f j h w"]  # of the render and of the sources
    points: Float[Tensor, "2 p 3"]  # seen from the first and from the last camera
    colours: Float[Tensor, "p 3"]


@dataclass(frozen=True)
class Batch:
    """Clips of equal size; the first and the last frame of each are its photos."""

    frames: Float[Tensor, "b f 3 h w"]
    renders: Float[Tensor, "b f 3 h w"]  # holes filled, the photos in their places
    visibility: Float[Tensor, "b f h w"]
    sources: Float[Tensor, "b f s 4 h w"]  # of the photos' frames they are not looked at
    points: Float[Tensor, "b p 3"]
    colours: Float[Tensor, "b p 3"]


@dataclass(frozen=True)
class View:
    """A window of some of a clip's frames, on its way to a batch."""

    looks: Float[Tensor, "f k 3 h w"]
    visibility: Float[Tensor, "f j h w"]
    points: Float[Tensor, "p 3"]
    colours: Float[Tensor, "p 3"]


def prepared_clips(
    load: Sequence[Callable[[], Clip]], points: int, blends: bool, device: torch.device, kept: int
) -> list[Callable[[], Prepared]]:
    """Loaders of prepared clips on a device, where the ``kept`` last used ones stay."""
    make = lru_cache(kept)(lambda index: prepare(load[index](), points, blends, device))
    return [partial(make, index) for index in range(len(load))]


def prepare(clip: Clip, points: int, blends: bool, device: torch.device) -> Prepared:
    """A clip with ``points`` of its cloud, and with sources for a model that ``blends``."""
    images, renders, visibility = (x.to(device) for x in (clip.images, clip.renders, clip.visibility))
    filled = fill_holes(renders, visibility)
    sources = images.new_zeros(*images.shape[:1], 0, *images.shape[1:3], 4)
    if blends:
        sources = frame_sources(*filled, (clip.alone.to(device), clip.alone_visibility.to(device)))
    renders, visibility = photos_in_place(*filled, images)
    looks = torch.cat([images[:, None], renders[:, None], sources[..., :3]], 1).movedim(-1, 2)
    seen = torch.cat([visibility[:, None], sources[..., 3]], 1)
    chosen, ends = spread(len(clip.points), points), clip.cameras.cam_to_world[[0, -1]]
    clouds = torch.stack([normalise_points(clip.points[chosen], end) for end in ends])
    return Prepared(in_bytes(looks), in_bytes(seen), clouds.to(device), clip.colours[chosen].to(device))


def in_bytes(values: Float[Tensor, "*n"]) -> UInt8[Tensor, "*n"]:
    return (values.clamp(0, 1) * 255).round().byte()


def draw_batch(
    load: Sequence[Callable[[], Prepared]], size: int, frames: int, crop: tuple[int, int], vary: bool,
    generator: torch.Generator,
) -> Batch:  # fmt: skip
    """``size`` clips, chosen with replacement; the same generator state gives the same batch."""
    chosen = torch.randint(len(load), (size,), generator=generator).tolist()
    views = [draw_view(load[index](), frames, crop, vary, generator) for index in chosen]
    looks, visibility, points, colours = (torch.stack(parts) for parts in zip(*(vars(view).values() for view in views)))
    sources = torch.cat([looks[:, :, 2:], visibility[:, :, 1:, None]], 3)
    return Batch(looks[:, :, 0], looks[:, :, 1], visibility[:, :, 0], sources, points, colours)


def draw_view(clip: Prepared, frames: int, crop: tuple[int, int], vary: bool, generator: torch.Generator) -> View:
    """A window of some of the clip's frames, perhaps played backwards, perhaps in any order between the photos.

    A run's frames leave the direct way in turn to all sides (`condition.sway`), so neighbours need not look alike.
    """
    order = pick_frames(len(clip.looks), frames, generator)
    backwards = vary and chance(0.5, generator)
    order = order.flip(0) if backwards else order
    if vary and chance(0.5, generator):
        order[1:-1] = order[1:-1][torch.randperm(frames - 2, generator=generator)]
    top, left = pick_window(clip.looks.shape[-2:], crop, generator)
    part = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    chosen = order.to(clip.looks.device)
    looks, visibility = (pictures[part][chosen] / 255 for pictures in (clip.looks, clip.visibility))
    view = View(looks, visibility, clip.points[int(backwards)], clip.colours)
    return recolour(mirror(view, generator), generator) if vary else view


def mirror(view: View, generator: torch.Generator) -> View:
    """Left and right exchanged, half of the time."""
    if not chance(0.5, generator):
        return view
    points = view.points * view.points.new_tensor([-1.0, 1.0, 1.0])
    return replace(view, looks=view.looks.flip(-1), visibility=view.visibility.flip(-1), points=points)


def recolour(view: View, generator: torch.Generator) -> View:
    """One gamma, one gain per channel, and now and then the channels in another order, for all of a clip's colours."""
    gain = (1 + 0.3 * (torch.rand(3, generator=generator) - 0.5)).to(view.looks.device)
    gamma = float(torch.exp(0.6 * (torch.rand((), generator=generator) - 0.5)))
    order = torch.randperm(3, generator=generator).tolist() if chance(0.3, generator) else [0, 1, 2]

    def changed(colours: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return ((colours[..., order].clamp(0, 1) ** gamma) * gain).clamp(0, 1)

    looks = changed(view.looks.movedim(2, -1)).movedim(-1, 2)
    return replace(view, looks=looks, colours=changed(view.colours))


def chance(share: float, generator: torch.Generator) -> bool:
    return bool(torch.rand((), generator=generator) < share)


def photos_in_place(
    renders: Float[Tensor, "f h w 3"], visibility: Float[Tensor, "f h w"], images: Float[Tensor, "f h w 3"]
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:
    """The first and the last frame as the photos they are, fully visible."""
    renders, visibility = renders.clone(), visibility.clone()
    renders[[0, -1]], visibility[[0, -1]] = images[[0, -1]], 1.0
    return renders, visibility


def pick_frames(count: int, frames: int, generator: torch.Generator) -> Int[Tensor, " f"]:
    """Both photos and some of the frames between, in order.

    Raises:
        ValueError: the clip is shorter.
    """
    if count < frames:
        raise ValueError(f"frames: expected clips of at least {frames}, got {count}")
    between = 1 + torch.randperm(count - 2, generator=generator)[: frames - 2].sort().values
    return torch.cat([torch.tensor([0]), between, torch.tensor([count - 1])])


def pick_window(shape: Sequence[int], crop: tuple[int, int], generator: torch.Generator) -> tuple[int, int]:
    """Upper left corner of a random window.

    Raises:
        ValueError: the window is larger than the image.
    """
    room = [side - wanted for side, wanted in zip(shape, crop)]
    if min(room) < 0:
        raise ValueError(f"crop: expected at most {tuple(shape)}, got {crop}")
    top, left = (int(torch.randint(r + 1, (), generator=generator)) for r in room)
    return top, left
