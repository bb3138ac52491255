"""`reconx-tiny`: the paper's network, sampler and conditions at a size that a CPU trains and runs."""

from __future__ import annotations

import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from reconx_core.video.diffusion.conditioning import ImageProjector
from reconx_core.video.diffusion.latents import PatchLatents
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet
from reconx_core.video.sources import SOURCES

PATCH = 4  # small enough that the first level is wider than a patch's channels; otherwise detail would be lost
PIXELS = 3 * PATCH**2  # channels of a frame's latents
WIDTH = 96  # channels of all tokens
TRUST = 2.0  # initial logit of the render; those of the other sources are 0
RESIDUAL_SCALE = 4.0  # scales the difference of a frame from its render to about unit standard deviation


def tiny_pipeline(seed: int) -> ReconXPipeline:
    """The pipeline with random weights, determined by the seed; untrained, it reproduces the renders."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = ReconXUNet(
            in_channels=PIXELS + (1 + SOURCES) * (PIXELS + PATCH**2), out_channels=(1 + SOURCES) * PATCH**2,
            block_out_channels=(48, 64, 96, 128), layers_per_block=1,
            attention_levels=(False, False, False, True), attention_head_dim=32, cross_attention_dim=WIDTH, norm_num_groups=16,
            input_attention_heads=2, image_tokens_per_frame=0, dropout=0.0, structure_dim=WIDTH,
        )  # fmt: skip
        torch.nn.init.zeros_(unet.conv_out.weight)
        torch.nn.init.zeros_(unet.conv_out.bias)  # type: ignore[arg-type]
        torch.nn.init.constant_(unet.conv_out.bias[: PATCH**2], TRUST)  # type: ignore[index]
        vision = CLIPVisionConfig(
            hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=3, patch_size=28,
            projection_dim=WIDTH,
        )  # fmt: skip
        return ReconXPipeline(
            unet=unet,
            scheduler=ReconXScheduler(rescale_base=None, set_alpha_to_one=True),
            vae=PatchLatents(PATCH, RESIDUAL_SCALE),
            image_encoder=CLIPVisionModel(vision),
            image_projector=ImageProjector(WIDTH, WIDTH, WIDTH, depth=1, dim_head=32, heads=3, num_queries=32),
            structure_encoder=StructureEncoder(WIDTH, heads=3, frequencies=6, feature_dim=3),
            concat_visibility=True,
            residual=True,
            sources=SOURCES,
        )
