"""VGGT's network against upstream's numbers and names, and what its callers rely on."""

import json
import re

import pytest
import torch
from torch import nn
from upstream import assert_close, file, fill, fixtures, load, recipe, stored

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import unproject
from reconx_core.pointcloud.networks.dpt import DPTConfig
from reconx_core.pointcloud.networks.vggt import VGGT, VGGTConfig, decode_cameras, vggt_config
from reconx_core.types import Cameras

SMALL = VGGTConfig(
    image_size=56, width=16, depth=3, heads=2, encoder_depth=1, encoder_heads=2, camera_depth=1, camera_heads=2,
    dpt=DPTConfig((0, 0, 1, 2), (4, 8, 8, 12), 16, 8),
)  # fmt: skip
POSE_BRANCH = "camera_head.pose_branch.fc2"
POSE_BIAS = [0.02, -0.03, 0.1, 0.05, 0.1, -0.05, 1.0, 0.25, 0.3]
SCALES = {f"{POSE_BRANCH}.weight": 0.1, **{f"{head}_head.scratch.output_conv2.2.weight": 0.3 for head in ("point", "depth")}}


def small_network(seed=0):
    """Random weights with nothing scaled down at the start, so that the photos do influence each other."""
    torch.manual_seed(seed)
    network = VGGT(SMALL).eval()
    for name, value in network.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(value)
        elif name.endswith(("_token", "_tokens", "pos_embed")):
            nn.init.normal_(value)
        elif name.endswith("weight") and value.ndim > 1:
            nn.init.kaiming_normal_(value, nonlinearity="linear")
            value.data *= SCALES.get(name, 1.0)
    return network


def photos(scenes=1, count=3, height=42, width=56, seed=1):
    return torch.rand(scenes, count, 3, height, width, generator=torch.Generator().manual_seed(seed))


def upstream_network(tensors, metadata):
    """The fixture's network, with the exceptions that VGGT's fixtures make from the recipe where they are not stored."""
    with torch.device("meta"):
        network = VGGT(vggt_config(metadata["config"]))
    prefix = re.search(r"prefix=(\w+\.)", metadata["weights"])[1]
    known = {f"{POSE_BRANCH}.bias": torch.tensor(POSE_BIAS)}
    for name, factor in SCALES.items():
        known[name] = factor * recipe().recipe_tensor(prefix + name, network.state_dict()[name].shape)
    return fill(network, lambda state: {name: (name, 0, 1) for name in state}, prefix, {**known, **stored(tensors)})


def results(network, images):
    """Everything that the fixtures hold, under their names."""
    found, size = network(images), images.shape[-2:]
    world_to_cam, intrinsics = decode_cameras(found.pose_encoding, *size)
    centred = intrinsics[0].clone()
    centred[:, :2, 2] += 0.5  # upstream's pixel centres lie at whole numbers
    cameras = Cameras(centred, torch.linalg.inv(world_to_cam[0]), size[1], size[0])
    return {
        "pose_enc": found.pose_encoding, "depth": found.depth[..., None], "depth_conf": found.depth_confidence,
        "world_points": found.points, "world_points_conf": found.points_confidence,
        "extrinsic_w2c": world_to_cam[..., :3, :], "intrinsic": intrinsics,
        "unprojected_points": unproject(found.depth[0], cameras),
    }  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("path", fixtures("vggt_*.safetensors"))
def test_network_equals_upstream_golden(path):
    tensors, metadata = load(path)
    network = upstream_network(tensors, metadata)
    inputs = {
        name.split(".")[1].removeprefix("images").strip("_").split("_")[0]: name for name in tensors if name.startswith("in.")
    }
    for case in {name.split(".")[1] for name in tensors if name.startswith("out.")}:
        images = tensors[inputs.get(case) or inputs[""]]
        ours = results(network, images)
        for name in [name for name in tensors if name.startswith(f"out.{case}.")]:
            assert_close(ours[name.split(".")[2]], tensors[name])
        if f"mid.{case}.dino_patchtokens" in tensors:
            assert_activations(network, images, tensors, f"mid.{case}")


def assert_activations(network, images, tensors, start):
    seen = []
    network.aggregator.patch_embed.register_forward_hook(lambda module, inputs, output: seen.append(output))
    layers = {int(name.rsplit(".", 1)[1]) for name in tensors if name.startswith(f"{start}.aggregated_tokens.")}
    tokens = network.aggregator(images, layers)
    assert_close(seen[0], tensors[f"{start}.dino_patchtokens"])
    assert layers == set(tokens)
    for layer in layers:
        assert_close(tokens[layer], tensors[f"{start}.aggregated_tokens.{layer}"])


def test_full_size_has_the_golden_names_and_shapes():
    published = json.loads(file("keys/vggt/vggt_1b.json").read_text())["state_dict"]
    unused = re.compile(r"track_head\.|aggregator\.patch_embed\.mask_token")
    with torch.device("meta"):
        network = VGGT(vggt_config({}))
    ours = {name: list(value.shape) for name, value in network.state_dict().items()}
    assert ours == {name: shape for name, shape in published.items() if not unused.match(name)}


def test_settings_of_the_hub_are_read():
    assert vggt_config({"img_size": 518, "patch_size": 14, "embed_dim": 1024, "enable_track": True}) == VGGTConfig()
    assert vggt_config({"embed_dim": 64, "dpt": {"features": 32}}).dpt == DPTConfig(
        (4, 11, 17, 23), (256, 512, 1024, 1024), 32, 32
    )


@pytest.mark.parametrize(("name", "value"), [("qk_norm", False), ("aspect", 3)])
def test_other_networks_are_refused(name, value):
    with pytest.raises(UserError, match=f"{name}={value}"):
        vggt_config({name: value})


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_chunks_of_the_dense_heads_change_nothing(frames):
    network, images = small_network(), photos(scenes=2)
    sizes = []
    network.depth_head.register_forward_hook(lambda module, inputs, output: sizes.append(len(output)))
    whole, chunked = network(images), network(images, frames_per_chunk=frames)
    assert max(sizes[1:]) == frames
    for ours, reference in zip(chunked, whole):
        assert_close(ours, reference, 1e-5)


@torch.no_grad()
def test_scenes_of_a_batch_do_not_mix():
    network, images = small_network(), photos(scenes=2)
    both = network(images)
    for scene in range(2):
        for ours, alone in zip(both, network(images[scene, None])):
            assert_close(ours[scene], alone[0], 1e-5)


@torch.no_grad()
def test_only_the_first_photo_is_special():
    network, images = small_network(), photos(count=4)
    expected = network(images)
    order = torch.tensor([0, 3, 1, 2])
    for ours, reference in zip(network(images[:, order]), expected):
        assert_close(ours, reference[:, order], 1e-5)
    other = network(images[:, [1, 0, 2, 3]]).points
    assert (other - expected.points[:, [1, 0, 2, 3]]).abs().max() > 1e-2


@torch.no_grad()
def test_points_are_left_out_where_nobody_asks_for_them():
    network, images = small_network(), photos()
    network.point_head.register_forward_hook(lambda *_: pytest.fail("the point head ran"))
    found = network(images, points=False)
    assert found.points is None
    assert found.points_confidence is None
    assert found.depth.shape == found.depth_confidence.shape == (1, 3, 42, 56)


def test_cameras_are_decoded_world_to_camera():
    quarter = torch.tensor([0.0, 0.0, 1.0, 1.0])  # xyzw, not normalised: 90 degrees about z
    encoding = torch.cat([torch.tensor([1.0, 2.0, 3.0]), quarter, torch.deg2rad(torch.tensor([90.0, 60.0]))])
    world_to_cam, intrinsics = decode_cameras(encoding[None], 40, 60)
    expected = torch.tensor([[0.0, -1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 3.0], [0.0, 0.0, 0.0, 1.0]])
    torch.testing.assert_close(world_to_cam[0], expected)
    expected = torch.tensor([[30 * 3**0.5, 0.0, 30.0], [0.0, 20.0, 20.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(intrinsics[0], expected)


def test_every_parameter_has_a_gradient():
    network = small_network()
    found = network(photos())
    sum(part.abs().log1p().mean() for part in found).backward()
    assert not [name for name, value in network.named_parameters() if value.grad is None]


@torch.no_grad()
def test_lower_precision_leaves_heads_and_results_in_float32():
    network, images = small_network(), photos()
    exact = network(images)
    lowered = network.lower_precision(torch.bfloat16)(images)
    for ours, reference in zip(lowered, exact):
        assert ours.dtype == torch.float32
        assert_close(ours, reference, 0.03)
    assert (lowered.points - exact.points).abs().max() > 1e-4
    heads = [value.dtype for name, value in network.named_parameters() if "head." in name]
    assert set(heads) == {torch.float32}
    assert network.aggregator.global_blocks[0].attn.qkv.weight.dtype == torch.bfloat16


def test_part_of_a_patch_is_refused():
    with pytest.raises(ValueError, match="multiples of 14"):
        small_network()(photos(height=48))
