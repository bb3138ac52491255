"""The networks in a published checkpoint: their sizes, and the key of each weight of our classes in the file.

The published names are LDM's (VAE) and open_clip's (CLIP); ours are those of the installed diffusers and transformers, read
from the classes because transformers renames its modules between versions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from reconx_core.video.checkpoints.unet_keys import projector_config, rename, unet_config, unet_modules

# (key in the file, index and number of equal parts along the first axis): open_clip concatenates queries, keys and values.
Source = tuple[str, int, int]

# What all published 512, 512_Interp, 1024 and ViewCrafter checkpoints share, in the form of upstream's YAML files.
PUBLISHED: dict[str, Any] = {
    "linear_start": 0.00085,
    "linear_end": 0.012,
    "timesteps": 1000,
    "scale_factor": 0.18215,
    "unet_config": {
        "in_channels": 8,
        "out_channels": 4,
        "model_channels": 320,
        "attention_resolutions": [4, 2, 1],
        "num_res_blocks": 2,
        "channel_mult": [1, 2, 4, 4],
        "dropout": 0.1,
        "num_head_channels": 64,
        "context_dim": 1024,
    },
    "first_stage_config": {
        "ddconfig": {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2},
    },
    "image_proj_stage_config": {
        "dim": 1024,
        "depth": 4,
        "dim_head": 64,
        "heads": 12,
        "num_queries": 16,
        "embedding_dim": 1280,
        "output_dim": 1024,
        "ff_mult": 4,
        "video_length": 16,
    },
    # open_clip's ViT-H-14, in the form of its own model files.
    "vision_cfg": {"image_size": 224, "layers": 32, "width": 1280, "head_width": 80, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1024, "heads": 16, "layers": 24},
}

_VAE = (
    (r"mid_block\.attentions\.0\.group_norm\.", "mid.attn_1.norm."),
    (r"mid_block\.attentions\.0\.to_out\.0\.", "mid.attn_1.proj_out."),
    (r"mid_block\.attentions\.0\.to_([qkv])\.", r"mid.attn_1.\1."),
    (r"mid_block\.resnets\.0\.", "mid.block_1."),
    (r"mid_block\.resnets\.1\.", "mid.block_2."),
    (r"down_blocks\.", "down."),
    (r"\.resnets\.", ".block."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.conv_norm_out\.", ".norm_out."),
)
_LAYERS = (
    (r"^encoder\.layers\.", "transformer.resblocks."),
    (r"\.layer_norm([12])\.", r".ln_\1."),
    (r"\.self_attn\.[qkv]_proj\.", ".attn.in_proj_"),
    (r"\.self_attn\.", ".attn."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
_TEXT = (
    *_LAYERS,
    (r"^embeddings\.token_embedding\.", "token_embedding."),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^final_layer_norm\.", "ln_final."),
)
_VISION = (
    *_LAYERS,
    (r"^embeddings\.class_embedding", "class_embedding"),
    (r"^embeddings\.patch_embedding\.", "conv1."),
    (r"^embeddings\.position_embedding\.weight", "positional_embedding"),
    (r"^pre_layrnorm\.", "ln_pre."),
    (r"^post_layernorm\.", "ln_post."),
)
_PROJECTOR = (
    (r"\.ln0\.", ".0.norm1."),
    (r"\.ln1\.", ".0.norm2."),
    (r"\.attn\.to_q\.", ".0.to_q."),
    (r"\.attn\.to_[kv]\.", ".0.to_kv."),
    (r"\.attn\.to_out\.0\.", ".0.to_out."),
    (r"\.ff\.0\.", ".1.0."),
    (r"\.ff\.1\.net\.0\.proj\.", ".1.1."),
    (r"\.ff\.1\.net\.2\.", ".1.3."),
)


@dataclass(frozen=True)
class Part:
    """A network in a checkpoint: its output folder, its constructor, and the keys of its weights."""

    folder: str
    prefix: str  # of its keys in the file
    build: Callable[[], Any]  # makes a model of diffusers or transformers
    sources: Callable[[Iterable[str]], dict[str, Source]]  # keys without the prefix, by the names of our weights
    unused: str = "(?!)"  # pattern of keys (without the prefix) that the network does not read


def published_parts(upstream: Mapping[str, Any]) -> list[Part]:
    """The networks of a DynamiCrafter or ViewCrafter checkpoint with the sizes in ``upstream`` (see `PUBLISHED`)."""
    unet, projector = unet_config(upstream["unet_config"]), projector_config(upstream["image_proj_stage_config"])
    vae = {**upstream["first_stage_config"], "scale_factor": upstream["scale_factor"]}
    text, vision = upstream["text_cfg"], upstream["vision_cfg"]
    unused = rf"text_projection$|logit_scale$|transformer\.resblocks\.{text['layers'] - 1}\."
    leftovers = r"positional_embedding$|text_projection$|logit_scale$|token_embedding\.|ln_final\.|visual\.proj$"
    return [
        Part("unet", "model.diffusion_model.", partial(_build_unet, unet), partial(unet_sources, config=unet)),
        Part("vae", "first_stage_model.", partial(_build_vae, vae_config(vae)), vae_sources),
        Part("text_encoder", "cond_stage_model.model.", partial(_build_text, text_config(text)), text_sources, unused),
        Part("image_encoder", "embedder.model.", partial(_build_vision, vision_config(vision)), vision_sources, leftovers),
        Part("image_projector", "image_proj_model.", partial(_build_projector, projector), projector_sources),
    ]


def clip_parts(config: Mapping[str, Any]) -> list[Part]:
    """The two towers in a Hugging Face CLIP's model.safetensors, given its config.json."""
    text, vision = dict(config["text_config"]), dict(config["vision_config"])
    last = text.pop("num_hidden_layers", 12) - 1
    text["num_hidden_layers"] = last
    ids = r"embeddings\.position_ids$"
    return [
        Part("text_encoder", "text_model.", partial(_build_text, text), _same_names, rf"{ids}|encoder\.layers\.{last}\."),
        Part("image_encoder", "vision_model.", partial(_build_vision, vision), _same_names, ids),
    ]


def stored_parts(text: dict[str, Any], vision: dict[str, Any]) -> list[Part]:
    """The two towers in folders that were converted before, given their config.json."""
    return [
        Part("text_encoder", "", partial(_build_text, text), _same_names),
        Part("image_encoder", "", partial(_build_vision, vision), _same_names),
    ]


def _build_unet(config: dict[str, Any]) -> Any:
    from reconx_core.video.diffusion.unet import ReconXUNet

    return ReconXUNet(**config)


def _build_vae(config: dict[str, Any]) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(**config)


def _build_projector(config: dict[str, Any]) -> Any:
    from reconx_core.video.diffusion.conditioning import ImageProjector

    return ImageProjector(**config)


def _build_text(config: dict[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig.from_dict(config))


def _build_vision(config: dict[str, Any]) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPVisionModel(CLIPVisionConfig.from_dict(config))


def unet_sources(targets: Iterable[str], config: dict[str, Any]) -> dict[str, Source]:
    """Where in the file (after ``model.diffusion_model.``) each weight of a `ReconXUNet` of that configuration is found."""
    modules = unet_modules(config["layers_per_block"], config["attention_levels"])
    theirs = {ours: name for name, ours in modules.items()}
    return {name: (rename(name, theirs), 0, 1) for name in targets}


def projector_sources(targets: Iterable[str]) -> dict[str, Source]:
    """Where in the file (after ``image_proj_model.``) each weight of `ImageProjector` is found."""

    def source(name: str) -> Source:
        fused = re.search(r"\.to_([kv])\.", name)
        return _replace(name, _PROJECTOR), "kv".index(fused[1]) if fused else 0, 2 if fused else 1

    return {name: source(name) for name in targets}


def vae_config(upstream: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `AutoencoderKL` for a ``first_stage_config.params``."""
    sizes = upstream["ddconfig"]
    levels = len(sizes["ch_mult"])
    return {
        "in_channels": sizes["in_channels"],
        "out_channels": sizes["out_ch"],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(sizes["ch"] * factor for factor in sizes["ch_mult"]),
        "layers_per_block": sizes["num_res_blocks"],
        "latent_channels": sizes["z_channels"],
        "sample_size": sizes.get("resolution", 256),
        "scaling_factor": upstream.get("scale_factor", 0.18215),
    }


def vae_sources(targets: Iterable[str]) -> dict[str, Source]:
    """Where in the file (after ``first_stage_model.``) each weight of `AutoencoderKL` is found."""
    names = list(targets)
    top = max(int(found[1]) for name in names if (found := re.match(r"encoder\.down_blocks\.(\d+)\.", name)))

    def source(name: str) -> Source:
        # LDM numbers the decoder's levels as the encoder's, finest first; diffusers in the order of computation.
        name = re.sub(r"\.up_blocks\.(\d+)\.", lambda found: f".up.{top - int(found[1])}.", name)
        return _replace(name, _VAE), 0, 1

    return {name: source(name) for name in names}


def text_config(upstream: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `CLIPTextConfig` for an open_clip ``text_cfg``: one layer fewer, as the networks read the last but one."""
    return {
        "vocab_size": upstream["vocab_size"],
        "hidden_size": upstream["width"],
        "intermediate_size": 4 * upstream["width"],
        "num_hidden_layers": upstream["layers"] - 1,
        "num_attention_heads": upstream["heads"],
        "max_position_embeddings": upstream["context_length"],
        "hidden_act": "gelu",
        "pad_token_id": 0,
    }


def vision_config(upstream: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `CLIPVisionConfig` for an open_clip ``vision_cfg``."""
    return {
        "hidden_size": upstream["width"],
        "intermediate_size": 4 * upstream["width"],
        "num_hidden_layers": upstream["layers"],
        "num_attention_heads": upstream["width"] // upstream["head_width"],
        "image_size": upstream["image_size"],
        "patch_size": upstream["patch_size"],
        "hidden_act": "gelu",
    }


def text_sources(targets: Iterable[str]) -> dict[str, Source]:
    """Where in the file (after ``cond_stage_model.model.``) each weight of `CLIPTextModel` is found."""
    return {name: _clip_source(_bare(name), _TEXT) for name in targets}


def vision_sources(targets: Iterable[str]) -> dict[str, Source]:
    """Where in the file (after ``embedder.model.``) each weight of `CLIPVisionModel` is found."""
    found = {name: _clip_source(_bare(name), _VISION) for name in targets}
    return {name: (f"visual.{key}", index, count) for name, (key, index, count) in found.items()}


def _same_names(targets: Iterable[str]) -> dict[str, Source]:
    return {name: (_bare(name), 0, 1) for name in targets}


def _bare(name: str) -> str:
    # transformers before version 5 wraps each tower in one more module.
    return re.sub(r"^(text|vision)_model\.", "", name)


def _clip_source(name: str, rules: tuple[tuple[str, str], ...]) -> Source:
    fused = re.search(r"\.self_attn\.([qkv])_proj\.", name)
    return _replace(name, rules), "qkv".index(fused[1]) if fused else 0, 3 if fused else 1


def _replace(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
