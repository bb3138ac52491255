"""The video network at its full size on a GPU: time, memory and rounding of each way to run it.

    python -m benchmarks.full_size [--size 512] [--frames 32] [--steps 50] [--rows NAME,...] [--small] [--out results.json]
                                   [--markdown]

One clip between two photos with 8192 points as structure and guidance 7.5, by DynamiCrafter's published 512_Interp networks
with the paper's structure condition. Weights are random, since time and memory do not depend on them. Each row is the same clip
run another way, timed after a warm-up; its frames and latents are compared with the first row's, plain float32. From the second
row on the weights are rounded to bfloat16, as a user has them. ``--rows`` takes numbers from 1 on or beginnings of names.
Results are written to ``--out`` after every row. ``--small`` runs tiny networks of the same classes, without a GPU too, to see
that all this works.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.quality_tables import Grid, markdown, print_grid
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable, write_json
from reconx_core.video.checkpoints.parts import PUBLISHED, published_parts
from reconx_core.video.checkpoints.unet_keys import unet_config
from reconx_core.video.clip import POINTS
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet, spatial_cross_attentions

GATE = 0.5  # of the structure term, which a network that starts from zero would not show
V_DEVIATION, IMAGE_DEVIATION = 1.0, 0.5  # of what a trained network predicts, and of images in [-1, 1]
BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D", "TemporalConvLayer")  # compiled one by one: most of the network
GRAPHS = 64  # more than there are widths and resolutions of those blocks
GUIDANCE = {"guidance_scale": 7.5, "guidance_rescale": 0.7, "eta": 1.0}
HEADER = ["way", "s per clip", "s per step", "faster", "peak GiB", "compile s", "PSNR dB", "latents error"]

# Upstream's form of the settings, as a checkpoint's YAML has them.
FULL: dict[str, Any] = {**PUBLISHED, "unet_config": {**PUBLISHED["unet_config"], "default_fs": 24}}
SMALL: dict[str, Any] = {
    "scale_factor": 0.18215,
    "unet_config": {
        "in_channels": 8, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 1,
        "channel_mult": [1, 2], "dropout": 0.1, "num_head_channels": 16, "context_dim": 32, "default_fs": 24,
    },
    "first_stage_config": {
        "ddconfig": {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
    },
    "image_proj_stage_config": {
        "dim": 32, "depth": 1, "dim_head": 16, "heads": 2, "num_queries": 16, "embedding_dim": 32, "output_dim": 32,
        "ff_mult": 2, "video_length": 2,
    },
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 32, "head_width": 16, "patch_size": 112},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}  # fmt: skip
# What the options are where they are not given.
FULL_SIZES, SMALL_SIZES = {"size": 512, "frames": 32, "steps": 50}, {"size": 32, "frames": 4, "steps": 3}


@dataclass(frozen=True)
class Way:
    """One way to run the network; the pipeline is changed for good, so each needs no less than those before it."""

    name: str
    half: bool = True
    batched: bool = True
    channels_last: bool = False
    compiled: bool = False


WAYS = (
    Way("float32, one pass at a time", half=False, batched=False),
    Way("bfloat16, one pass at a time", batched=False),
    Way("bfloat16, batched guidance"),
    Way("+ channels_last", channels_last=True),
    Way("+ compile", channels_last=True, compiled=True),
)


@dataclass
class Result:
    """A row of the table; what does not apply or was not measured is None."""

    name: str
    seconds: float | None = None
    step_seconds: float | None = None
    speedup: float | None = None
    peak_gib: float | None = None
    compile_seconds: float | None = None  # the warm-up call, with its two steps
    psnr: float | None = None
    latents_error: float | None = None
    failed: str = ""


@dataclass
class Clip:
    """What a call gave, on the CPU, and what it cost."""

    frames: Tensor
    latents: Tensor
    seconds: float
    step_seconds: float
    peak_gib: float | None


def build_pipeline(upstream: dict[str, Any], device: str) -> ReconXPipeline:
    """The paper's pipeline with random weights, made on the device: a GPU draws billions of numbers at once."""
    torch.manual_seed(0)
    width = upstream["unet_config"]["context_dim"]
    with torch.device(device):
        unet = ReconXUNet(**unet_config(upstream["unet_config"]), structure_dim=width)
        others = {part.folder: part.build() for part in published_parts(upstream) if part.folder != "unet"}
        structure = StructureEncoder(width=width, heads=upstream["text_cfg"]["heads"])
    for module in (unet, structure, *others.values()):
        module.eval().requires_grad_(False)
    pipeline = ReconXPipeline(unet=unet, scheduler=ReconXScheduler(), structure_encoder=structure, **others)
    pipeline.set_progress_bar_config(disable=True)
    diffusers.utils.logging.set_verbosity_error()  # it warns on conversion that it would keep nothing in float32
    open_gates(unet)
    scale_outputs(pipeline)
    return pipeline


def open_gates(unet: ReconXUNet) -> None:
    for attention in spatial_cross_attentions(unet):
        nn.init.constant_(attention.processor.structure_gate, GATE)


@torch.no_grad()
def scale_outputs(pipeline: ReconXPipeline) -> None:
    """Bring v and images to the deviation that trained networks give: else sampling is all noise, and hides what is rounded."""
    unet, vae = pipeline.unet, pipeline.vae
    draw = lambda *shape: torch.randn(*shape, device=unet.device)  # noqa: E731
    tokens = draw(2, 1, 77, unet.config.cross_attention_dim)
    v = unet(draw(1, unet.config.in_channels, 2, 32, 32), 999, tokens[0], tokens[1]).sample
    image = vae.decode(draw(1, vae.config.latent_channels, 32, 32)).sample
    for layer, output, wanted in ((unet.conv_out, v, V_DEVIATION), (vae.decoder.conv_out, image, IMAGE_DEVIATION)):
        for parameter in layer.parameters():
            parameter *= wanted / output.std()


def clip_inputs(size: int, frames: int, points: int) -> dict[str, Any]:
    """The same two photos and points for every row."""
    draw = torch.Generator().manual_seed(1)
    cloud = torch.randn(1, points, 3, generator=draw) * 0.3 + torch.tensor([0.0, 0.0, 1.0])
    photos = torch.rand(1, 2, 3, size, size, generator=draw)
    return {"photos": photos, "positions": [0, frames - 1], "num_frames": frames, "points": cloud}


def apply_way(pipeline: ReconXPipeline, way: Way) -> None:
    """Change the pipeline's networks in place to what the way needs."""
    if way.half and pipeline.unet.dtype != torch.bfloat16:
        pipeline.to(torch.bfloat16)
    if way.channels_last:
        for network in (pipeline.unet, pipeline.vae):
            to_channels_last(network)
    if way.compiled:
        compile_blocks(pipeline.unet)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def to_channels_last(network: nn.Module) -> None:
    """`Module.to(memory_format=...)` but for the convolutions over frames, whose five axes that one refuses."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def compile_blocks(unet: Any) -> None:
    """diffusers' regional compilation: blocks that are alike share one graph."""
    # All blocks count as one function to the compiler, which by default gives up at the ninth shape of it.
    torch._dynamo.config.recompile_limit = GRAPHS
    type(unet)._repeated_blocks = BLOCKS
    unet.compile_repeated_blocks(fullgraph=True, dynamic=False)


def generate(pipeline: ReconXPipeline, inputs: dict[str, Any], way: Way, steps: int) -> Clip:
    """A clip and its cost; a step's time is that from the end of the first step to the end of the last."""
    ends, kept = [], {}

    def on_step(pipeline: ReconXPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        ends.append(now())
        kept.update(tensors)
        return tensors

    given = {**inputs, **GUIDANCE, "num_inference_steps": steps, "batch_guidance": way.batched}
    measured, start = torch.cuda.is_available(), now()
    if measured:
        torch.cuda.reset_peak_memory_stats()
    noise = torch.Generator().manual_seed(2)
    frames = pipeline(**given, generator=noise, callback_on_step_end=on_step).frames
    seconds, peak = now() - start, torch.cuda.max_memory_allocated() / 2**30 if measured else None
    step_seconds = (ends[-1] - ends[0]) / max(steps - 1, 1)
    return Clip(frames.cpu(), kept["latents"].cpu(), seconds, step_seconds, peak)


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def measure(
    pipeline: ReconXPipeline, inputs: dict[str, Any], way: Way, steps: int, first: Clip | None
) -> tuple[Result, Clip | None]:
    """A row and its clip; one that fails has a sentence instead, so that the others are measured still."""
    try:
        return measured_row(pipeline, inputs, way, steps, first)
    except UserError:
        raise
    except Exception as error:  # out of memory, or whatever a compiler may raise
        # The class too: a compiler's first line may say little.
        lines = str(error).strip().splitlines() or [""]
        return Result(way.name, failed=f"{type(error).__name__}: {lines[0]}"[:300]), None


def measured_row(
    pipeline: ReconXPipeline, inputs: dict[str, Any], way: Way, steps: int, first: Clip | None
) -> tuple[Result, Clip]:
    apply_way(pipeline, way)
    warm = generate(pipeline, inputs, way, 2 if way.compiled else 1)
    clip = generate(pipeline, inputs, way, steps)
    if not (clip.frames.isfinite().all() and clip.latents.isfinite().all()):
        raise ArithmeticError("the clip holds values that are not finite")
    compiling = warm.seconds if way.compiled else None
    result = Result(way.name, clip.seconds, clip.step_seconds, peak_gib=clip.peak_gib, compile_seconds=compiling)
    if first is not None:
        compare(result, clip, first)
    return result, clip


def compare(result: Result, clip: Clip, first: Clip) -> None:
    """Enter how the clip differs from the first row's."""
    error = (clip.frames - first.frames).double().square().mean().clamp(min=1e-20)
    result.speedup = first.seconds / clip.seconds
    result.psnr = float(-10 * error.log10())
    result.latents_error = float((clip.latents - first.latents).norm() / first.latents.norm())


def measure_all(
    pipeline: ReconXPipeline, inputs: dict[str, Any], ways: list[Way], steps: int, on_row: Callable[[Result], None]
) -> None:
    """All rows in order, each handed on as soon as it is known: the machine may be taken away."""
    first = None
    for way in ways:
        result, clip = measure(pipeline, inputs, way, steps, first)
        if way is WAYS[0]:
            first = clip
        on_row(result)


def choose_ways(named: str, device: str) -> list[Way]:
    """The ways that numbers or beginnings of names stand for, in their order; all without any.

    Raises:
        UserError: a name stands for none.
    """
    able = [way for way in WAYS if device == "cuda" or not way.compiled]
    chosen: set[Way] = set()
    for name in filter(None, (part.strip() for part in named.split(","))):
        matching = [way for number, way in enumerate(WAYS, 1) if name == str(number) or is_named(way, name)]
        if not set(matching) & set(able):
            raise UserError(
                f"There is no row '{name}' here; choose from {'; '.join(way.name for way in able)}, or 1 to {len(able)}."
            )
        chosen.update(matching)
    return [way for way in able if way in chosen or not chosen]


def is_named(way: Way, name: str) -> bool:
    return way.name.removeprefix("+ ").startswith(name.removeprefix("+").strip())


def choose_device(small: bool) -> str:
    """Where to measure.

    Raises:
        UserError: the full size, and no GPU.
    """
    if torch.cuda.is_available():
        return "cuda"
    if not small:
        raise UserError("The full-size video network is measured on a CUDA GPU, and there is none; --small runs without one.")
    return "cpu"


def machine(device: str) -> dict[str, str]:
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {"device": name, "torch": torch.__version__, "diffusers": diffusers.__version__}


def grid(results: list[Result], about: dict[str, Any]) -> Grid:
    title = "{frames} frames of {size}×{size}, {steps} steps, on {device} (torch {torch})".format(**about)
    notes = [f"{result.name}: {result.failed}" for result in results if result.failed]
    return Grid(title, HEADER, [[cells(result) for result in results]], notes)


def cells(result: Result) -> list[str]:
    def cell(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    times = [cell(result.seconds, ".2f"), cell(result.step_seconds, ".3f"), cell(result.speedup, ".2f")]
    costs = [cell(result.peak_gib, ".1f"), cell(result.compile_seconds, ".1f")]
    return [result.name, *times, *costs, cell(result.psnr, ".1f"), cell(result.latents_error, ".2e")]


def describe(result: Result) -> str:
    """A row as a line of text."""
    figures = [f"{name} {cell}" for name, cell in zip(HEADER[1:], cells(result)[1:]) if cell]
    return f"{result.name}: {result.failed or ', '.join(figures)}"


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, help="height and width of the frames")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--steps", type=int, help="of sampling, at least 2")
    parser.add_argument("--rows", default="")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--markdown", action="store_true")
    options = parser.parse_args()
    for name, value in (SMALL_SIZES if options.small else FULL_SIZES).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.steps < 2 or options.frames < 2:
        parser.error("--steps and --frames must be at least 2")
    return options


def run(options: argparse.Namespace) -> tuple[list[Result], dict[str, Any]]:
    """The rows, and what they were measured with."""
    device = choose_device(options.small)
    ways = choose_ways(options.rows, device)
    if options.out:
        require_writable(options.out.parent)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # float32 is to mean float32
    points = 256 if options.small else POINTS
    about = machine(device) | {name: getattr(options, name) for name in FULL_SIZES} | {"points": points}
    results: list[Result] = []

    def on_row(result: Result) -> None:
        print(describe(result), file=sys.stderr, flush=True)
        results.append(result)
        if options.out:
            write_json(options.out, {**about, "rows": [asdict(result) for result in results]})

    pipeline = build_pipeline(SMALL if options.small else FULL, device)
    measure_all(pipeline, clip_inputs(options.size, options.frames, points), ways, options.steps, on_row)
    return results, about


def main() -> int:
    options = read_options()
    try:
        table = grid(*run(options))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(markdown(table)) if options.markdown else print_grid(Console(width=None if sys.stdout.isatty() else 160), table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
