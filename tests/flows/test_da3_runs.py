"""`reconx reconstruct` with Depth-Anything-3 in the published layout: nothing but the weights is missing."""

import json

import pytest
from small_models import save_hub, small_da3

from reconx_core.datasets import procedural
from reconx_core.export import dataset as write


@pytest.fixture
def photos(tmp_path):
    capture = procedural.read("procedural:room?seed=1&views=3&targets=0&width=128&height=96")
    write.write_photos(capture, tmp_path / "room")
    return tmp_path / "room" / "images"


def test_auto_takes_the_weights_that_are_there_through_all_stages(reconx, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path / "weights"))
    save_hub(tmp_path / "weights" / "DA3-SMALL", *small_da3())
    changes = {
        "views.size": 128, "condition.frames_per_pair": 2, "confidence.size": 64,
        "video.backend": "points", "splats.steps": 5, "splats.backend": "cpu",
    }  # fmt: skip
    options = [part for key, value in changes.items() for part in ("-S", f"{key}={value}")]
    out = tmp_path / "scene"
    outcome = reconx("reconstruct", photos, "-o", out, "--store", tmp_path / "store", *options)
    assert outcome.code == 0, outcome.out + outcome.err
    told = json.loads((out / "run.json").read_text())
    stages = [cost["stage"] for cost in next(iter(told["scenes"].values()))["costs"]]
    assert told["settings"]["pointcloud"]["backend"] == "da3"  # what auto became
    assert "geometry by da3" in outcome.out
    assert stages == ["views", "pointcloud", "condition", "video", "confidence", "splats", "metrics"]
    assert (out / "scene.ply").stat().st_size > 0


def test_verify_recognises_the_folder(reconx, tmp_path, monkeypatch):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    save_hub(tmp_path / "DA3-SMALL", *small_da3())
    outcome = reconx("weights", "verify", "DA3-SMALL")
    assert outcome.code == 0, outcome.out + outcome.err
    assert "Depth-Anything-3, 70 pixels" in outcome.out
