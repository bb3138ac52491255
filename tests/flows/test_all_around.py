"""All the way round in rounds, with true frames in the place of generated ones: what comes of it, and what a kill costs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import true_frames
from standins import artifact_bytes

from flows.scene import load_cameras, load_scene
from reconx_core.geometry.camera_path import interpolate_path
from reconx_core.geometry.transforms import rotation_angle
from reconx_core.rasterize import rasterize

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SEED, AROUND = 3, 36
RING = ("-S", "condition.path=orbit", "-S", "metrics.video_frames=4")


def command(name, out, width=128):
    source = f"procedural:{name}?seed={SEED}&views=3&targets=0&arc=12&width={width}&height={width * 3 // 4}"
    return "reconstruct", source, "-o", str(out), "--store", str(out.parent / "store"), *RING


@pytest.fixture(params=["hall", "room"])
def ring(request, reconx, monkeypatch, tmp_path):
    """A scene of six rounds; its name, its folder, and what was printed."""
    true_frames.install(request.param, SEED, monkeypatch.setattr)
    outcome = reconx(*command(request.param, tmp_path / "out"), "-S", "condition.rounds=6")
    assert outcome.code == 0, outcome.err
    return request.param, tmp_path / "out", outcome.out


def test_true_frames_make_a_true_scene_all_around(ring, reconx):
    name, out, printed = ring
    path = load_cameras(out / "path" / "transforms.json")
    first, last = path.cam_to_world[0], path.cam_to_world[-1]
    assert rotation_angle(first[:3, :3], last[:3, :3]) < 1
    assert (first[:3, 3] - last[:3, 3]).norm() < 0.01 * (
        path.cam_to_world[:, :3, 3] - path.cam_to_world[:, :3, 3].mean(0)
    ).norm(dim=-1).mean()
    around = interpolate_path(path, torch.linspace(0, len(path) - 1, AROUND + 1)[:-1])
    gaussians, truth = load_scene(out), true_frames.shoot(name, SEED, around)
    shown = [rasterize(gaussians, around[[i]]) for i in range(AROUND)]
    assert min(float((one.alpha > 0.5).float().mean()) for one in shown) > 0.999  # no hole
    psnr = torch.tensor([-10 * (one.rgb[0].clamp(0, 1) - true).square().mean().log10() for one, true in zip(shown, truth)])
    assert psnr.min() > 24
    assert "condition 6" in printed
    assert reconx("why", f"{name}_{SEED}", "video 3", "--run", out).out.startswith("video 3 of")
    assert "join" in reconx("status", out).out


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory):
    """``disturbed("video:2")``: artifacts of a small ring that was killed there and begun again; "" is not killed."""

    def run(where):
        out = tmp_path_factory.mktemp("ring") / "out"
        small = ("-S", "condition.rounds=3", "-S", "condition.frames=12", "-S", "condition.advance=90", "-S", "splats.steps=4")
        line = [sys.executable, true_frames.__file__, "hall", str(SEED), *command("hall", out, 96), *small]
        environment = os.environ | {"PYTHONPATH": str(Path(true_frames.__file__).parents[1])}
        if where:
            killed = subprocess.run(line, env=environment | {"RECONX_TEST_DIE": where}, capture_output=True, check=False)
            assert killed.returncode == -9, killed.stderr.decode()[-500:]
        subprocess.run(line, env=environment, capture_output=True, check=True)
        return artifact_bytes(out.parent / "store")

    return run


@pytest.fixture(scope="module")
def undisturbed(disturbed):
    return disturbed("")


@pytest.mark.parametrize("where", ["video:1", "join:2", "video:3", "join:3"])
def test_killed_in_any_round_the_same_bytes_come_of_it(disturbed, undisturbed, where):
    assert disturbed(where) == undisturbed
    rounds = [json.loads(content) for name, content in undisturbed.items() if name.endswith("rounds.json")]
    assert sorted(len(one["rounds"]) for one in rounds) == [1, 2, 3]
