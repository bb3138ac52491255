"""Rendering of Gaussians: one function, two backends with the same conventions (gsplat 1.5.3's).

The CPU backend compiles its kernels once per machine (about half a minute) and keeps them in numba's cache. It may be called
from several threads; a lock serialises the calls. It cannot run in a forked child process, where it raises a UserError: start
workers with the "spawn" method.
"""

from __future__ import annotations

import importlib.util
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.errors import UserError, pip_install
from reconx_core.types import BackendInfo, Cameras, Gaussians

Backend = Literal["auto", "cpu", "gsplat"]
BACKENDS: dict[str, BackendInfo] = {
    "cpu": BackendInfo("splats", "cpu", "numba kernels, compiled for the host on first use"),
    "gsplat": BackendInfo("splats", "gsplat", "gsplat's CUDA kernels", needs_gpu=True),
}


class Rendering(NamedTuple):
    rgb: Float[Tensor, "c h w 3"]  # with the background blended in; not clamped above
    depth: Float[Tensor, "c h w"]  # accumulated z: sum of weight times depth, not divided by alpha
    alpha: Float[Tensor, "c h w"]


def resolve_backend(backend: str) -> Backend:
    """``auto`` resolves to ``gsplat`` if CUDA and gsplat are available, else to ``cpu``.

    Raises:
        UserError: the backend is unknown, or it is gsplat and cannot run here.
    """
    if backend not in ("auto", *BACKENDS):
        raise UserError(f"There is no splats backend '{backend}'; choose auto, {' or '.join(BACKENDS)}.")
    # A successful import of gsplat is no proof: without CUDA it fails only at the first call.
    missing = "a CUDA GPU" if not torch.cuda.is_available() else f"gsplat ({pip_install('cuda')})"
    usable = torch.cuda.is_available() and importlib.util.find_spec("gsplat") is not None
    if backend == "gsplat" and not usable:
        raise UserError(f"splats.backend gsplat needs {missing}, which was not found here; use splats.backend=cpu.")
    if backend == "cpu":
        return "cpu"
    return "gsplat" if usable else "cpu"


def rasterize(
    gaussians: Gaussians,
    cameras: Cameras,
    backend: Backend = "auto",
    background: Float[Tensor, " 3"] | None = None,
    sh_degree: int | None = None,
) -> Rendering:
    """Render the Gaussians into every camera.

    Differentiable with respect to all fields of ``gaussians`` and to ``cameras.cam_to_world``; not to the intrinsics (whose
    skew is ignored) nor to the background. ``background`` defaults to black; ``sh_degree`` to that of the Gaussians.

    Raises:
        UserError: the backend cannot run here (see :func:`resolve_backend`).
        ValueError: ``sh_degree`` is above the Gaussians'.
    """
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    if not 0 <= degree <= gaussians.sh_degree:
        raise ValueError(f"sh_degree: expected 0 to {gaussians.sh_degree}, got {degree}")
    background = gaussians.means.new_zeros(3) if background is None else background
    if resolve_backend(backend) == "gsplat":
        from reconx_core.rasterize.gsplat import rasterize_gsplat as render
    else:
        from reconx_core.rasterize.cpu import rasterize_cpu as render
    return Rendering(*render(gaussians, cameras, background, degree))
