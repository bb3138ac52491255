"""GPU memory of a training step of the paper's model, computed without a GPU: no tensor is allocated, and each is counted.

    python -m benchmarks.training_memory [--size 512] [--frames 32] [--small] [--out results.json]

Phases a and b of the paper (PAPER.md 3) at batch 1, bfloat16 mixed precision, with and without gradient checkpointing. The
networks have the published sizes. Forward and backward pass and AdamW run twice on fake tensors, and every storage that they
make is counted as long as it lives. Attention keeps what fused kernels keep; norms run in float32, as CUDA's autocast has them.
Left out are the CUDA context, the allocator's fragments, the buffers of several processes (as large as the gradients), and the
frozen encoders' work before the step, which has ended when the network runs.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import argparse
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.full_size import FULL, SMALL
from reconx_core.io.files import write_json
from reconx_core.training.objective import Objective, choose_parameters, freeze_unreached
from reconx_core.training.settings import TrainSettings
from reconx_core.video.checkpoints.parts import published_parts
from reconx_core.video.checkpoints.unet_keys import unet_config
from reconx_core.video.clip import POINTS
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet

# Memory in GiB.
HEADER = ["phase", "checkpointing", "trained (M)", "weights", "gradients", "AdamW", "EMA", "kept by the forward pass", "peak"]
PHASES = {"image": "a: image cross-attention", "structure": "b: spatial layers and structure"}
GIB = 2**30


@dataclass
class Result:
    """A row of the table; memory in GiB."""

    phase: str
    checkpointing: bool
    trained_millions: float
    weights: float  # of all networks, float32
    gradients: float
    optimiser: float
    ema: float
    activations: float  # what the forward pass keeps for the backward pass
    peak: float


def build(upstream: dict[str, Any], phase: str) -> ReconXPipeline:
    """The pipeline as it is trained in a phase."""
    width = upstream["unet_config"]["context_dim"]
    structure = width if phase == "structure" else None
    unet = ReconXUNet(**unet_config(upstream["unet_config"]), structure_dim=structure)
    others: dict[str, Any] = {part.folder: part.build() for part in published_parts(upstream) if part.folder != "unet"}
    if structure is not None:
        others["structure_encoder"] = StructureEncoder(width, heads=max(1, width // 64))
    return ReconXPipeline(unet=unet, scheduler=ReconXScheduler(), **others)


@contextmanager
def norms_in_float32() -> Iterator[None]:
    """As CUDA's autocast runs them; that of the CPU, which takes part here, does not."""
    kept = nn.GroupNorm.forward, nn.LayerNorm.forward

    def group(self: Any, values: Tensor) -> Tensor:
        return F.group_norm(values.float(), self.num_groups, self.weight, self.bias, self.eps)

    def layer(self: Any, values: Tensor) -> Tensor:
        return F.layer_norm(values.float(), self.normalized_shape, self.weight, self.bias, self.eps)

    nn.GroupNorm.forward, nn.LayerNorm.forward = group, layer  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.GroupNorm.forward, nn.LayerNorm.forward = kept  # type: ignore[method-assign, assignment]


def loss_of(pipeline: ReconXPipeline, upstream: dict[str, Any], size: int, frames: int) -> Tensor:
    """The objective from the encoders' outputs on: tokens, network, error."""
    width, clip = upstream["unet_config"]["context_dim"], upstream["vision_cfg"]
    side = size // 2 ** (len(upstream["first_stage_config"]["ddconfig"]["ch_mult"]) - 1)
    latents = torch.zeros(1, 4, frames, side, side)
    seen = torch.zeros(1, 1 + (clip["image_size"] // clip["patch_size"]) ** 2, clip["width"])
    tokens = {"image": pipeline.image_projector(seen), "text": torch.zeros(1, 77, width)}
    if pipeline.structure_encoder is not None:
        chosen = torch.zeros(1, POINTS // 8, dtype=torch.long)
        tokens["structure"] = pipeline.structure_encoder(torch.zeros(1, POINTS, 3), None, chosen)
    timestep, fps = torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    predicted = pipeline.network(timestep, latents, torch.zeros_like(latents), fps, **tokens)
    return F.mse_loss(predicted.float(), latents)


class Living(TorchDispatchMode):
    """Counts the bytes of all storages that operations within make, as long as they live."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.peak, self.seen = 0, 0, WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for value in tree_leaves(made):
            if isinstance(value, Tensor):
                self._add(value.untyped_storage())
        return made

    def _add(self, storage: Any) -> None:
        if storage not in self.seen:
            self.seen[storage] = True
            self.bytes += storage.nbytes()
            self.peak = max(self.peak, self.bytes)
            weakref.finalize(storage, self._drop, storage.nbytes())

    def _drop(self, count: int) -> None:
        self.bytes -= count


def measure(upstream: dict[str, Any], phase: str, checkpointing: bool, size: int, frames: int) -> Result:
    """The peak of the second step, when the optimiser has its states."""
    with FakeTensorMode(allow_non_fake_inputs=True), norms_in_float32():
        pipeline = build(upstream, phase)
        objective = Objective(pipeline, TrainSettings(phase=phase)).train()  # type: ignore[arg-type]
        objective.dropout_seeds[:] = [0]
        parameters = choose_parameters(objective, phase)
        freeze_unreached(pipeline)
        if checkpointing:
            pipeline.unet.enable_gradient_checkpointing()
        optimiser = torch.optim.AdamW(parameters, foreach=False)
        with Living() as living:
            for _ in range(2):
                before = living.peak = living.bytes
                with torch.autocast("cpu", torch.bfloat16):
                    loss = loss_of(pipeline, upstream, size, frames)
                kept = living.bytes - before
                loss.backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                del loss
            peak = living.peak
    weights = sum(p.numel() for part in pipeline.components.values() if isinstance(part, nn.Module) for p in part.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    held = [4 * weights, 4 * trained, 8 * trained, 4 * trained]
    return Result(phase, checkpointing, trained / 1e6, *(n / GIB for n in (*held, kept, held[0] + held[3] + peak)))


def row_of(result: Result) -> list[str]:
    name, kept = PHASES[result.phase], "yes" if result.checkpointing else "no"
    values = (result.weights, result.gradients, result.optimiser, result.ema, result.activations)
    return [name, kept, f"{result.trained_millions:.0f}", *(f"{value:.1f}" for value in values), f"{result.peak:.0f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    upstream = SMALL if options.small else FULL
    results: list[Result] = []
    for phase, checkpointing in product(PHASES, (False, True)):
        results.append(measure(upstream, phase, checkpointing, options.size, options.frames))
        if options.out:
            write_json(options.out, [asdict(result) for result in results])
    for row in (HEADER, ["---"] * len(HEADER), *map(row_of, results)):
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
