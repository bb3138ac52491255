"""DUSt3R's network against upstream's numbers and names, and what its callers rely on."""

import json
import re

import pytest
import torch
from torch import nn
from upstream import assert_close, file, fill, fixtures, load, recipe, stored

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.dpt import DPTConfig
from reconx_core.pointcloud.networks.dust3r import DUSt3R, DUSt3RConfig, Encoded, dust3r_config, to_prediction

SMALL = DUSt3RConfig(
    image_size=64, encoder_width=32, encoder_depth=2, encoder_heads=2, decoder_width=16, decoder_depth=3, decoder_heads=2,
    dpt=DPTConfig((0, 1, 2, 3), (4, 8, 8, 12), 16, 8),
)  # fmt: skip
LINEAR = {"head": "linear"}


def small_network(seed=0, **changes):
    """Random weights, larger than torch's, so that the photos do influence each other."""
    torch.manual_seed(seed)
    network = DUSt3R(DUSt3RConfig(**{**vars(SMALL), **changes})).eval()
    for value in network.parameters():
        if value.ndim > 1:
            nn.init.kaiming_normal_(value, nonlinearity="linear")
    return network


def photos(count=3, height=48, width=32, seed=1):
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def upstream_network(tensors, metadata):
    """The fixture's network. One tensor has two names upstream, of which the recipe's second one counted."""
    with torch.device("meta"):
        network = DUSt3R(dust3r_config(metadata["config"]))
    known = stored(tensors)
    if scaled := re.search(r"dpt\.head\.4\.weight/bias .*times ([\d.]+)", metadata["weights"]):
        for name, value in network.state_dict().items():
            if re.search(r"dpt\.head\.4\.", name) and name not in known:
                known[name] = float(scaled[1]) * recipe().recipe_tensor(f"dust3r.{name}", value.shape)

    def sources(state):
        return {name: (name if name in known else second_name(name), 0, 1) for name in state}

    return fill(network, sources, re.search(r"prefix=(\w+\.)", metadata["weights"])[1], known)


def second_name(name):
    return re.sub(r"scratch\.layer(\d)_rn", lambda found: f"scratch.layer_rn.{int(found[1]) - 1}", name)


def case_inputs(tensors, case):
    a, b, portrait = (tensors.get(f"in.img_{name}") for name in ("a", "b", "portrait"))
    if case == "portrait":
        return portrait, portrait.flip(-1)
    return (a[:1], portrait) if case == "mixed" else (a, b)


@torch.no_grad()
@pytest.mark.parametrize("path", [case for case in fixtures("dust3r_*.safetensors") if "alignment" not in str(case.values[0])])
def test_network_equals_upstream_golden(path):
    tensors, metadata = load(path)
    network = upstream_network(tensors, metadata)
    if "mid.encoder_tokens_a" in tensors:
        assert_close(network.encode(tensors["in.img_a"]).tokens, tensors["mid.encoder_tokens_a"])
    for case in {name.split(".")[1] for name in tensors if name.startswith("out.")}:
        for number, prediction in enumerate(network(*case_inputs(tensors, case)), 1):
            assert_close(prediction.points, tensors[f"out.{case}.pts3d_{number}"])
            assert_close(prediction.confidence, tensors[f"out.{case}.conf_{number}"])


def test_full_size_has_the_golden_names_and_shapes():
    published = json.loads(file("keys/dust3r/dust3r_vitl_512_dpt.json").read_text())
    aliases = {second for _, second in published["aliased_keys"]}
    expected = {name: shape for name, shape in published["state_dict"].items() if name not in {"mask_token", *aliases}}
    with torch.device("meta"):
        network = DUSt3R(dust3r_config(published["_config"]))
    assert {name: list(value.shape) for name, value in network.state_dict().items()} == expected
    assert network.config == DUSt3RConfig()


def test_settings_of_both_kinds_of_checkpoint_are_read():
    inf = float("inf")
    modes = {"output_mode": "pts3d", "depth_mode": ("exp", -inf, inf), "conf_mode": ("exp", 1, inf)}
    sizes = {"enc_embed_dim": 64, "dec_depth": 8, "img_size": (224, 224), "landscape_only": False}
    config = dust3r_config(
        {"pos_embed": "RoPE50", "patch_embed_cls": "ManyAR_PatchEmbed", "head_type": "linear", **modes, **sizes}
    )
    assert (config.encoder_width, config.decoder_depth, config.image_size, config.rotary_base) == (64, 8, 224, 50.0)
    assert (config.head, config.decoder_width, config.dpt.layers) == ("linear", 768, (0, 4, 6, 8))
    assert dust3r_config({"depth_mode": ["exp", "-inf", "inf"], "img_size": 512}) == DUSt3RConfig()


@pytest.mark.parametrize(
    ("name", "value"),
    [("head_type", "catmlp+dpt"), ("pos_embed", "cosine"), ("conf_mode", ["sigmoid", 0, 1]), ("depth_mode", ["exp", 0, 9]),
     ("two_confs", True)],
)  # fmt: skip
def test_other_networks_are_refused(name, value):
    with pytest.raises(UserError, match=re.escape(repr(value))):
        dust3r_config({name: value})


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, LINEAR])
def test_photos_encoded_once_serve_all_pairs_in_one_batch(changes):
    network, images = small_network(**changes), photos()
    tokens, grid = network.encode(images)
    i, j = torch.tensor([[0, 1], [1, 0], [0, 2], [2, 1]]).T
    batched = network.decode(Encoded(tokens[i], grid), Encoded(tokens[j], grid))
    for pair, (first, second) in enumerate(zip(i, j)):
        for ours, alone in zip(batched, network(images[first, None], images[second, None])):
            assert_close(ours.points[pair], alone.points[0], 1e-5)
            assert_close(ours.confidence[pair], alone.confidence[0], 1e-5)
    assert (batched[0].points[0] - batched[1].points[1]).abs().max() > 1e-3  # a swapped pair is another pair


@torch.no_grad()
def test_points_lie_along_xyz_at_the_distance_that_it_encodes():
    raw = torch.tensor([[3.0, 0.0], [0.0, 0.0], [-4.0, 0.0], [0.5, -50.0]]).reshape(1, 4, 1, 2)
    points, confidence = to_prediction(raw)
    expected = torch.tensor([[0.6, 0.0, -0.8], [0.0, 0.0, 0.0]]) * torch.expm1(torch.tensor(5.0))
    torch.testing.assert_close(points[0, 0], expected)
    torch.testing.assert_close(confidence[0, 0], 1 + torch.tensor([0.5, -50.0]).exp())


@pytest.mark.parametrize("changes", [{}, LINEAR])
def test_every_parameter_has_a_gradient_but_the_unit_that_nobody_uses(changes):
    network = small_network(**changes)
    images = photos(2)
    first, second = network(images[:1], images[1:])
    sum(part.abs().log1p().mean() for part in (*first, *second)).backward()
    idle = {name for name, value in network.named_parameters() if value.grad is None}
    spare = {name for name in network.state_dict() if "refinenet4.resConfUnit1" in name}
    assert idle == spare
    assert len(spare) == (0 if changes else 8)


@torch.no_grad()
def test_lower_precision_leaves_heads_and_results_in_float32():
    network, images = small_network(), photos(2)
    exact = network(images[:1], images[1:])
    lowered = network.lower_precision(torch.bfloat16)(images[:1], images[1:])
    for ours, reference in zip(lowered, exact):
        assert ours.points.dtype == ours.confidence.dtype == torch.float32
        assert_close(ours.points, reference.points, 0.1)
        assert (ours.points - reference.points).abs().max() > 1e-3
    types = {name.split(".")[0]: value.dtype for name, value in network.named_parameters() if name.endswith("weight")}
    assert types["downstream_head1"] == types["patch_embed"] == torch.float32
    assert network.enc_blocks[0].attn.qkv.weight.dtype == network.dec_blocks2[0].cross_attn.projk.weight.dtype == torch.bfloat16


def test_part_of_a_patch_is_refused():
    with pytest.raises(ValueError, match="multiples of 16"):
        small_network().encode(photos(height=40))
