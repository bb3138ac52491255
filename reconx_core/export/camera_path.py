"""A camera path for other programs, and for `condition.path` and `reconx render`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from reconx_core.datasets.capture import opencv_from_opengl
from reconx_core.export.colmap import write_colmap
from reconx_core.export.nerfstudio import cameras_to_transforms
from reconx_core.export.origin import NO_ORIGIN, Origin, in_given_frame
from reconx_core.io.files import write_json
from reconx_core.types import Cameras, PointCloud

FPS = 24


def cameras_to_viewer_path(cameras: Cameras, origin: Origin = NO_ORIGIN) -> dict[str, Any]:
    """The content of a camera path file of nerfstudio's viewer. It has no principal points: they are the image's centre.

    ``origin``: where the cameras' zero lies in the frame that is written.
    """
    height, aspect = cameras.height, cameras.width / cameras.height
    poses = opencv_from_opengl(in_given_frame(cameras.cam_to_world, origin)).flatten(1).tolist()
    fovs = [math.degrees(2 * math.atan(height / 2 / focal)) for focal in cameras.intrinsics[:, 1, 1].tolist()]
    path = [{"camera_to_world": pose, "fov": fov, "aspect": aspect} for pose, fov in zip(poses, fovs)]
    about = {"camera_type": "perspective", "render_height": height, "render_width": cameras.width}
    return {**about, "camera_path": path, "fps": FPS, "seconds": len(path) / FPS, "is_cycle": False, "smoothness_value": 0.0}


def write_path(folder: Path, cameras: Cameras, origin: Origin = NO_ORIGIN) -> None:
    """``camera_path.json`` (nerfstudio's viewer), ``transforms.json`` and ``sparse/0`` (COLMAP) of a path's cameras.

    Their frame is that of the dataset. Raises OSError if a file cannot be written.
    """
    names = [f"frame_{i:04d}.png" for i in range(len(cameras))]
    nothing = PointCloud(
        cameras.intrinsics.new_zeros(0, 3), cameras.intrinsics.new_zeros(0, 3), cameras.intrinsics.new_zeros(0)
    )
    write_json(folder / "camera_path.json", cameras_to_viewer_path(cameras, origin))
    write_json(folder / "transforms.json", cameras_to_transforms(cameras, names, origin=origin))
    write_colmap(folder / "sparse" / "0", cameras, names, nothing, origin=origin)
