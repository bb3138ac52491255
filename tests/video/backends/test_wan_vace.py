"""Frames from WanVACEPipeline: tiny random networks, saved and loaded as the published ones are."""

import json
import shutil
import socket
from types import SimpleNamespace

import pytest
import torch
from exact_scene import draw, side_by_side
from safetensors.torch import load_file, save_file

from reconx_core.errors import UserError
from reconx_core.settings import VideoSettings
from reconx_core.types import Condition, Views
from reconx_core.video.backends import wan_vace
from reconx_core.video.backends.wan_vace import encode_texts, find_vace, load_vace, model_clip, vace_frames
from reconx_core.video.clip import PLAUSIBLE, model_size


def make_settings(**changes):
    return VideoSettings(backend="wan-vace", **{"prompt": "a static scene", "steps": 2, "pixels": 32 * 48, **changes})


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder laid out as Wan2.1-VACE-1.3B-diffusers is, with a few thousand random weights."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanVACEPipeline, WanVACETransformer3DModel
    from transformers import T5Tokenizer, UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)  # the libraries draw their initial weights from it
    words = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -2.0) for word in ("a", "static", "scene", "text"))]
    text = UMT5Config(vocab_size=16, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    transformer = WanVACETransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=32, freq_dim=32, ffn_dim=32, num_layers=3, vace_layers=[0, 2],
        vace_in_channels=96, rope_max_seq_len=32,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    with torch.no_grad():  # as they are initialised, hardly anything of the input would reach the output
        for tensor in transformer.parameters():
            tensor.normal_(std=0.3)
        vae.quant_conv.weight *= 50
        vae.post_quant_conv.weight *= 10
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
    pipeline = WanVACEPipeline(T5Tokenizer(vocab=words, extra_ids=0), UMT5EncoderModel(text), vae, scheduler, transformer)
    folder = tmp_path_factory.mktemp("weights") / "tiny-vace"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def calls(monkeypatch):
    """What the pipeline is called with; it still works."""
    from diffusers import WanVACEPipeline

    seen, real = [], WanVACEPipeline.__call__
    monkeypatch.setattr(WanVACEPipeline, "__call__", lambda self, **given: (seen.append(given), real(self, **given))[1])
    return seen


@pytest.fixture
def echo(monkeypatch):
    """The pipeline gives back the video that it gets, so that every frame can be followed."""
    from diffusers import WanVACEPipeline

    monkeypatch.setattr(WanVACEPipeline, "__call__", lambda self, video, **_: SimpleNamespace(frames=video))


def scene(views: int = 2, per_pair: int = 3, height: int = 45, width: int = 70) -> tuple[Views, Condition]:
    """Random pictures; the frames look well visible on the left, and not at all on the right."""
    frames = (views - 1) * per_pair
    photos, renders = (torch.rand(n, height, width, 3, generator=draw(n)) for n in (views, frames))
    inputs = Views(
        photos, torch.ones(views, height, width, dtype=torch.bool), tuple("abcd"[:views]), torch.zeros(views, dtype=torch.bool),
        None, torch.full((views,), torch.nan),
    )  # fmt: skip
    visibility = (torch.arange(width) < width // 2).float().mul(0.7).expand(frames, height, width).clone()
    first = torch.arange(views - 1).repeat_interleave(per_pair)
    position = ((torch.arange(per_pair) + 1) / (per_pair + 1)).repeat(views - 1)
    cameras = side_by_side(frames, 0.1, height, width)
    return inputs, Condition(cameras, renders, visibility, torch.stack([first, first + 1], -1), position)


def generate(weights, views=2, per_pair=3, seed=0, **changes):
    return vace_frames(*scene(views, per_pair), make_settings(weights=str(weights), **changes), draw(seed))


@pytest.mark.parametrize(("views", "per_pair"), [(2, 1), (2, 8), (3, 3)])
def test_every_frame_of_any_count_and_odd_size_is_generated(weights, calls, views, per_pair):
    images, confidence = generate(weights, views, per_pair)
    assert images.shape == ((views - 1) * per_pair, 45, 70, 3)
    assert confidence.shape == images.shape[:3]
    assert images.min() >= 0
    assert images.max() <= 1
    assert (images.std((1, 2, 3)) > 1e-3).all()
    assert len(calls) == views - 1
    for call in calls:
        assert call["num_frames"] % 4 == 1
        assert (call["height"], call["width"]) == (32, 48)


@pytest.mark.parametrize("per_pair", [1, 4, 6])
def test_frames_come_back_at_their_places(weights, echo, per_pair):
    inputs, condition = scene(3, per_pair, 32, 48)
    mixed = torch.randperm(len(condition.cameras), generator=draw())
    condition = Condition(
        condition.cameras, condition.renders, torch.ones_like(condition.visibility), condition.pair[mixed],
        condition.position[mixed],
    )  # fmt: skip
    images, _ = vace_frames(inputs, condition, make_settings(weights=str(weights)), draw())
    torch.testing.assert_close(images, condition.renders)


def test_photos_are_given_whole_at_both_ends_and_frames_in_camera_order(weights, calls):
    inputs, condition = scene(3, 5, 32, 48)
    back = torch.arange(9, -1, -1)
    backwards = Condition(condition.cameras, *(x[back] for x in (condition.renders, condition.visibility, condition.pair)),
                          condition.position[back])  # fmt: skip
    vace_frames(inputs, backwards, make_settings(weights=str(weights)), draw())
    for first, call in enumerate(calls):
        video, mask = call["video"][0].movedim(1, -1), call["mask"][0, :, 0]
        shown = [*range(5 * first, 5 * first + 5), *[5 * first + 4] * 3]
        assert len(video) == len(mask) == 13
        assert torch.equal(video[0], inputs.images[first])
        assert torch.equal(video[9:], inputs.images[first + 1].expand(4, -1, -1, -1))
        assert not mask[[0, 9, 10, 11, 12]].any()
        assert torch.equal(video[1:9, :, :24], condition.renders[shown, :, :24])
        assert (video[1:9, :, 24:] == 0.5).all()
        assert torch.equal(mask[1:9], (condition.visibility[shown] == 0).float())


def test_what_is_masked_out_of_a_photo_is_invented():
    inputs, condition = scene(height=32, width=48)
    inputs.masks[1, :8] = False
    video, mask = model_clip(inputs, condition.renders, condition.visibility, 32 * 48, 4, 16)
    assert mask[-4:, :, :8].all()
    assert (video[-4:, :, :8] == 0.5).all()
    assert not mask[-4:, :, 8:].any()


def test_hidden_colours_do_not_leak_when_a_render_is_resized():
    inputs, condition = scene()
    dark = torch.where(condition.visibility[..., None] > 0, condition.renders, 0.0)
    bright = torch.where(condition.visibility[..., None] > 0, condition.renders, 1.0)
    clips = [model_clip(inputs, renders, condition.visibility, 32 * 48, 4, 16) for renders in (dark, bright)]
    assert torch.equal(clips[0][0], clips[1][0])
    assert torch.equal(clips[0][1], clips[1][1])


def test_the_nearest_allowed_size_has_about_the_same_shape():
    assert model_size(480, 832, 480 * 832, 16) == (480, 832)
    assert model_size(384, 512, 480 * 832, 16) == (544, 736)
    assert model_size(512, 384, 480 * 832, 16) == (736, 544)
    assert model_size(45, 70, 10, 16) == (16, 16)


def test_the_seed_decides(weights):
    once, again, other = (generate(weights, 3, 2, seed)[0] for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert (once - other).abs().mean() > 1e-4


def test_clips_of_one_scene_have_noise_of_their_own(weights, calls):
    generate(weights, 4, 1)
    assert len({call["generator"].initial_seed() for call in calls}) == 3


def test_renders_and_prompt_reach_the_model(weights):
    inputs, condition = scene()
    images, _ = vace_frames(inputs, condition, make_settings(weights=str(weights)), draw())
    condition.renders.mul_(0.5)
    darker, _ = vace_frames(inputs, condition, make_settings(weights=str(weights)), draw())
    assert (images - darker).abs().max() > 1e-4
    prompted, _ = vace_frames(inputs, condition, make_settings(weights=str(weights), prompt="text"), draw())
    assert (prompted - darker).abs().max() > 1e-6


def test_settings_of_other_models_are_named_in_a_sentence(recwarn):
    wan_vace.warn_of_unused(make_settings(guidance=4.0))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    with pytest.warns(UserWarning, match=r"no use for video.image_guidance, video.fps and leaves it out"):
        wan_vace.warn_of_unused(make_settings(image_guidance=3.0, fps=8))


def test_invented_pixels_are_plausible_and_seen_ones_as_sure_as_their_points(weights):
    _, confidence = generate(weights)
    assert (confidence[..., :35] == 0.7).all()
    assert (confidence[..., 35:] == PLAUSIBLE).all()


def test_progress_counts_the_steps_of_all_clips(weights):
    reports = []
    vace_frames(*scene(3, 1), make_settings(weights=str(weights)), draw(), lambda done, total: reports.append((done, total)))
    assert reports == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_texts_are_encoded_as_the_pipeline_does(weights, monkeypatch):
    from diffusers import WanVACEPipeline
    from diffusers.pipelines.wan import pipeline_wan_vace

    monkeypatch.setattr(pipeline_wan_vace, "ftfy", SimpleNamespace(fix_text=str), raising=False)
    pipeline = WanVACEPipeline.from_pretrained(weights)
    expected = pipeline.encode_prompt("a static\n scene", "text", max_sequence_length=512)
    torch.testing.assert_close(encode_texts(weights, ("a static\n scene", "text")), torch.cat(expected))
    assert expected[0].abs().max() > 0.1


def test_the_published_text_encoder_shares_its_embedding(weights, tmp_path):
    """Its file holds the embedding once, and its config says that nothing is tied."""
    folder = shutil.copytree(weights, tmp_path / "published")
    config = folder / "text_encoder" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "tie_word_embeddings": False}))
    assert "encoder.embed_tokens.weight" not in load_file(folder / "text_encoder" / "model.safetensors")
    assert torch.equal(encode_texts(folder, ("a scene",)), encode_texts(weights, ("a scene",)))


def test_the_pipeline_stays_loaded_and_takes_the_schedule_for_480_lines(weights):
    pipeline = load_vace(weights, False)
    assert load_vace(weights, False) is pipeline
    assert pipeline.text_encoder is None
    assert pipeline.scheduler.config.flow_shift == 3.0


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Empty weights folder and Hub cache; every attempt to leave the machine is counted."""
    attempts = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: attempts.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **_: attempts.append(where))
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return attempts


@pytest.mark.parametrize("name", ["", "/no/such/folder", "nobody/nothing"])
def test_missing_weights_say_what_to_fetch_and_where_to_put_it(no_network, tmp_path, name):
    command = f"reconx weights fetch wan-vace.*Wan-AI/Wan2.1-VACE-1.3B-diffusers.*{tmp_path}/weights"
    with pytest.raises(UserError, match=f"{name}.*4.3 GB.*11.4 GB.*Apache-2.0.*{command}"):
        generate(name)
    assert no_network == []


def test_nothing_is_asked_of_the_network_while_loading(no_network, weights, tmp_path):
    folder = find_vace(shutil.copytree(weights, tmp_path / "copy"))
    encode_texts(folder, ("text",))
    load_vace(folder, False)
    assert no_network == []


def test_weights_are_found_by_name_and_in_the_hub_cache(no_network, weights, tmp_path):
    stored = tmp_path / "hub" / "models--someone--vace"
    (stored / "refs").mkdir(parents=True)
    (stored / "refs" / "main").write_text("abc")
    (stored / "snapshots").mkdir()
    (stored / "snapshots" / "abc").symlink_to(weights)
    assert find_vace("someone/vace") == weights
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "Wan2.1-VACE-1.3B-diffusers").symlink_to(weights)
    assert find_vace("") == weights
    assert no_network == []


def test_another_pipeline_is_refused(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "t2v")
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    with pytest.raises(UserError, match=r"holds a WanPipeline, but .* needs a WanVACEPipeline"):
        generate(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder"])
def test_a_missing_tensor_is_named_rather_than_made_up(weights, tmp_path, part):
    folder = shutil.copytree(weights, tmp_path / "holey")
    file = next((folder / part).glob("*.safetensors"))
    tensors = load_file(file)
    lost = min(name for name in tensors if name != "shared.weight")
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{lost} is not in {part}.*reconx weights fetch wan-vace"):
        generate(folder)


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_a_sentence(weights, tmp_path, part):
    folder = shutil.copytree(weights, tmp_path / "torn")
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"Cannot read the Wan VACE weights in {folder}"):
        generate(folder)


def test_a_cut_off_file_is_a_sentence(weights, tmp_path):
    folder = shutil.copytree(weights, tmp_path / "short")
    file = next((folder / "transformer").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="Cannot read the Wan VACE weights"):
        generate(folder)


def test_half_precision_is_for_the_transformer_and_the_texts_only(weights):
    """As on a GPU, with the CPU's own bfloat16."""
    images, _ = generate(weights)
    rough, _ = generate(weights, dtype="bfloat16")
    pipeline = load_vace(weights.resolve(), False, "bfloat16")
    assert (pipeline.transformer.dtype, pipeline.vae.dtype) == (torch.bfloat16, torch.float32)
    assert encode_texts(weights, ("text",), dtype="bfloat16").dtype == torch.bfloat16
    assert 0 < (rough - images).abs().mean() < 0.1 * images.std()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("offload", [False, True])
def test_on_a_gpu_in_half_precision(weights, offload):
    images, _ = generate(weights, pixels=320 * 320, offload=offload)
    assert images.isfinite().all()
    assert images.std() > 1e-3
