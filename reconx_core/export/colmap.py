"""Cameras and points as a COLMAP model, text or binary."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.io.files import write_atomic
from reconx_core.io.images import to_uint8
from reconx_core.types import Cameras, PointCloud


def to_reconstruction(
    cameras: Cameras, names: Sequence[str], cloud: PointCloud, origin: Origin = NO_ORIGIN
) -> pycolmap.Reconstruction:
    """A PINHOLE camera for each image (ids from 1, in order), and points without tracks.

    ``names`` are file names relative to COLMAP's image folder, ``origin`` is where the zero of cameras and points lies in the
    frame that is written.
    """
    model = pycolmap.Reconstruction()
    poses = [_moved(pycolmap.Rigid3d(pose), origin) for pose in cameras.world_to_cam[:, :3].double().cpu().numpy()]
    for i, (k, pose, name) in enumerate(zip(cameras.intrinsics.tolist(), poses, names, strict=True), start=1):
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=i, model="PINHOLE", width=cameras.width, height=cameras.height,
                params=[k[0][0], k[1][1], k[0][2], k[1][2]],
            )
        )  # fmt: skip
        model.add_image_with_trivial_frame(pycolmap.Image(name=name, camera_id=i, image_id=i), pose)
    points = cloud.xyz.double().cpu().numpy()
    for xyz, rgb in zip(points + np.array(origin) if any(origin) else points, to_uint8(cloud.rgb)):
        model.add_point3D(xyz, pycolmap.Track(), rgb)
    return model


def _moved(pose: pycolmap.Rigid3d, origin: Origin) -> pycolmap.Rigid3d:
    """The world-to-camera pose in a frame whose zero lies elsewhere, by the rotation as COLMAP keeps it: a unit quaternion.

    A rotation matrix in single precision would put a camera in UTM coordinates half a metre off.
    """
    if not any(origin):
        return pose
    return pycolmap.Rigid3d(pose.rotation, pose.translation - pose.rotation.matrix() @ np.array(origin))


def write_colmap(
    folder: Path,
    cameras: Cameras,
    names: Sequence[str],
    cloud: PointCloud,
    text: bool = False,
    origin: Origin = NO_ORIGIN,
) -> None:
    """The model's files (``cameras.bin`` or ``.txt`` and so on) in ``folder``, each written atomically."""
    model = to_reconstruction(cameras, names, cloud, origin)
    with tempfile.TemporaryDirectory() as temporary:
        (model.write_text if text else model.write_binary)(temporary)
        for file in sorted(Path(temporary).iterdir()):
            write_atomic(folder / file.name, file.read_bytes())
