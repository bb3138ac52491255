"""The video model and DUSt3R with a few thousand random weights."""

import torch

from reconx_core.pointcloud.dust3r_network import DUSt3R, dust3r_config
from reconx_core.video.conditioning import ImageProjector
from reconx_core.video.latents import PatchLatents
from reconx_core.video.pipeline import ReconXPipeline
from reconx_core.video.scheduler import ReconXScheduler
from reconx_core.video.sources import SOURCES
from reconx_core.video.structure import StructureEncoder
from reconx_core.video.unet import ReconXUNet


def small_pipeline(blends: bool = False, residual: bool = True) -> ReconXPipeline:
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
        structure_encoder=StructureEncoder(16, heads=2, frequencies=2, feature_dim=3), concat_visibility=True,
        residual=residual, sources=sources,
    )  # fmt: skip


def small_dust3r() -> tuple[dict, DUSt3R]:
    """The settings as upstream names them, and the network; its pointmaps differ from pixel to pixel."""
    config = {
        "pos_embed": "RoPE100", "patch_embed_cls": "PatchEmbedDust3R", "output_mode": "pts3d", "head_type": "dpt",
        "depth_mode": ["exp", float("-inf"), float("inf")], "conf_mode": ["exp", 1, float("inf")], "landscape_only": False,
        "img_size": [64, 48], "enc_embed_dim": 16, "enc_depth": 1, "enc_num_heads": 2, "dec_embed_dim": 8, "dec_depth": 2,
        "dec_num_heads": 2, "dpt": {"feature_dim": 8, "last_dim": 4, "hooks": [0, 1, 1, 2], "layer_dims": [4, 4, 4, 4]},
    }  # fmt: skip
    torch.manual_seed(0)
    network = DUSt3R(dust3r_config(config)).eval()
    for value in network.parameters():
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value, nonlinearity="linear")
    return config, network
