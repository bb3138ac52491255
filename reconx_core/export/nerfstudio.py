"""Cameras as the content of nerfstudio's ``transforms.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from reconx_core.datasets.capture import opencv_from_opengl
from reconx_core.export.origin import NO_ORIGIN, Origin, in_given_frame
from reconx_core.types import Cameras


def frame(
    file_path: str, intrinsics: Float[Tensor, "3 3"], cam_to_world: Float[Tensor, "4 4"], size: tuple[int, int]
) -> dict[str, Any]:
    """One entry of ``frames``; ``size`` is (height, width). nerfstudio's camera axes are OpenGL's."""
    k = intrinsics.tolist()
    calibration = {"fl_x": k[0][0], "fl_y": k[1][1], "cx": k[0][2], "cy": k[1][2], "w": size[1], "h": size[0]}
    return {"file_path": file_path, **calibration, "transform_matrix": opencv_from_opengl(cam_to_world).tolist()}


def cameras_to_transforms(
    cameras: Cameras, file_paths: Sequence[str], points: str | None = None, origin: Origin = NO_ORIGIN
) -> dict[str, Any]:
    """The content of ``transforms.json``; ``points`` is the path of a PLY, relative to it.

    ``origin``: where the cameras' zero lies in the frame that is written. It is noted as ``scene_origin`` if it is not zero.
    """
    size = (cameras.height, cameras.width)
    poses = in_given_frame(cameras.cam_to_world, origin)
    frames = [frame(f, k, c, size) for f, k, c in zip(file_paths, cameras.intrinsics, poses, strict=True)]
    about = {} if points is None else {"ply_file_path": points}
    noted = {"scene_origin": list(origin)} if any(origin) else {}
    return {"camera_model": "OPENCV"} | about | noted | {"frames": frames}
