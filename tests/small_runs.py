"""Runs made up for tests: reports in memory, and run folders with a record and pictures."""

import json

import torch

from reconx_core.io.images import encode
from reconx_core.metrics.pictures import Picture, error_heat, side_by_side
from reconx_core.reporting.report import ReportPicture, RunReport, SceneReport, StageCost
from reconx_core.types import Scores, ViewScore

HEIGHT, WIDTH = 48, 64
STAGES = {"views": 2.0, "pointcloud": 25.0, "splats": 40.0, "metrics": 1.0}  # stage -> seconds


def photo(seed):
    """Soft coloured shapes, float [h w 3]."""
    rows, columns = torch.meshgrid(torch.arange(HEIGHT) / HEIGHT, torch.arange(WIDTH) / WIDTH, indexing="ij")
    waves = [torch.sin(6 * rows * (1 + k) + seed) * torch.cos(5 * columns + k * seed) for k in range(3)]
    return torch.stack(waves, -1) / 2 + 0.5


def panels(seed, error, level="depth"):
    """The panels of a view whose render is off by ``error``."""
    truth = photo(seed)
    render = (truth + error).clamp(0, 1)
    mask = torch.ones(HEIGHT, WIDTH, dtype=torch.bool)
    return {"photo": truth, "render": render, "error": error_heat(render, truth, mask), level: truth.flip(0)}


def views_of(psnr):
    return [
        {"view": "a.jpg", "psnr": psnr + 4, "ssim": 0.9, "lpips": None, "is_target": False, "refined": False},
        {"view": "b.jpg", "psnr": psnr, "ssim": 0.7, "lpips": None, "is_target": True, "refined": False},
    ]


def report_scene(name, psnr, video=None, **changes):
    shots = zip(("a.jpg", "b.jpg"), (False, True), (panels(1, 0.05, "confidence"), panels(2, 0.1)))
    pictures = tuple(ReportPicture(v, target, {n: encode(p, "PNG") for n, p in shown.items()}) for v, target, shown in shots)
    scores = Scores(
        tuple(ViewScore(**view) for view in views_of(psnr)), {"psnr": psnr, "ssim": 0.7, "photo_psnr": psnr + 4}, "posed"
    )
    costs = tuple(StageCost(stage, seconds, 900, stage == "views") for stage, seconds in STAGES.items())
    return SceneReport(name, "train_3", (WIDTH, HEIGHT), scores, pictures, video, costs, **changes)


def failed_scene(name):
    costs = (StageCost("views", 2.0, 900),)
    return SceneReport(name, costs=costs, failed_stage="pointcloud", error="The photos do not overlap; take them closer.")


def report_of(scenes, **changes):
    settings = {"seed": 0, "splats": {"steps": 1000}}
    return RunReport(
        "Test run", tuple(scenes), settings, (0,), None, "LPIPS is left out: no weights.", {"torch": "2"}, **changes
    )


def record_scene(psnr, **changes):
    """A finished scene as it stands in run.json."""
    summary = {"psnr": psnr, "ssim": 0.5, "lpips": None, "photo_psnr": psnr + 4, "gaussians": 10.0}
    costs = [{"stage": s, "seconds": t, "peak_mib": 900.0, "cached": s == "views"} for s, t in STAGES.items()]
    scene = {"error": None, "protocol": "posed", "split": "train_3", "size": [WIDTH, HEIGHT], "summary": summary}
    return scene | {"views": views_of(psnr), "costs": costs, "failed_stage": None} | changes


def failed_record(error="lost"):
    return {"error": error, "failed_stage": "splats", "summary": {}, "protocol": None, "split": "", "size": None}


def write_run(folder, scenes, settings=None, **record):
    """A run's folder with its run.json alone."""
    folder.mkdir(parents=True)
    content = {"title": folder.name, "settings": {"seed": 0, "splats": {"steps": 1000} | (settings or {})}, "scenes": scenes}
    (folder / "run.json").write_text(json.dumps(content | record))
    return folder


def write_pictures(folder, error):
    """`000.jpg`, `001.jpg`, as the stage `metrics` writes them; the better the render, the smaller ``error``."""
    folder.mkdir(parents=True)
    for i, (view, level) in enumerate((("a.jpg", "confidence"), ("b.jpg", "depth"))):
        picture = Picture(view, level == "depth", False, panels(i + 1, error, level))
        (folder / f"{i:03d}.jpg").write_bytes(encode(side_by_side(picture), "JPEG", quality=92))
