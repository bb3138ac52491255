"""Cameras of frames between two photos, found without being told: true frames whose cameras are withheld.

    python -m benchmarks.frame_cameras [--data DIR] [--cases NAME,...] [--looks plain,blurred,...] [--foreign] [--size 512]
                                       [--backend classical]

Per case and look of the frames: how many were placed, median and largest error of rotation (degrees) and position (% of the
photos' baseline), and seconds. With --foreign every third frame is replaced by one of another place: how many of these were
kept, and how many true ones were lost. Looks, as video models make them: ``blurred`` (half the resolution), ``coloured`` (gain
and gamma per frame and channel), ``generated`` (both and noise).
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import os
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.confidence.cameras import baseline, place_frames, shifts
from reconx_core.geometry.camera_path import interpolate_path
from reconx_core.geometry.transforms import join_cameras
from reconx_core.io.images import resize_images
from reconx_core.pointcloud import make_backend
from reconx_core.seeds import generator
from reconx_core.settings import ConfidenceSettings, PointcloudSettings, ViewsSettings
from reconx_core.types import Cameras, Frames, Pointmaps, Views
from reconx_core.views import load_views

# The photos, and what lies between them: all photos there, in the order of the set.
CASES = {
    "fountain_p11": "views:0,5:1,2,3,4",
    "real_room": "views:1,13:2,3,4,5,6,7,8,9,10,11,12",
    "hololens_room": "views:0,4:1,2,3",
    "room": "procedural:room?seed=5&views=2&targets=30&arc=25&width=512&height=384",
}
STRANGER = "procedural:hall?seed=11&views=2&targets=14&arc=40&width=512&height=384"
LOOKS = ("plain", "blurred", "coloured", "generated")
TINT = (1.15, 1.0, 0.88), (0.03, 0.03, 0.0)  # gain and offset of the look `tinted`, the same in all frames


class Result(NamedTuple):
    """Of the true frames that were kept, errors; of all, what became of them."""

    turn: Float[Tensor, " k"]  # degrees
    shift: Float[Tensor, " k"]  # baselines
    true: int
    foreign: int
    kept_foreign: int
    seconds: float


def load_case(name: str, data: Path, size: int) -> Views:
    """Two photos as inputs, and the frames between them as targets, all with their true cameras."""
    text = CASES[name]
    if text.startswith("procedural"):
        return load_views(text, ViewsSettings(size=size))
    return load_views(data / "posed" / name, ViewsSettings(size=size, split=text))


def with_look(images: Float[Tensor, "m h w 3"], look: str, seed: int = 0) -> Float[Tensor, "m h w 3"]:
    """The frames as a video model might make them."""
    draw = torch.Generator().manual_seed(seed)
    height, width = images.shape[1:3]
    if look in ("blurred", "generated"):
        images = resize_images(resize_images(images, height // 2, width // 2), height, width)
    if look in ("coloured", "generated"):
        gain, gamma = (1 + 0.2 * (2 * torch.rand(len(images), 1, 1, 3, generator=draw) - 1) for _ in range(2))
        images = gain * images.clamp(min=1e-4) ** gamma
    if look == "tinted":
        gain, offset = (images.new_tensor(part) for part in TINT)
        images = gain * images + offset
    if look == "generated":
        images = images + 0.02 * torch.randn(images.shape, generator=draw)
    return images.clamp(0, 1)


def with_strangers(
    images: Float[Tensor, "m h w 3"], strangers: Float[Tensor, "s y x 3"]
) -> tuple[Float[Tensor, "m h w 3"], Bool[Tensor, " m"]]:
    """Every third frame replaced by one of another place, and which these are."""
    foreign = torch.arange(len(images)) % 3 == 1
    chosen = torch.linspace(0, len(strangers) - 1, int(foreign.sum())).round().long()
    images = images.clone()
    images[foreign] = resize_images(strangers[chosen], *images.shape[1:3])
    return images, foreign


def untold_frames(inputs: Views, images: Float[Tensor, "m h w 3"], like: Cameras) -> Frames:
    """Photos and frames as a generator that was not told cameras gives them: their poses are those of an even path."""
    path = interpolate_path(inputs.cameras, torch.linspace(0, 1, len(images) + 2)[1:-1])
    n, together = len(inputs), torch.cat([inputs.images, images])
    pair = torch.cat([torch.arange(n)[:, None].repeat(1, 2), torch.tensor([[0, 1]]).repeat(len(images), 1)])
    cameras = join_cameras(inputs.cameras, replace(path, intrinsics=like.intrinsics))
    confidence = torch.cat([inputs.masks.float(), torch.ones(images.shape[:3])])
    return Frames(together, cameras, confidence, torch.arange(len(together)) < n, pair, cameras_told=False)


def place(
    views: Views, images: Float[Tensor, "m h w 3"], foreign: Bool[Tensor, " m"], pointmaps: Pointmaps,
    settings: PointcloudSettings,
) -> Result:  # fmt: skip
    inputs, truth = views.inputs(), views.targets().cameras
    frames = untold_frames(inputs, images, truth)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, placement = place_frames(
            inputs, frames, pointmaps, make_backend(settings), ConfidenceSettings(), generator(0, "confidence", "benchmark")
        )
    seconds = time.perf_counter() - start
    lost = {int(i) for i in placement.left_out or {}}
    kept = torch.tensor([i for i in range(len(images)) if i not in lost], dtype=torch.int64)
    turn, shift = shifts(truth[kept], found.cameras[len(inputs) :], baseline(inputs.cameras))
    true = ~foreign[kept]
    return Result(turn[true], shift[true], int((~foreign).sum()), int(foreign.sum()), int((~true).sum()), seconds)


def row(name: str, look: str, result: Result) -> str:
    kept = f"{len(result.turn)}/{result.true}"
    figures = (
        [float(f(x)) for x in (result.turn, result.shift * 100) for f in (torch.median, torch.max)] if len(result.turn) else []
    )
    errors = " ".join(f"{x:8.3f}" for x in figures) or " " * 35
    strangers = f"{result.kept_foreign}/{result.foreign}" if result.foreign else "-"
    return f"{name:14s} {look:10s} {kept:>6s} {strangers:>9s} {errors} {result.seconds:6.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("RECONX_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--looks", default=",".join(LOOKS))
    parser.add_argument("--foreign", action="store_true")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--backend", default="classical")
    options = parser.parse_args()
    settings = PointcloudSettings(backend=options.backend)
    strangers = load_views(STRANGER, ViewsSettings(size=options.size)).targets().images if options.foreign else None
    print("case           look       placed strangers      deg      max   % base      max      s", flush=True)
    for name in options.cases.split(","):
        views = load_case(name, options.data, options.size)
        pointmaps, _ = make_backend(settings)(views.inputs(), views.inputs().cameras, generator(0, "pointcloud", name))
        for look in options.looks.split(","):
            images, foreign = with_look(views.targets().images, look), torch.zeros(len(views.targets()), dtype=torch.bool)
            if strangers is not None:
                images, foreign = with_strangers(images, strangers)
            print(row(name, look, place(views, images, foreign, pointmaps, settings)), flush=True)


if __name__ == "__main__":
    main()
