"""DUSt3R's network: two photos to their pointmaps in the first one's frame (section IV-C of the paper).

Built from a description of its behaviour, not from its source. Parameters are named as in the published checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.dpt import DPTConfig, Pyramid, resizers, tokens_to_map
from reconx_core.pointcloud.networks.vit import (
    Attention,
    Block,
    LayerNorm,
    Linear,
    Mlp,
    PatchEmbed,
    Rotation,
    attend,
    grid_positions,
    lower_precision,
    make_rotation,
    rotate,
)  # fmt: skip

PATCH = 16
EPS = 1e-6
DPT_512 = DPTConfig((0, 6, 9, 12), (96, 192, 384, 768))
SUPPORTED = {  # upstream's arguments of which only these values are supported
    "output_mode": ("pts3d",),
    "patch_embed_cls": ("PatchEmbedDust3R", "ManyAR_PatchEmbed"),  # they differ only in how training batches mix orientations
    "depth_mode": (["exp", -torch.inf, torch.inf],),
    "conf_mode": (["exp", 1.0, torch.inf],),
    "patch_size": (PATCH,),
    "mlp_ratio": (4,),
}
IGNORED = {"landscape_only", "freeze", "mask_ratio"}  # used in training only
SIZES = {
    "enc_embed_dim": "encoder_width", "enc_depth": "encoder_depth", "enc_num_heads": "encoder_heads",
    "dec_embed_dim": "decoder_width", "dec_depth": "decoder_depth", "dec_num_heads": "decoder_heads", "head_type": "head",
}  # fmt: skip


@dataclass(frozen=True)
class DUSt3RConfig:
    """Sizes of the network; the defaults are those of DUSt3R_ViTLarge_BaseDecoder_512_dpt."""

    image_size: int = 512  # long side of the training photos, pixels
    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    rotary_base: float = 100.0
    head: Literal["dpt", "linear"] = "dpt"
    dpt: DPTConfig = DPT_512  # layer 0: the encoder, 1 ...: the decoder's


class Encoded(NamedTuple):
    """Encoder output for photos of one size."""

    tokens: Float[Tensor, "b n c"]
    grid: tuple[int, int]  # rows and columns of patches; n = rows · columns


class Prediction(NamedTuple):
    """Prediction for one photo of a pair."""

    points: Float[Tensor, "b h w 3"]  # in the camera frame of the pair's first photo, up to scale
    confidence: Float[Tensor, "b h w"]  # 1 and more


def dust3r_config(settings: Mapping[str, Any]) -> DUSt3RConfig:
    """The configuration behind upstream's constructor arguments (the hub's config.json, the text in a .pth).

    Raises:
        UserError: a setting is unknown or its value is not supported.
    """
    known = {"pos_embed", "img_size", "dpt", *SUPPORTED, *IGNORED, *SIZES}
    for name, value in settings.items():
        if name not in known or (name in SUPPORTED and plain(value) not in SUPPORTED[name]):
            raise UserError(f"The setting {name}={value!r} of this DUSt3R network is not supported; use a published one.")
    sizes = {ours: settings[theirs] for theirs, ours in SIZES.items() if theirs in settings}
    if sizes.get("head", "dpt") not in ("dpt", "linear"):
        raise UserError(f"This DUSt3R network has a head of type {sizes['head']!r}; only 'dpt' and 'linear' are supported.")
    image_size = settings.get("img_size", 512)
    return DUSt3RConfig(
        image_size=image_size if isinstance(image_size, int) else max(image_size),
        rotary_base=rotary_base(settings.get("pos_embed", "RoPE100")),
        dpt=dpt_config(settings.get("dpt", {}), sizes.get("decoder_depth", 12)),
        **sizes,
    )


def plain(value: Any) -> Any:
    """Convert tuples to lists, and strings such as 'inf' (JSON has no infinity) to numbers."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return float(value) if isinstance(value, int) or value in ("inf", "-inf") else value


def rotary_base(name: str) -> float:
    """The number in 'RoPE100'."""
    found = re.fullmatch(r"RoPE(\d+(?:\.\d+)?)", name)
    if found is None:
        raise UserError(f"This DUSt3R network embeds positions as {name!r}; only rotary ones ('RoPE100') are supported.")
    return float(found[1])


def dpt_config(settings: Mapping[str, Any], decoder_depth: int) -> DPTConfig:
    """Sizes of the dense head; by default it reads the encoder and the decoder at 1/2, 3/4 and the end of its depth."""
    width = settings.get("feature_dim", DPT_512.width)
    layers = settings.get("hooks", (0, decoder_depth // 2, decoder_depth * 3 // 4, decoder_depth))
    widths = settings.get("layer_dims", DPT_512.level_widths)
    return DPTConfig(tuple(layers), tuple(widths), width, settings.get("last_dim", width // 2))


class CrossAttention(nn.Module):
    """Cross-attention between the tokens of two views, with the rotary positions of each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq, self.projk, self.projv = (Linear(width, width) for _ in range(3))
        self.proj = Linear(width, width)

    def forward(
        self, x: Float[Tensor, "b n c"], other: Float[Tensor, "b m c"], rotation: Rotation, other_rotation: Rotation
    ) -> Float[Tensor, "b n c"]:
        query, key, value = (
            states.unflatten(-1, (self.heads, -1)) for states in (self.projq(x), self.projk(other), self.projv(other))
        )
        return self.proj(attend(rotate(query, rotation), rotate(key, other_rotation), value))


class DecoderBlock(nn.Module):
    """Pre-norm self-attention, cross-attention to the other view, and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3, self.norm_y = (LayerNorm(width, EPS) for _ in range(4))
        self.attn = Attention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(
        self, x: Float[Tensor, "b n c"], other: Float[Tensor, "b m c"], rotation: Rotation, other_rotation: Rotation
    ) -> Float[Tensor, "b n c"]:
        x = x + self.attn(self.norm1(x), rotation)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(other), rotation, other_rotation)
        return x + self.mlp(self.norm3(x))


class LinearHead(nn.Module):
    """Linear projection of the last tokens to the pixels of their patches."""

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__()
        self.layers = (config.decoder_depth,)
        self.proj = nn.Linear(config.decoder_width, 4 * PATCH**2)

    def forward(self, features: Mapping[int, Tensor], grid: tuple[int, int]) -> Float[Tensor, "b 4 h w"]:
        tokens = self.proj(features[self.layers[0]])
        return functional.pixel_shuffle(tokens_to_map(tokens, grid), PATCH)


class DPT(nn.Module):
    """Four layers' tokens, projected, fused from coarse to fine and upsampled to pixels."""

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__()
        dpt = config.dpt
        read = [config.decoder_width if layer else config.encoder_width for layer in dpt.layers]
        self.layers = dpt.layers
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(nn.Conv2d(tokens, width, 1), resize)
            for tokens, width, resize in zip(read, dpt.level_widths, resizers(dpt.level_widths))
        )
        self.scratch = Pyramid(dpt, "dust3r")
        self.head = nn.Sequential(
            nn.Conv2d(dpt.width, dpt.width // 2, 3, padding=1),
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
            nn.Conv2d(dpt.width // 2, dpt.last_width, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(dpt.last_width, 4, 1),
        )

    def forward(self, features: Mapping[int, Tensor], grid: tuple[int, int]) -> Float[Tensor, "b 4 h w"]:
        maps = (tokens_to_map(features[layer], grid) for layer in self.layers)
        return self.head(self.scratch([project(level) for project, level in zip(self.act_postprocess, maps)]))


class DPTHead(nn.Module):
    """Wrapper that gives the dense head its parameter names in checkpoints."""

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__()
        self.dpt = DPT(config)
        self.layers = self.dpt.layers

    def forward(self, features: Mapping[int, Tensor], grid: tuple[int, int]) -> Float[Tensor, "b 4 h w"]:
        return self.dpt(features, grid)


class DUSt3R(nn.Module):
    """Encoder, two decoders and a head per view.

    A photo is encoded once for all its pairs; pairs are decoded in batches::

        tokens, grid = network.encode(images)
        first, second = network.decode(Encoded(tokens[i], grid), Encoded(tokens[j], grid))
    """

    def __init__(self, config: DUSt3RConfig) -> None:
        super().__init__()
        self.config = config
        encoder, decoder = config.encoder_width, config.decoder_width
        self.patch_embed = PatchEmbed(encoder, PATCH)
        self.enc_blocks = nn.ModuleList(Block(encoder, config.encoder_heads, EPS) for _ in range(config.encoder_depth))
        self.enc_norm = LayerNorm(encoder, EPS)
        self.decoder_embed = nn.Linear(encoder, decoder)
        self.dec_blocks, self.dec_blocks2 = (
            nn.ModuleList(DecoderBlock(decoder, config.decoder_heads) for _ in range(config.decoder_depth)) for _ in range(2)
        )
        self.dec_norm = LayerNorm(decoder, EPS)
        head = DPTHead if config.head == "dpt" else LinearHead
        self.downstream_head1, self.downstream_head2 = head(config), head(config)

    def lower_precision(self, dtype: torch.dtype) -> DUSt3R:
        """Let the transformer blocks compute in ``dtype`` (bfloat16); residual streams and heads stay in float32."""
        for blocks in (self.enc_blocks, self.dec_blocks, self.dec_blocks2):
            lower_precision(blocks, dtype)
        return self

    def encode(self, images: Float[Tensor, "b 3 h w"]) -> Encoded:
        """Tokens of photos of one size, in [-1, 1], landscape or portrait, sides in multiples of 16."""
        tokens = self.patch_embed(images)
        grid = (images.shape[-2] // PATCH, images.shape[-1] // PATCH)
        rotation = self._rotation(grid, tokens, self.config.encoder_width // self.config.encoder_heads)
        for block in self.enc_blocks:
            tokens = block(tokens, rotation)
        return Encoded(self.enc_norm(tokens), grid)

    def decode(self, first: Encoded, second: Encoded) -> tuple[Prediction, Prediction]:
        """Points of both photos in the first one's camera frame; the photos' sizes may differ.

        Swapped photos give another result, because the two decoders have different weights.
        """
        head1, head2 = self.downstream_head1, self.downstream_head2
        features1, features2 = self._decode_tokens(first, second, set(head1.layers))
        return to_prediction(head1(features1, first.grid)), to_prediction(head2(features2, second.grid))

    def forward(self, first: Float[Tensor, "b 3 h w"], second: Float[Tensor, "b 3 y x"]) -> tuple[Prediction, Prediction]:
        """Encode and decode one batch of pairs."""
        return self.decode(self.encode(first), self.encode(second))

    def _decode_tokens(self, first: Encoded, second: Encoded, layers: set[int]) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Per view the tokens of the ``layers``: 0 is the encoder, the decoder's last one is normalised."""
        width = self.config.decoder_width // self.config.decoder_heads
        turn1, turn2 = (self._rotation(view.grid, view.tokens, width) for view in (first, second))
        x1, x2 = self.decoder_embed(first.tokens), self.decoder_embed(second.tokens)
        kept1, kept2 = {0: first.tokens}, {0: second.tokens}
        for layer, (block1, block2) in enumerate(zip(self.dec_blocks, self.dec_blocks2), 1):
            x1, x2 = block1(x1, x2, turn1, turn2), block2(x2, x1, turn2, turn1)
            if layer in layers:
                kept1[layer], kept2[layer] = x1, x2
        if (last := self.config.decoder_depth) in layers:
            kept1[last], kept2[last] = self.dec_norm(x1), self.dec_norm(x2)
        return kept1, kept2

    def _rotation(self, grid: tuple[int, int], tokens: Tensor, head_width: int) -> Rotation:
        return make_rotation(grid_positions(*grid, tokens.device), head_width, self.config.rotary_base)


def to_prediction(raw: Float[Tensor, "b 4 h w"]) -> Prediction:
    """Points at the distance expm1|xyz| along xyz, and confidence 1 + exp."""
    xyz = raw[:, :3].movedim(1, -1)
    length = xyz.norm(dim=-1, keepdim=True)
    points = xyz * (torch.expm1(length) / length.clamp(min=1e-8))
    return Prediction(points, 1 + raw[:, 3].exp())
