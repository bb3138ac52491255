"""The whole pipeline: upstream's clips, and what each of its arguments does."""

import json
import re
from functools import cache

import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel
from upstream import TRAJECTORY, assert_close, cases, fill, load, recipe, stored, tokenizer

from reconx_core.errors import UserError
from reconx_core.video.checkpoints.parts import published_parts
from reconx_core.video.diffusion.conditioning import ImageProjector, clip_tokens
from reconx_core.video.diffusion.latents import PatchLatents, condition_latents, decode_frames
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet

pytestmark = pytest.mark.long


@cache
def upstream_modules(path):
    """The networks of the tiny checkpoint beside a fixture, as ours, and its settings."""
    checkpoint = json.loads(path.with_suffix(".json").read_text())
    settings = checkpoint["config"]["params"]
    sizes = {name: settings[name]["params"] for name in ("unet_config", "first_stage_config", "image_proj_stage_config")}
    known, modules = stored(load(path)[0]), {}
    for part in published_parts({**settings, **sizes, **checkpoint["clip"]}):
        own = {key.removeprefix(part.prefix): value for key, value in known.items() if key.startswith(part.prefix)}
        modules[part.folder] = fill(part.build(), part.sources, part.prefix, own)
    return modules, settings


def upstream_pipeline(path, case):
    """The pipeline as upstream ran it in a case."""
    modules, settings = upstream_modules(path)
    scheduler = ReconXScheduler(
        rescale_base=settings["base_scale"] if settings.get("use_dynamic_rescale") else None,
        rescale_last_step="viewcrafter" in path.stem and not case["multiple_cond_cfg"],
        timestep_spacing=case["timestep_spacing"].removeprefix("uniform_"),
    )
    pipeline = ReconXPipeline(scheduler=scheduler, tokenizer=tokenizer(), **modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def upstream_noise(metadata):
    """The fixture's noises, by upstream's names for them."""
    name = re.search(r"recipe_input\('(.*?)'\)", metadata["noise"])[1]
    kinds = {"vae": "vae", "start": "xT", "step": "ddim"}
    return lambda kind, index, shape: recipe().recipe_input(
        name.replace("<kind>", kinds[kind]).replace("<i>", str(index)), shape
    )


def upstream_inputs(case, video):
    """Photos, positions and renders, from the clip that upstream was given."""
    frames = (video.transpose(1, 2) + 1) / 2
    if "condition_index" in case:
        positions, renders = case["condition_index"], frames
    else:
        positions, renders = [0, case["frames"] - 1] if case["interp"] or case["loop"] else [0], None
    return {"photos": frames[:, positions], "positions": positions, "renders": renders}


@torch.no_grad()
@pytest.mark.parametrize(("path", "name"), cases("pipeline_*.safetensors"))
def test_clips_equal_upstream_golden(path, name):
    tensors, metadata = load(path)
    case, noise = metadata["cases"][name], upstream_noise(metadata)
    pipeline = upstream_pipeline(path, case)
    inputs = upstream_inputs(case, tensors[f"{name}.in.video"])
    latents = {}

    def keep(pipeline, step, timestep, tensors):
        latents.update(tensors)
        return tensors

    frames = pipeline(
        **inputs, generator=noise, num_frames=case["frames"], prompt=case["prompts"] if case["text_input"] else "",
        num_inference_steps=case["steps"], guidance_scale=case["unconditional_guidance_scale"],
        image_guidance_scale=case["cfg_img"] if case["multiple_cond_cfg"] else None,
        guidance_rescale=case["guidance_rescale"], fps=case["fs"], callback_on_step_end=keep,
    ).frames  # fmt: skip
    video = tensors[f"{name}.out.video"][:, 0].transpose(1, 2)
    assert_close(latents["latents"], tensors[f"{name}.mid.latents"], TRAJECTORY)
    assert_close(decode_frames(pipeline.vae, latents["latents"]), video, TRAJECTORY)
    assert_close(frames, ((video + 1) / 2).clamp(0, 1), TRAJECTORY)


@torch.no_grad()
@pytest.mark.parametrize(("path", "name"), cases("pipeline_*.safetensors"))
def test_what_the_network_sees_equals_upstream_golden(path, name):
    tensors, metadata = load(path)
    case, noise = metadata["cases"][name], upstream_noise(metadata)
    pipeline = upstream_pipeline(path, case)
    inputs = upstream_inputs(case, tensors[f"{name}.in.video"])
    middle = {key.removeprefix(f"{name}.mid."): value for key, value in tensors.items() if key.startswith(f"{name}.mid.")}
    photos = inputs["photos"] * 2 - 1
    renders = None if inputs["renders"] is None else inputs["renders"] * 2 - 1

    condition = condition_latents(pipeline.vae, photos, inputs["positions"], case["frames"], renders, noise)
    assert_close(condition, middle["c_concat"])
    assert_close(clip_tokens(pipeline.image_encoder, photos[:, 0]), middle["clip_tokens"])
    assert_close(clip_tokens(pipeline.image_encoder, torch.zeros_like(photos[:, 0])), middle["uncond_clip_tokens"])

    tokens = pipeline.condition_tokens(photos[:, 0], case["prompts"] if case["text_input"] else [""])
    assert_close(tokens["image"][0], middle["image_tokens"])
    assert_close(tokens["image"][1], middle["uncond_image_tokens"])
    passes = pipeline.forward_passes(tokens, dict.fromkeys(tokens, 2.0))
    for (seen, _), kind, first in zip(passes, ("uc", "c"), ("uncond", "cond")):
        assert_close(torch.cat([seen["text"], seen["image"]], 1), middle[f"{kind}_crossattn"])
        fps = torch.tensor([case["fs"]])
        v = pipeline.network(torch.tensor(999), noise("start", 0, condition.shape), condition, fps, **seen)
        assert_close(v, middle[f"first_v_{first}"])


@torch.no_grad()
@pytest.mark.parametrize("place", [1, 2])
@pytest.mark.parametrize(
    ("path", "name"), [case for case in cases("pipeline_*.safetensors") if case.values[1] in (None, "interp")]
)
def test_a_second_photo_inside_the_clip_is_conditioned_on_as_upstream_does_at_its_end(path, name, place):
    """The mode of extrapolation: the latents that upstream puts last, at an intermediate position, and zeros elsewhere."""
    tensors, metadata = load(path)
    case, noise = metadata["cases"][name], upstream_noise(metadata)
    pipeline, last = upstream_pipeline(path, case), case["frames"] - 1
    photos = upstream_inputs(case, tensors[f"{name}.in.video"])["photos"] * 2 - 1
    known = tensors[f"{name}.mid.c_concat"]

    def noise_of_the_last(kind, index, shape):
        return noise(kind, {0: 0, place: last}[index], shape)

    condition = condition_latents(pipeline.vae, photos, [0, place], case["frames"], None, noise_of_the_last)
    expected = torch.zeros_like(known)
    expected[:, :, 0], expected[:, :, place] = known[:, :, 0], known[:, :, last]
    assert_close(condition, expected)


def small_pipeline(residual=False, vae=None, **components):
    """Every component at a size for tests, with random weights and an open structure gate."""
    torch.manual_seed(0)
    vae = vae or PatchLatents(4)
    channels = 48 if isinstance(vae, PatchLatents) else vae.config.latent_channels
    unet = ReconXUNet(
        in_channels=2 * channels + 16 * residual, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
        attention_levels=(True, False), attention_head_dim=4, cross_attention_dim=12, norm_num_groups=4,
        input_attention_heads=2, image_tokens_per_frame=0, structure_dim=8,
    )  # fmt: skip
    for name, parameter in unet.named_parameters():
        if name.endswith("structure_gate"):
            parameter.data.fill_(1.0)
    tower = {"hidden_size": 12, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    modules = {
        "unet": unet, "scheduler": ReconXScheduler(rescale_base=None, set_alpha_to_one=True), "vae": vae,
        "image_encoder": CLIPVisionModel(CLIPVisionConfig(**tower, image_size=32, patch_size=16)),
        "image_projector": ImageProjector(12, 12, 12, depth=1, dim_head=4, heads=2, num_queries=3),
        "structure_encoder": StructureEncoder(8, heads=2, frequencies=2, feature_dim=3),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**tower)),
    }  # fmt: skip
    pipeline = ReconXPipeline(**{**modules, **components}, concat_visibility=residual, residual=residual)
    pipeline.set_progress_bar_config(disable=True)
    for module in pipeline.components.values():
        if isinstance(module, torch.nn.Module):
            module.eval()
    return pipeline


def inputs(clips=1, frames=5):
    seeded = torch.Generator().manual_seed(0)
    return {
        "photos": torch.rand(clips, 2, 3, 16, 24, generator=seeded), "positions": [0, frames - 1], "num_frames": frames,
        "points": torch.randn(clips, 32, 3, generator=seeded), "point_features": torch.rand(clips, 32, 3, generator=seeded),
        "num_inference_steps": 2,
    }  # fmt: skip


def rendered(clips=1, frames=5):
    seeded = torch.Generator().manual_seed(1)
    return {
        "renders": torch.rand(clips, frames, 3, 16, 24, generator=seeded),
        "visibility": torch.rand(clips, frames, 16, 24, generator=seeded),
    }  # fmt: skip


def seeds(*numbers):
    return [torch.Generator().manual_seed(number) for number in numbers]


@pytest.fixture(scope="module")
def pipeline():
    return small_pipeline()


def test_a_folder_gives_the_same_clip(tmp_path):
    pipeline = small_pipeline(residual=True, tokenizer=tokenizer())
    pipeline.save_pretrained(tmp_path)
    loaded = ReconXPipeline.from_pretrained(tmp_path)
    assert {name: type(part) for name, part in loaded.components.items()} == {
        name: type(part) for name, part in pipeline.components.items()
    }
    assert loaded.config.residual
    assert loaded.config.concat_visibility
    clips = [p(**inputs(), **rendered(), generator=seeds(1)).frames for p in (pipeline, loaded)]
    assert torch.equal(*clips)


def test_a_folder_without_the_optional_parts(tmp_path):
    bare = dict.fromkeys(("text_encoder", "image_encoder", "image_projector", "structure_encoder"))
    small_pipeline(**bare).save_pretrained(tmp_path)
    loaded = ReconXPipeline.from_pretrained(tmp_path)
    assert all(getattr(loaded, name) is None for name in bare)
    given = {name: value for name, value in inputs().items() if not name.startswith("point")}
    assert loaded(**given, generator=seeds(1)).frames.isfinite().all()


@pytest.mark.parametrize("positions", [[0, 4], [0, 2], [0]])
def test_interpolation_extrapolation_and_one_photo(pipeline, positions):
    given = {**inputs(), "positions": positions}
    given["photos"] = given["photos"][:, : len(positions)]
    frames = pipeline(**given, generator=seeds(1)).frames
    assert frames.shape == (1, 5, 3, 16, 24)
    assert 0 <= frames.min() < frames.max() <= 1


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_residual_of_zero_gives_the_renders_back(scale):
    pipeline, given, shown = small_pipeline(residual=True), {**inputs(), "num_inference_steps": 1}, rendered()
    for parameter in pipeline.unet.conv_out.parameters():
        parameter.data.zero_()
    frames = pipeline(**given, **shown, generator=seeds(1), guidance_scale=scale).frames
    assert torch.allclose(frames[:, 1:-1], shown["renders"][:, 1:-1], atol=1e-5)
    assert torch.allclose(frames[:, [0, -1]], given["photos"], atol=1e-5)


def test_visibility_reaches_the_network():
    pipeline, shown = small_pipeline(residual=True), rendered()
    seen = pipeline(**inputs(), **shown, generator=seeds(1)).frames
    shown["visibility"] = 1 - shown["visibility"]
    assert not torch.allclose(pipeline(**inputs(), **shown, generator=seeds(1)).frames, seen, atol=1e-4)


def test_points_matter_but_not_their_order(pipeline):
    given = inputs()
    frames = pipeline(**given, generator=seeds(1)).frames
    order = torch.randperm(32, generator=torch.Generator().manual_seed(0))
    shuffled = {name: given[name][:, order] for name in ("points", "point_features")}
    assert torch.allclose(pipeline(**{**given, **shuffled}, generator=seeds(1)).frames, frames, atol=1e-5)
    moved = pipeline(**{**given, "points": given["points"] * 2}, generator=seeds(1)).frames
    assert not torch.allclose(moved, frames, atol=1e-4)


def test_an_encoder_of_points_alone_is_given_no_colours():
    torch.manual_seed(0)
    pipeline, given = small_pipeline(structure_encoder=StructureEncoder(8, heads=2, frequencies=2).eval()), inputs()
    frames = pipeline(**given, generator=seeds(1)).frames
    del given["point_features"]
    assert torch.equal(pipeline(**given, generator=seeds(1)).frames, frames)


@pytest.mark.parametrize(
    ("scales", "batches"),
    [
        ({"guidance_scale": 1.0}, [1]),
        ({"guidance_scale": 7.5}, [2]),
        ({"guidance_scale": 7.5, "structure_guidance_scale": 2.0}, [3]),
        ({"guidance_scale": 7.5, "image_guidance_scale": 1.0}, [2]),
        ({"guidance_scale": 7.5, "batch_guidance": False}, [1, 1]),
    ],
)
def test_only_the_passes_that_are_needed(pipeline, scales, batches):
    sizes = []
    hook = pipeline.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    pipeline(**{**inputs(), "num_inference_steps": 1}, generator=seeds(1), **scales)
    hook.remove()
    assert sizes == batches


@pytest.mark.parametrize("prompt", ["", "a room"])
def test_batched_guidance_is_the_same_as_one_by_one(prompt):
    pipeline = small_pipeline(tokenizer=tokenizer())
    scales = {"guidance_scale": 3.0, "image_guidance_scale": 2.0, "structure_guidance_scale": 4.0, "prompt": prompt}
    together, apart = (
        pipeline(**inputs(2), **scales, generator=seeds(1, 2), batch_guidance=batched).frames for batched in (True, False)
    )
    assert torch.allclose(together, apart, atol=1e-5)


def test_each_clip_has_its_own_seed(pipeline):
    given = inputs(2)
    both = pipeline(**given, generator=seeds(1, 2)).frames
    alone = {name: value[1:] if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    assert torch.allclose(pipeline(**alone, generator=seeds(2)).frames, both[1:], atol=1e-5)
    assert not torch.allclose(pipeline(**alone, generator=seeds(3)).frames, both[1:], atol=1e-2)


def test_half_precision_stays_near():
    pipeline = small_pipeline()
    full = pipeline(**inputs(), generator=seeds(1)).frames
    half = pipeline.to(torch.bfloat16)(**inputs(), generator=seeds(1)).frames
    assert half.dtype == torch.float32
    assert (half - full).abs().mean() < 0.02


def test_a_vae_with_slices_and_offload():
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    vae = AutoencoderKL(**levels, block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4)
    pipeline = small_pipeline(vae=vae)
    frames = pipeline(**inputs(), generator=seeds(1)).frames
    assert torch.allclose(pipeline(**inputs(), generator=seeds(1), vae_slice_size=2).frames, frames, atol=1e-5)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert torch.allclose(pipeline(**inputs(), generator=seeds(1)).frames, frames, atol=1e-5)
    assert torch.allclose(pipeline(**inputs(), generator=seeds(1)).frames, frames, atol=1e-5)


def test_the_callback_sees_every_step_and_may_change_the_latents(pipeline):
    seen = []

    def clear(pipeline, step, timestep, tensors):
        seen.append((step, int(timestep)))
        return {"latents": torch.zeros_like(tensors["latents"])}

    latents = pipeline(**inputs(), generator=seeds(1), callback_on_step_end=clear, output_type="latent").frames
    assert seen == [(0, 999), (1, 499)]
    assert latents.shape == (1, 48, 5, 4, 6)
    assert not latents.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": [0, 5]}, "positions from 0 to 4"),
        ({"positions": [0, 0]}, "different positions"),
        ({"photos": torch.zeros(1, 2, 3, 20, 24)}, "multiples of 8 .* 24×20"),
        ({"renders": torch.zeros(1, 4, 3, 16, 24)}, "renders have the shape"),
        ({"visibility": torch.zeros(1, 5, 8, 24)}, "visibility has the shape"),
        ({"prompt": ["", ""]}, "2 prompts for 1 clips"),
        ({"prompt": "a room"}, "without a tokenizer"),
        ({"generator": seeds(1, 2)}, "2 generators for 1 clips"),
        ({"output_type": "pil"}, "output type 'pil'"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(pipeline, change, message):
    with pytest.raises(UserError, match=message):
        pipeline(**{**inputs(), "generator": seeds(1), **change})


def test_what_a_model_lacks_or_needs_is_said():
    bare = small_pipeline(text_encoder=None, structure_encoder=None)
    with pytest.raises(UserError, match="no structure encoder"):
        bare(**inputs(), generator=seeds(1))
    with pytest.raises(UserError, match="no text encoder"):
        bare(**{**inputs(), "points": None}, prompt="a room", generator=seeds(1))
    residual = small_pipeline(residual=True)
    with pytest.raises(UserError, match="give it renders"):
        residual(**inputs(), generator=seeds(1))
    with pytest.raises(UserError, match="give it their visibility"):
        residual(**inputs(), renders=rendered()["renders"], generator=seeds(1))
