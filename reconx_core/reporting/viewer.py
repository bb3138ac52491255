"""The scene in the browser, served by viser (the `view` extra)."""

from __future__ import annotations

import importlib.util
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.errors import UserError, pip_install
from reconx_core.geometry.transforms import matrix_to_quaternion, quaternion_to_matrix
from reconx_core.rasterize.conventions import SH_0
from reconx_core.types import Cameras, Gaussians

if TYPE_CHECKING:
    import viser


def show_scene(
    gaussians: Gaussians, cameras: Cameras | None = None, port: int = 8080, host: str = "127.0.0.1"
) -> viser.ViserServer:
    """Start serving the Gaussians and the input cameras at http://host:port; returns at once, ``stop()`` ends the server.

    The page opens at the first camera, and a click on a camera goes there. viser draws Gaussians by their base colour, without
    the view-dependent part of their spherical harmonics. If the port is taken, the next free one is used.

    Raises:
        UserError: viser is not installed.
    """
    if importlib.util.find_spec("viser") is None:
        raise UserError(f"The viewer needs viser; install it with: {pip_install('view')}")
    import viser

    server = viser.ViserServer(host=host, port=port, verbose=False)
    server.scene.add_gaussian_splats("/gaussians", **splat_arrays(gaussians))
    server.scene.set_up_direction("-y" if cameras is None else tuple(up_direction(cameras).tolist()))
    if cameras is not None:
        _add_cameras(server, cameras)
        server.on_client_connect(lambda client: _go_to(client, cameras, 0))
    return server


def splat_arrays(gaussians: Gaussians) -> dict[str, Any]:
    """Centres [n 3], covariances [n 3 3], colours [n 3] in [0, 1] and opacities [n 1] as arrays, under viser's names."""
    g = gaussians.detach()
    axes = quaternion_to_matrix(g.quats) * g.log_scales.exp()[:, None]
    return {
        "centers": g.means.numpy(),
        "covariances": (axes @ axes.mT).numpy(),
        "rgbs": (0.5 + SH_0 * g.sh[:, 0]).clamp(0, 1).numpy(),
        "opacities": g.logit_opacities.sigmoid()[:, None].numpy(),
    }


def up_direction(cameras: Cameras) -> Float[Tensor, " 3"]:
    """Unit vector in the world that points up in the average photo."""
    return torch.nn.functional.normalize(-cameras.cam_to_world[:, :3, 1].mean(0), dim=0)


def _add_cameras(server: viser.ViserServer, cameras: Cameras) -> None:
    centres = cameras.cam_to_world[:, :3, 3]
    size = 0.1 * max(float(torch.pdist(centres).median()) if len(cameras) > 1 else 0.0, 1e-3)
    visible = server.gui.add_checkbox("Input cameras", initial_value=True)
    for i in range(len(cameras)):
        wxyz, position = _pose(cameras, i)
        frustum = server.scene.add_camera_frustum(
            f"/cameras/{i}", _fov(cameras, i), cameras.width / cameras.height, scale=size, color=(11, 107, 203),
            thickness=0.01 * size, wxyz=wxyz, position=position,
        )  # fmt: skip
        frustum.on_click(lambda event, i=i: _go_to(event.client, cameras, i))
        visible.on_update(lambda _, frustum=frustum: setattr(frustum, "visible", visible.value))


def _go_to(client: viser.ClientHandle, cameras: Cameras, index: int) -> None:
    with client.atomic():
        client.camera.wxyz, client.camera.position = _pose(cameras, index)
        client.camera.fov = _fov(cameras, index)


def _pose(cameras: Cameras, index: int) -> tuple[np.ndarray, np.ndarray]:
    pose = cameras.cam_to_world[index]
    return matrix_to_quaternion(pose[:3, :3]).numpy(), pose[:3, 3].numpy()


def _fov(cameras: Cameras, index: int) -> float:
    """Vertical field of view in radians."""
    return 2 * math.atan(cameras.height / (2 * float(cameras.intrinsics[index, 1, 1])))
