"""Tiny stand-ins for the stages, so that tests of the orchestration take no time.

As a script: reconx with them, in Dask's local workers, too. As ``dask worker --preload``: a worker with them.
Each call is appended to the file named by RECONX_TEST_LOG, with RECONX_TEST_WORKER before it, if set.
As a script with RECONX_TEST_GPUS it finds so many GPUs, and the calls have the worker's before them. RECONX_TEST_PAUSE names a
stage that first waits for a signal; RECONX_TEST_VICTIM=STAGE:FILE lets only the first to get there wait, its pid in the file.
"""

import os
import time
from pathlib import Path

import torch
from PIL import Image

from reconx_core import condition, confidence, metrics, pointcloud, splats, video, views
from reconx_core.errors import UserError
from reconx_core.types import Cameras, Condition, Frames, Gaussians, PointCloud, Pointmaps, Scores, Views, ViewScore

HEIGHT, WIDTH = 24, 32


def cameras(count):
    intrinsics = torch.tensor([[30.0, 0, WIDTH / 2], [0, 30.0, HEIGHT / 2], [0, 0, 1]])
    poses = torch.eye(4).repeat(count, 1, 1)
    poses[:, 0, 3] = torch.arange(count) / 10
    return Cameras(intrinsics.repeat(count, 1, 1), poses, WIDTH, HEIGHT)


def views_with_depth(capture, settings):
    _enter("views")
    if "broken" in capture.name:
        raise UserError("This scene is broken; take another one.")
    if "stuck" in capture.name:
        time.sleep(600)
    images = torch.rand(4, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(len(capture.name)))
    is_target = torch.tensor([False, False, False, True])
    focal = torch.full((4,), float("nan"))
    masks = torch.ones(4, HEIGHT, WIDTH, dtype=torch.bool)
    return Views(images, masks, ("a", "b", "c", "d"), is_target, cameras(4), focal, "posed"), None


def estimate(inputs, settings, generator):
    _enter("pointcloud")
    n = len(inputs)
    cloud = PointCloud(torch.rand(9, 3, generator=generator), torch.rand(9, 3, generator=generator), torch.ones(9))
    points = torch.rand(n, HEIGHT, WIDTH, 3, generator=generator)
    return Pointmaps(points, torch.ones(n, HEIGHT, WIDTH), cameras(n), cloud), cloud, torch.arange(n)


def make_backend(settings, fast=False, known=None):
    return None


def build_condition(inputs, pointmaps, settings, generator, given=None):
    _enter("condition")
    n = settings.frames_per_pair
    renders = torch.rand(n, HEIGHT, WIDTH, 3, generator=generator)
    pair = torch.tensor([[0, 1]]).repeat(n, 1)
    return Condition(cameras(n), renders, torch.ones(n, HEIGHT, WIDTH), pair, torch.linspace(0, 1, n))


def generate_frames(inputs, pointmaps, guide, settings, generator, progress):
    _enter("video")
    images = torch.cat([inputs.images, guide.renders])
    is_photo = torch.arange(len(images)) < len(inputs)
    return Frames(images, cameras(len(images)), torch.ones(images.shape[:3]), is_photo)


def judge_frames(inputs, frames, pointmaps, placement):
    """Frames of noise would all be left out."""
    return frames, placement


def estimate_confidence(inputs, frames, pointmaps, backend, settings, generator):
    _enter("confidence")
    return frames


def fit_splats(frames, pointmaps, settings, generator, progress):
    _enter("splats")
    progress(1, 2)
    n = 10 + settings.steps % 7
    rand = [torch.rand(n, *shape, generator=generator) for shape in ((3,), (4,), (3,), (), (4, 3))]
    return Gaussians(*rand)


def score_scene(gaussians, scene, kept, pointmaps, settings, generator):
    _enter("metrics")
    psnr = 20.0 + float(gaussians.means.mean())
    rows = (ViewScore("d", psnr, 0.5, None, False, True), ViewScore("a", psnr + 1, 0.6, None, False, False))
    summary = {
        "psnr": psnr,
        "ssim": 0.5,
        "lpips": None,
        "photo_psnr": psnr + 1,
        "photo_ssim": 0.6,
        "gaussians": float(len(gaussians)),
    }
    panels = {"photo": scene.images[0], "render": scene.images[1]}
    pictures = [metrics.pictures.Picture("d", True, False, panels), metrics.pictures.Picture("a", False, False, panels)]
    return Scores(rows, summary, scene.protocol), pictures


def render_loop(gaussians, path, frames):
    return torch.rand(4, HEIGHT, WIDTH, 3, generator=torch.Generator().manual_seed(len(gaussians)))


REPLACED = (
    (views, views_with_depth), (pointcloud, estimate), (pointcloud, make_backend), (condition, build_condition),
    (video, generate_frames), (confidence, judge_frames), (confidence, estimate_confidence), (splats, fit_splats),
    (metrics, score_scene),
)  # fmt: skip


def write_folder(folder):
    """Two small pictures that differ from folder to folder."""
    folder.mkdir(parents=True)
    for name, level in (("a", len(folder.name)), ("b", sum(map(ord, folder.name)) % 256)):
        Image.new("RGB", (WIDTH, HEIGHT), (level, 0, 0)).save(folder / f"{name}.png")
    return folder


def install(setattr=setattr):
    """Put the stand-ins in place of the stages; ``setattr`` may be pytest's monkeypatch.setattr."""
    from tasks import metrics as metrics_task

    for module, function in REPLACED:
        setattr(module, function.__name__, function)
    setattr(metrics_task, "render_loop", render_loop)
    setattr(metrics_task, "frames_a_second", lambda gaussians, cameras: 20.0)


def artifact_bytes(store: Path) -> dict[str, bytes]:
    """Every file of every artifact that is inside a digest, and the manifests."""
    outside = {"measured.json", "prefect.json"}
    files = (p for p in store.glob("*/*/**/*") if p.is_file() and not p.relative_to(store).parts[0].startswith("."))
    return {p.relative_to(store).as_posix(): p.read_bytes() for p in files if p.name not in outside}


def _worker():
    return os.environ.get("RECONX_TEST_WORKER", "")


def _enter(stage):
    if "RECONX_TEST_LOG" in os.environ:
        with Path(os.environ["RECONX_TEST_LOG"]).open("a") as log:
            log.write(_worker() + stage + "\n")
    if os.environ.get("RECONX_TEST_PAUSE") == stage:
        time.sleep(600)
    paused, _, file = os.environ.get("RECONX_TEST_VICTIM", "").partition(":")
    if paused == stage:
        _wait_to_be_killed(Path(file))


def _wait_to_be_killed(file):
    try:
        with file.open("x") as victim:
            victim.write(str(os.getpid()))
    except FileExistsError:
        return
    time.sleep(600)


def dask_setup(worker):
    install()


if __name__ == "__mp_main__":  # a worker of the run below
    install()
    if "RECONX_TEST_GPUS" in os.environ:
        _worker = lambda: f"gpu{os.environ['CUDA_VISIBLE_DEVICES']}:"  # noqa: E731

if __name__ == "__main__":
    from flows.cli import main

    install()
    if "RECONX_TEST_GPUS" in os.environ:
        torch.cuda.device_count = lambda: int(os.environ["RECONX_TEST_GPUS"])
    main()
