"""GPU memory that the video networks need at full size, computed without a GPU: their layers run on tensors without data.

    python -m benchmarks.memory

A row is the peak of weights or activations of one phase of a clip, in bfloat16 where the backends run that. Not counted are
what cuDNN borrows for an algorithm (it takes one that fits), CUDA itself (about half a GiB) and fragmentation.
`flows/execution/memory.py` holds what it prints, beside what was measured.
"""

from __future__ import annotations

import reconx_core  # noqa: F401  first: it sets OMP_WAIT_POLICY, which torch reads when it is imported

# isort: split
import weakref
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.full_size import FULL
from benchmarks.quality_tables import Grid, print_grid
from reconx_core.losses.lpips import LAYOUTS, Lpips
from reconx_core.video.checkpoints.parts import published_parts
from reconx_core.video.checkpoints.unet_keys import unet_config
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet

GIB = 2**30
LPIPS_CHANNELS = (64, 128, 256, 512, 512)
# Wan2.1-VACE-1.3B as published; the VAE has diffusers' default configuration.
WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 12, "attention_head_dim": 128, "in_channels": 16, "out_channels": 16,
    "text_dim": 4096, "freq_dim": 256, "ffn_dim": 8960, "num_layers": 30, "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads", "vace_layers": list(range(0, 30, 2)), "vace_in_channels": 96,
}  # fmt: skip
WAN_TEXT_ENCODER = 5.68e9  # numbers


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive while operations run in it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: weakref.WeakSet[Any] = weakref.WeakSet()
        self.alive = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in storages((args, kwargs)):  # weights, whose views are no new memory
            self.seen.add(tensor)
        result = function(*args, **(kwargs or {}))
        for storage in storages(result):
            if storage not in self.seen:
                self.count(storage)
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        self.seen.add(storage)
        size = storage.nbytes()
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self.release, size)

    def release(self, size: int) -> None:
        self.alive -= size


def storages(tree: Any) -> list[torch.UntypedStorage]:
    """The memory of all tensors in nested sequences and mappings."""
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_of(run: Callable[[], Any]) -> float:
    """GiB of what ``run`` makes, at most at one time."""
    with PeakMemory() as memory:
        run()
    return memory.peak / GIB


def without_data(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The network, made on the device `meta`, with weights that operations in FakeTensorMode take."""
    for module in network.modules():
        for named in (module._parameters, module._buffers):
            for name, tensor in named.items():
                if tensor is not None:
                    kind = dtype if tensor.is_floating_point() else tensor.dtype
                    empty = torch.empty(tensor.shape, dtype=kind)
                    named[name] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return network


def weights_of(*networks: nn.Module) -> float:
    """GiB of the networks' weights."""
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters()) / GIB


def dynamicrafter(frames: int, height: int, width: int, structure: bool) -> list[list[str]]:
    """Rows of the paper's network and of ViewCrafter's, which is the same without structure."""
    context = FULL["unet_config"]["context_dim"]
    with unset_fake_temporarily(), torch.device("meta"):
        unet = ReconXUNet(**unet_config(FULL["unet_config"]), structure_dim=context if structure else None)
        others = {part.folder: part.build() for part in published_parts(FULL) if part.folder != "unet"}
        networks = {"unet": unet, **{name: one for name, one in others.items() if isinstance(one, nn.Module)}}
        if structure:
            networks["structure_encoder"] = StructureEncoder(width=context, heads=FULL["text_cfg"]["heads"])
    for network in networks.values():
        without_data(network, torch.bfloat16)
    vae, tall, wide = networks["vae"], height // 8, width // 8
    draw = lambda *shape: torch.empty(*shape, dtype=torch.bfloat16)  # noqa: E731

    def step(passes: int) -> Any:
        tokens = {"image_tokens": draw(passes, 16 * frames, context), "text_tokens": draw(passes, 77, context)}
        if structure:
            tokens["structure_tokens"] = draw(passes, 1024, context)
        return unet(draw(passes, 8, frames, tall, wide), torch.tensor(999), **tokens).sample

    every = weights_of(*networks.values())
    name = f"{frames} frames of {width}x{height}"
    rows = [[name, "weights of all networks", f"{every:.2f}"], [name, "weights of the U-Net", f"{weights_of(unet):.2f}"]]
    for passes in (1, 2, 3):
        rows.append([name, f"one step, {passes} pass(es) at once: activations", f"{peak_of(lambda p=passes: step(p)):.2f}"])
    for count in (1, 2, 8):
        decoded = peak_of(lambda n=count: vae.decode(draw(n, 4, tall, wide)).sample)
        rows.append([name, f"VAE, {count} frame(s) at once: activations", f"{decoded:.2f}"])
    return rows


def wan_vace(frames: int, height: int, width: int) -> list[list[str]]:
    """Rows of Wan2.1-VACE-1.3B; guidance runs in turn there."""
    from diffusers import AutoencoderKLWan, WanVACETransformer3DModel

    with unset_fake_temporarily(), torch.device("meta"):
        transformer, vae = WanVACETransformer3DModel(**WAN), AutoencoderKLWan()
    without_data(transformer, torch.bfloat16)
    without_data(vae, torch.float32)
    latents = (1, 16, (frames - 1) // 4 + 1, height // 8, width // 8)
    draw = lambda *shape: torch.empty(*shape, dtype=torch.bfloat16)  # noqa: E731

    def step() -> Any:
        return transformer(
            hidden_states=draw(*latents), timestep=torch.tensor([999]), encoder_hidden_states=draw(1, 512, 4096),
            control_hidden_states=draw(1, 96, *latents[2:]), control_hidden_states_scale=draw(15),
        ).sample  # fmt: skip

    name = f"wan-vace, {frames} frames of {width}x{height}"
    return [
        [name, f"weights of the transformer ({sum(p.numel() for p in transformer.parameters()) / 1e9:.2f} billion)",
         f"{weights_of(transformer):.2f}"],
        [name, "weights of the VAE, float32", f"{weights_of(vae):.2f}"],
        [name, "weights of the text encoder", f"{2 * WAN_TEXT_ENCODER / GIB:.2f}"],
        [name, "one step, one pass: activations", f"{peak_of(step):.2f}"],
        [name, "VAE, all frames: activations", f"{peak_of(lambda: vae.decode(torch.empty(latents)).sample):.2f}"],
    ]  # fmt: skip


def lpips(height: int, width: int) -> list[list[str]]:
    """A row of the loss's LPIPS term, with its gradient."""
    vgg, before = {}, 3
    for stage, channels in zip(LAYOUTS["vgg"].stages, LPIPS_CHANNELS):
        for number in stage:
            vgg |= {
                f"features.{number}.weight": torch.empty(channels, before, 3, 3),
                f"features.{number}.bias": torch.empty(channels),
            }
            before = channels
    network = Lpips(vgg, {f"lin{i}.model.1.weight": torch.empty(1, c, 1, 1) for i, c in enumerate(LPIPS_CHANNELS)})

    def term() -> None:
        image = torch.empty(1, height, width, 3, requires_grad=True)
        with torch.enable_grad():
            network(image, torch.empty(1, height, width, 3)).sum().backward()

    return [[f"LPIPS of {width}x{height}", "activations and gradients", f"{peak_of(term):.2f}"]]


def main() -> None:
    rows = []
    with FakeTensorMode(), torch.no_grad():
        rows += lpips(512, 512)
        rows += dynamicrafter(32, 512, 512, structure=True)
        rows += dynamicrafter(25, 576, 1024, structure=False)
        rows += wan_vace(21, 480, 832)
        rows += wan_vace(81, 480, 832)
    print_grid(Console(width=120), Grid("Computed", ["what", "phase", "GiB"], [rows]))


if __name__ == "__main__":
    main()
