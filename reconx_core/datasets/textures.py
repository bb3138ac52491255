"""Procedural textures: plaster, planks, bricks, tiles and posters, with detail at every scale so that SIFT finds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

Texture = Float[Tensor, "t t 3"]
Material = Callable[[torch.Generator, int, tuple[float, float]], Texture]
T = TypeVar("T")
Metres = Float[Tensor, "t t"]  # across the texture, from its corner


def uniform(rng: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=rng))


def choose(rng: torch.Generator, options: Sequence[T]) -> T:
    return options[int(torch.randint(len(options), (), generator=rng))]


def colour(rng: torch.Generator, low: float = 0.15, high: float = 0.95) -> Float[Tensor, " 3"]:
    return low + (high - low) * torch.rand(3, generator=rng)


def noise(rng: torch.Generator, side: int, extent: tuple[float, float], cell: float, octaves: int = 5) -> Metres:
    """Multi-octave value noise in [0, 1]; ``cell``: size of the coarsest features, ``extent``: of the picture, metres."""
    total = torch.zeros(side, side)
    for octave in range(octaves):
        counts = [min(side, max(2, round(length / cell * 2**octave) + 1)) for length in extent]
        lattice = torch.rand(1, 1, counts[1], counts[0], generator=rng)
        total += (
            0.62**octave
            * F.interpolate(lattice, (side, side), mode="bicubic" if octave < 2 else "bilinear", align_corners=True)[0, 0]
        )
    low, high = total.min(), total.max()
    return (total - low) / (high - low).clamp(min=1e-6)


def grid(side: int, extent: tuple[float, float]) -> tuple[Metres, Metres]:
    """Coordinates in metres of every texel."""
    steps = (torch.arange(side) + 0.5) / side
    return (steps * extent[0])[None].expand(side, side), (steps * extent[1])[:, None].expand(side, side)


def plaster(rng: torch.Generator, side: int, extent: tuple[float, float]) -> Texture:
    """Blotchy paint with fine grain."""
    blotch, grain = noise(rng, side, extent, 0.5, 6)[..., None], noise(rng, side, extent, 0.04, 3)[..., None]
    return _mix(colour(rng, 0.35), colour(rng, 0.35), blotch) * (0.7 + 0.3 * grain)


def marble(rng: torch.Generator, side: int, extent: tuple[float, float]) -> Texture:
    """Veins where two noises cross."""
    vein = (1 - (noise(rng, side, extent, 0.25, 6) - 0.5).abs() * 6).clamp(0, 1)[..., None]
    return _mix(plaster(rng, side, extent), colour(rng), vein)


def planks(rng: torch.Generator, side: int, extent: tuple[float, float]) -> Texture:
    """Boards 12 cm wide, each of its own shade, with lengthwise grain."""
    x, y = grid(side, extent)
    row = (y / 0.12).long()
    board = row * 7 + ((x + 0.37 * row) / 0.9).long()
    grain = noise(rng, side, (extent[0] * 0.1, extent[1]), 0.03, 4)[..., None]
    wood = colour(rng, 0.4, 0.8) * torch.tensor([1.1, 0.85, 0.6])
    return wood * (0.6 + 0.4 * _per_cell(rng, board)) * (0.55 + 0.45 * grain) * _gap(y, 0.12, 0.004)


def bricks(rng: torch.Generator, side: int, extent: tuple[float, float]) -> Texture:
    """Running bond, 22 x 7 cm."""
    x, y = grid(side, extent)
    row = (y / 0.07).long()
    shifted = x + 0.11 * (row % 2)
    stone = colour(rng, 0.4, 0.9) * (0.55 + 0.45 * _per_cell(rng, row * 64 + (shifted / 0.22).long()))
    joints = _gap(y, 0.07, 0.009) * _gap(shifted, 0.22, 0.009)
    return (stone * joints + 0.6 * (1 - joints)) * (0.65 + 0.35 * noise(rng, side, extent, 0.05, 4)[..., None])


def tiles(rng: torch.Generator, side: int, extent: tuple[float, float]) -> Texture:
    """Two-coloured checkers, no two quite alike."""
    x, y = grid(side, extent)
    size = uniform(rng, 0.12, 0.3)
    i, j = (x / size).long(), (y / size).long()
    base = torch.where(((i + j) % 2 == 0)[..., None], colour(rng, 0.5), colour(rng, 0.05, 0.6))
    worn = 0.6 + 0.4 * noise(rng, side, extent, 0.1, 5)[..., None]
    return base * (0.75 + 0.25 * _per_cell(rng, i * 64 + j)) * worn * _gap(x, size, 0.006) * _gap(y, size, 0.006)


def poster(rng: torch.Generator, side: int, extent: tuple[float, float]) -> Texture:
    """A landscape of discs and triangles above lines of something like text."""
    x, y = (axis / length for axis, length in zip(grid(side, extent), extent))
    picture = _mix(colour(rng), colour(rng), y[..., None])
    for _ in range(9):
        cx, cy, r = uniform(rng, 0.1, 0.9), uniform(rng, 0.05, 0.65), uniform(rng, 0.05, 0.25)
        disc = (x - cx) ** 2 + (y - cy) ** 2 < r * r
        peak = ((x - cx).abs() < 0.6 * (y - cy)) & (y < cy + 2 * r)
        picture = torch.where((disc if uniform(rng, 0, 1) < 0.6 else peak)[..., None], colour(rng), picture)
    letters = _per_cell(rng, (y * 28).long() * 97 + (x * 45).long())[..., 0] > 0.45
    text = (y > 0.72) & (y < 0.95) & (x > 0.08) & (x < 0.92) & (((y * 28) % 1) < 0.65) & letters
    picture = torch.where(text[..., None], colour(rng, 0.0, 0.2), picture)
    frame = (x < 0.03) | (x > 0.97) | (y < 0.025) | (y > 0.975)
    return torch.where(frame[..., None], colour(rng, 0.0, 0.4), picture) * (
        0.8 + 0.2 * noise(rng, side, extent, 0.1, 5)[..., None]
    )


MATERIALS: tuple[Material, ...] = (
    plaster, marble, planks, bricks, tiles, poster,
)  # fmt: skip


def tint(texture: Texture, hue: Float[Tensor, " 3"], share: float = 0.65) -> Texture:
    """Pull colours towards one hue at the same brightness, so that an object has one paint colour."""
    return torch.lerp(texture, texture.mean(-1, keepdim=True) * hue / hue.mean(), share)


def add_posters(wall: Texture, extent: tuple[float, float], rng: torch.Generator, count: int) -> Texture:
    """The wall with posters at random places."""
    side = wall.shape[0]
    wall = wall.clone()
    for number in range(count):
        width, height = uniform(rng, 0.5, 0.9), uniform(rng, 0.5, 0.8)
        w, h = round(width / extent[0] * side), round(height / extent[1] * side)
        left = round((number + uniform(rng, 0.1, 0.6)) / count * (side - w))
        top = round(uniform(rng, 0.12, 0.4) * (side - h))
        picture = poster(rng, max(w, h), (width, height)).permute(2, 0, 1)[None]
        wall[top : top + h, left : left + w] = F.interpolate(picture, (h, w), mode="area")[0].permute(1, 2, 0)
    return wall


def _mix(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    return a + (b - a) * share


def _per_cell(rng: torch.Generator, index: Tensor) -> Float[Tensor, "t t 1"]:
    """A random number in [0, 1] for each distinct cell."""
    return torch.rand(8192, generator=rng)[index % 8192][..., None]


def _gap(position: Metres, period: float, width: float) -> Float[Tensor, "t t 1"]:
    """0 in the gaps between cells, else 1."""
    return ((position % period) >= width).float()[..., None]
