"""The paper's training by commands: a checkpoint in the published layout is converted, warmed up, and given its structure."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_checkpoint import small_checkpoint, write_small_config
from small_clip import small_clip
from small_models import save_hub, small_dust3r

from flows import cli
from flows.evaluation.ablation import load_ablation
from reconx_core.settings import VideoSettings
from reconx_core.training import batches, samples
from reconx_core.training.objective import Objective
from reconx_core.training.schedule import Schedule
from reconx_core.training.settings import TrainSettings
from reconx_core.video.backends.learned import RECIPES, as_trained, load_pipeline, with_settings
from reconx_core.video.diffusion import latents as conversion

pytestmark = pytest.mark.long

SCENE = "procedural:hall?seed=1&views=2&targets=2&arc=8&width=96&height=64"
SMALL = [
    "clip_size=[64, 64]",
    "crop=[64, 64]",
    "frames=4",
    "points=64",
    "steps=2",
    "sample_every=2",
    "sample_steps=2",
    "gradient_checkpointing=false",
    "loader_workers=0",
]
SMALL += ["precision=no", f"data=[{{path: '{SCENE}', frames: 4, fps: 12}}]"]


def options(*changes):
    return [word for change in (*SMALL, *changes) for word in ("-S", change)]


@pytest.fixture(scope="module")
def phases(server, tmp_path_factory):
    """The folders of the converted model and of both phases, made by what a user types."""
    folder = tmp_path_factory.mktemp("paper")

    def reconx(*words):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["reconx", *map(str, words)])
            cli.app(standalone_mode=False)

    config = write_small_config(folder / "small.yaml", vocabulary=49_408)
    save_file(small_checkpoint(config, scale=0.05), folder / "dynamicrafter_512_interp.safetensors")
    model = folder / "model"
    reconx("weights", "convert", folder / "dynamicrafter_512_interp.safetensors", "-o", model, "--config", config)
    store = ("--store", folder / "store")
    reconx("train", "paper-image", "-o", folder / "image", *store, *options(f"model={model}"))
    made, geometry = folder / "image" / "model", "pointcloud.backend=classical"
    reconx(
        "train",
        "paper-structure",
        "-o",
        folder / "structure",
        *store,
        *options(f"model={made}", geometry),
    )
    reconx("weights", "verify", folder / "structure" / "model")
    return model, made, folder / "structure" / "model"


def test_the_second_phase_adds_the_structure_condition(phases):
    _, image, structure = phases
    index = json.loads((structure / "model_index.json").read_text())
    assert index["structure_encoder"] == ["reconx_core.video.diffusion.structure_encoder", "StructureEncoder"]
    weights = load_file(next((structure / "unet").glob("*.safetensors")))
    gates = [value for name, value in weights.items() if name.endswith("structure_gate")]
    assert gates
    assert not json.loads((image / "unet" / "config.json").read_text())["structure_dim"]


def test_a_model_generates_at_the_size_that_it_was_trained_at(phases):
    """At the 512 x 512 of the paper's, one of 64 x 64 takes minutes a step and shows what it was never taught."""
    paper, (converted, _, trained) = RECIPES["reconx"], map(load_pipeline.__wrapped__, phases)
    assert as_trained(paper, converted) == paper
    assert as_trained(paper, trained).pixels == 64 * 64
    asked = VideoSettings(backend="reconx", pixels=96 * 96)
    assert with_settings(as_trained(paper, trained), asked).pixels == 96 * 96


@pytest.mark.slow  # of the network alone: test_gate_at_zero_is_the_network_without_structure_bit_for_bit
def test_new_gates_leave_the_frames_as_they_were(phases):
    _, image, _ = phases
    pipeline = load_pipeline.__wrapped__(image)
    photos, draw = torch.rand(1, 2, 3, 64, 64), torch.Generator()

    def sample(**given):
        return pipeline(photos, [0, 3], draw.manual_seed(0), 4, num_inference_steps=2, **given).frames

    before = sample()
    pipeline.add_structure(0)
    points = torch.rand(1, 64, 3) + torch.tensor([0.0, 0.0, 1.0])
    assert torch.equal(sample(points=points, guidance_scale=1.0), sample(guidance_scale=1.0))
    assert torch.allclose(sample(points=points, structure_guidance_scale=1.0), before, atol=1e-5)


@pytest.mark.parametrize("second", [None, 1])
def test_what_is_trained_is_given_what_is_sampled(phases, monkeypatch, second):
    """One batch and one sampling call: the photos in their places and zeros elsewhere, the frame rate, all tokens."""
    clip, between = replace(small_clip(), second=second), [1, 2] if second is None else [2, 3]
    pipeline = load_pipeline.__wrapped__(phases[2])
    monkeypatch.setattr(conversion, "noise_source", lambda *_: lambda kind, index, shape: torch.zeros(shape))  # of the VAE
    seen = []
    network = type(pipeline).network

    def record(self, timestep, latents, condition, fps=None, **tokens):
        seen.append({"condition": condition, "fps": fps, **tokens})
        return network(self, timestep, latents, condition, fps, **tokens)

    monkeypatch.setattr(type(pipeline), "network", record)
    settings = TrainSettings(crop=(48, 64), frames=4, points=64, drop_image=0, drop_structure=0, model="any", sample_steps=1)
    reads = batches.reads_of(pipeline, settings)
    prepared = batches.prepare(clip, reads)
    batch = batches.draw_batch([lambda: prepared], Schedule(0, 1, 1), 0, 0, settings, reads)
    Objective(pipeline.to(torch.float32), settings)(batch)
    recipe = samples.recipe_of(pipeline, settings)
    samples.generate(pipeline, samples.at_rate(recipe, pipeline, clip), clip, torch.Generator().manual_seed(0))
    trained, sampled = seen[0], seen[1]
    assert trained.keys() == sampled.keys()
    assert trained["fps"].tolist() == [12.0]
    assert set(sampled["fps"].tolist()) == {12}
    everything = int(sampled["structure"].abs().sum((1, 2)).argmax())  # guidance withholds conditions in the other passes
    for name in ("image", "structure", "text"):
        assert torch.allclose(trained[name][0], sampled[name][everything], atol=1e-3), name
    condition, other = trained["condition"], sampled["condition"][everything : everything + 1]
    assert (condition[:, :, between] == 0).all()
    assert (other[:, :, between] == 0).all()
    assert condition.shape == other.shape
    places = list(clip.ends)
    ends, others = condition[:, :, places], other[:, :, places]
    # Those of the same photos, which are bytes in training, and not of each other's.
    assert (ends - others).abs().mean() < 0.1 * (ends - ends.flip(2)).abs().mean()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_papers_path_by_commands_alone(tmp_path):
    """Convert, both phases (the second on two processes), the seven rows of the ablation on two scenes, and their table.

    As a user's shell runs them: each in a process of its own, which starts its own Prefect server.
    """
    config = write_small_config(tmp_path / "small.yaml", vocabulary=49_408)
    save_file(small_checkpoint(config, scale=0.05), tmp_path / "dynamicrafter_512_interp.safetensors")
    save_hub(tmp_path / "dust3r", *small_dust3r())
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"} | {"OMP_NUM_THREADS": "1"}

    def run(*words, launch=("-m", "flows.cli")):
        command = [sys.executable, *launch, *map(str, words)]
        ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stdout

    networks = ["-S", f"pointcloud.weights={tmp_path / 'dust3r'}"]
    two = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "flows.cli")
    run("weights", "convert", "dynamicrafter_512_interp.safetensors", "-o", "model", "--config", config)
    run("train", "paper-image", "-o", "image", "--store", "store", *options("model=model"))
    structure = options("model=image/model")
    run("train", "paper-structure", "-o", "structure", "--store", "store", *structure, *networks, launch=two)
    assert "ReconXPipeline" in run("weights", "verify", "structure/model")
    small = {
        "video.weights": tmp_path / "structure" / "model", "video.steps": 2,
        "condition.frames_per_pair": 2, "confidence.size": 64, "splats.steps": 5, "splats.backend": "cpu",
        "splats.lpips_weight": 0.0,
    }  # fmt: skip
    smaller = [word for key, value in small.items() for word in ("-S", f"{key}={value}")]
    scenes = "procedural:room?seed=1..2&views=3&width=96&height=64"
    run("evaluate", scenes, "--preset", "paper", "--ablation", "-o", "rows", "--store", "store", *networks, *smaller)
    run("table", "ablation", "rows")
    with open(tmp_path / "tables" / "ablation.csv", newline="") as file:
        lines = [line for line in csv.DictReader(file) if (line["published"], line["score"]) == ("false", "psnr")]
    assert [line["row"] for line in lines] == [row.name for row in load_ablation()]
    assert all(float(line["value"]) > 5 and line["scenes"] == "2" for line in lines)
