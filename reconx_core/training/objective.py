"""The training objective: the mean squared error of the velocity (eq. 12 for v-prediction), with condition dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from reconx_core.training.batches import Batch, chance
from reconx_core.training.dropout import use_clip_dropout
from reconx_core.training.settings import TrainSettings
from reconx_core.video.diffusion.latents import condition_latents, encode_frames, noise_source
from reconx_core.video.diffusion.pipeline import ReconXPipeline, Tokens
from reconx_core.video.diffusion.unet import spatial_cross_attentions

ERROR_FLOOR = 1e-2  # added to each clip's error before the logarithm: smaller errors hardly change the loss


class Objective(nn.Module):
    """The trainable networks of a pipeline as one module whose forward pass is the loss, so that accelerate can wrap them."""

    def __init__(self, pipeline: ReconXPipeline, settings: TrainSettings) -> None:
        super().__init__()
        self.pipeline, self.settings = pipeline, settings
        self.networks = nn.ModuleDict({name: getattr(pipeline, name) for name in learning_components(pipeline)})
        self.dropout_seeds: list[int] = []
        use_clip_dropout(self.networks, self.dropout_seeds)
        for frozen in frozen_components(pipeline):
            frozen.requires_grad_(False)

    def forward(self, batch: Batch) -> Float[Tensor, ""]:
        """The loss of a batch. Noise, timestep and dropout of a clip come from its seed: no other clip of the batch counts.

        Nothing is dropped in evaluation mode.
        """
        pipeline = self.pipeline
        draws = [torch.Generator().manual_seed(seed) for seed in batch.seeds.tolist()]
        self.dropout_seeds[:] = [int(torch.randint(2**62, (), generator=draw)) for draw in draws]
        frames, blends = batch.frames * 2 - 1, pipeline.config.sources > 0
        condition, seen = self.conditions(batch, frames, draws)
        latents = encode_frames(pipeline.vae, frames, draws)
        clean = latents - condition if pipeline.config.residual else latents
        noise = torch.zeros_like(clean) if blends else noise_source(draws, clean.device)("start", 0, tuple(clean.shape))
        timesteps = draw_timesteps(1.0 if blends else self.settings.terminal_share, draws).to(clean.device)
        tokens = pipeline.condition_tokens(frames[:, 0], [""] * len(frames), batch.points, batch.colours, batch.farthest)
        shares = {"image": self.settings.drop_image, "structure": self.settings.drop_structure} if self.training else {}
        kept = drop_conditions(tokens, shares, draws)
        noisy = pipeline.scheduler.add_noise(clean, noise, timesteps)
        fps = None if blends else batch.fps
        predicted = pipeline.network(timesteps, noisy, seen, fps, **kept)
        return velocity_loss(predicted.float(), pipeline.scheduler.get_velocity(clean, noise, timesteps), self.settings.loss)

    def conditions(
        self, batch: Batch, frames: Float[Tensor, "b f 3 h w"], draws: Sequence[torch.Generator]
    ) -> tuple[Float[Tensor, "b c f h w"], Float[Tensor, "b d f h w"]]:
        """Condition latents, and all that is concatenated to the noisy ones; each clip has its photos at its own ``ends``."""
        pipeline, found = self.pipeline, []
        for clip, (ends, draw) in enumerate(zip(batch.ends.tolist(), draws)):
            one = slice(clip, clip + 1)
            renders, visibility, sources = (
                None if part is None else part[one] for part in (batch.renders, batch.visibility, batch.sources)
            )
            shown = None if renders is None else renders * 2 - 1
            latents = condition_latents(pipeline.vae, frames[one][:, ends], ends, frames.shape[1], shown, [draw])
            found.append((latents, pipeline.input_condition(latents, ends, visibility, sources)))
        condition, seen = (torch.cat(parts) for parts in zip(*found))
        return condition, seen


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


def draw_timesteps(terminal_share: float, draws: Sequence[torch.Generator], steps: int = 1000) -> Int[Tensor, " b"]:
    """Uniform random timesteps, one per generator; each is replaced by the last one with probability ``terminal_share``."""
    drawn = [int(torch.randint(steps, (), generator=draw)) for draw in draws]
    return torch.tensor([steps - 1 if chance(terminal_share, draw) else step for step, draw in zip(drawn, draws)])


def drop_conditions(
    tokens: dict[str, Tokens], shares: dict[str, float], draws: Sequence[torch.Generator]
) -> dict[str, Float[Tensor, "b n d"]]:
    """Replace each clip's tokens by the unconditional ones with the given probability (PAPER.md 3)."""
    kept = {}
    for name, (present, absent) in tokens.items():
        dropped = torch.tensor([chance(shares.get(name, 0.0), draw) for draw in draws])[:, None, None]
        kept[name] = present if absent is None else torch.where(dropped.to(present.device), absent, present)
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


def freeze_unreached(pipeline: ReconXPipeline) -> None:
    """Freeze the parameters that the pipeline's forward pass does not use; several processes would wait for their gradients.

    These are the projections of tokens for which there is no encoder, and CLIP's last layer norm (`clip_tokens`).
    """
    for attention in spatial_cross_attentions(pipeline.unet):
        own: Any = attention.processor  # typed as diffusers' own ones only
        of_tokens: dict[str, Sequence[nn.Module]] = {
            "text_encoder": (attention.to_k, attention.to_v),
            "image_encoder": (own.to_k_ip, own.to_v_ip),
        }
        if pipeline.unet.config["structure_dim"] is not None:
            of_tokens["structure_encoder"] = (own.to_k_structure, own.to_v_structure, own.structure_gate)
        for parts in (parts for name, parts in of_tokens.items() if getattr(pipeline, name) is None):
            for part in parts:
                part.requires_grad_(False)
    if pipeline.image_encoder is not None:
        pipeline.image_encoder.post_layernorm.requires_grad_(False)
