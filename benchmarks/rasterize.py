"""Speed of the rasteriser and of the fused SSIM; prints tables.

    python benchmarks/rasterize.py [--repeats 15] [--points test_garden.npz] [--skip-torch]

One camera, RGB + depth + alpha, SH degree 3; F = forward, F+B = forward and backward to all Gaussians and the camera.
Times are the best of several in ms, in brackets the median and the CPU time of all threads, which other programs on the
machine hardly change. "must" is the goal for F and F+B on 2 cores of a Zen 4 server CPU; on any machine F+B is to be 40
times faster than plain torch (ratio of the best times, then of the CPU times).
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numba
import numpy as np
import torch
import torch_tiled
from torch import Tensor

from reconx_core.losses.photometric import photometric_loss
from reconx_core.losses.ssim import ssim_map
from reconx_core.rasterize import Rendering, rasterize, resolve_backend
from reconx_core.types import Cameras, Gaussians

COUNTS, SIZES = (20_000, 50_000, 100_000), (256, 512)
MUST = {
    (20, 256): (5, 11),
    (50, 256): (9, 19),
    (100, 256): (17, 34),
    (20, 512): (10, 23),
    (50, 512): (15, 33),
    (100, 512): (25, 52),
}


def room(count: int, generator: torch.Generator) -> Tensor:
    """Points on the floor, the walls and four balls of a room in front of the camera."""
    share = [count // 4, count // 5, 3 * count // 20, 3 * count // 20]
    u, v = torch.rand(2, count, generator=generator)
    floor = torch.stack([4 * u - 2, torch.ones(count), 4 * v + 1], -1)
    back = torch.stack([4 * u - 2, 2.5 * v - 1.5, torch.full((count,), 5.0)], -1)
    left = torch.stack([torch.full((count,), -2.0), 2.5 * u - 1.5, 4 * v + 1], -1)
    right = left * torch.tensor([-1.0, 1.0, 1.0])
    centres = torch.tensor([[-1.0, 0.4, 3.2], [0.2, 0.5, 2.6], [1.1, 0.3, 3.6], [0.0, -0.5, 4.2]])
    ball = torch.arange(count) % 4
    balls = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    balls = balls * torch.tensor([0.5, 0.4, 0.6, 0.5])[ball, None] + centres[ball]
    parts = [points[:n] for points, n in zip((floor, back, left, right, balls), [*share, count - sum(share)])]
    return torch.cat(parts)[torch.randperm(count, generator=generator)]


def scene(count: int, kind: str) -> Gaussians:
    """``init``: isotropic and faint, as an optimisation starts; ``trained``: flat, long, of all opacities."""
    generator = torch.Generator().manual_seed(0)
    means = room(count, generator)
    spacing = math.log(0.75 * math.sqrt(58 / count))
    if kind == "init":
        log_scales = (spacing + 0.25 * torch.randn(count, 1, generator=generator)).repeat(1, 3)
        logits = torch.full((count,), math.log(0.1 / 0.9))
    else:
        log_scales = spacing + 0.5 * torch.randn(count, 3, generator=generator) + torch.tensor([1.2, 0.8, 0.25]).log()
        logits = 2 * torch.randn(count, generator=generator) + 0.3
    sh = 0.08 * torch.randn(count, 16, 3, generator=generator)
    sh[:, 0] = 1.2 * torch.sin(means * torch.tensor([7.0, 9.0, 5.0]) + torch.tensor([0.0, 1.0, 2.0]))
    return Gaussians(means, torch.randn(count, 4, generator=generator), log_scales, logits, sh)


def camera(size: int) -> Cameras:
    """65 degrees wide, at the room's entrance."""
    focal = 0.5 * size / math.tan(math.radians(65) / 2)
    intrinsics = torch.tensor([[[focal, 0, size / 2], [0, focal, size / 2], [0, 0, 1]]])
    return Cameras(intrinsics, torch.eye(4)[None], size, size)


class Times(NamedTuple):
    best: float  # ms
    median: float
    cpu: float  # of all threads together; other programs do not add to it

    def __str__(self) -> str:
        return f"{self.best:7.1f} ({self.median:7.1f}, {self.cpu:7.1f})"


def measure(step: Callable[[], object], repeats: int) -> Times:
    """Times of a step after a warm-up call."""
    step()
    wall, cpu = [], []
    for _ in range(repeats):
        start, start_cpu = time.perf_counter(), time.process_time()
        step()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall.append(1e3 * (time.perf_counter() - start))
        cpu.append(1e3 * (time.process_time() - start_cpu))
    return Times(min(wall), statistics.median(wall), min(cpu))


Renderer = Callable[[Gaussians, Cameras], Rendering | tuple[Tensor, ...]]


def forward_and_both(render: Renderer, gaussians: Gaussians, cameras: Cameras, repeats: int) -> tuple[Times, Times]:
    """Times of the forward pass alone and with the backward pass."""
    *fields, pose = (x.clone().requires_grad_() for x in (*vars(gaussians).values(), cameras.cam_to_world))
    posed = Cameras(cameras.intrinsics, pose, cameras.width, cameras.height)
    with torch.no_grad():
        weights = [torch.rand_like(image) for image in render(gaussians, cameras)]
        forward = measure(lambda: render(gaussians, cameras), repeats)

    def both() -> None:
        torch.autograd.grad(render(Gaussians(*fields), posed), [*fields, pose], weights)

    return forward, measure(both, repeats)


cpu = partial(rasterize, backend="cpu")
gsplat = partial(rasterize, backend="gsplat")


def compare(name: str, gaussians: Gaussians, cameras: Cameras, options: argparse.Namespace) -> None:
    """One row of the table."""
    must = "{}/{}".format(*MUST.get((len(gaussians) // 1000, cameras.width), ("-", "-")))
    forward, both = forward_and_both(cpu, gaussians, cameras, options.repeats)
    row = f"{name:22} {forward} {both} {must:>6}"
    if not options.skip_torch:
        slow_forward, slow = forward_and_both(torch_tiled.render, gaussians, cameras, 2)
        row += f" {slow_forward.best:6.0f} {slow.best:6.0f} {slow.cpu:6.0f}"
        row += f" {slow.best / both.best:5.0f}x {slow.cpu / both.cpu:5.0f}x"
    if resolve_backend("auto") == "gsplat":
        on_gpu = Gaussians(*(field.cuda() for field in vars(gaussians).values()))
        cameras = Cameras(cameras.intrinsics.cuda(), cameras.cam_to_world.cuda(), cameras.width, cameras.height)
        row += " {} {}".format(*forward_and_both(gsplat, on_gpu, cameras, options.repeats))
    print(row, flush=True)


def head(title: str) -> None:
    times = "best (median,     cpu)"
    print(
        f"\n{title:22} {'F: ' + times:>26} {'F+B: ' + times:>26} {'must':>6} torch F    F+B    cpu  ratio  cpu's  gsplat F, F+B"
    )


def table_of_scenes(options: argparse.Namespace) -> None:
    head("scene")
    for kind in ("trained", "init"):
        for size in SIZES:
            for count in COUNTS:
                compare(f"{kind} {count // 1000}k {size}x{size}", scene(count, kind), camera(size), options)


def table_of_points(path: Path, options: argparse.Namespace) -> None:
    """A real capture: coloured points as small Gaussians, seen by its own cameras."""
    head(path.stem)
    data = np.load(path)
    means, colours = torch.from_numpy(data["means3d"]).float(), torch.from_numpy(data["colors"]).float() / 255
    sh = torch.zeros(len(means), 16, 3)
    sh[:, 0] = (colours - 0.5) / 0.2820948
    flat = torch.full((len(means), 3), math.log(0.01))
    gaussians = Gaussians(means, torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1), flat, torch.zeros(len(means)), sh)
    intrinsics, views = torch.from_numpy(data["Ks"]).float(), torch.from_numpy(data["viewmats"]).float()
    for i in range(len(views)):
        cameras = Cameras(intrinsics[[i]], torch.linalg.inv(views[[i]]), int(data["width"]), int(data["height"]))
        compare(f"camera {i}, {len(means) // 1000}k {cameras.width}x{cameras.height}", gaussians, cameras, options)


def map_loss(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The photometric loss put together from the SSIM map."""
    return (weight * (0.8 * (x - y).abs().mean(-1) + 0.2 * (1 - ssim_map(x, y)))).mean()


def table_of_ssim(repeats: int) -> None:
    print(f"\n{'0.8 L1 + 0.2 SSIM, F+B':22} {'fused':>26} {'by the map':>26} {'torch':>26}  ratio")
    for size in SIZES:
        x, b = torch.rand(1, size, size, 3, requires_grad=True), torch.rand(1, size, size, 3)
        weight = torch.rand(1, size, size)
        losses = [partial(loss, x, b, weight) for loss in (photometric_loss, map_loss, torch_ssim_loss)]
        fused, mapped, plain = (measure(lambda loss=loss, x=x: torch.autograd.grad(loss(), x), repeats) for loss in losses)
        print(f"{size}x{size:<18} {fused} {mapped} {plain} {plain.cpu / fused.cpu:5.0f}x", flush=True)


def torch_ssim_loss(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The same loss in plain torch: five blurs by grouped separable convolutions, zero border."""
    taps = torch.exp(-0.5 * ((torch.arange(11.0) - 5) / 1.5) ** 2)
    p, q = x.movedim(-1, 1), y.movedim(-1, 1)
    stack = torch.cat([p, q, p * p, q * q, p * q], 1)
    across = (taps / taps.sum()).expand(15, 1, 1, 11)
    conv = torch.nn.functional.conv2d
    blurred = conv(conv(stack, across, padding=(0, 5), groups=15), across.mT, padding=(5, 0), groups=15)
    m_p, m_q, pp, qq, pq = blurred.split(3, 1)
    similar = (2 * m_p * m_q + 1e-4) * (2 * (pq - m_p * m_q) + 9e-4)
    similar = similar / ((m_p**2 + m_q**2 + 1e-4) * (pp + qq - m_p**2 - m_q**2 + 9e-4))
    return (weight * (0.8 * (x - y).abs().mean(-1) + 0.2 * (1 - similar.mean(1)))).mean()


def warm_start() -> float:
    """Seconds from importing the rasteriser to the first image and gradient in a new process, torch already imported."""
    script = (
        "import reconx_core, torch, time; start = time.perf_counter(); import rasterize as r\n"
        "g = r.scene(1000, 'init'); g.means.requires_grad_(); r.cpu(g, r.camera(64)).rgb.sum().backward()\n"
        "print(time.perf_counter() - start)"
    )
    command = [sys.executable, "-c", script]
    runs = [subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, check=True).stdout for _ in range(4)]
    return min(float(output) for output in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--points", type=Path, help="also time the capture in this .npz (means3d, colors, Ks, viewmats)")
    parser.add_argument("--skip-torch", action="store_true", help="leave out the slow baseline")
    options = parser.parse_args()
    print(f"threads: numba {numba.get_num_threads()}, torch {torch.get_num_threads()}; cores: {os.cpu_count()}")
    print(f"warm start: {warm_start():.2f} s (goal: below 1 s)")
    table_of_scenes(options)
    if options.points:
        table_of_points(options.points, options)
    table_of_ssim(options.repeats)


if __name__ == "__main__":
    main()
