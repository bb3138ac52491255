"""A page in the browser that shows the Gaussians, by viser."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
import viser
from jaxtyping import Float
from rich.console import Console
from torch import Tensor

from reconx_core.types import Gaussians

_SH_C0 = 0.28209479177387814


def serve(gaussians: Gaussians, port: int, console: Console) -> None:
    """Show the scene at http://localhost:port until interrupted."""
    server = viser.ViserServer(port=port)
    server.scene.set_up_direction("-y")
    server.scene.add_gaussian_splats(
        "scene",
        centers=gaussians.means.numpy(),
        covariances=covariances(gaussians).numpy(),
        rgbs=(0.5 + _SH_C0 * gaussians.sh[:, 0]).clamp(0, 1).numpy(),
        opacities=gaussians.logit_opacities.sigmoid()[:, None].numpy(),
    )
    console.print(f"http://localhost:{server.get_port()} shows {len(gaussians):,} Gaussians; Ctrl-C ends it.")
    while True:
        time.sleep(1)


def covariances(gaussians: Gaussians) -> Float[Tensor, "n 3 3"]:
    """R S S^T R^T of every Gaussian, in world units squared."""
    w, x, y, z = F.normalize(gaussians.quats, dim=-1).unbind(-1)
    rotation = torch.stack(
        [
            1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
            2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
            2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
        ],
        dim=-1,
    ).reshape(-1, 3, 3)  # fmt: skip
    scaled = rotation * gaussians.log_scales.exp()[:, None]
    return scaled @ scaled.mT
