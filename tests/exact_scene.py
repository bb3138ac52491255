"""A small procedural room whose photos, cameras and depth are exact, and a textured plane that any camera can look at."""

from dataclasses import replace
from functools import lru_cache

import torch
import torch.nn.functional as F

from reconx_core.datasets import procedural
from reconx_core.datasets.raycast import render
from reconx_core.geometry.transforms import camera_rays, depth_of, rigid, rotation_angle, so3_exp, unproject
from reconx_core.settings import ViewsSettings
from reconx_core.types import Cameras, Located, PointCloud, Pointmaps, Views
from reconx_core.views import load_views

SEED = 3
SOURCE = f"procedural:hall?seed={SEED}&views=3&targets=1&arc=9&width=160&height=120"


@lru_cache(maxsize=1)
def room() -> Views:
    """Three photos, and two held-out ones between them."""
    return load_views(SOURCE, ViewsSettings())


def shoot(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """What the room looks like from any camera, and its exact depth."""
    scene = procedural.build("hall", SEED)
    shots = [render(scene, k, pose, cameras.height, cameras.width) for k, pose in zip(cameras.intrinsics, cameras.cam_to_world)]
    return torch.stack([s[0] for s in shots]), torch.stack([s[1] for s in shots])


@lru_cache(maxsize=1)
def room_depth() -> torch.Tensor:
    """Exact depth of the three photos."""
    return shoot(room().inputs().cameras)[1]


@lru_cache(maxsize=1)
def room_pointmaps() -> Pointmaps:
    """Exact pointmaps, as sure as can be, and every 97th point as if it were a feature."""
    inputs = room().inputs()
    points = unproject(room_depth(), inputs.cameras)
    xyz, rgb = points.reshape(-1, 3)[::97], inputs.images.reshape(-1, 3)[::97]
    return Pointmaps(points, torch.ones(points.shape[:3]), inputs.cameras, PointCloud(xyz, rgb, torch.ones(len(xyz))))


def assert_right_cameras(found: Cameras) -> None:
    """The room's, in the first one's frame and any units, to a tenth of a degree and half a percent of the focal."""
    truth = room().inputs().cameras
    relative = torch.linalg.inv(truth.cam_to_world[:1]) @ truth.cam_to_world
    assert rotation_angle(found.cam_to_world[:, :3, :3], relative[:, :3, :3]).max() < 0.1
    assert (found.intrinsics[:, 0, 0] / truth.intrinsics[:, 0, 0] - 1).abs().max() < 0.005


def assert_right_depth(pointmaps: Pointmaps, same_units: bool = True) -> None:
    """The room's to two percent where they are trusted, which is most of it."""
    good = pointmaps.confidence > 0.5
    assert good.float().mean() > 0.7
    ratio = depth_of(pointmaps.points_world, pointmaps.cameras)[good] / room_depth()[good]
    assert (ratio / (1 if same_units else ratio.median()) - 1).abs().quantile(0.9) < 0.02


def withheld() -> tuple[Views, Pointmaps, Views]:
    """The room's first two photos with their pointmaps, and the third as a frame whose pose is not given."""
    inputs, whole = room().inputs(), room_pointmaps()
    known = Pointmaps(whole.points_world[:2], whole.confidence[:2], whole.cameras[[0, 1]], whole.sparse)
    frame = inputs.select(torch.tensor([2]))
    nowhere = Cameras(frame.cameras.intrinsics, torch.eye(4)[None], 160, 120)
    return inputs.select(torch.tensor([0, 1])), known, replace(frame, cameras=nowhere, protocol="intrinsics")


def assert_located(located: Located, degrees: float = 0.1, share: float = 0.01) -> None:
    """The withheld camera to some degrees, and to a share of the photos' distance."""
    truth = room().inputs().cameras.cam_to_world
    baseline = (truth[1, :3, 3] - truth[0, :3, 3]).norm()
    assert located.lost == ("",)
    assert rotation_angle(located.cam_to_world[:, :3, :3], truth[2:, :3, :3]) < degrees
    assert (located.cam_to_world[0, :3, 3] - truth[2, :3, 3]).norm() < share * baseline


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def side_by_side(count: int, baseline: float = 0.2, height: int = 96, width: int = 128) -> Cameras:
    """Cameras on a line along x that look along z."""
    centre = torch.tensor([[baseline * i, 0.0, 0.0] for i in range(count)])
    k = torch.tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1.0]]).repeat(count, 1, 1)
    return Cameras(k, rigid(torch.eye(3).repeat(count, 1, 1), centre), width, height)


def plane(
    cameras: Cameras, slope: tuple[float, float] = (0.0, 0.0), distance: float = 2.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Photos and depth of the plane z = distance + slope . (x, y) in the first camera's frame, covered with noise."""
    turn = so3_exp(torch.tensor([torch.tensor(slope[1]).atan().neg(), torch.tensor(slope[0]).atan(), 0.0]))
    world = cameras.cam_to_world
    rays = torch.einsum("nij,nhwj->nhwi", world[:, :3, :3], camera_rays(cameras.intrinsics, cameras.height, cameras.width))
    normal = torch.tensor([-slope[0], -slope[1], 1.0])
    depth = ((distance - world[:, :3, 3] @ normal)[:, None, None]) / (rays @ normal)
    points = unproject(depth, cameras) - torch.tensor([0.0, 0.0, distance])
    return _noise((points @ turn)[..., :2] / 4), depth


def _noise(where: torch.Tensor) -> torch.Tensor:
    """Smooth random colours over [-1, 1]^2 at several scales."""
    images = [torch.rand(1, 3, size, size, generator=draw(size)) for size in (24, 60, 150)]
    layers = [F.grid_sample(i.expand(len(where), -1, -1, -1), where, mode="bicubic", align_corners=False) for i in images]
    return torch.stack(layers).mean(0).clamp(0, 1).permute(0, 2, 3, 1).contiguous()


def relative_error(depth: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (depth / truth - 1).abs()


def inner(maps: torch.Tensor, margin: int) -> torch.Tensor:
    """Without a margin, which other cameras need not see."""
    return maps[..., margin:-margin, margin:-margin]
