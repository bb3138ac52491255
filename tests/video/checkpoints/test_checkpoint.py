"""Published checkpoints become our folders without a weight lost, and whatever is wrong with one is said by name."""

import copy
import errno
import json
import os
import shutil
from functools import cache

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_checkpoint import SMALL, TOWERS, small_checkpoint, write_small_config
from transformers import CLIPConfig, CLIPModel
from upstream import files as upstream_files
from upstream import fixtures, recipe

from reconx_core.cache.digests import file_digest
from reconx_core.errors import UserError
from reconx_core.video.checkpoints import convert as checkpoint
from reconx_core.video.checkpoints.parts import published_parts
from reconx_core.video.checkpoints.verify import verify_folder
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.weights.records import check_digests

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_small_config(tmp_path_factory.mktemp("config") / "small.yaml")


@pytest.fixture(scope="module")
def whole(config):
    return small_checkpoint(config)


@pytest.fixture
def convert(tmp_path, config):
    """Convert tensors by way of a file; returns the folder and its provenance."""

    def run(tensors, name="interp.safetensors", **options):
        path = write(tmp_path / name, tensors)
        return checkpoint.convert(path, tmp_path / f"{name}-converted", **{"config": config, **options})

    return run


def write(path, tensors):
    wrapped = {"state_dict": tensors}
    if path.name.startswith("deepspeed"):
        buffer = torch.cat([value.flatten() for value in tensors.values()])  # DeepSpeed's weights lie in one
        pieces = buffer.split([value.numel() for value in tensors.values()])
        module = {f"_forward_module.{key}": piece.view(tensors[key].shape) for key, piece in zip(tensors, pieces)}
        wrapped = {"module": module, "global_steps": 3}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(wrapped, path)
    return path


def files(folder):
    """Every tensor below a folder, by its network and its name there."""
    return {(path.parent.name, key): value for path in folder.rglob("*.safetensors") for key, value in load_file(path).items()}


def same(a, b):
    return a.keys() == b.keys() and all(a[key].dtype == b[key].dtype and torch.equal(a[key], b[key]) for key in a)


def refused(convert, tensors, *words, **options):
    with pytest.raises(UserError) as error:
        convert(tensors, **options)
    for word in words:
        assert word in str(error.value)


def published(path):
    """The tensors of a published checkpoint without their values, but with its schedule's, and its model's configuration."""
    listed = json.loads(path.read_text())
    tensors = {key: torch.empty(shape, device="meta") for key, shape in listed["state_dict"].items()}
    schedule = np.load(path.with_name(f"{path.stem}_schedule.npz"))
    return {key: torch.from_numpy(schedule[key]) if key in schedule else value for key, value in tensors.items()}, listed[
        "_config"
    ]


@pytest.mark.parametrize("path", fixtures("keys/dynamicrafter/*.json", "keys/viewcrafter/*.json"))
def test_every_tensor_of_a_published_checkpoint_has_its_place_golden(path, tmp_path):
    tensors, described = published(path)
    if any(key.endswith(".alpha") for key in tensors):
        with pytest.raises(UserError, match="256"):
            checkpoint.summarise(tensors, {})
        return
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(described))
    given, default = checkpoint.read_config(tmp_path / "config.yaml"), checkpoint.read_config(None)
    summary = checkpoint.summarise(tensors, default)
    assert summary.rescale_base == described["params"]["base_scale"]
    assert summary.zero_terminal_snr
    scheduler = checkpoint.check_schedule(tensors, summary, default, "i2v")
    buffers = checkpoint.schedule_buffers(scheduler)
    default["unet_config"]["default_fs"] = given["unet_config"]["default_fs"]
    plans = checkpoint.plan_checkpoint(tensors, default, buffers)
    assert [part.build.args for part in published_parts(default)] == [part.build.args for part in published_parts(given)]

    pieces = {}
    for key, index, count in (source for plan in plans for source in plan.sources.values()):
        pieces.setdefault(key, []).append((index, count))
    for found in pieces.values():  # each tensor once and in full
        assert sorted(found) == [(index, len(found)) for index in range(len(found))]
    values = sum(value.numel() for plan in plans for value in plan.module.state_dict().values())
    left = tensors.keys() - pieces.keys() - buffers.keys()
    assert values + sum(tensors[key].numel() for key in [*left, *buffers]) == sum(value.numel() for value in tensors.values())
    assert len(left) == 12 + 2 + 7  # the last text layer, the text tower's head, what is left of the other one


@cache
def whole_model(path):
    """A small model with every part, filled by the recipe; the schedule is one of upstream's own."""
    listed = json.loads(path.read_text())
    schedules = [np.load(found) for found in upstream_files("keys/*/*_schedule.npz")]
    base = listed["config"]["params"]["base_scale"]
    schedule = next(found for found in schedules if "scale_arr" in found and np.isclose(found["scale_arr"][-1], base))
    return {
        key: torch.from_numpy(schedule[key]) if key in schedule else recipe().recipe_tensor(key, shape)
        for key, shape in listed["state_dict"].items()
    }


@pytest.mark.parametrize("path", fixtures("pipeline_*.json"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_whole_checkpoint_converts_without_loss_golden(path, dtype, tmp_path):
    tensors = {key: value.to(dtype) for key, value in whole_model(path).items()}
    base = json.loads(path.read_text())["config"]["params"]["base_scale"]
    out, provenance = checkpoint.convert(write(tmp_path / "model.ckpt", tensors), tmp_path / "out", "viewcrafter", config=path)
    pipeline = ReconXPipeline.from_pretrained(out, dtype=dtype)
    assert pipeline.scheduler.config.rescale_base == base
    assert pipeline.scheduler.config.rescale_last_step
    assert provenance["missing"] == ["tokenizer"]
    upstream = checkpoint.read_config(path)
    upstream["unet_config"].setdefault("default_fs", 10)
    for part in published_parts(upstream):
        found = getattr(pipeline, part.folder).state_dict()
        for name, (key, index, count) in part.sources(found).items():
            wanted = tensors[part.prefix + key].chunk(count)[index]
            assert torch.equal(found[name].flatten(), wanted.flatten()), key


def test_every_form_of_a_checkpoint_gives_the_same_weights(convert, whole):
    reference = files(convert(whole)[0])
    assert len(reference) > 300
    for name in ("dynamicrafter.ckpt", "deepspeed_interp.pt"):
        assert same(files(convert(whole, name)[0]), reference)
    extra = whole | {"model_ema.decay": torch.ones(1)}
    assert same(files(convert(extra, "viewcrafter.safetensors")[0]), reference)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_weights_keep_their_type_or_take_another(name, convert, whole):
    half = getattr(torch, name)
    reference = files(convert({key: value.to(half) for key, value in whole.items()})[0])
    assert {value.dtype for value in reference.values()} == {half}
    assert same(files(convert(whole, "interp.pt", dtype=name)[0]), reference)


def test_large_networks_are_written_in_several_files(convert, whole, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD", "300KB")
    out, _ = convert(whole)
    assert len(list((out / "unet").glob("*.safetensors"))) > 2
    assert same(
        ReconXPipeline.from_pretrained(out).unet.state_dict(),
        ReconXPipeline.from_pretrained(convert(whole, "interp.pt")[0]).unet.state_dict(),
    )


def test_the_folder_says_where_its_weights_come_from(convert, whole, tmp_path):
    out, provenance = convert(whole, "viewcrafter.ckpt")
    assert json.loads((out / "provenance.json").read_text()) == provenance
    assert (provenance["variant"], provenance["class"], provenance["source"]) == ("viewcrafter", "512", "viewcrafter.ckpt")
    assert provenance["sha256"] == file_digest(tmp_path / "viewcrafter.ckpt")
    assert "apache-2.0" in provenance["licence"]
    found = verify_folder(out)
    assert found.what == "ReconXPipeline, viewcrafter, class 512"
    assert {path.relative_to(out).as_posix() for path in found.files} < provenance["files"].keys()
    assert all(recorded for _, recorded in check_digests(out, found.files).values())
    assert convert(whole, "interp.ckpt")[1]["licence"] != provenance["licence"]


@pytest.mark.parametrize(("variant", "base", "fps", "last", "name"), [
    ("i2v", 0.7, 24, False, "dynamicrafter_512"), ("interp", 0.7, 24, False, "dynamicrafter_512_interp"),
    ("i2v", 0.3, 10, False, "dynamicrafter_1024"), ("viewcrafter", 0.7, 10, True, "viewcrafter_512"),
])  # fmt: skip
def test_class_and_variant_set_sampler_frame_rate_and_name(
    variant, base, fps, last, name, whole, config, tmp_path, monkeypatch
):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    buffers = checkpoint.schedule_buffers(ReconXScheduler(rescale_base=base))
    tensors = whole | {"scale_arr": buffers["scale_arr"].to(torch.bfloat16)}
    out, _ = checkpoint.convert(write(tmp_path / "model.ckpt", tensors), variant=variant, config=config)
    pipeline = ReconXPipeline.from_pretrained(out)
    assert out == tmp_path / "weights" / name
    assert pipeline.unet.config.default_fps == fps
    assert (pipeline.scheduler.config.rescale_base, pipeline.scheduler.config.rescale_last_step) == (base, last)


def write_tokenizer(folder):
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "!": 3}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def test_tokenizer_comes_from_the_clip_folder(convert, whole, tmp_path):
    write_tokenizer(tmp_path / "words")
    out, provenance = convert(whole, clip=tmp_path / "words")
    assert (provenance["missing"], provenance["clip"]) == ([], {})
    assert ReconXPipeline.from_pretrained(out).tokenizer("a").input_ids == [0, 2, 1]
    (tmp_path / "words" / "merges.txt").unlink()
    refused(convert, whole, "no tokenizer", name="interp.pt", clip=tmp_path / "words")


def test_pruned_checkpoint_takes_its_towers_from_a_clip_folder(convert, whole, tmp_path):
    reference = files(convert(whole)[0])
    pruned = {key: value for key, value in whole.items() if not key.startswith(TOWERS)}
    out, provenance = convert(pruned, "interp_pruned.safetensors")
    assert provenance["missing"] == ["text_encoder", "image_encoder", "tokenizer"]
    assert not (out / "text_encoder").exists()
    assert ReconXPipeline.from_pretrained(out).image_encoder is None

    text = {
        "hidden_size": 32,
        "intermediate_size": 128,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 99,
        "hidden_act": "gelu",
    }
    vision = {
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 28,
        "patch_size": 14,
    }
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))
    clip.save_pretrained(tmp_path / "clip")
    (tmp_path / "clip" / "open_clip_model.safetensors").write_bytes(b"not read")
    write_tokenizer(tmp_path / "clip")
    out, provenance = convert(pruned, "interp.pt", clip=tmp_path / "clip")
    assert provenance["missing"] == []
    assert list(provenance["clip"]) == ["model.safetensors"]
    pipeline = ReconXPipeline.from_pretrained(out)
    ids = torch.randint(0, 99, (2, 77))
    last_but_one = clip.text_model(ids, output_hidden_states=True).hidden_states[-2]
    assert torch.equal(pipeline.text_encoder(ids).last_hidden_state, clip.text_model.final_layer_norm(last_but_one))
    pixels = torch.randn(1, 3, 28, 28)
    assert torch.equal(pipeline.image_encoder(pixels).last_hidden_state, clip.vision_model(pixels).last_hidden_state)
    assert pipeline.tokenizer("a").input_ids == [0, 2, 1]

    again, _ = convert(pruned, "interp.ckpt", clip=tmp_path / "interp.safetensors-converted")
    assert same(files(again), reference)


def test_another_clip_is_refused(convert, whole, tmp_path):
    pruned = {key: value for key, value in whole.items() if not key.startswith(TOWERS)}
    text = {"num_hidden_layers": 2, "vocab_size": 99}
    CLIPModel(CLIPConfig(text_config=text, vision_config={"num_hidden_layers": 1})).save_pretrained(tmp_path / "clip")
    refused(convert, pruned, "512", "32 channels", clip=tmp_path / "clip")
    (tmp_path / "clip" / "model.safetensors").unlink()
    refused(convert, pruned, "no model.safetensors", clip=tmp_path / "clip")
    refused(convert, pruned, "nowhere", "config.json", clip=tmp_path / "nowhere")


@pytest.mark.parametrize("gone", [
    "model.diffusion_model.init_attn.0.proj_in.weight", "model.diffusion_model.output_blocks.1.0.skip_connection.weight",
    "first_stage_model.decoder.up.1.upsample.conv.bias", "image_proj_model.layers.0.0.to_kv.weight",
    "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias", "embedder.model.visual.ln_post.weight",
])  # fmt: skip
def test_the_missing_key_is_named(gone, convert, whole):
    refused(convert, {key: value for key, value in whole.items() if key != gone}, f"'{gone}'", "lacks")


@pytest.mark.parametrize("extra", ["model.diffusion_model.input_blocks.9.0.op.weight", "first_stage_model.loss.logvar", "more"])
def test_the_unknown_key_is_named(extra, convert, whole):
    refused(convert, whole | {extra: torch.ones(3)}, f"'{extra}'")


def test_the_misshapen_key_is_named_with_both_shapes(convert, whole):
    for key, shape in (
        ("first_stage_model.encoder.conv_in.weight", [32, 4, 3, 3]),
        ("embedder.model.visual.conv1.weight", [64, 3, 7, 7]),
    ):
        refused(convert, whole | {key: torch.ones(shape)}, key, str(shape), str(list(whole[key].shape)))


@pytest.mark.parametrize("name", ["betas", "alphas_cumprod", "scale_arr", "posterior_mean_coef2"])
def test_another_noise_schedule_is_refused(name, convert, whole):
    changed = whole[name].clone()
    changed[10] += 2e-4
    refused(convert, whole | {name: changed}, f"'{name}'")


def test_truncated_and_foreign_files(convert, whole, tmp_path, config):
    for name in ("interp.ckpt", "interp.safetensors"):
        path = write(tmp_path / name, whole)
        for size in (0, 100, path.stat().st_size // 2, path.stat().st_size - 1):
            content = path.read_bytes()[:size]
            (tmp_path / f"cut-{name}").write_bytes(content)
            with pytest.raises(UserError, match="truncated, damaged or not a checkpoint") as error:
                checkpoint.convert(tmp_path / f"cut-{name}", tmp_path / "out", config=config)
            assert "\n" not in str(error.value)
    (tmp_path / "interp.png").write_bytes(b"x")
    torch.save({"state_dict": {"a": "text"}}, tmp_path / "interp.pt")
    for name, words in (("interp.png", "should end in"), ("nowhere.ckpt", "no file"), ("interp.pt", "no table of tensors")):
        with pytest.raises(UserError, match=words):
            checkpoint.read_checkpoint(tmp_path / name)
    refused(convert, {"conv.weight": torch.ones(3)}, "no DynamiCrafter or ViewCrafter checkpoint")


class Code:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_not_run(tmp_path):
    torch.save({"state_dict": {"a": Code(tmp_path / "owned")}}, tmp_path / "interp.ckpt")
    with pytest.raises(UserError, match="could run code"):
        checkpoint.convert(tmp_path / "interp.ckpt", tmp_path / "out")
    assert not (tmp_path / "owned").exists()


def test_the_256_model_is_refused(convert, whole):
    for key in (
        "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.alpha",
        "model.diffusion_model.framestride_embed.0.weight",
    ):
        refused(convert, whole | {key: torch.ones(1)}, "256")


def test_options_that_cannot_be(convert, whole, config, tmp_path):
    refused(convert, whole, "'loop'", variant="loop")
    refused(convert, whole, "'int8'", dtype="int8")
    refused(convert, whole, "--variant", name="model.ckpt")
    refused(convert, {key: value for key, value in whole.items() if key != "scale_arr"}, "'scale_arr'", "--config")
    refused(convert, whole, "YAML", config=tmp_path / "nowhere.yaml")
    (tmp_path / "other.yaml").write_text("model: {params: {unet_config: 3}}")
    refused(convert, whole, "YAML", config=tmp_path / "other.yaml")
    other = copy.deepcopy(SMALL)
    other["model"]["params"]["base_scale"] = 0.3
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    refused(convert, whole, "base_scale 0.7", "0.3", config=tmp_path / "other.yaml")
    convert(whole)
    refused(convert, whole, "is there already")


def test_nothing_is_left_behind_where_writing_fails(convert, whole, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(ReconXPipeline, "save_config", full)
    refused(convert, whole, "disk", "full")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["interp.safetensors"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
    refused(convert, whole, "0.0 GB are free")
