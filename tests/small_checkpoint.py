"""A small checkpoint in DynamiCrafter's published layout, with every kind of key that published ones have."""

import copy

import torch
import yaml

from reconx_core.video.checkpoints import convert as checkpoint
from reconx_core.video.checkpoints.parts import published_parts
from reconx_core.video.diffusion.scheduler import ReconXScheduler

TOWERS = ("cond_stage_model.", "embedder.")
SMALL = {
    "model": {
        "params": {
            "unet_config": {"params": {"model_channels": 32, "channel_mult": [1, 2], "attention_resolutions": [1],
                                       "num_res_blocks": 1, "num_head_channels": 16, "context_dim": 32}},
            "first_stage_config": {"params": {"ddconfig": {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32,
                                                           "ch_mult": [1, 2], "num_res_blocks": 1}}},
            "image_proj_stage_config": {"params": {"dim": 32, "depth": 1, "dim_head": 16, "heads": 2, "embedding_dim": 64,
                                                   "output_dim": 32, "video_length": 4}},
        }
    },
    "clip": {
        "vision_cfg": {"image_size": 28, "layers": 2, "width": 64, "head_width": 16, "patch_size": 14},
        "text_cfg": {"context_length": 77, "vocab_size": 99, "width": 32, "heads": 2, "layers": 3},
    },
}  # fmt: skip


def write_small_config(path, vocabulary=99):
    """``vocabulary``: number of words; CLIP's 49,408 are needed to encode a prompt."""
    config = copy.deepcopy(SMALL)
    config["clip"]["text_cfg"]["vocab_size"] = vocabulary
    path.write_text(yaml.safe_dump(config))
    return path


def small_checkpoint(config, scale=1.0):
    """Its tensors, random; ``scale``: their standard deviation."""
    upstream = checkpoint.read_config(config)
    upstream["unet_config"]["default_fs"] = 24
    generator = torch.Generator().manual_seed(0)
    buffers = checkpoint.schedule_buffers(ReconXScheduler())
    shapes = dict.fromkeys(buffers)
    for part in published_parts(upstream):
        with torch.device("meta"):
            weights = part.build().state_dict()
        for name, (key, _, count) in part.sources(weights).items():
            first, *rest = weights[name].shape
            shapes[part.prefix + key] = (first * count, *rest)
    layer = {key: shape for key, shape in shapes.items() if "cond_stage_model" in key and ".resblocks.1." in key}
    shapes |= {key.replace(".1.", ".2."): shape for key, shape in layer.items()}
    shapes["embedder.model.visual.proj"] = (64, 24)
    for tower in TOWERS:
        shapes |= {f"{tower}model.text_projection": (32, 24), f"{tower}model.logit_scale": ()}
    return {
        key: buffers[key].float() if shape is None else scale * torch.randn(shape, generator=generator)
        for key, shape in shapes.items()
    }
