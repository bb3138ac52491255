"""Depth-Anything-3's network against upstream's numbers and names, and what its callers rely on."""

import json
import re

import pytest
import torch
from da3_upstream import upstream_network
from torch import nn
from upstream import assert_close, cases, file, load

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import rigid, so3_exp
from reconx_core.pointcloud.networks.da3 import DA3, GivenCameras
from reconx_core.pointcloud.networks.da3_backbone import choose_reference
from reconx_core.pointcloud.networks.da3_camera import decode_cameras, encode_cameras
from reconx_core.pointcloud.networks.da3_config import DA3Config, da3_config
from reconx_core.pointcloud.networks.dpt import DPTConfig

SMALL = DA3Config(28, 14, 32, 6, 2, 2, DPTConfig((3, 3, 5, 5), (4, 8, 8, 12), 16, 8))


NETWORKS = cases("da3_[!a]*.safetensors")  # all but da3_api, of what surrounds the network


def results(network, found, size):
    """Everything that the fixtures hold of a prediction, under their names."""
    world_to_cam, intrinsics = decode_cameras(found.pose_encoding, *size)
    return {
        "out.depth": found.depth, "out.depth_conf": found.depth_confidence, "out.ray": found.rays,
        "out.ray_conf": found.rays_confidence, "out.extrinsics": world_to_cam[..., :3, :], "out.intrinsics": intrinsics,
        "mid.pose_enc": found.pose_encoding,
    }  # fmt: skip


def watch(network):
    """What comes out of the network's parts on the way, under the fixtures' names."""
    seen, backbone, scratch = {}, network.backbone["pretrained"], network.head.scratch
    # Copied: the waves are added in place.
    keep = lambda name: lambda module, inputs, output: seen.__setitem__(name, output.clone())  # noqa: E731
    backbone.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.__setitem__("tokens", inputs[0].clone()))
    for number, block in enumerate(backbone.blocks):
        block.register_forward_hook(keep(f"block.{number}"))
    for number, resize in enumerate(network.head.resize_layers):
        resize.register_forward_hook(keep(f"level.{number}"))
    scratch.output_conv1.register_forward_hook(keep("fused"))
    scratch.output_conv1_aux[3].register_forward_hook(keep("fused_ray"))
    network.cam_enc.register_forward_hook(keep("cam_tokens"))

    def features(module, inputs, output):
        seen["camera_token"] = output.camera
        for number, layer in enumerate(network.config.dpt.layers):
            seen[f"features.{number}"] = output.patches[layer]

    backbone.register_forward_hook(features)
    return seen


@torch.no_grad()
@pytest.mark.parametrize(("path", "case"), NETWORKS)
def test_network_equals_upstream_golden(path, case):
    tensors, metadata = load(path)
    told = metadata["cases"][case]
    images = tensors[told["images"]].float()
    network = upstream_network(metadata)
    seen = watch(network)
    cameras = None
    if told["posed"]:
        cameras = GivenCameras(tensors[f"in.{case}.extrinsics"], tensors[f"in.{case}.intrinsics"])
    found = network(images, cameras, told["ref_view_strategy"])
    ours = results(network, found, images.shape[-2:]) | {f"mid.{name}": value for name, value in seen.items()}
    if cameras is not None:
        ours["mid.cam_encoding"] = encode_cameras(*cameras, *images.shape[-2:])
    checked = [name for name in tensors if re.match(rf"(out|mid)\.{case}\.", name)]
    assert checked
    for name in checked:
        kind, _, rest = name.split(".", 2)
        if rest == "reference":
            assert torch.equal(found.reference, tensors[name])
        elif rest.startswith("reference."):
            with_rule = network(images, None, rest.removeprefix("reference."), rays=False)
            assert torch.equal(with_rule.reference, tensors[name])
        else:
            wanted = tensors[name]
            value = ours[f"{kind}.{rest}"]
            assert value.numel() == wanted.numel()
            assert_close(value.reshape(wanted.shape), wanted)


@pytest.mark.parametrize("model", ["da3-small", "da3-base"])
@pytest.mark.parametrize("by_name", [True, False])
def test_full_size_has_the_golden_names_and_shapes(model, by_name):
    told = json.loads(file(f"keys/da3/{model.replace('-', '_')}.json").read_text())
    with torch.device("meta"):
        network = DA3(da3_config({"model_name": model} if by_name else told["_config"]))
    ours = {f"model.{name}": list(value.shape) for name, value in network.state_dict().items()}
    assert {name: shape for name, shape in ours.items() if name not in told["aliased_keys"]} == told["state_dict"]
    assert set(ours) == {*told["state_dict"], *told["aliased_keys"]}
    assert sum(value.numel() for value in network.parameters()) == told["elements"]


def small_network():
    """Random weights under which the views do influence each other."""
    torch.manual_seed(0)
    network = DA3(SMALL).eval()
    for name, value in network.named_parameters():
        if name.endswith(("_token", "pos_embed")):
            nn.init.normal_(value)
        elif value.ndim > 1:
            nn.init.kaiming_normal_(value, nonlinearity="linear")
    return network


def photos(scenes=1, count=3, height=28, width=42):
    return torch.randn(scenes, count, 3, height, width, generator=torch.Generator().manual_seed(1))


def cameras(count=3):
    draw = torch.Generator().manual_seed(2)
    pose = rigid(so3_exp(0.2 * torch.randn(1, count, 3, generator=draw)), torch.randn(1, count, 3, generator=draw))
    return GivenCameras(pose, torch.tensor([[40.0, 0, 21], [0, 38, 14], [0, 0, 1]]).expand(1, count, 3, 3))


@torch.no_grad()
@pytest.mark.parametrize("views", [1, 2, 4])
def test_chunks_of_the_head_change_nothing(views):
    network, images = small_network(), photos(scenes=2)
    sizes = []
    network.head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output[0])))
    whole, chunked = network(images), network(images, frames_per_chunk=views)
    assert max(sizes[1:]) == views
    for ours, reference in zip(chunked, whole):
        assert_close(ours, reference, 1e-5)


@torch.no_grad()
def test_scenes_of_a_batch_do_not_mix():
    network, images = small_network(), photos(scenes=2)
    both = network(images)
    for scene in range(2):
        for ours, alone in zip(both[:5], network(images[scene, None])[:5]):
            assert_close(ours[scene], alone[0], 1e-5)


@torch.no_grad()
def test_the_order_of_the_views_matters_only_by_the_reference():
    network, images = small_network(), photos(count=4)
    order = torch.tensor([2, 0, 3, 1])
    first, second = network(images), network(images[:, order])
    assert int(order[second.reference]) == int(first.reference)
    for ours, reference in zip(second[:5], first[:5]):
        assert_close(ours, reference[:, order], 1e-5)
    other = network(images, reference="middle" if int(first.reference) == 0 else "first")
    assert (other.depth / first.depth - 1).abs().max() > 1e-3


@torch.no_grad()
def test_known_cameras_are_seen():
    network, images = small_network(), photos()
    without, seen = network(images), network(images, cameras())
    assert (seen.depth / without.depth - 1).abs().max() > 1e-3
    assert seen.reference.tolist() == [0]


@torch.no_grad()
def test_rays_are_left_out_if_nobody_asks_for_them():
    network, images = small_network(), photos()
    network.head.scratch.output_conv2_aux[3].register_forward_hook(lambda *_: pytest.fail("the rays were computed"))
    found = network(images, rays=False)
    assert found.rays is None
    assert found.rays_confidence is None
    assert found.depth.shape == found.depth_confidence.shape == (1, 3, 28, 42)


@torch.no_grad()
def test_lower_precision_leaves_head_and_cameras_in_float32():
    network, images = small_network(), photos(count=2)
    exact = network(images, cameras(2))
    lowered = network.lower_precision(torch.bfloat16)(images, cameras(2))
    for ours, reference in zip(lowered[:5], exact[:5]):
        assert ours.dtype == torch.float32
        assert_close(ours, reference, 0.1)
    assert (lowered.depth - exact.depth).abs().max() > 1e-5
    others = [value.dtype for name, value in network.named_parameters() if not name.startswith("backbone")]
    assert set(others) == {torch.float32}
    assert network.backbone["pretrained"].blocks[0].attn.qkv.weight.dtype == torch.bfloat16


def test_cameras_are_encoded_and_decoded():
    pose, intrinsics = cameras()
    found = decode_cameras(encode_cameras(pose, intrinsics, 28, 42), 28, 42)
    torch.testing.assert_close(found[0], pose)
    torch.testing.assert_close(found[1], intrinsics)


def test_rules_for_the_reference():
    tokens = torch.tensor([[[1.0, 0, 0], [1.0, 0.4, 0], [0, 3.0, 0.1], [1.0, 1.0, 0]]])
    assert choose_reference(tokens, "first").tolist() == [0]
    assert choose_reference(tokens, "middle").tolist() == [2]
    assert choose_reference(tokens, "saddle_balanced").tolist() != [2]  # the longest token, least like the others


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("net", "cat_token", False), ("net", "rope_start", 2), ("net", "swiglu", True), ("head", "output_dim", 3),
     ("cam_enc", "dim_out", 64)],
)  # fmt: skip
def test_other_networks_are_refused(part, name, value):
    sizes = {"net": {"name": "vits"}, "head": {"features": 64, "out_channels": [48, 96, 192, 384]}}
    assert da3_config(sizes) == DA3Config() == da3_config({"model_name": "da3-small"})
    with pytest.raises(UserError, match=rf"{part}\.{name}={value}"):
        da3_config({"config": sizes | {part: sizes.get(part, {}) | {name: value}}})


def test_part_of_a_patch_is_refused():
    with pytest.raises(ValueError, match="multiples of 14"):
        small_network()(photos(height=30))
