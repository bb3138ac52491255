"""Export formats: small functions per format that return bytes or tables, and `write_*` that save them atomically.

Gaussians by the ending of a file are in `formats`, fewer of them in `prune`, meshes in `mesh`.
"""

from reconx_core.export.camera_path import cameras_to_viewer_path, write_path
from reconx_core.export.cameras import write_cameras
from reconx_core.export.colmap import to_reconstruction, write_colmap
from reconx_core.export.nerfstudio import cameras_to_transforms
from reconx_core.export.ply import (
    gaussians_from_ply,
    gaussians_to_ply,
    points_from_ply,
    points_to_ply,
    read_origin,
    write_ply,
)
from reconx_core.export.splat import gaussians_from_splat, gaussians_to_splat

__all__ = [
    "cameras_to_transforms",
    "cameras_to_viewer_path",
    "gaussians_from_ply",
    "gaussians_from_splat",
    "gaussians_to_ply",
    "gaussians_to_splat",
    "points_from_ply",
    "points_to_ply",
    "read_origin",
    "to_reconstruction",
    "write_cameras",
    "write_colmap",
    "write_path",
    "write_ply",
]
