"""The video network against upstream's numbers, and what the structure attention adds to it."""

import inspect
import json

import pytest
import torch
from torch import nn
from upstream import assert_close, file, fill, fixtures, load, stored

from reconx_core.errors import UserError
from reconx_core.video.checkpoints.parts import projector_sources, unet_sources
from reconx_core.video.checkpoints.unet_keys import projector_config, rename, unet_config, unet_modules
from reconx_core.video.diffusion.conditioning import ImageProjector
from reconx_core.video.diffusion.structure_attention import StructureAttnProcessor, Tokens
from reconx_core.video.diffusion.unet import FrameConv, ReconXUNet, spatial_cross_attentions

SMALL = {
    "block_out_channels": (16, 32, 32), "layers_per_block": 1, "attention_levels": (False, True, False),
    "attention_head_dim": 8, "cross_attention_dim": 12, "norm_num_groups": 8, "input_attention_heads": 2,
    "image_tokens_per_frame": 4, "dropout": 0.1,
}  # fmt: skip
FRAMES = 3


def small_unet(seed=0, **changes):
    torch.manual_seed(seed)
    return ReconXUNet(**{**SMALL, **changes}).eval()


def inputs(seed=1, height=8, width=8, **changes):
    generator = torch.Generator().manual_seed(seed)
    given = {
        "sample": torch.randn(2, 8, FRAMES, height, width, generator=generator),
        "timestep": torch.tensor([7, 500]),
        "text_tokens": torch.randn(2, 5, 12, generator=generator),
        "image_tokens": torch.randn(2, 7, 12, generator=generator),
    }
    return {**given, **changes}


def structure(seed=2):
    return torch.randn(2, 6, 10, generator=torch.Generator().manual_seed(seed))


def set_gates(unet, value):
    for attention in spatial_cross_attentions(unet):
        nn.init.constant_(attention.processor.structure_gate, value)


def recipe_prefix(metadata):
    return metadata["weights"].partition("prefix=")[2].split()[0] if "prefix=" in metadata["weights"] else ""


def watch(unet):
    """Activations of our counterparts of upstream's modules, as they come."""
    block, seen = unet.down_blocks[0], {}
    modules = {
        "input_blocks.0": unet.conv_in, "init_attn": unet.transformer_in, "middle_block": unet.mid_block,
        "input_blocks.1.0": block.temp_convs[0],
        "input_blocks.1.1": block.attentions[0], "input_blocks.1.2": block.temp_attentions[0],
    }  # fmt: skip

    def keep(name):
        return lambda module, inputs, output: seen.update({name: output[0] if isinstance(output, tuple) else output})

    for name, module in modules.items():
        module.register_forward_hook(keep(name))
    return seen


@torch.no_grad()
@pytest.mark.parametrize("path", fixtures("dc_unet_*.safetensors"))
def test_unet_equals_upstream_golden(path):
    tensors, metadata = load(path)
    config = unet_config(metadata["config"])
    with torch.device("meta"):  # spares the random weights
        unet = ReconXUNet(**config)
    fill(unet.to_empty(device="cpu"), lambda names: unet_sources(names, config), recipe_prefix(metadata), stored(tensors))
    seen = watch(unet)
    for output in [name for name in tensors if name.startswith("out.")]:
        context = tensors[f"in.context.{output.split('.')[1]}"]
        fps = None if output.endswith("fs_none") else tensors["in.fs"]
        result = unet(tensors["in.x"], tensors["in.timesteps"], context[:, :77], context[:, 77:], fps=fps)
        assert_close(result.sample, tensors[output])
        for name in [name for name in tensors if name.startswith("mid.") and output == "out.perframe"]:
            reference = tensors[name] if tensors[name].ndim == 4 else tensors[name].transpose(1, 2).flatten(0, 1)
            assert_close(seen[name.removeprefix("mid.")], reference)


@torch.no_grad()
@pytest.mark.parametrize("path", fixtures("dc_resampler_*.safetensors"))
def test_projector_equals_upstream_golden(path):
    tensors, metadata = load(path)
    projector = ImageProjector(**projector_config(metadata["config"]))
    fill(projector, projector_sources, recipe_prefix(metadata), stored(tensors))
    assert_close(projector(tensors["in.x"]), tensors["out.tokens"])


def test_names_follow_the_golden_key_map():
    expected = json.loads(file("keys/parts/dynamicrafter_unet_key_map.json").read_text())["map"]
    table = unet_modules(2, (True, True, True, False))
    assert {name: rename(name, table) for name in expected} == expected
    inverse = {ours: theirs for theirs, ours in table.items()}
    assert [rename(name, inverse) for name in expected.values()] == list(expected)
    with torch.device("meta"):
        assert set(expected.values()) == set(ReconXUNet().state_dict())


def test_another_kind_of_unet_is_refused():
    with pytest.raises(UserError, match="use_causal_attention=True"):
        unet_config({"use_causal_attention": True})


def attention_by_hand(attention, processor, hidden, text, image, tokens):
    """Eq. 11 head by head."""
    query = attention.to_q(hidden)
    terms = [(1.0, text, attention.to_k, attention.to_v), (1.0, image, processor.to_k_ip[0], processor.to_v_ip[0])]
    terms.append((processor.structure_gate.tanh(), tokens, processor.to_k_structure, processor.to_v_structure))
    summed = torch.zeros_like(query)
    for weight, context, to_k, to_v in terms:
        for head in torch.arange(query.shape[-1]).chunk(attention.heads):
            scores = query[..., head] @ to_k(context)[..., head].mT / len(head) ** 0.5
            summed[..., head] += weight * scores.softmax(-1) @ to_v(context)[..., head]
    return attention.to_out[0](summed)


@torch.no_grad()
@pytest.mark.parametrize("shared", [True, False])
def test_attention_is_the_papers_sum_of_three(shared):
    unet = small_unet(structure_dim=10)
    set_gates(unet, 0.7)
    attention = next(spatial_cross_attentions(unet))
    hidden, text, tokens = torch.randn(2 * FRAMES, 9, 32), torch.randn(2, 5, 12), structure()
    image = torch.randn(2 if shared else 2 * FRAMES, 4, 12)
    result = attention(hidden, encoder_hidden_states=Tokens(text, image, tokens))
    repeated = [part if len(part) == len(hidden) else part.repeat_interleave(FRAMES, 0) for part in (text, image, tokens)]
    assert_close(result, attention_by_hand(attention, attention.processor, hidden, *repeated), 1e-6)


@torch.no_grad()
def test_gate_at_zero_is_the_network_without_structure_bit_for_bit():
    unet, plain = small_unet(structure_dim=10), small_unet(seed=9)
    missing, unexpected = plain.load_state_dict(unet.state_dict(), strict=False)
    assert not missing
    assert {name.split("processor.")[1] for name in unexpected} == {
        "to_k_structure.weight", "to_v_structure.weight", "structure_gate"
    }  # fmt: skip
    expected = plain(**inputs()).sample
    assert torch.equal(unet(**inputs(), structure_tokens=structure()).sample, expected)
    set_gates(unet, 0.5)
    assert torch.equal(unet(**inputs()).sample, expected)
    assert torch.equal(unet(**inputs(), structure_tokens=torch.zeros_like(structure())).sample, expected)
    opened = unet(**inputs(), structure_tokens=structure()).sample
    assert (opened - expected).abs().max() > 1e-3
    assert (opened - unet(**inputs(), structure_tokens=structure(seed=3)).sample).abs().max() > 1e-3


def test_closed_gates_have_gradients():
    unet = small_unet(structure_dim=10)
    unet(**inputs(), structure_tokens=structure()).sample.square().sum().backward()
    gates = [attention.processor.structure_gate for attention in spatial_cross_attentions(unet)]
    assert len(gates) == 4  # one down, the middle, two up
    assert all(gate.grad.abs() > 0 for gate in gates)


@torch.no_grad()
def test_image_tokens_belong_to_frames_by_their_number():
    unet, shared = small_unet(), torch.randn(2, 4, 12, generator=torch.Generator().manual_seed(5))
    expected = unet(**inputs(image_tokens=shared)).sample
    assert_close(unet(**inputs(image_tokens=shared.repeat(1, FRAMES, 1))).sample, expected, 1e-5)
    own = torch.cat([shared, torch.zeros(2, 8, 12)], 1)  # the first frame's as before, the others' blank
    assert (unet(**inputs(image_tokens=own)).sample - expected).abs().max() > 1e-3
    always_shared = small_unet(image_tokens_per_frame=0)
    assert_close(always_shared(**inputs(image_tokens=shared.repeat(1, FRAMES, 1))).sample, expected, 1e-5)


@torch.no_grad()
def test_absent_tokens_leave_their_term_out():
    unet, empty = small_unet(), torch.zeros(2, 0, 12)
    without = unet(**inputs(text_tokens=empty)).sample
    for attention in spatial_cross_attentions(unet):
        nn.init.zeros_(attention.to_v.weight)
    assert_close(unet(**inputs()).sample, without, 1e-6)
    neither = unet(**inputs(text_tokens=empty, image_tokens=empty)).sample
    for attention in spatial_cross_attentions(unet):
        nn.init.zeros_(attention.processor.to_v_ip[0].weight)
    assert_close(unet(**inputs()).sample, neither, 1e-6)


@torch.no_grad()
def test_one_time_step_for_a_batch_of_any_size_of_latents():
    unet = small_unet()
    sizes = {"height": 7, "width": 5}
    expected = unet(**inputs(**sizes, timestep=torch.tensor([30, 30]))).sample
    assert expected.shape == (2, 4, FRAMES, 7, 5)
    assert torch.equal(unet(**inputs(**sizes, timestep=30)).sample, expected)
    assert torch.equal(unet(**inputs(**sizes, timestep=torch.tensor(30)), return_dict=False)[0], expected)


@torch.no_grad()
def test_frame_rate_is_neutral_until_trained():
    unet, rate = small_unet(), torch.tensor([6, 24])
    expected = unet(**inputs()).sample
    assert torch.equal(unet(**inputs(), fps=rate).sample, expected)
    nn.init.normal_(unet.fps_embedding.linear_2.weight, generator=torch.Generator().manual_seed(0))
    slow = unet(**inputs(), fps=rate).sample
    normal = unet(**inputs()).sample  # at the default of 24
    assert (slow[0] - normal[0]).abs().max() > 1e-3
    assert_close(slow[1], normal[1], 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("levels", [(True,), (False, False)])
def test_few_levels_work(levels):
    unet = small_unet(block_out_channels=(16, 24)[: len(levels)], attention_levels=levels, norm_num_groups=4)
    assert unet(**inputs()).sample.shape == (2, 4, FRAMES, 8, 8)
    assert len(list(spatial_cross_attentions(unet))) == (4 if levels[0] else 1)


@torch.no_grad()
def test_saving_and_loading_is_lossless(tmp_path):
    unet = small_unet(structure_dim=10)
    set_gates(unet, 0.3)
    unet.save_pretrained(tmp_path)
    loaded = ReconXUNet.from_pretrained(tmp_path)
    settings = inspect.signature(ReconXUNet).parameters
    assert json.dumps([loaded.config[name] for name in settings]) == json.dumps([unet.config[name] for name in settings])
    assert torch.equal(
        loaded(**inputs(), structure_tokens=structure()).sample, unet(**inputs(), structure_tokens=structure()).sample
    )


def gradients(unet):
    """Gradients of one training step with its dropout, and the bytes that the forward pass keeps for the backward pass."""
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    unet.zero_grad()
    torch.manual_seed(4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = unet(**inputs(height=16, width=16), structure_tokens=structure()).sample.square().sum()
    loss.backward()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in unet.parameters()}
    activations = sum(size for pointer, size in kept.items() if pointer not in parameters)
    return {name: parameter.grad.clone() for name, parameter in unet.named_parameters()}, activations


def test_gradient_checkpointing_saves_memory_and_changes_nothing():
    unet = small_unet(structure_dim=10).train()
    expected, everything = gradients(unet)
    unet.enable_gradient_checkpointing()
    checkpointed, kept = gradients(unet)
    assert all(torch.equal(checkpointed[name], gradient) for name, gradient in expected.items())
    assert kept < everything / 4
    unet.disable_gradient_checkpointing()
    assert gradients(unet)[1] == everything


@torch.no_grad()
def test_attention_backend_reaches_every_attention():
    unet = small_unet(structure_dim=10)
    set_gates(unet, 0.5)
    expected = unet(**inputs(), structure_tokens=structure()).sample
    try:
        unet.set_attention_backend("_native_math")
        backends = {module.processor._attention_backend.value for module in unet.modules() if hasattr(module, "processor")}
        assert backends == {"_native_math"}
        assert_close(unet(**inputs(), structure_tokens=structure()).sample, expected, 1e-5)
    finally:
        unet.set_attention_backend("native")


def test_dropout_setting_reaches_residual_blocks_and_temporal_convolutions():
    unet = small_unet(dropout=0.25)
    found = {name.rsplit(".", 1)[0]: module.p for name, module in unet.named_modules() if isinstance(module, nn.Dropout)}
    attention = [p for name, p in found.items() if "transformer_blocks" in name]
    other = [p for name, p in found.items() if "transformer_blocks" not in name]
    assert set(attention) == {0.0}
    assert set(other) == {0.25}


@torch.no_grad()
def test_frame_convolution_is_the_one_of_torch():
    conv = nn.Conv3d(6, 6, (3, 1, 1), padding=(1, 0, 0))
    sample = torch.randn(2, 6, 5, 4, 3)
    assert_close(FrameConv(conv)(sample), conv(sample), 1e-6)
    last = sample.to(memory_format=torch.channels_last_3d)
    assert_close(FrameConv(conv)(last), conv(sample), 1e-6)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="no structure attention"):
        small_unet()(**inputs(), structure_tokens=structure())
    with pytest.raises(UserError, match="3 block_out_channels but 2 attention_levels"):
        small_unet(attention_levels=(True, False))
    with pytest.raises(UserError, match="attention_head_dim 12"):
        small_unet(attention_head_dim=12)
    assert not hasattr(StructureAttnProcessor(8, 8), "structure_gate")
