"""The training objective: the mean squared error of the velocity (eq. 12 for v-prediction), with condition dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reconx_core.training.batches import Batch
from reconx_core.training.settings import TrainSettings
from reconx_core.video.diffusion.latents import condition_latents, encode_frames
from reconx_core.video.diffusion.pipeline import ReconXPipeline, Tokens

ERROR_FLOOR = 1e-2  # added to each clip's error before the logarithm: smaller errors hardly change the loss


class Objective(nn.Module):
    """The trainable networks of a pipeline as one module whose forward pass is the loss, so that accelerate can wrap them."""

    def __init__(self, pipeline: ReconXPipeline, settings: TrainSettings) -> None:
        super().__init__()
        self.pipeline, self.settings = pipeline, settings
        self.networks = nn.ModuleDict({name: getattr(pipeline, name) for name in learning_components(pipeline)})
        for frozen in frozen_components(pipeline):
            frozen.requires_grad_(False)

    def forward(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, ""]:
        """The loss of a batch; noise, timesteps and condition dropout are drawn from ``generator`` (on the CPU)."""
        pipeline, count = self.pipeline, batch.frames.shape[1]
        frames, ends = batch.frames * 2 - 1, [0, count - 1]
        shown = takes_renders(pipeline, self.settings)
        renders = batch.renders * 2 - 1 if shown else None
        condition = condition_latents(pipeline.vae, frames[:, ends], ends, count, renders, generator)
        latents = encode_frames(pipeline.vae, frames, generator)
        clean = latents - condition if pipeline.config.residual else latents
        blends = pipeline.config.sources > 0
        noise = torch.zeros_like(clean) if blends else torch.randn(clean.shape, generator=generator).to(clean)
        share = 1.0 if blends else self.settings.terminal_share
        timesteps = draw_timesteps(len(frames), share, generator).to(clean.device)
        points = None if pipeline.structure_encoder is None else batch.points
        tokens = pipeline.condition_tokens(frames[:, 0], [""] * len(frames), points, batch.colours)
        kept = drop_conditions(
            tokens, {"image": self.settings.drop_image, "structure": self.settings.drop_structure}, generator
        )
        visibility = batch.visibility if shown else None
        seen = pipeline.input_condition(condition, ends, visibility, batch.sources if blends else None)
        noisy = pipeline.scheduler.add_noise(clean, noise, timesteps)
        fps = None if blends else batch.fps
        predicted = pipeline.network(timesteps, noisy, seen, fps, **kept)
        return velocity_loss(predicted.float(), pipeline.scheduler.get_velocity(clean, noise, timesteps), self.settings.loss)


def takes_renders(pipeline: ReconXPipeline, settings: TrainSettings) -> bool:
    """Whether the model is conditioned on renders; one that diffuses the difference from them cannot be without."""
    return settings.renders or pipeline.config.residual


def velocity_loss(predicted: Float[Tensor, "b c f h w"], velocity: Float[Tensor, "b c f h w"], kind: str) -> Float[Tensor, ""]:
    """Mean squared error (eq. 12), or the mean over clips of its logarithm, so that clips with large errors do not dominate."""
    error = F.mse_loss(predicted, velocity, reduction="none").mean((1, 2, 3, 4))
    return (error + ERROR_FLOOR).log().mean() if kind == "log_mse" else error.mean()


def learning_components(pipeline: ReconXPipeline) -> list[str]:
    """Names of the pipeline's components that have trainable parameters."""
    names = ("unet", "image_encoder", "image_projector", "structure_encoder")
    return [name for name in names if getattr(pipeline, name) is not None]


def frozen_components(pipeline: ReconXPipeline) -> list[nn.Module]:
    """The networks that training only runs."""
    return [network for network in (pipeline.vae, pipeline.text_encoder) if network is not None]


def draw_timesteps(count: int, terminal_share: float, generator: torch.Generator, steps: int = 1000) -> Int[Tensor, " b"]:
    """Uniform random timesteps; each is replaced by the last one with probability ``terminal_share``."""
    drawn = torch.randint(steps, (count,), generator=generator)
    return torch.where(torch.rand(count, generator=generator) < terminal_share, steps - 1, drawn)


def drop_conditions(tokens: dict[str, Tokens], shares: dict[str, float], generator: torch.Generator) -> dict[str, Tensor]:
    """Replace each clip's tokens by the unconditional ones with the given probability (PAPER.md 3)."""
    kept = {}
    for name, (present, absent) in tokens.items():
        dropped = torch.rand(len(present), generator=generator) < shares.get(name, 0.0)
        kept[name] = present if absent is None else torch.where(dropped[:, None, None].to(present.device), absent, present)
    return kept


def choose_parameters(objective: Objective, phase: str) -> list[nn.Parameter]:
    """The parameters that are trained in a phase; all others are frozen.

    ``image``: the image cross-attention of the U-Net and the image projector. ``structure``: the U-Net's spatial layers (all
    but the temporal ones), the structure encoder and the gates. ``all``: everything.
    """
    for name, parameter in objective.networks.named_parameters():
        parameter.requires_grad_(phase == "all" or _learns(name, phase))
    return [parameter for parameter in objective.networks.parameters() if parameter.requires_grad]


def _learns(name: str, phase: str) -> bool:
    network = name.split(".")[0]
    if phase == "image":
        return network == "image_projector" or "_ip." in name
    temporal = any(part in name for part in ("temp_convs", "temp_attentions", "transformer_in"))
    return network == "structure_encoder" or (network == "unet" and not temporal)
