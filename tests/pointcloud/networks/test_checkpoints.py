"""DUSt3R's and VGGT's checkpoints load in every published layout, and errors name what is wrong."""

import argparse
import errno
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from upstream import assert_close, file, fixtures, load, recipe, stored

from reconx_core.cache.digests import file_digest
from reconx_core.errors import UserError
from reconx_core.io.files import write_json
from reconx_core.pointcloud.networks import convert
from reconx_core.pointcloud.networks.checkpoints import load_dust3r, load_vggt, parse_constructor
from reconx_core.pointcloud.networks.convert import convert_dust3r
from reconx_core.pointcloud.networks.dust3r import DUSt3R, dust3r_config
from reconx_core.pointcloud.networks.verify import verify
from reconx_core.pointcloud.networks.vggt import VGGT, vggt_config

pytestmark = pytest.mark.long

INF = float("inf")
DUST3R = {
    "pos_embed": "RoPE100", "patch_embed_cls": "PatchEmbedDust3R", "output_mode": "pts3d", "depth_mode": ("exp", -INF, INF),
    "conf_mode": ("exp", 1, INF), "landscape_only": False, "img_size": (64, 48), "enc_embed_dim": 16, "enc_depth": 1,
    "enc_num_heads": 2, "dec_embed_dim": 8, "dec_depth": 2, "dec_num_heads": 2, "head_type": "dpt",
    "dpt": {"feature_dim": 8, "last_dim": 4, "hooks": (0, 1, 1, 2), "layer_dims": (4, 4, 4, 4)},
}  # fmt: skip
VGGT_SETTINGS = {
    "img_size": 28, "patch_size": 14, "embed_dim": 16, "depth": 1, "num_heads": 2, "enable_track": True,
    "dino": {"depth": 1, "num_heads": 2}, "camera_head": {"trunk_depth": 1, "num_heads": 2},
    "dpt": {"features": 8, "out_channels": [4, 4, 4, 4], "intermediate_layer_idx": [0, 0, 0, 0]},
}  # fmt: skip
NAMES = {"dust3r": "DUSt3R_Tiny_dpt.pth", "vggt": "vggt_1B_commercial.pt"}
LOADERS = {"dust3r": load_dust3r, "vggt": load_vggt}
LAYOUTS = ["hub", "shards", "pickle", "legacy", "folder"]
ALIAS = "downstream_head1.dpt.scratch.layer_rn.2.weight"


def randomised(network):
    for value in network.parameters():
        torch.nn.init.normal_(value)
    return network.eval()


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    made = {"dust3r": DUSt3R(dust3r_config(DUST3R)), "vggt": VGGT(vggt_config(VGGT_SETTINGS))}
    return {kind: randomised(network) for kind, network in made.items()}


def published(kind, network):
    """The tensors as upstream has them: with those that the network does without, DUSt3R's aliases last."""
    tensors = {name: value.detach() for name, value in network.state_dict().items()}
    if kind == "vggt":
        return {
            "track_head.tracker.proj.bias": torch.ones(3),
            **tensors,
            "aggregator.patch_embed.mask_token": torch.ones(1, 16),
        }
    aliases = {re.sub(r"layer(\d)_rn", lambda found: f"layer_rn.{int(found[1]) - 1}", name): value
               for name, value in tensors.items() if re.search(r"layer\d_rn", name)}  # fmt: skip
    return {"mask_token": torch.ones(1, 1, 8), **tensors, **aliases}


def constructor(settings):
    return f"AsymmetricCroCo3DStereo({', '.join(f'{name}={value!r}' for name, value in settings.items())})"


def write(folder, kind, tensors, layout="pickle", settings=None):
    """A checkpoint in one of LAYOUTS below ``folder``; returns what a user would name."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = settings or (DUST3R if kind == "dust3r" else VGGT_SETTINGS)
    if layout in ("hub", "shards"):
        (folder / "config.json").write_text(json.dumps(settings))
        return write_safetensors(folder, tensors, 3 if layout == "shards" else 1)
    wrapped = tensors
    if kind == "dust3r":
        wrapped = {"args": argparse.Namespace(model=constructor(settings), lr=1e-4), "model": tensors, "epoch": 9}
    else:
        (folder / "config.json").write_text(json.dumps(settings))
    path = folder / NAMES[kind]
    torch.save(wrapped, path, _use_new_zipfile_serialization=layout != "legacy")
    return folder if layout == "folder" else path


def write_safetensors(folder, tensors, count):
    """As the Hub's library saves: of tensors that share memory only the first."""
    seen, unique = set(), {}
    for name, value in tensors.items():
        if value.data_ptr() not in seen:
            unique[name] = value
        seen.add(value.data_ptr())
    if count == 1:
        save_file(unique, folder / "model.safetensors")
        return folder
    places = {name: f"model-{index % count + 1:05}-of-{count:05}.safetensors" for index, name in enumerate(unique)}
    for shard in set(places.values()):
        save_file({name: unique[name] for name in unique if places[name] == shard}, folder / shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def assert_same_weights(ours, reference):
    assert list(ours.state_dict()) == list(reference.state_dict())
    for name, value in reference.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def refused(call, *arguments):
    """The one sentence of a refusal."""
    with pytest.raises(UserError) as error:
        call(*arguments)
    sentence = str(error.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


# --- what loads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_network(kind, layout, networks, tmp_path):
    network = LOADERS[kind](write(tmp_path, kind, published(kind, networks[kind]), layout))
    assert not network.training
    assert network.config == networks[kind].config
    assert_same_weights(network, networks[kind])
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@torch.no_grad()
def test_loaded_networks_compute(networks, tmp_path):
    photos = torch.rand(2, 3, 32, 48) * 2 - 1
    paths = {kind: write(tmp_path / kind, kind, published(kind, networks[kind]), "hub") for kind in LOADERS}
    ours, reference = (
        network(photos[:1], photos[1:])[1].points for network in (load_dust3r(paths["dust3r"]), networks["dust3r"])
    )
    assert torch.equal(ours, reference)
    ours, reference = (network(photos[None, ..., :28, :28]).depth for network in (load_vggt(paths["vggt"]), networks["vggt"]))
    assert torch.equal(ours, reference)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("layout", ["hub", "pickle"])
def test_files_are_mapped_not_read(kind, layout, networks, tmp_path):
    path = write(tmp_path, kind, published(kind, networks[kind]), layout)
    network = LOADERS[kind](path)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    del network


@pytest.mark.parametrize("first", [True, False])
def test_either_name_of_the_shared_convolutions_will_do(first, networks, tmp_path):
    tensors = published("dust3r", networks["dust3r"])
    gone = r"scratch\.layer\d_rn" if first else r"scratch\.layer_rn\.\d"
    tensors = {name: value for name, value in tensors.items() if not re.search(gone, name)}
    assert_same_weights(load_dust3r(write(tmp_path, "dust3r", tensors)), networks["dust3r"])


def test_the_name_that_upstream_loads_last_counts(networks, tmp_path):
    tensors = published("dust3r", networks["dust3r"])
    tensors[ALIAS] = tensors[ALIAS] + 1
    network = load_dust3r(write(tmp_path, "dust3r", tensors))
    assert torch.equal(network.state_dict()["downstream_head1.dpt.scratch.layer3_rn.weight"], tensors[ALIAS])


def test_one_decoder_serves_as_both_where_there_is_no_second(networks, tmp_path):
    tensors = published("dust3r", networks["dust3r"])
    tensors = {name: value for name, value in tensors.items() if not name.startswith("dec_blocks2.")}
    path = write(tmp_path, "dust3r", tensors)
    assert verify(path).tensors == len(tensors)
    network = load_dust3r(path)
    assert_same_weights(network.dec_blocks2, networks["dust3r"].dec_blocks)
    assert_same_weights(network.dec_blocks, networks["dust3r"].dec_blocks)
    with torch.no_grad():
        network.dec_blocks2[0].attn.qkv.weight.zero_()
    assert_same_weights(network.dec_blocks, networks["dust3r"].dec_blocks)


def test_the_linear_head_loads(tmp_path):
    settings = {name: value for name, value in DUST3R.items() if name != "dpt"} | {"head_type": "linear"}
    network = randomised(DUSt3R(dust3r_config(settings)))
    for layout in ("hub", "pickle"):
        path = write(tmp_path / layout, "dust3r", network.state_dict(), layout, settings)
        assert_same_weights(load_dust3r(path), network)


def test_the_table_of_tensors_is_found_among_other_things(networks, tmp_path):
    write(tmp_path, "vggt", {}, "pickle")
    torch.save({"model": {"depth": 1}, "state_dict": published("vggt", networks["vggt"])}, tmp_path / NAMES["vggt"])
    assert_same_weights(load_vggt(tmp_path), networks["vggt"])


def test_half_precision_is_computed_with_in_full(networks, tmp_path):
    halved = {name: value.bfloat16() for name, value in published("vggt", networks["vggt"]).items()}
    path = write(tmp_path, "vggt", halved, "hub")
    assert verify(path).dtypes == ("bfloat16",)
    for name, value in load_vggt(path).state_dict().items():
        assert torch.equal(value, halved[name].float())


def test_vggt_without_settings_has_the_published_sizes(networks, tmp_path):
    path = write(tmp_path, "vggt", published("vggt", networks["vggt"]))
    (tmp_path / "config.json").unlink()
    assert "should have [1, 2, 1, 1024]" in refused(load_vggt, path)


@torch.no_grad()
@pytest.mark.parametrize("path", fixtures("dust3r_*_small*.safetensors"))
def test_upstream_weights_by_way_of_a_file_give_upstream_numbers_golden(path, tmp_path):
    tensors, metadata = load(path)
    prefix = re.search(r"prefix=(\w+\.)", metadata["weights"])[1]
    weights = {name: recipe().recipe_tensor(prefix + name, shape) for name, shape in metadata["sd_shapes"].items()}
    network = load_dust3r(write(tmp_path, "dust3r", weights | stored(tensors), "pickle", metadata["config"]))
    for number, prediction in enumerate(network(tensors["in.img_a"], tensors["in.img_b"]), 1):
        assert_close(prediction.points, tensors[f"out.landscape.pts3d_{number}"])
        assert_close(prediction.confidence, tensors[f"out.landscape.conf_{number}"])


# --- what is accounted for ---------------------------------------------------------------------------------------------


def key_list(name):
    return json.loads(file(f"keys/{name}/*.json").read_text())


@pytest.mark.parametrize("kind", LOADERS)
def test_every_tensor_of_the_published_files_has_its_place_golden(kind, tmp_path):
    listed = key_list(kind)
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in listed["state_dict"].items()}  # all share one number
    settings = listed["_config"] if kind == "dust3r" else {"img_size": 518, "patch_size": 14, "embed_dim": 1024}
    found = verify(write(tmp_path, kind, tensors, "pickle", settings))
    unused = [name for name in tensors if "mask_token" in name or name.startswith("track_head.")]
    assert (found.tensors, found.unused) == (len(tensors), len(unused))
    whole = listed["elements_unique"] if kind == "dust3r" else listed["elements"]
    assert found.parameters == whole - sum(tensors[name].numel() for name in unused)
    assert {"dust3r": "DUSt3R, 512 pixels, dpt head", "vggt": "VGGT, 518 pixels"}[kind] == found.what


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_verify_says_what_a_file_is(kind, layout, networks, tmp_path):
    path = write(tmp_path, kind, published(kind, networks[kind]), layout)
    found = verify(path)
    stored_in = {file.name for file in tmp_path.iterdir() if file.suffix in (".safetensors", ".pth", ".pt")}
    assert {file.name for file in found.files} == stored_in
    assert found.parameters == sum(value.numel() for value in networks[kind].state_dict().values())
    assert found.unused == (1 if kind == "dust3r" else 2)
    assert found.dtypes == ("float32",)


@pytest.mark.parametrize(
    ("kind", "layout", "key"),
    [("dust3r", "hub", "enc_blocks.0.attn.qkv.weight"), ("dust3r", "shards", "dec_blocks2.1.norm_y.bias"),
     ("dust3r", "pickle", "dec_norm.weight"), ("vggt", "pickle", "aggregator.camera_token"),
     ("vggt", "shards", "point_head.projects.2.bias")],
)  # fmt: skip
def test_the_tensor_that_is_wrong_is_named(kind, key, layout, networks, tmp_path):
    whole = published(kind, networks[kind])
    missing = {name: value for name, value in whole.items() if name != key}
    misshapen = {**whole, key: torch.zeros(*whole[key].shape, 2)}
    path = write(tmp_path / "missing", kind, missing, layout)
    for call in (LOADERS[kind], verify):
        sentence = refused(call, path)
        assert f"lacks the tensor '{key}'" in sentence
        assert str(tmp_path / "missing") in sentence
        sentence = refused(call, write(tmp_path / "misshapen", kind, misshapen, layout))
        assert f"'{key}'" in sentence
        assert f"{[*whole[key].shape, 2]} but should have {list(whole[key].shape)}" in sentence
        sentence = refused(call, write(tmp_path / "extra", kind, {**whole, f"{key}.more": torch.ones(3)}, layout))
        assert f"'{key}.more'" in sentence
        assert "does not have" in sentence


@pytest.mark.parametrize("name", [ALIAS, "downstream_head1.dpt.scratch.layer3_rn.weight"])
def test_each_name_of_a_shared_convolution_is_looked_at(name, networks, tmp_path):
    tensors = published("dust3r", networks["dust3r"]) | {name: torch.ones(1, 2)}
    assert f"'{name}'" in refused(load_dust3r, write(tmp_path, "dust3r", tensors))
    stray = published("dust3r", networks["dust3r"]) | {ALIAS.replace(".2.", ".4."): torch.ones(8, 4, 3, 3)}
    assert "layer_rn.4.weight'" in refused(load_dust3r, write(tmp_path, "dust3r", stray))


def test_whole_numbers_are_no_weights(networks, tmp_path):
    tensors = published("vggt", networks["vggt"])
    tensors["aggregator.camera_token"] = tensors["aggregator.camera_token"].long()
    assert "int64" in refused(load_vggt, write(tmp_path, "vggt", tensors))


# --- files that are not what they should be ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("layout", ["hub", "pickle", "legacy"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files(kind, layout, share, networks, tmp_path):
    path = write(tmp_path, kind, published(kind, networks[kind]), layout)
    file = path / "model.safetensors" if layout == "hub" else path
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    for call in (LOADERS[kind], verify):
        sentence = refused(call, path)
        assert str(file) in sentence
        assert "truncated, damaged or not a checkpoint" in sentence


@pytest.mark.parametrize("name", ["model.safetensors", "model.pt", "model.pth"])
def test_pages_and_pointers_in_place_of_weights(name, tmp_path):
    for text in ("<!doctype html><html>", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n"):
        (tmp_path / name).write_text(text)
        for call in (load_vggt, load_dust3r, verify):
            assert "not a checkpoint" in refused(call, tmp_path / name)


def test_files_of_another_kind(networks, tmp_path):
    assert "There is no" in refused(load_vggt, tmp_path / "nowhere")
    assert "holds no weights" in refused(load_vggt, tmp_path)
    (tmp_path / "model.png").write_bytes(b"x")
    assert "should end in" in refused(load_vggt, tmp_path / "model.png")
    torch.save({"a": "text"}, tmp_path / "a.pt")
    assert "no table of tensors" in refused(load_vggt, tmp_path / "a.pt")
    torch.save([torch.ones(3)], tmp_path / "b.pt")
    assert "no table of tensors" in refused(load_dust3r, tmp_path / "b.pt")
    assert "several files" in refused(load_dust3r, tmp_path)
    save_file({"conv.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    for call, words in ((load_dust3r, "'enc_blocks.'"), (load_vggt, "'aggregator.'"), (verify, "neither DUSt3R, VGGT nor")):
        assert words in refused(call, tmp_path / "other.safetensors")
    dust3r, vggt = (write(tmp_path / kind, kind, published(kind, networks[kind]), "hub") for kind in LOADERS)
    assert "no weights of DUSt3R but VGGT's" in refused(load_dust3r, vggt)
    assert "no weights of VGGT but DUSt3R's" in refused(load_vggt, dust3r)


def test_shards_and_their_index(networks, tmp_path):
    folder = write(tmp_path / "vggt", "vggt", published("vggt", networks["vggt"]), "shards")
    index = folder / "model.safetensors.index.json"
    (folder / "model-00002-of-00003.safetensors").rename(folder / "elsewhere")
    assert "lacks 'model-00002-of-00003.safetensors'" in refused(load_vggt, folder)
    for text in ("{", "[]", "{}", '{"weight_map": {"a": "../a.safetensors"}}', '{"weight_map": {"a": 3, "b": "b"}}'):
        index.write_text(text)
        assert str(index) in refused(load_vggt, folder) or "lacks '3'" in refused(load_vggt, folder)


def test_settings_that_make_no_network(networks, tmp_path):
    folder = write(tmp_path / "dust3r", "dust3r", published("dust3r", networks["dust3r"]), "hub")
    for changes, words in (
        ({"enc_depth": "two"}, "make no network"), ({"enc_embed_dim": -1}, "make no network"),
        ({"pos_embed": 3}, "make no network"), ({"img_size": None}, "make no network"), ({"two_confs": True}, "two_confs"),
    ):  # fmt: skip
        (folder / "config.json").write_text(json.dumps(DUST3R | changes))
        assert words in refused(load_dust3r, folder)
    (folder / "config.json").write_text("{")
    assert "config.json' is damaged" in refused(load_dust3r, folder)
    (folder / "config.json").unlink()
    assert "config.json beside it" in refused(load_dust3r, folder)
    torch.save({"model": published("dust3r", networks["dust3r"])}, tmp_path / "bare.pth")
    assert "config.json beside it" in refused(load_dust3r, tmp_path / "bare.pth")


# --- the argument string -----------------------------------------------------------------------------------------------


def test_the_constructor_is_read():
    text = (
        "AsymmetricCroCo3DStereo(pos_embed='RoPE100', img_size=(512, 384), depth_mode=('exp', -inf, inf), "
        "conf_mode=('exp', 1, inf), enc_depth=24, freeze=None, landscape_only=False)"
    )
    assert parse_constructor(f" {text}\n", Path("a.pth")) == {
        "pos_embed": "RoPE100", "img_size": (512, 384), "depth_mode": ("exp", -INF, INF), "conf_mode": ("exp", 1, INF),
        "enc_depth": 24, "freeze": None, "landscape_only": False,
    }  # fmt: skip
    assert dict(parse_constructor(constructor(DUST3R), Path("a.pth"))) == DUST3R


@pytest.mark.parametrize("inside", [
    "enc_depth=print(3)", "enc_depth=__import__('os').getpid()", "enc_depth=2**99", "enc_depth=[1 for _ in 'a']",
    "enc_depth=(lambda: 3)()", "enc_depth=f'{3}'", "enc_depth={}.get", "**{'enc_depth': 3}", "3", "enc_depth=3, enc_depth=4",
    "enc_depth=depth", "enc_depth=inf.real", "enc_depth=" + "(" * 5000, "enc_depth={[]: 3}", "enc_depth=-inf()",
    "enc_depth=(yield)",
])  # fmt: skip
def test_nothing_is_evaluated(inside):
    assert "not those of DUSt3R" in refused(parse_constructor, f"AsymmetricCroCo3DStereo({inside})", Path("a.pth"))


@pytest.mark.parametrize(
    "text", ["", "3", "AsymmetricCroCo3DStereo", "a.AsymmetricCroCo3DStereo()", "import os", "x = 3", "f()()"]
)
def test_other_texts_are_refused(text):
    assert "'a.pth'" in refused(parse_constructor, text, Path("a.pth"))


def test_another_network_is_named(networks, tmp_path):
    path = tmp_path / "mast3r.pth"
    tensors = published("dust3r", networks["dust3r"])
    torch.save({"args": argparse.Namespace(model="AsymmetricMASt3R(two_confs=True)"), "model": tensors}, path)
    assert "AsymmetricMASt3R" in refused(load_dust3r, path)


class Code:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("place", ["args", "model"])
def test_code_in_a_pickle_is_not_run(place, networks, tmp_path):
    whole = {"args": argparse.Namespace(model=constructor(DUST3R)), "model": published("dust3r", networks["dust3r"])}
    code = Code(tmp_path / "owned")
    whole[place] = argparse.Namespace(model=code) if place == "args" else {"a": code}
    torch.save(whole, tmp_path / "a.pth")
    for call in (load_dust3r, verify, convert_dust3r):
        assert "could run code" in refused(call, tmp_path / "a.pth")
    assert not (tmp_path / "owned").exists()


# --- conversion --------------------------------------------------------------------------------------------------------


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


@pytest.mark.parametrize("layout", ["pickle", "legacy"])
def test_converting_saving_and_reloading_is_lossless(layout, networks, tmp_path):
    tensors = published("dust3r", networks["dust3r"])
    odd = torch.tensor([float("nan"), -0.0, INF, 1e-42]).expand(tensors["dec_norm.bias"].numel() // 4, 4).flatten()
    tensors["dec_norm.bias"] = odd
    path = write(tmp_path, "dust3r", tensors, layout)
    folder, _ = convert_dust3r(path, tmp_path / "out")
    direct, reloaded = load_dust3r(path).state_dict(), load_dust3r(folder).state_dict()
    assert direct.keys() == reloaded.keys()
    assert all(torch.equal(bits(direct[name]), bits(reloaded[name])) for name in direct)
    saved = load_file(folder / "model.safetensors")
    assert saved.keys() == {"mask_token", *direct}  # as on the Hub: every tensor once
    assert all(torch.equal(bits(value), bits(tensors[name])) for name, value in saved.items())
    assert json.loads((folder / "config.json").read_text())["depth_mode"] == ["exp", -INF, INF]


def test_conversion_keeps_a_half_precision_file_and_a_single_decoder(networks, tmp_path):
    tensors = {name: value.half() for name, value in published("dust3r", networks["dust3r"]).items() if "blocks2" not in name}
    path = write(tmp_path, "dust3r", tensors)
    folder, _ = convert_dust3r(path, tmp_path / "out")
    saved = load_file(folder / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    assert not any("blocks2" in name for name in saved)
    assert_same_weights(load_dust3r(folder), load_dust3r(path))


def test_the_folder_says_where_its_weights_come_from(networks, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    path = write(tmp_path, "dust3r", published("dust3r", networks["dust3r"]))
    folder, provenance = convert_dust3r(path)
    assert folder == tmp_path / "weights" / "DUSt3R_Tiny_dpt"
    assert json.loads((folder / "provenance.json").read_text()) == provenance
    assert (provenance["source"], provenance["sha256"]) == (path.name, file_digest(path))
    assert "non-commercial" in provenance["licence"]
    assert {name: entry["sha256"] for name, entry in provenance["files"].items()} == {
        name: file_digest(folder / name) for name in ("config.json", "model.safetensors")
    }
    assert "is there already" in refused(convert_dust3r, path)
    assert "already" in refused(convert_dust3r, folder)


def test_nothing_is_left_behind_where_conversion_fails(networks, tmp_path, monkeypatch):
    path = write(tmp_path, "dust3r", published("dust3r", networks["dust3r"]))

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(convert, "save_file", full)
        assert "is full" in refused(convert_dust3r, path, tmp_path / "out")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 1000))
        assert "0.0 GB are free" in refused(convert_dust3r, path, tmp_path / "out")
    torch.save({"args": argparse.Namespace(model=constructor(DUST3R)), "model": {"enc_blocks.0": torch.ones(1)}}, path)
    assert "lacks the tensor" in refused(convert_dust3r, path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
