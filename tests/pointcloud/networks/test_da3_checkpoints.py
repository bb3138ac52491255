"""Depth-Anything-3's checkpoints load in the published layout, and whatever is wrong with one is said by name."""

import json

import pytest
import torch
from safetensors.torch import save_file
from small_models import da3_tensors, save_hub, small_da3, small_vggt
from upstream import file

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.checkpoints import load_da3, load_vggt
from reconx_core.pointcloud.networks.verify import verify

KEY = "model.backbone.pretrained.blocks.2.attn.q_norm.weight"
NORM = "model.head.scratch.output_conv2_aux.0.2.weight"


@pytest.fixture
def folder(tmp_path):
    save_hub(tmp_path / "DA3", *small_da3())
    return tmp_path / "DA3"


def rewrite(folder, **changes):
    """The checkpoint again with tensors added, changed or, where None, left out."""
    tensors = {name: value.contiguous() for name, value in (da3_tensors(small_da3()[1]) | changes).items() if value is not None}
    save_file(tensors, folder / "model.safetensors")
    return folder


def refused(call, *arguments):
    with pytest.raises(UserError) as error:
        call(*arguments)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


@torch.no_grad()
@pytest.mark.parametrize("by_file", [False, True])
def test_the_published_layout_gives_the_same_network(folder, by_file):
    _, network = small_da3()
    loaded = load_da3(folder / "model.safetensors" if by_file else folder)
    assert not loaded.training
    assert loaded.config == network.config
    images = torch.rand(1, 3, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    for ours, wanted in zip(loaded(images), network(images)):
        assert torch.equal(ours, wanted)


def test_the_shared_normalisation_reaches_the_level_that_is_used(folder):
    width = da3_tensors(small_da3()[1])[NORM].shape
    network = load_da3(rewrite(folder, **{NORM: torch.full(width, 3.0)}))
    levels = network.head.scratch.output_conv2_aux
    assert all(torch.equal(level[2].weight, torch.full(width, 3.0)) for level in levels)


def test_verify_says_what_a_folder_is(folder):
    found = verify(folder)
    assert found.what == "Depth-Anything-3, 70 pixels"
    assert found.tensors == len(da3_tensors(small_da3()[1]))
    assert found.unused == 0
    assert found.parameters == sum(value.numel() for value in small_da3()[1].parameters())


@pytest.mark.parametrize("key", [KEY, NORM, "model.cam_enc.trunk.3.ls2.gamma", "model.head.scratch.output_conv1_aux.0.0.bias"])
def test_the_tensor_that_is_wrong_is_named(folder, key):
    shape = da3_tensors(small_da3()[1])[key].shape
    for call in (load_da3, verify):
        assert f"lacks the tensor '{key}'" in refused(call, rewrite(folder, **{key: None}))
        assert f"'{key}'" in refused(call, rewrite(folder, **{key: torch.ones(*shape, 2)}))
        assert "does not have" in refused(call, rewrite(folder, **{f"{key}.more": torch.ones(2)}))


def test_other_networks_are_told_apart(folder, tmp_path):
    save_hub(tmp_path / "vggt", *small_vggt())
    assert "no weights of VGGT but Depth-Anything-3's" in refused(load_vggt, folder)
    assert "no weights of Depth-Anything-3 but VGGT's" in refused(load_da3, tmp_path / "vggt")


def test_settings_that_are_missing_or_of_another_model(folder):
    for settings, words in (
        ({"model_name": "da3-giant"}, "no Depth-Anything-3 network 'da3-giant' here"), ({}, "'None'"),
        ({"config": {"net": {"name": "vits"}}}, "make no network"), ({"config": 3}, "make no network"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(settings))
        assert words in refused(load_da3, folder)
    (folder / "config.json").unlink()
    assert "config.json beside it" in refused(load_da3, folder)


@pytest.mark.parametrize("model", ["da3_small", "da3_base"])
def test_every_tensor_of_the_published_files_has_its_place_golden(model, tmp_path):
    told = json.loads(file(f"keys/da3/{model}.json").read_text())
    # All share one number, which a pickle keeps once.
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in told["state_dict"].items()}
    torch.save(tensors, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(json.dumps(told["_config"]))
    found = verify(tmp_path)
    assert (found.tensors, found.unused, found.parameters) == (told["tensors"], 0, told["elements"])
    assert found.what == "Depth-Anything-3, 518 pixels"
