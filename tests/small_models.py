"""The video model, DUSt3R, VGGT and Depth-Anything-3 with a few thousand random weights."""

import json
import re
from pathlib import Path

import torch
from safetensors.torch import save_file

from reconx_core.pointcloud.networks.da3 import DA3
from reconx_core.pointcloud.networks.da3_config import da3_config
from reconx_core.pointcloud.networks.dust3r import DUSt3R, dust3r_config
from reconx_core.pointcloud.networks.vggt import VGGT, vggt_config
from reconx_core.video.diffusion.conditioning import ImageProjector
from reconx_core.video.diffusion.latents import PatchLatents
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet
from reconx_core.video.sources import SOURCES


def small_pipeline(blends: bool = False, residual: bool = True, colours: bool = True) -> ReconXPipeline:
    """Patches as latents, residual to the renders, visibility, all conditions but text; reconx-tiny is one that blends.

    Without ``colours`` the structure encoder sees points alone, as the paper's does.
    """
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
        structure_encoder=StructureEncoder(16, heads=2, frequencies=2, feature_dim=3 * colours), concat_visibility=True,
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
    return config, varied(DUSt3R(dust3r_config(config)))


def small_vggt() -> tuple[dict, VGGT]:
    """The settings as upstream names them, and the network, whose cameras are cameras."""
    config = {
        "img_size": 70, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "dino": {"depth": 1, "num_heads": 2},
        "camera_head": {"trunk_depth": 1, "num_heads": 2},
        "dpt": {"features": 8, "out_channels": [4, 4, 4, 4], "intermediate_layer_idx": [0, 0, 0, 0]},
    }  # fmt: skip
    network = varied(VGGT(vggt_config(config)))
    # The camera is a sum of four rounds; of a field of view below 0 there is no camera.
    network.camera_head.pose_branch.fc2.weight.data *= 1e-3
    network.camera_head.pose_branch.fc2.bias.data = torch.tensor([0.02, -0.03, 0.1, 0.05, 0.1, -0.05, 1.0, 0.25, 0.3])
    return config, network


def small_da3() -> tuple[dict, DA3]:
    """The settings as in config.json, and the network, whose cameras are cameras."""
    sizes = {
        "net": {
            "name": "tiny", "img_size": 70, "embed_dim": 32, "depth": 4, "num_heads": 2, "out_layers": [3, 3, 3, 3],
            "alt_start": 2, "qknorm_start": 2, "rope_start": 2, "cat_token": True,
        },
        "head": {"dim_in": 64, "output_dim": 2, "features": 8, "out_channels": [4, 4, 4, 4]},
        "cam_enc": {"dim_out": 32}, "cam_dec": {"dim_in": 64},
    }  # fmt: skip
    torch.manual_seed(0)
    network = varied(DA3(da3_config(sizes)))
    network.cam_dec.fc_t.weight.data *= 0.1
    network.cam_dec.fc_qvec.weight.data *= 0.1
    network.cam_dec.fc_qvec.bias.data = torch.tensor([0.0, 0.0, 0.0, 1.0])
    network.cam_dec.fc_fov[0].weight.data *= 0.01
    network.cam_dec.fc_fov[0].bias.data = torch.tensor([0.8, 1.0])
    return {"model_name": "da3-tiny", "config": sizes}, network


def da3_tensors(network: DA3) -> dict[str, torch.Tensor]:
    """The network's tensors under the names in published files, which hold a normalisation that four levels share once."""
    alias = re.compile(r"head\.scratch\.output_conv2_aux\.[123]\.2\.")
    return {f"model.{name}": value for name, value in network.state_dict().items() if not alias.match(name)}


def varied(network: torch.nn.Module) -> torch.nn.Module:
    """With weights under which the results differ from pixel to pixel."""
    torch.manual_seed(0)
    for value in network.parameters():
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value, nonlinearity="linear")
    return network.eval()


def save_hub(folder: Path, config: dict, network: torch.nn.Module) -> None:
    """The network in the layout of the Hugging Face Hub."""
    folder.mkdir(parents=True)
    tensors = da3_tensors(network) if isinstance(network, DA3) else network.state_dict()
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
