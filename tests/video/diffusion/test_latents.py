"""Frames to latents and back, with a VAE and without."""

import pytest
import torch
from diffusers import AutoencoderKL
from upstream import assert_close, fill, fixtures, load, stored

from reconx_core.video.checkpoints.parts import vae_config, vae_sources
from reconx_core.video.diffusion.latents import (
    PatchLatents,
    condition_latents,
    decode_frames,
    encode_frames,
    latent_stride,
    visibility_channels,
)


@torch.no_grad()
@pytest.mark.parametrize("path", fixtures("dc_vae_*.safetensors"))
def test_vae_equals_upstream_golden(path):
    tensors, metadata = load(path)
    config, scale = metadata["config"], metadata["config"]["scale_factor"]
    vae = AutoencoderKL(**vae_config({"ddconfig": config, "scale_factor": scale}))
    vae = fill(vae, vae_sources, "first_stage_model.", stored(tensors))
    posterior = vae.encode(tensors["in.image"]).latent_dist
    assert_close(posterior.parameters, tensors["out.moments"])
    assert_close(posterior.mean, tensors["out.mean"])
    assert_close(posterior.logvar, tensors["out.logvar_clamped"])

    latents = encode_frames(vae, tensors["in.image"][None], lambda kind, i, shape: tensors["in.noise"][i][None])
    assert_close(latents[0].transpose(0, 1) / scale, tensors["out.sample"])
    for name in ("mean", "sample"):
        ours = decode_frames(vae, scale * tensors[f"out.{name}"].transpose(0, 1)[None])
        assert_close(ours[0], tensors[f"out.decode_{name}"])


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**levels, block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4).eval()


@pytest.fixture(scope="module")
def frames():
    return torch.rand(2, 5, 3, 16, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_patches_are_exact_and_in_order(frames, tmp_path):
    patches = PatchLatents(4, scaling_factor=0.5)
    patches.save_pretrained(tmp_path)
    patches = PatchLatents.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    latents = encode_frames(patches, frames, seeded(), slice_size=3)
    assert latents.shape == (2, 48, 5, 4, 6)
    assert latents[1, :, 2, 1, 3].tolist() == (0.5 * frames[1, 2, :, 4:8, 12:16]).flatten().tolist()
    assert torch.equal(decode_frames(patches, latents, slice_size=2), frames)


@torch.no_grad()
def test_slices_change_memory_only(vae, frames):
    together, apart = (encode_frames(vae, frames, seeded(), size) for size in (10, 3))
    assert together.shape == (2, 4, 5, 8, 12)
    assert_close(apart, together)
    assert_close(decode_frames(vae, together, 3), decode_frames(vae, together, 10))


@torch.no_grad()
def test_a_posterior_is_sampled(vae, frames):
    drawn = encode_frames(vae, frames[:1, :1].expand(200, -1, -1, -1, -1), seeded(), slice_size=50)[:, :, 0]
    posterior = vae.encode(frames[0, :1]).latent_dist
    scale = vae.config.scaling_factor
    assert torch.allclose(drawn.std(0) / scale, posterior.std[0], rtol=0.3)
    assert ((drawn.mean(0) / scale - posterior.mean[0]).abs() < 0.4 * posterior.std[0]).all()


@torch.no_grad()
def test_a_clip_with_its_own_generator_does_not_depend_on_its_batch(vae, frames):
    both = encode_frames(vae, frames, [seeded(1), seeded(2)])
    assert_close(encode_frames(vae, frames[1:], seeded(2)), both[1:])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vae", "patches"])
def test_conditions_of_each_mode(vae, frames, kind):
    model = vae if kind == "vae" else PatchLatents(2)
    noises = {}

    def noise(kind, index, shape):
        return noises.setdefault(index, torch.randn(shape, generator=seeded(index)))

    whole = encode_frames(model, frames, noise)
    between = condition_latents(model, frames[:, [0, 3]], [0, 3], 5, None, noise)
    assert_close(between[:, :, [0, 3]], whole[:, :, [0, 3]])
    assert not between[:, :, [1, 2, 4]].any()
    single = condition_latents(model, frames[:, :1], [0], 5, None, noise)
    assert_close(single, whole[:, :, :1].expand_as(whole))
    changed = frames.clone()
    changed[:, [0, 4]] = 0.5
    renders = condition_latents(model, frames[:, [0, 4]], [0, 4], 5, changed, noise)
    assert_close(renders, whole)
    assert (changed[:, 0] == 0.5).all()


def test_visibility_keeps_every_pixel():
    visibility = torch.rand(2, 5, 16, 24, generator=seeded())
    channels = visibility_channels(visibility, [0, 4], 8)
    assert channels.shape == (2, 64, 5, 2, 3)
    assert channels[1, :, 2, 1, 2].tolist() == visibility[1, 2, 8:16, 16:24].flatten().tolist()
    assert (channels[:, :, [0, 4]] == 1).all()


def test_strides(vae):
    assert latent_stride(vae) == 2
    assert latent_stride(PatchLatents(8)) == 8
