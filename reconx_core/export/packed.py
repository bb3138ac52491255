"""Gaussians in few bytes, through gsply: Niantic's SPZ, and the compressed PLY of PlayCanvas and SuperSplat.

Both keep the axes of the PLY, as the converters of either format do (SPZ's text names others). What they round is in
docs/export.md.
"""

from __future__ import annotations

import gzip
import math
import tempfile
import warnings
from pathlib import Path

import gsply
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.export.finite import select_gaussians
from reconx_core.types import Gaussians

SPZ_VERSION = 3  # one gzip stream, which every reader knows; version 4 is not smaller
_POSITION_BITS, _MAX_FRACTION = 23, 24  # of a coordinate beside its sign; at most that many after the point
_LOG_SCALES = (-10.0, 5.9375)  # what SPZ's 8 bits of a log scale hold
_MOST_OPAQUE = 16.0  # logit, 1e-7 below 1: an infinite one is no number to pack


def gaussians_to_spz(gaussians: Gaussians) -> bytes:
    """SPZ, version 3: 24 bits a coordinate, 8 bits a log scale, colour, opacity and harmonic, 32 bits a rotation.

    Warns where scales lie outside of what the format holds. Raises UserError for coordinates of 4 million and more.
    """
    reach = float(gaussians.means.detach().abs().max())
    fraction = min(_POSITION_BITS - math.frexp(reach)[1], _MAX_FRACTION) if reach else _MAX_FRACTION
    if fraction < 1:
        raise UserError(f"SPZ has no room for coordinates as large as {reach:.3g}: move or scale the scene, or write a .ply.")
    log_scales = gaussians.log_scales.detach()
    if beyond := int((log_scales > _LOG_SCALES[1] + 1 / 32).any(-1).sum()):
        limit = math.exp(_LOG_SCALES[1])
        warnings.warn(f"{beyond:,} of {len(gaussians):,} Gaussians are cut to SPZ's largest size, {limit:.0f}.", stacklevel=1)
    packed = _packable(gaussians, *_LOG_SCALES)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "scene.spz"
        gsply.write_spz(file, packed, version=SPZ_VERSION, fractional_bits=fraction)
        # gsply's stream holds the time, and differs where isal is installed.
        return gzip.compress(gzip.decompress(file.read_bytes()), compresslevel=6, mtime=0)


def gaussians_from_spz(path: Path) -> Gaussians:
    """Gaussians of an SPZ file of version 1, 2 or 3 (4 needs zstandard). Raises ValueError, OSError or others if it is none."""
    return _unpacked(gsply.read_spz(path))


def gaussians_to_compressed_ply(gaussians: Gaussians) -> bytes:
    """PlayCanvas's compressed PLY: 11, 10 and 11 bits a coordinate within 256 neighbours, as many a log scale, 32 bits a
    rotation, 8 bits a colour, opacity and harmonic.
    """  # fmt: skip
    return gsply.compress_to_bytes(_packable(gaussians, -20.0, 20.0))


def gaussians_from_compressed_ply(data: bytes) -> Gaussians:
    """Gaussians of a compressed PLY. Raises ValueError or others if it is none."""
    return _unpacked(gsply.decompress_from_bytes(data))


def _packable(gaussians: Gaussians, smallest: float, largest: float) -> gsply.GSData:
    """The Gaussians as gsply takes them, neighbours together, with numbers in place of infinite logits and log scales."""
    g = select_gaussians(gaussians.detach(), morton_order(gaussians.means.detach()))

    def array(values: Float[Tensor, ...]) -> np.ndarray:
        return np.ascontiguousarray(values.cpu().numpy())

    return gsply.GSData(
        means=array(g.means),
        scales=array(g.log_scales.clamp(smallest, largest)),
        quats=array(F.normalize(g.quats, dim=-1)),
        opacities=array(g.logit_opacities.clamp(-_MOST_OPAQUE, _MOST_OPAQUE)),
        sh0=array(g.sh[:, 0]),
        shN=array(g.sh[:, 1:]),
    )


def _unpacked(data: gsply.GSData) -> Gaussians:
    def tensor(array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.array(array, dtype=np.float32))

    n = len(data.means)
    higher = torch.zeros(n, 0, 3) if data.shN is None else tensor(data.shN).reshape(n, -1, 3)
    sh = torch.cat([tensor(data.sh0)[:, None], higher], 1)
    return Gaussians(tensor(data.means), tensor(data.quats), tensor(data.scales), tensor(data.opacities).reshape(n), sh)


def morton_order(points: Float[Tensor, "n 3"]) -> Int[Tensor, " n"]:
    """Indices along a Z-order curve of 1024 cells a side: neighbours in space become neighbours in the file."""
    low, high = points.min(0).values, points.max(0).values
    cells = ((points - low) / (high - low).clamp(min=1e-30) * 1023).long()
    code = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for bit in range(10):
        for axis in range(3):
            code |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return torch.argsort(code, stable=True)
