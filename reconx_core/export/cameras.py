"""A folder with a reconstruction's photos, cameras and points that COLMAP, nerfstudio and ReconX open directly."""

from __future__ import annotations

from pathlib import Path

import torch

from reconx_core.export.colmap import write_colmap
from reconx_core.export.finite import finite, finite_points
from reconx_core.export.nerfstudio import cameras_to_transforms
from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.export.ply import points_to_ply
from reconx_core.io.files import write_atomic, write_json
from reconx_core.io.images import write_png
from reconx_core.types import Cameras, PointCloud, Pointmaps, Tracks, Views


def write_cameras(
    folder: Path,
    cameras: Cameras,
    photos: Views,
    cloud: PointCloud,
    origin: Origin = NO_ORIGIN,
    sparse: tuple[PointCloud, Tracks] | None = None,
) -> None:
    """``images/NAME.png`` (undistorted, as the cameras see them), ``masks/NAME.png`` where something is masked out,
    ``sparse/0`` (COLMAP, binary), ``transforms.json`` and ``points.ply`` (nerfstudio).

    ``cameras``: one for each of ``photos``, of the same size. ``origin``: where their zero lies in the dataset's frame. All of
    these files are in that frame, in double precision. ``sparse``: feature points and where the photos see them, which COLMAP
    gets, so that it can go on from there; without them it gets ``cloud``, whose points it cannot adjust.

    Raises:
        OSError: a file cannot be written.
    """
    files = [f"{name}.png" for name in photos.names]
    cloud = finite_points(cloud, f"the cloud for {folder}")
    transforms = cameras_to_transforms(cameras, [f"images/{file}" for file in files], "points.ply", origin)
    for file, image, mask, frame in zip(files, photos.images, photos.masks, transforms["frames"], strict=True):
        write_png(folder / "images" / file, image)
        if not mask.all():
            write_png(folder / "masks" / file, mask.float())
            frame["mask_path"] = f"masks/{file}"
    points, tracks = (cloud, None) if sparse is None else _finite_tracks(*sparse)
    write_colmap(folder / "sparse" / "0", cameras, files, points, origin=origin, tracks=tracks)
    write_atomic(folder / "points.ply", points_to_ply(cloud, origin))
    write_json(folder / "transforms.json", transforms)


def tracked_points(pointmaps: Pointmaps) -> tuple[PointCloud, Tracks] | None:
    """The feature points and their observations, where the geometry backend has left any."""
    tracks = pointmaps.tracks
    return None if tracks is None or not len(tracks.view) else (pointmaps.sparse, tracks)


def _finite_tracks(points: PointCloud, tracks: Tracks) -> tuple[PointCloud, Tracks]:
    """Without the points that cannot be shown, and the others counted anew."""
    good = finite(points)
    kept, number = good[tracks.point], torch.cumsum(good, 0) - 1
    left = PointCloud(points.xyz[good], points.rgb[good], points.confidence[good])
    return left, Tracks(tracks.view[kept], number[tracks.point[kept]], tracks.xy[kept])
