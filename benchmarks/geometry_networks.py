"""DUSt3R, VGGT and Depth-Anything-3 at full size: time and memory of predicting and of aligning a scene.

    python -m benchmarks.geometry_networks [--views 9] [--size 512] [--batches 1,2,4,8] [--small]
    python -m benchmarks.geometry_networks --da3 small|base [--views 9]

The first measures all networks on a GPU, the second DA3-SMALL or DA3-BASE alone, on a CPU too (with the process's peak memory).

Weights are random, since time and memory do not depend on them; the network computes as the backends let it, transformers in
bfloat16, with a row of plain float32 for comparison. DUSt3R sees every pair of the views in both orders. Alignment (eq. 9) is
timed on pointmaps of the same number and size that agree but for noise. ``--small`` runs tiny networks, without a GPU too, to
see that all this works.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import gc
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import nn

from benchmarks.alignment import problem
from benchmarks.quality_tables import Grid, print_grid
from reconx_core.errors import UserError
from reconx_core.pointcloud.backends.dust3r import ITERATIONS, encode, predict
from reconx_core.pointcloud.backends.predictions import both_orders
from reconx_core.pointcloud.global_alignment.align import align_pointmaps, collect
from reconx_core.pointcloud.global_alignment.graph import pair_graph
from reconx_core.pointcloud.networks.da3 import DA3
from reconx_core.pointcloud.networks.da3_config import DA3Config, da3_config
from reconx_core.pointcloud.networks.dpt import DPTConfig
from reconx_core.pointcloud.networks.dust3r import DUSt3R, DUSt3RConfig
from reconx_core.pointcloud.networks.vggt import VGGT, VGGTConfig

TINY_DPT = DPTConfig((0, 0, 0, 0), (4, 4, 4, 4), 8, 4)
TINY = {
    DUSt3R: DUSt3RConfig(
        image_size=64, encoder_width=16, encoder_depth=1, encoder_heads=2, decoder_width=8, decoder_depth=2, decoder_heads=2,
        dpt=DPTConfig((0, 1, 1, 2), (4, 4, 4, 4), 8, 4),
    ),
    VGGT: VGGTConfig(
        image_size=70, width=16, depth=1, heads=2, encoder_depth=1, encoder_heads=2, camera_depth=1, camera_heads=2,
        dpt=TINY_DPT,
    ),
    DA3: DA3Config(image_size=70, width=32, depth=4, heads=2, start=2, dpt=DPTConfig((3, 3, 3, 3), (4, 4, 4, 4), 8, 4)),
}  # fmt: skip
FULL = {DUSt3R: DUSt3RConfig(), VGGT: VGGTConfig(), DA3: da3_config({"model_name": "da3-base"})}
HEADER = ["what", "s", "peak GiB"]


def build(kind: type[nn.Module], config: Any, device: str) -> Any:
    """The network with random weights of the size that keeps activations finite, made on the device."""
    torch.manual_seed(0)
    with torch.device("meta"):
        network = kind(config)
    network = network.to_empty(device=device).eval().requires_grad_(False)
    for value in network.parameters():
        nn.init.normal_(value, std=0.02)
    return network


def measured(name: str, work: Callable[[], Any], device: str) -> list[str]:
    """A row: the time of the second call, and the peak memory of both, weights included."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    seconds = 0.0
    for _ in range(2):
        start = now(device)
        work()
        seconds = now(device) - start
    # Without a GPU that of the process, Python and the libraries included (Linux counts in KiB).
    peak_bytes = (
        torch.cuda.max_memory_allocated() if device == "cuda" else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    )
    peak = f"{peak_bytes / 2**30:.2f}"
    print(f"{name}: {seconds:.2f} s {peak}", file=sys.stderr, flush=True)
    return [name, f"{seconds:.2f}", peak]


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def dust3r_rows(sizes: dict[type, Any], views: int, shape: tuple[int, int], batches: list[int], device: str) -> list[list[str]]:
    """Prediction of all pairs in both orders: first in float32, then as the backend does it."""
    network, images = build(DUSt3R, sizes[DUSt3R], device), torch.rand(views, 3, *shape)
    pairs = both_orders(pair_graph(views, "complete"))

    def row(kind: str, batch: int) -> list[str]:
        work = lambda: collect(predict(network, encode(network, images, batch), pairs, batch), len(pairs))  # noqa: E731
        return measured(f"DUSt3R, {len(pairs)} ordered pairs, {batch} at once, {kind}", work, device)

    rows = [row("float32", batches[-1])]
    network.lower_precision(torch.bfloat16)
    return rows + [row("bfloat16", batch) for batch in batches]


@torch.inference_mode()
def vggt_rows(sizes: dict[type, Any], views: int, shape: tuple[int, int], batches: list[int], device: str) -> list[list[str]]:
    """Cameras and depth of all views in one pass."""
    network, images = build(VGGT, sizes[VGGT], device), torch.rand(1, views, 3, *shape, device=device)

    def row(kind: str, batch: int) -> list[str]:
        work = lambda: network(images, frames_per_chunk=batch, points=False)  # noqa: E731
        return measured(f"VGGT, {views} views, heads {batch} at once, {kind}", work, device)

    rows = [row("float32", batches[-1])]
    network.lower_precision(torch.bfloat16)
    return rows + [row("bfloat16", batch) for batch in batches]


@torch.inference_mode()
def da3_rows(config: DA3Config, views: int, shape: tuple[int, int], batches: list[int], device: str) -> list[list[str]]:
    """Cameras and depth of all views in one pass, without rays: on a GPU first in float32, on a CPU only so."""
    network, images = build(DA3, config, device), torch.rand(1, views, 3, *shape, device=device)
    size = f"DA3, width {config.width}, {views} views at {shape[1]}×{shape[0]}"

    def row(kind: str, batch: int) -> list[str]:
        work = lambda: network(images, frames_per_chunk=batch, rays=False)  # noqa: E731
        return measured(f"{size}, heads {batch} at once, {kind}", work, device)

    rows = [row("float32", batches[-1])]
    if device == "cpu":
        return rows
    network.lower_precision(torch.bfloat16)
    return rows + [row("bfloat16", batch) for batch in batches]


def alignment_row(views: int, shape: tuple[int, int], iterations: int, device: str) -> list[str]:
    """The whole of eq. 9 on all pairs in both orders."""
    _, pairs, points = problem(views, shape[1], shape[0])
    points = points.to(device)
    confidence = torch.ones(points.shape[:-1], device=device)
    work = lambda: align_pointmaps(pairs, points, confidence, iterations=iterations)  # noqa: E731
    return measured(f"alignment, {len(pairs)} edges at {shape[1]}×{shape[0]}, {iterations} steps", work, device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=9)
    parser.add_argument("--size", type=int, default=512, help="long side of DUSt3R's photos; they are 4:3")
    parser.add_argument("--batches", default="1,2,4,8", help="most photos or pairs at once")
    parser.add_argument("--da3", choices=("small", "base"), help="this size of Depth-Anything-3 alone, on a CPU too")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if device == "cpu" and not options.small and not options.da3:
            raise UserError("DUSt3R and VGGT are measured on a CUDA GPU, and there is none; --small and --da3 run without one.")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32
    sizes, long, iterations = (TINY, 64, 3) if options.small else (FULL, options.size, ITERATIONS)
    batches = [int(part) for part in options.batches.split(",")]
    shape, vggt_shape = (long * 3 // 4, long), (56, 70) if options.small else (392, 518)
    da3, da3_shape = sizes[DA3], (56, 70) if options.small else (378, 504)
    if options.da3:
        batches, da3 = batches[-1:], da3 if options.small else da3_config({"model_name": f"da3-{options.da3}"})
    rows = (
        da3_rows(da3, options.views, da3_shape, batches, device)
        if options.da3
        else [
            *dust3r_rows(sizes, options.views, shape, batches, device),
            alignment_row(options.views, shape, iterations, device),
            *vggt_rows(sizes, options.views, vggt_shape, batches, device),
            *da3_rows(da3, options.views, da3_shape, batches, device),
        ]
    )
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print_grid(Console(width=140), Grid(f"{options.views} views on {name} (torch {torch.__version__})", HEADER, [rows], []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
