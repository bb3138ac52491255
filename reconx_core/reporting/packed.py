"""Gaussians in a quarter of a PLY's bytes, for pages that draw them (`templates/scene.js` reads this).

One byte plane after the other, each with a byte per Gaussian, compressed together: bytes of one kind, of neighbours in space,
resemble each other. Positions have 16 bits between the bounds of their group of 256 neighbours, the rest 8 bits.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch

from reconx_core.rasterize.conventions import MIN_ALPHA
from reconx_core.types import Gaussians

GROUP = 256  # neighbours that share bounds
LARGEST_SH = 5.0  # coefficients beyond it, 1.4 in colour, are clipped
CODE_BITS = 10  # per axis of the code that orders Gaussians in space


@dataclass(frozen=True)
class Packed:
    """``content``: zlib of the groups' bounds (float32: low and high of x, y, z) and of the byte planes, in this order: high
    and low bytes of x, y, z; logarithms of the scales; quaternion wxyz; opacity; each harmonic's red, green, blue."""

    content: bytes
    count: int
    degree: int
    scales: tuple[float, float]  # logarithms that 0 and 255 stand for
    base: tuple[float, float]  # likewise of the constant harmonic
    rest: tuple[float, float]  # of the others

    def header(self) -> dict[str, object]:
        """All but the content."""
        return {
            "count": self.count, "degree": self.degree, "group": GROUP, "scales": self.scales, "base": self.base,
            "rest": self.rest,
        }  # fmt: skip


def pack(gaussians: Gaussians) -> Packed:
    """The Gaussians in the order of space; those that are too transparent to be drawn are left out."""
    g = gaussians.detach()
    opacity = g.logit_opacities.sigmoid().cpu().numpy()
    drawn = np.flatnonzero(opacity >= MIN_ALPHA)
    means = g.means.cpu().numpy()[drawn]
    order = drawn[np.argsort(space_codes(means), kind="stable")]
    log_scales, sh = g.log_scales.cpu().numpy()[order], g.sh.cpu().numpy()[order].clip(-LARGEST_SH, LARGEST_SH)
    quats = torch.nn.functional.normalize(g.quats, dim=-1).cpu().numpy()[order]
    bounds, places = _grouped(g.means.cpu().numpy()[order])
    scales, base, rest = _range(log_scales), _range(sh[:, 0]), _range(sh[:, 1:])
    planes = [
        *(part.astype(np.uint8) for axis in places.T for part in (axis >> 8, axis & 255)),
        *_bytes(log_scales, scales).T,
        *(np.rint(quats * 127) + 128).astype(np.uint8).T,
        np.rint(opacity[order] * 255).astype(np.uint8),
        *_bytes(sh[:, 0], base).T,
        *_bytes(sh[:, 1:], rest).reshape(len(order), 3 * (sh.shape[1] - 1)).T,
    ]
    content = bounds.astype("<f4").tobytes() + b"".join(np.ascontiguousarray(plane).tobytes() for plane in planes)
    return Packed(zlib.compress(content, 6), len(order), g.sh_degree, scales, base, rest)


def space_codes(means: np.ndarray) -> np.ndarray:
    """Morton codes [n] of positions [n 3]: near places have near codes. Far ones are drawn in, so that none spoils the rest."""
    if not len(means):
        return np.zeros(0, np.int64)
    centre = np.median(means, 0)
    spread = np.median(np.abs(means - centre).max(-1)) + 1e-9
    from_centre = (means - centre) / spread
    drawn_in = 0.5 + 0.5 * from_centre / (1 + np.abs(from_centre))
    cells = (drawn_in * ((1 << CODE_BITS) - 1)).astype(np.int64)
    codes = np.zeros(len(means), np.int64)
    for bit in range(CODE_BITS):
        for axis in range(3):
            codes |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return codes


def _grouped(means: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bounds [groups 2 3] of each group, and the positions between them [n 3] from 0 to 65535."""
    starts = np.arange(0, len(means), GROUP)
    if not len(starts):
        return np.zeros((0, 2, 3), np.float32), np.zeros((0, 3), np.int64)
    bounds = np.stack([np.minimum.reduceat(means, starts), np.maximum.reduceat(means, starts)], 1)
    low, high = np.repeat(bounds.astype(np.float64), GROUP, 0)[: len(means)].swapaxes(0, 1)
    return bounds, np.rint((means - low) / np.maximum(high - low, 1e-30) * 65535).astype(np.int64)


def _range(values: np.ndarray) -> tuple[float, float]:
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _bytes(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return np.rint((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
