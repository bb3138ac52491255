"""What the stages after `pointcloud` take as the photos."""

from reconx_core.geometry.undistort import straighten
from reconx_core.types import Views
from tasks.execute import Inputs


def registered_photos(read: Inputs) -> Views:
    """The input views whose cameras are known, undistorted where the lens was found to bend."""
    pointmaps = read("pointcloud", "pointmaps")
    photos = read("views", "views").inputs().select(read("pointcloud", "kept"))
    return straighten(photos, pointmaps.cameras, pointmaps.radial)
