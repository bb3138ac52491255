"""The real stages, end to end and very small: photos of a procedural room, without their cameras."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pycolmap
import pytest
import torch
from PIL import Image

from flows import cli
from reconx_core.cache import store
from reconx_core.datasets import read
from reconx_core.export import dataset as write
from reconx_core.export.formats import read_gaussians
from reconx_core.io import video as video_io

QUICK = [
    "pointcloud.planes=32", "pointcloud.stereo_size=128", "pointcloud.rounds=1", "condition.frames_per_pair=1",
    "confidence.size=64", "splats.steps=30", "metrics.video_frames=4", "metrics.refine_steps=5",
]  # fmt: skip
SETTINGS = [word for setting in QUICK for word in ("-S", setting)]


def start_reconx(*arguments):
    command = [sys.executable, "-m", "flows.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, env=dict(os.environ))


@pytest.fixture(scope="session")
def made(server, tmp_path_factory):
    """One reconstruction that the tests here share: photos, results, store and what was printed."""
    folder = tmp_path_factory.mktemp("real")
    capture = read(Path("procedural:room?views=3&targets=0&width=192&height=144"))
    write.write_photos(capture, folder / "photos", cameras=False)
    make_mixed(folder / "photos" / "images")
    start = ("reconstruct", folder / "photos" / "images", "-o", folder / "out", "--store", folder / "store", *SETTINGS)
    with redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["reconx", *map(str, start)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
    return folder, printed.getvalue()


def make_mixed(folder):
    """One photo smaller than the others, and one grey."""
    first, second, _ = sorted(folder.iterdir())
    with Image.open(first) as image:
        image.resize((160, 120)).save(first, quality=95)
    with Image.open(second) as image:
        image.convert("L").save(second, quality=95)


def test_mixed_photos_become_a_scene_that_shows_them(made):
    folder, printed = made
    record = json.loads((folder / "out" / "run.json").read_text())
    (scene,) = record["scenes"].values()
    assert scene["summary"]["photo_psnr"] > 15
    assert scene["protocol"] == "unposed"
    assert [cost["stage"] for cost in scene["costs"]] == [
        "views",
        "pointcloud",
        "condition",
        "video",
        "confidence",
        "splats",
        "metrics",
    ]
    assert "scene.ply" in printed


def test_exports_hold_what_the_store_holds(made):
    folder, _ = made
    (scene,) = json.loads((folder / "out" / "run.json").read_text())["scenes"].values()
    entry = store.Reference(**scene["artifacts"]["splats"]).folder(folder / "store")
    kept, exported = store.load(entry, "gaussians"), read_gaussians(folder / "out" / "scene.ply")
    assert torch.equal(kept.means, exported.means)
    assert torch.equal(kept.sh, exported.sh)
    assert len(list(video_io.read_frames(folder / "out" / "video.mp4"))) == 4
    assert len(json.loads((folder / "out" / "cameras" / "transforms.json").read_text())["frames"]) == 3


def test_colmap_goes_on_from_the_cameras(made):
    """Tracks of the features that the cameras were found by, and one lens, for the photos are one camera's."""
    model = pycolmap.Reconstruction(str(made[0] / "out" / "cameras" / "sparse" / "0"))
    assert model.num_points3D() > 20
    assert all(point.track.length() > 1 for point in model.points3D.values())
    before = model.compute_mean_reprojection_error()
    assert before < 1.5
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert model.compute_mean_reprojection_error() < 1.02 * before


def test_render_and_export_take_the_scene_up_again(reconx, made):
    folder, _ = made
    assert reconx("render", folder / "out", "-o", folder / "again.mp4", "--frames", 2).code == 0
    assert len(list(video_io.read_frames(folder / "again.mp4"))) == 2
    assert reconx("export", folder / "out" / "scene.ply", folder / "scene.splat").code == 0
    assert len(read_gaussians(folder / "scene.splat")) == len(read_gaussians(folder / "out" / "scene.ply"))


@pytest.mark.slow
def test_same_photos_and_settings_give_the_same_bytes_in_another_process(made):
    folder, _ = made
    start = ("reconstruct", folder / "photos" / "images", "-o", folder / "twin", "--store", folder / "other", *SETTINGS)
    done = start_reconx(*start)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("scene.ply", "video.mp4", "metrics.json"):
        assert (folder / "out" / name).read_bytes() == (folder / "twin" / name).read_bytes(), name


@pytest.mark.slow
def test_photos_of_different_places(reconx, tmp_path):
    for seed in (1, 2):
        capture = read(Path(f"procedural:room?views=2&targets=0&seed={seed}&width=192&height=144"))
        write.write_photos(capture, tmp_path / str(seed), cameras=False)
    folder = tmp_path / "photos"
    folder.mkdir()
    for seed in (1, 2):
        next(iter(sorted((tmp_path / str(seed) / "images").iterdir()))).rename(folder / f"{seed}.jpg")
    done = reconx("reconstruct", folder, "-o", tmp_path / "out", "--store", tmp_path / "store", *SETTINGS)
    assert done.code == 2, done.out + done.err
    assert done.err.startswith("reconx: ")
    assert done.err.count("\n") == 1
