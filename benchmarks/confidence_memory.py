"""Peak memory of the `confidence` stage by the number of photos: clips of 32 frames, DUSt3R on every pair of a clip.

    python -m benchmarks.confidence_memory [--photos 2,3,6,9] [--size 128] [--between 30] [--backend dust3r|classical]

On the CPU, each row in a process of its own: the largest sum of tensors that are alive together while frames are judged,
counted tensor by tensor, and the growth of the process's memory. For dust3r the network is one that takes neither time nor
memory but gives predictions of the full size, so the network's own need comes on top. Tensors grow with the pixels; the last
columns scale to 512 x 512 what was counted, and tell what the pointmaps of a complete graph over all frames would take
(computed: 16 bytes a pixel of both maps of each ordered pair).
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import psutil
import torch
from torch import nn

from benchmarks.live_memory import LiveMemory
from reconx_core.confidence import estimate_confidence
from reconx_core.geometry.transforms import rigid
from reconx_core.pointcloud import make_backend
from reconx_core.pointcloud.backends import dust3r
from reconx_core.pointcloud.networks.dust3r import PATCH, DUSt3RConfig, Encoded, Prediction
from reconx_core.settings import ConfidenceSettings, PointcloudSettings
from reconx_core.types import Cameras, Frames, GeometryBackend, Views
from tasks.execute import measure

FULL = 512


class Row(NamedTuple):
    photos: int
    frames: int
    tensors: float  # GiB
    process: float  # GiB
    seconds: float


class Wall(nn.Module):
    """In the place of DUSt3R: predictions of its size, a wall two units away."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.config, self.marker = DUSt3RConfig(image_size=size), nn.Parameter(torch.zeros(1))

    def encode(self, images: torch.Tensor) -> Encoded:
        return Encoded(torch.zeros(len(images), 1, 1), (images.shape[-2] // PATCH, images.shape[-1] // PATCH))

    def decode(self, first: Encoded, second: Encoded) -> tuple[Prediction, Prediction]:
        shape = (len(first.tokens), *(side * PATCH for side in first.grid))
        one, two = (Prediction(torch.full((*shape, 3), 2.0), torch.full(shape, 9.0)) for _ in range(2))
        return one, two


def make_clips(photos: int, between: int, size: int) -> tuple[Views, Frames]:
    """Photos along a line, frames between any two, their pictures noise."""
    frames = (photos - 1) * between
    x = torch.cat([torch.arange(photos).float(), (torch.arange(frames) + 0.5) / between])
    intrinsics = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]]).repeat(len(x), 1, 1)
    poses = rigid(torch.eye(3).repeat(len(x), 1, 1), 0.1 * torch.stack([x, x * 0, x * 0], -1))
    cameras = Cameras(intrinsics, poses, size, size)
    images = torch.rand(len(x), size, size, 3, generator=torch.Generator().manual_seed(0))
    first = torch.arange(photos - 1).repeat_interleave(between)
    pair = torch.cat([torch.arange(photos)[:, None].repeat(1, 2), torch.stack([first, first + 1], 1)])
    made = Frames(images, cameras, torch.ones(images.shape[:3]), torch.arange(len(x)) < photos, pair)
    nothing, masks = torch.zeros(photos, dtype=torch.bool), torch.ones(photos, size, size, dtype=torch.bool)
    unknown = torch.full((photos,), torch.nan)
    return Views(images[:photos], masks, tuple(map(str, range(photos))), nothing, cameras[:photos], unknown, "posed"), made


def backend_of(name: str, size: int) -> GeometryBackend:
    if name == "dust3r":
        dust3r.load_network = lambda load, path: Wall(size)  # type: ignore[assignment]
        dust3r.find_weights = lambda *names: names  # type: ignore[assignment]
    return make_backend(PointcloudSettings(backend=name, graph="complete"), fast=True)


def measure_row(photos: int, between: int, size: int, backend: str) -> Row:
    inputs, frames = make_clips(photos, between, size)
    judge, settings = backend_of(backend, size), ConfidenceSettings(size=size)
    before = psutil.Process().memory_info().rss / 2**30
    draw = torch.Generator().manual_seed(0)
    with LiveMemory() as memory:
        _, cost = measure(lambda: estimate_confidence(inputs, frames, None, judge, settings, draw))  # type: ignore[arg-type]
    return Row(photos, len(frames), memory.peak / 2**30, cost["peak_mib"] / 2**10 - before, cost["seconds"])


def complete_graph(frames: int, size: int) -> float:
    """GiB of the pointmaps and confidences of all ordered pairs."""
    return frames * (frames - 1) * 2 * size * size * 16 / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default="2,3,6,9")
    parser.add_argument("--between", type=int, default=30)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--backend", choices=("dust3r", "classical"), default="dust3r")
    options = parser.parse_args()
    scale = (FULL / options.size) ** 2
    print("| photos | frames | s | tensors, GiB | process, GiB | tensors at 512 x 512 | complete graph of all frames |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for photos in map(int, options.photos.split(",")):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            row = pool.submit(measure_row, photos, options.between, options.size, options.backend).result()
        sizes = f"{row.tensors:.3f} | {row.process:.2f} | {row.tensors * scale:.1f} | {complete_graph(row.frames, FULL):.0f}"
        print(f"| {row.photos} | {row.frames} | {row.seconds:.0f} | {sizes} |", flush=True)


if __name__ == "__main__":
    main()
