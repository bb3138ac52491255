"""The calls of docs/library.md, and that importing them does nothing."""

import inspect
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reconx

ROOT = Path(__file__).parents[2]
PHOTOS = "procedural:room?views=3&targets=1&width=128&height=96"
QUICK = [
    "pointcloud.planes=32", "pointcloud.stereo_size=96", "pointcloud.rounds=1", "condition.frames_per_pair=1",
    "confidence.size=64", "splats.steps=20", "views.protocol=posed", "video.backend=points",
]  # fmt: skip

# Fails where a file is opened for writing, a folder is made, a socket is bound or connected, or a process is started.
WATCH = """
import os, sys
def watch(event, arguments):
    writes = event == "open" and (
        isinstance(arguments[1], str) and set(arguments[1]) & set("wax+") or arguments[2] & (os.O_WRONLY | os.O_RDWR)
    )
    place = str(arguments[0]) if arguments else ""
    if place == os.devnull or ".pyc" in place or (event == "os.mkdir" and place.endswith("__pycache__")):
        return  # bytecode is Python's own; what a library kept in such a folder would still be seen when it is opened
    if writes or event in ("os.mkdir", "os.rename", "socket.bind", "socket.connect", "subprocess.Popen", "os.posix_spawn"):
        print(event, arguments, file=sys.stderr)
        os._exit(3)
sys.addaudithook(watch)
import reconx
assert not any(name.split(".")[0] in ("prefect", "mlflow", "dvc", "distributed", "typer", "flows") for name in sys.modules)
"""


def test_importing_it_starts_nothing_and_writes_nothing(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", WATCH], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_example_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["from_python.py", PHOTOS, str(tmp_path), *QUICK])
    runpy.run_path(str(ROOT / "examples" / "from_python.py"), run_name="__main__")
    said = capsys.readouterr().out
    assert said.startswith("3 photos, 2 held out")
    assert float(said.split("\npsnr: ")[1].split()[0]) > 15
    assert {p.name for p in tmp_path.iterdir()} == {"scene.ply", "scene.spz"}


@pytest.mark.slow
def test_a_store_gives_the_same_and_computes_nothing_twice(tmp_path):
    settings, steps = reconx.make_settings(QUICK), []
    first = reconx.reconstruct_stored(PHOTOS, tmp_path / "store", settings, lambda *step: steps.append(step))
    assert ("splats", 20, 20) in steps
    steps.clear()
    again = reconx.reconstruct_stored(PHOTOS, tmp_path / "store", settings, lambda *step: steps.append(step))
    assert not steps
    assert torch.equal(again.gaussians.means, first.gaussians.means)
    held = reconx.score(again, settings).summary["psnr"]
    in_memory = reconx.reconstruct(reconx.load_photos(PHOTOS, settings), settings)
    assert reconx.score(in_memory, settings).summary["psnr"] == pytest.approx(held, abs=1.0)
    assert reconx.render(again.gaussians, again.cameras).shape == (3, 96, 128, 3)


ORBIT = ["condition.path=orbit", "condition.rounds=2"]


def test_rounds_are_those_of_the_command_line(monkeypatch):
    made = []

    class Stand:
        """A stage whose results are its task's name and the names of what it has read."""

        @staticmethod
        def run(job, read):
            made.append(job.name)
            names = ("views", "pointmaps", "pointcloud", "kept", "frames", "gaussians")
            return dict.fromkeys(names, f"{job.name} of {read.outputs['pointcloud']['pointmaps']}" if made[1:] else job.name)

    monkeypatch.setattr(reconx.importlib, "import_module", lambda name: Stand)
    scene = reconx.reconstruct("photos", reconx.make_settings(ORBIT))
    of_round = ["condition", "video", "confidence", "join"]
    assert made == ["pointcloud", *of_round, *(f"{stage} 2" for stage in of_round), "splats"]
    assert scene.gaussians == "splats of join 2 of join of pointcloud"
    assert scene.frames == "join 2 of join of pointcloud"
    assert scene.pointmaps == "pointcloud"  # the photos' alone


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_rounds_go_through_memory_and_a_store(tmp_path):
    settings = reconx.make_settings([*QUICK, *ORBIT, "condition.frames=6"])
    stored = reconx.reconstruct_stored(PHOTOS, tmp_path / "store", settings)
    assert len(list((tmp_path / "store" / "join").iterdir())) == 2
    held = reconx.reconstruct(reconx.load_photos(PHOTOS, settings), settings)
    assert len(held.frames.images) == len(stored.frames.images) > len(stored.cameras)


def test_mistakes_are_user_errors(tmp_path):
    with pytest.raises(reconx.UserError, match="stepz"):
        reconx.make_settings(["splats.stepz=3"])
    with pytest.raises(reconx.UserError):
        reconx.load_photos(tmp_path / "nothing")
    with pytest.raises(reconx.UserError, match="holds 2 scenes"):
        reconx.reconstruct_stored("procedural:room?seed=0..1", tmp_path / "store", reconx.make_settings())
    assert not list(tmp_path.iterdir())


def test_every_call_is_typed_and_documented():
    calls = [getattr(reconx, name) for name in reconx.__all__ if name.islower()]
    assert len(calls) == 7
    for call in calls:
        assert call.__doc__
        assert "return" in call.__annotations__
        assert len(call.__annotations__) == 1 + len(inspect.signature(call).parameters)
