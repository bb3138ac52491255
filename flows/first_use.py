"""`make setup`: on all cores, what the first run would wait for: Python's bytecode, and the kernels for this machine's CPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module
from multiprocessing import get_context
from pkgutil import walk_packages


def import_everything() -> None:
    for package in ("flows", "tasks", "reconx_core"):
        for module in walk_packages([package], package + "."):
            import_module(module.name)


def compile_rasterizer() -> None:
    """By an image of one Gaussian, and its gradients."""
    import torch

    from reconx_core.losses.ssim import ssim_map
    from reconx_core.rasterize import rasterize
    from reconx_core.types import Cameras, Gaussians

    camera = Cameras(torch.eye(3)[None], torch.eye(4)[None], 16, 16)
    gaussian = Gaussians(torch.ones(1, 3), torch.ones(1, 4), torch.zeros(1, 3), torch.zeros(1), torch.zeros(1, 1, 3))
    gaussian.means.requires_grad_()
    image = rasterize(gaussian, camera, "cpu").rgb
    ssim_map(image, torch.zeros_like(image)).mean().backward()


def compile_geometry() -> None:
    """By the point cloud of two small photos, first with unknown cameras, and its renders."""
    from reconx_core.condition import build_condition
    from reconx_core.pointcloud import estimate
    from reconx_core.seeds import generator
    from reconx_core.settings import ConditionSettings, PointcloudSettings, ViewsSettings
    from reconx_core.views import load_views

    views = load_views("procedural:hall?seed=1&views=2&targets=1", ViewsSettings(protocol="unposed", size=256))
    inputs = views.inputs()
    warnings.simplefilter("ignore")  # of two such small photos the cameras are doubtful
    draw = generator(0, "first use")
    pointmaps, _, _ = estimate(inputs, PointcloudSettings(), draw)
    build_condition(inputs, pointmaps, ConditionSettings(frames_per_pair=1), draw)


def main() -> None:
    work: list[Callable[[], None]] = [compile_geometry, compile_rasterizer, import_everything]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        for done in [processes.submit(part) for part in work]:
            done.result()


if __name__ == "__main__":
    main()
