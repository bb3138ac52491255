"""What a GPU computes is what the CPU computes: the shipped model in half precision, and small networks of the full size's."""

from functools import partial

import pytest
import torch

from reconx_core.settings import VideoSettings
from reconx_core.video.backends.learned import find_model, load_pipeline
from reconx_core.video.checkpoints.parts import published_parts
from reconx_core.video.diffusion.pipeline import ReconXPipeline
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet, spatial_cross_attentions

DEVICE = "cuda"
WIDTH = 16
TOLERANCE = 2e-3  # of the norm, in float32: the order of sums, carried through all steps with guidance
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(autouse=True)
def float32_is_float32():
    """Without TF32, whose 10 bits would hide what else differs."""
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    yield
    for backend, value in zip(backends, before):
        backend.allow_tf32 = value


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def small_pipeline():
    """Every network of a published checkpoint and the structure encoder, at a width for tests and with an open gate."""
    torch.manual_seed(0)
    upstream = {
        "scale_factor": 0.18215, "unet_config": {
            "in_channels": 8, "out_channels": 4, "model_channels": 32, "attention_resolutions": [1], "num_res_blocks": 1,
            "channel_mult": [1, 2], "dropout": 0.1, "num_head_channels": 16, "context_dim": WIDTH, "default_fs": 24,
        },
        "first_stage_config": {
            "ddconfig": {"z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 1], "num_res_blocks": 1},
        },
        "image_proj_stage_config": {
            "dim": WIDTH, "depth": 1, "dim_head": 8, "heads": 2, "num_queries": 16, "embedding_dim": WIDTH,
            "output_dim": WIDTH, "ff_mult": 2, "video_length": 2,
        },
        "vision_cfg": {"image_size": 224, "layers": 1, "width": WIDTH, "head_width": 8, "patch_size": 112},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": WIDTH, "heads": 2, "layers": 2},
    }  # fmt: skip
    modules = {part.folder: part.build() for part in published_parts(upstream)}
    modules["unet"] = ReconXUNet.from_config(modules["unet"].config, structure_dim=WIDTH)
    modules["structure_encoder"] = StructureEncoder(WIDTH, heads=2, frequencies=4)
    for module in modules.values():
        module.eval()
    for attention in spatial_cross_attentions(modules["unet"]):
        torch.nn.init.ones_(attention.processor.structure_gate)
    pipeline = ReconXPipeline(scheduler=ReconXScheduler(), **modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def small_clip(pipeline, **changes):
    """Frames and latents, on the CPU, of the same clip for every way to make it."""
    photos, points = torch.rand(1, 2, 3, 32, 48, generator=draw(1)), torch.randn(1, 128, 3, generator=draw(2))
    latents = {}

    def keep(pipeline, step, timestep, tensors):
        latents.update(tensors)
        return tensors

    frames = pipeline(
        photos, [0, 3], draw(3), num_frames=4, points=points, num_inference_steps=3, callback_on_step_end=keep, **changes
    ).frames
    return frames.cpu(), latents["latents"].cpu()


def assert_near(found, expected):
    for name, ours, wanted in zip(("frames", "latents"), found, expected):
        assert ours.isfinite().all()
        assert (ours - wanted).norm() <= TOLERANCE * wanted.norm(), name


def test_the_shipped_model_in_half_precision_stays_near_the_cpu():
    folder = find_model(VideoSettings(backend="reconx-tiny"))
    on_gpu, on_cpu = load_pipeline(folder), ReconXPipeline.from_pretrained(folder, local_files_only=True)
    assert (on_gpu.device.type, on_gpu.unet.dtype, on_cpu.unet.dtype) == (DEVICE, torch.bfloat16, torch.float32)
    rand, size = partial(torch.rand, generator=draw(1)), (96, 128)
    shown = {
        "photos": rand(1, 2, 3, *size), "positions": [0, 5], "renders": rand(1, 6, 3, *size),
        "visibility": rand(1, 6, *size), "sources": rand(1, 6, on_cpu.config.sources, 4, *size),
        "points": torch.randn(1, 2048, 3, generator=draw(2)), "point_features": rand(1, 2048, 3),
    }  # fmt: skip
    ours, wanted = (
        pipeline(**shown, generator=draw(3), num_frames=6, num_inference_steps=1, guidance_scale=1.0, eta=0.0).frames.cpu()
        for pipeline in (on_gpu, on_cpu)
    )
    assert ours.isfinite().all()
    assert (ours - wanted).abs().mean() < 2e-3


def test_the_same_clip_as_on_the_cpu():
    pipeline = small_pipeline()
    expected = small_clip(pipeline)
    assert_near(small_clip(pipeline.to(DEVICE)), expected)


def test_guidance_in_one_batch_or_one_by_one():
    pipeline = small_pipeline().to(DEVICE)
    assert_near(small_clip(pipeline, batch_guidance=True), small_clip(pipeline, batch_guidance=False))


def test_networks_that_wait_on_the_cpu_give_the_same_clip():
    expected = small_clip(small_pipeline().to(DEVICE))
    pipeline = small_pipeline()
    pipeline.enable_model_cpu_offload(device=DEVICE)
    for _ in range(2):  # the second clip finds the networks where the first left them
        assert_near(small_clip(pipeline), expected)
    assert pipeline.unet.device.type == "cpu"
