"""A folder with a reconstruction's photos, cameras and points that COLMAP, nerfstudio and ReconX open directly."""

from __future__ import annotations

from pathlib import Path

from reconx_core.export.colmap import write_colmap
from reconx_core.export.finite import finite_points
from reconx_core.export.nerfstudio import cameras_to_transforms
from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.export.ply import points_to_ply
from reconx_core.io.files import write_atomic, write_json
from reconx_core.io.images import write_png
from reconx_core.types import Cameras, PointCloud, Views


def write_cameras(folder: Path, cameras: Cameras, photos: Views, cloud: PointCloud, origin: Origin = NO_ORIGIN) -> None:
    """``images/NAME.png`` (undistorted, as the cameras see them), ``masks/NAME.png`` where something is masked out,
    ``sparse/0`` (COLMAP, binary), ``transforms.json`` and ``points.ply`` (nerfstudio).

    ``cameras``: one for each of ``photos``, of the same size. ``origin``: where their zero lies in the dataset's frame. All of
    these files are in that frame, in double precision. Raises OSError if a file cannot be written.
    """
    files = [f"{name}.png" for name in photos.names]
    cloud = finite_points(cloud, f"the cloud for {folder}")
    transforms = cameras_to_transforms(cameras, [f"images/{file}" for file in files], "points.ply", origin)
    for file, image, mask, frame in zip(files, photos.images, photos.masks, transforms["frames"], strict=True):
        write_png(folder / "images" / file, image)
        if not mask.all():
            write_png(folder / "masks" / file, mask.float())
            frame["mask_path"] = f"masks/{file}"
    write_colmap(folder / "sparse" / "0", cameras, files, cloud, origin=origin)
    write_atomic(folder / "points.ply", points_to_ply(cloud, origin))
    write_json(folder / "transforms.json", transforms)
