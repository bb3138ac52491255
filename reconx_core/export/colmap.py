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
from reconx_core.types import Cameras, PointCloud, Tracks


def to_reconstruction(
    cameras: Cameras, names: Sequence[str], cloud: PointCloud, origin: Origin = NO_ORIGIN, tracks: Tracks | None = None
) -> pycolmap.Reconstruction:
    """A PINHOLE camera for each lens and an image for each camera (ids from 1, in order), and points.

    ``names`` are file names relative to COLMAP's image folder, ``origin`` is where the zero of cameras and points lies in the
    frame that is written. ``tracks``: the observations of the points, of which those with fewer than two are left out, as
    COLMAP does; without them the points have no tracks.
    """
    model = pycolmap.Reconstruction()
    lenses = _add_lenses(model, cameras)
    poses = [_moved(pycolmap.Rigid3d(pose), origin) for pose in cameras.world_to_cam[:, :3].double().cpu().numpy()]
    for i, (lens, pose, name) in enumerate(zip(lenses, poses, names, strict=True), start=1):
        seen = [] if tracks is None else list(tracks.xy[tracks.view == i - 1].double().cpu().numpy())
        image = pycolmap.Image(name=name, camera_id=lens, image_id=i, keypoints=np.reshape(seen, (-1, 2)))
        model.add_image_with_trivial_frame(image, pose)
    points = cloud.xyz.double().cpu().numpy()
    moved = points + np.array(origin) if any(origin) else points
    found = _elements(len(points), tracks)
    for xyz, rgb, elements in zip(moved, to_uint8(cloud.rgb), found):
        if tracks is None or len(elements) > 1:
            model.add_point3D(xyz, pycolmap.Track(elements), rgb)
    if tracks is not None:
        model.update_point_3d_errors()
    return model


def _add_lenses(model: pycolmap.Reconstruction, cameras: Cameras) -> list[int]:
    """Photos of the same intrinsics share a camera, so that COLMAP goes on to adjust one lens; the id of each photo's."""
    known = dict[tuple[float, ...], int]()
    for k in cameras.intrinsics.tolist():
        params = (k[0][0], k[1][1], k[0][2], k[1][2])
        if params not in known:
            known[params] = len(known) + 1
            size = {"width": cameras.width, "height": cameras.height}
            camera = pycolmap.Camera(camera_id=known[params], model="PINHOLE", params=list(params), **size)
            model.add_camera_with_trivial_rig(camera)
    return [known[k[0][0], k[1][1], k[0][2], k[1][2]] for k in cameras.intrinsics.tolist()]


def _elements(points: int, tracks: Tracks | None) -> list[list[pycolmap.TrackElement]]:
    """Each point's observations, as image and index among the image's."""
    found: list[list[pycolmap.TrackElement]] = [[] for _ in range(points)]
    if tracks is not None:
        counts = dict[int, int]()
        for view, point in zip(tracks.view.tolist(), tracks.point.tolist()):
            index = counts[view] = counts.get(view, -1) + 1
            found[point].append(pycolmap.TrackElement(view + 1, index))
    return found


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
    tracks: Tracks | None = None,
) -> None:
    """The model's files (``cameras.bin`` or ``.txt`` and so on) in ``folder``, each written atomically."""
    model = to_reconstruction(cameras, names, cloud, origin, tracks)
    with tempfile.TemporaryDirectory() as temporary:
        (model.write_text if text else model.write_binary)(temporary)
        for file in sorted(Path(temporary).iterdir()):
            write_atomic(folder / file.name, file.read_bytes())
