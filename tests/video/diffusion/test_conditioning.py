"""CLIP's view of photos and prompts, as the networks were trained with it."""

import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from upstream import assert_close, fill, fixtures, load, stored, tokenizer

from reconx_core.errors import UserError
from reconx_core.video.checkpoints.parts import text_config, text_sources, vision_config, vision_sources
from reconx_core.video.diffusion.conditioning import (
    ImageProjector,
    clip_pixels,
    clip_tokens,
    image_tokens,
    text_ids,
    text_tokens,
)


@torch.no_grad()
@pytest.mark.parametrize("path", fixtures("dc_clip_*.safetensors"))
def test_clip_equals_upstream_golden(path):
    tensors, metadata = load(path)
    sizes = metadata["config"]
    text = CLIPTextModel(CLIPTextConfig(**text_config(sizes["text_cfg"])))
    text = fill(text, text_sources, "cond_stage_model.model.", stored(tensors, "text.model."))
    assert_close(text_tokens(text, tensors["in.tokens"]), tensors["out.text_penultimate_lnfinal"])

    vision = CLIPVisionModel(CLIPVisionConfig(**vision_config(sizes["vision_cfg"])))
    vision = fill(vision, vision_sources, "embedder.model.", stored(tensors, "vision.model."))
    for case in ("", "_upscale_case"):
        image = tensors[f"in.image{case}"].float()
        assert_close(clip_pixels(image), tensors[f"out.preprocessed{case}"])
        assert_close(clip_tokens(vision, image), tensors[f"out.vision_tokens{case}"])
    blank = torch.zeros_like(tensors["in.image"][:1]).float()
    assert_close(clip_tokens(vision, blank), tensors["out.vision_tokens_zero_image"])


@pytest.mark.parametrize("path", fixtures("dc_clip_*.safetensors"))
def test_token_ids_equal_open_clip_golden(path):
    tensors, metadata = load(path)
    assert torch.equal(text_ids(tokenizer(), metadata["prompts"]), tensors["in.tokens"])


def test_a_uniform_image_stays_uniform_at_any_size():
    pixels = clip_pixels(torch.zeros(1, 3, 50, 700))
    assert pixels.shape == (1, 3, 224, 224)
    assert torch.allclose(pixels, pixels[..., :1, :1].expand_as(pixels), atol=1e-6)


def test_stripes_too_fine_for_clip_vanish():
    stripes = (torch.arange(2240) % 2 * 2.0 - 1).expand(1, 3, 300, -1)
    inner = clip_pixels(stripes)[..., 10:-10]
    assert (inner - clip_pixels(torch.zeros_like(stripes))[..., 10:-10]).abs().max() < 0.02


def test_the_empty_prompt_needs_no_tokenizer():
    assert text_ids(None, ["", ""])[1].tolist() == [49406, 49407, *[0] * 75]
    with pytest.raises(UserError, match="without a tokenizer"):
        text_ids(None, ["", "a room"])


@torch.no_grad()
def test_a_projector_survives_a_folder(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16}
    vision = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=32)).eval()
    projector = ImageProjector(16, 12, 16, depth=1, dim_head=8, heads=2, num_queries=6)
    projector.save_pretrained(tmp_path)
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    tokens = image_tokens(vision, projector, images)
    assert tokens.shape == (2, 6, 12)
    assert torch.equal(image_tokens(vision, ImageProjector.from_pretrained(tmp_path), images), tokens)
