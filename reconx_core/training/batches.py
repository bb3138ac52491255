"""What a training step sees: frames, window and mirroring of a few clips, all drawn from (seed, step)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.types import Clip
from reconx_core.video.points import fill_holes
from reconx_core.video.sources import frame_sources
from reconx_core.video.structure import normalise_points

PICTURES = ("frames", "renders", "visibility", "sources")  # what a window is cut from


@dataclass(frozen=True)
class Batch:
    """Clips of equal size; the first and the last frame of each are its photos."""

    frames: Float[Tensor, "b f 3 h w"]
    renders: Float[Tensor, "b f 3 h w"]  # holes filled, the photos in their places
    visibility: Float[Tensor, "b f h w"]
    sources: Float[Tensor, "b f s 4 h w"]  # of the photos' frames they are not looked at
    points: Float[Tensor, "b p 3"]
    colours: Float[Tensor, "b p 3"]

    def to(self, device: torch.device) -> Batch:
        return Batch(*(tensor.to(device) for tensor in vars(self).values()))


def draw_batch(
    load: Sequence[Callable[[], Clip]], size: int, frames: int, crop: tuple[int, int], vary: bool, generator: torch.Generator
) -> Batch:
    """``size`` clips, chosen with replacement; the same generator state gives the same batch."""
    chosen = torch.randint(len(load), (size,), generator=generator).tolist()
    clips = (load[index]() for index in chosen)
    views = [window(reorder(clip, frames, vary, generator), crop, generator) for clip in clips]
    views = [mirror(recolour(view, generator), generator) for view in views] if vary else views
    return Batch(*(torch.cat([vars(view)[name] for view in views]) for name in vars(views[0])))


def reorder(clip: Clip, frames: int, vary: bool, generator: torch.Generator) -> Batch:
    """A batch of one with some of the clip's frames, perhaps played backwards, perhaps in any order between the photos.

    A run's frames leave the direct way in turn to all sides (`condition.sway`), so neighbours need not look alike.
    """
    order = pick_frames(len(clip), frames, generator)
    order = order.flip(0) if vary and chance(0.5, generator) else order
    if vary and chance(0.5, generator):
        order[1:-1] = order[1:-1][torch.randperm(frames - 2, generator=generator)]
    images = clip.images[order]
    filled = fill_holes(clip.renders[order], clip.visibility[order])
    sources = frame_sources(*filled, (clip.alone[order], clip.alone_visibility[order]))
    renders, visibility = photos_in_place(*filled, images)
    points = normalise_points(clip.points, clip.cameras.cam_to_world[order[0]])
    images, renders, sources = (pictures.movedim(-1, -3)[None] for pictures in (images, renders, sources))
    return Batch(images, renders, visibility[None], sources, points[None], clip.colours[None])


def window(batch: Batch, crop: tuple[int, int], generator: torch.Generator) -> Batch:
    """A random window, the same in all frames."""
    top, left = pick_window(batch.frames.shape[-2:], crop, generator)
    part = (..., slice(top, top + crop[0]), slice(left, left + crop[1]))
    cut = {name: vars(batch)[name][part] for name in PICTURES}
    return replace(batch, **cut)


def mirror(batch: Batch, generator: torch.Generator) -> Batch:
    """Left and right exchanged, half of the time."""
    if not chance(0.5, generator):
        return batch
    flipped = {name: vars(batch)[name].flip(-1) for name in PICTURES}
    return replace(batch, **flipped, points=batch.points * torch.tensor([-1.0, 1.0, 1.0]))


def recolour(batch: Batch, generator: torch.Generator) -> Batch:
    """One gamma, one gain per channel, and now and then the channels in another order, for all of a clip's colours."""
    gain = 1 + 0.3 * (torch.rand(3, generator=generator) - 0.5)
    gamma = torch.exp(0.6 * (torch.rand((), generator=generator) - 0.5))
    order = torch.randperm(3, generator=generator) if chance(0.3, generator) else torch.arange(3)

    def changed(colours: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        return ((colours[..., order].clamp(0, 1) ** gamma) * gain).clamp(0, 1)

    def repainted(pictures: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        return torch.cat([changed(pictures[..., :3, :, :].movedim(-3, -1)).movedim(-1, -3), pictures[..., 3:, :, :]], -3)

    pictures = {name: repainted(vars(batch)[name]) for name in ("frames", "renders", "sources")}
    return replace(batch, **pictures, colours=changed(batch.colours))


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
