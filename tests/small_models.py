"""The video model with a few thousand random weights."""

import torch

from reconx_core.video.conditioning import ImageProjector
from reconx_core.video.latents import PatchLatents
from reconx_core.video.pipeline import ReconXPipeline
from reconx_core.video.scheduler import ReconXScheduler
from reconx_core.video.sources import SOURCES
from reconx_core.video.structure import StructureEncoder
from reconx_core.video.unet import ReconXUNet


def small_pipeline(blends: bool = False) -> ReconXPipeline:
    """Patches as latents, residual to the renders, visibility, all conditions but text; reconx-tiny is one that blends."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, patch_size=112)
    sources, predicted = (SOURCES, (1 + SOURCES) * 64) if blends else (0, 192)
    unet = ReconXUNet(
        in_channels=192 + (1 + sources) * 256, out_channels=predicted, block_out_channels=(32, 32), layers_per_block=1,
        attention_levels=(False, True), attention_head_dim=16, cross_attention_dim=16, norm_num_groups=8,
        input_attention_heads=1, image_tokens_per_frame=0, dropout=0.0, structure_dim=16,
    )  # fmt: skip
    return ReconXPipeline(
        unet=unet, scheduler=ReconXScheduler(rescale_base=None, set_alpha_to_one=True), vae=PatchLatents(8, 4.0),
        image_encoder=CLIPVisionModel(vision), image_projector=ImageProjector(16, 16, 16, 1, 8, 2, 4),
        structure_encoder=StructureEncoder(16, heads=2, frequencies=2, feature_dim=3), concat_visibility=True, residual=True,
        sources=sources,
    )  # fmt: skip
