"""The paper's preset on tiny networks with random weights: nothing but the weights is missing."""

import json

import pytest
from small_models import save_hub, small_dust3r, small_pipeline

from reconx_core.datasets import procedural
from reconx_core.export import dataset as write


@pytest.fixture
def photos(tmp_path):
    capture = procedural.read("procedural:room?seed=1&views=3&targets=0&width=128&height=96")
    write.write_photos(capture, tmp_path / "room")
    return tmp_path / "room" / "images"


@pytest.fixture
def weights(tmp_path):
    """DUSt3R as on the Hub, and the paper's video model."""
    save_hub(tmp_path / "dust3r", *small_dust3r())
    small_pipeline(residual=False, colours=False).save_pretrained(tmp_path / "video")
    return {"pointcloud": tmp_path / "dust3r", "video": tmp_path / "video"}


@pytest.mark.slow
def test_three_square_photos_go_through_all_stages(reconx, photos, weights, tmp_path):
    """DUSt3R sees the middle of them; every pixel starts a Gaussian."""
    smaller = {
        "views.crop": "[80,80]", "condition.frames_per_pair": 2, "confidence.size": 64, "splats.steps": 5,
        "splats.backend": "cpu", "video.steps": 2, "video.pixels": 64 * 64,
        **{f"{stage}.weights": path for stage, path in weights.items()},
    }  # fmt: skip
    options = [part for key, value in smaller.items() for part in ("-S", f"{key}={value}")]
    out = tmp_path / "scene"
    outcome = reconx("reconstruct", photos, "-o", out, "--preset", "paper", "--store", tmp_path / "store", *options)
    assert outcome.code == 0, outcome.out + outcome.err
    record = json.loads((out / "run.json").read_text())
    stages = [cost["stage"] for cost in next(iter(record["scenes"].values()))["costs"]]
    assert stages == ["views", "pointcloud", "condition", "video", "confidence", "splats", "metrics"]
    assert (out / "scene.ply").stat().st_size > 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["summary"]["gaussians"] == 3 * 80 * 80
    frames = metrics["frames"]
    assert (frames["cameras"], frames["frames"]) == ("find", 4)  # the model is not told them
    assert frames["moved"] + len(frames["left_out"]) == 4
