"""The DUSt3R backend: a fake network with exact predictions must give the exact scene, and a random one must run."""

from dataclasses import replace

import pytest
import torch
from exact_scene import assert_located, assert_right_cameras, assert_right_depth, draw, room, room_depth, withheld
from torch import nn

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import depth_of, project, resize_cameras, transform, unproject
from reconx_core.pointcloud import fuse, make_backend
from reconx_core.pointcloud.backends import dust3r, predictions
from reconx_core.pointcloud.backends.dust3r import Dust3r, are_square
from reconx_core.pointcloud.backends.predictions import choose_window, from_window, to_window
from reconx_core.pointcloud.global_alignment.align import Edges, align_edges, align_pointmaps
from reconx_core.pointcloud.networks.dust3r import PATCH, DUSt3RConfig, Encoded, Prediction
from reconx_core.settings import PointcloudSettings

pytestmark = pytest.mark.long

SETTINGS = PointcloudSettings(backend="dust3r", batch=2)
PAIRS = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]


class Exact(nn.Module):
    """A fake network with exact predictions of the room; the tokens are view indices in the order of encoding."""

    def __init__(self, size, columns=160, landscape=False):
        super().__init__()
        self.config, self.marker = DUSt3RConfig(image_size=size), nn.Parameter(torch.zeros(1))
        window = choose_window((120, columns), size, PATCH, landscape)
        self.cameras = to_window(middle(columns).cameras, window)
        depth = room_depth()[..., 80 - columns // 2 : 80 + columns // 2]
        resized = nn.functional.interpolate(depth[:, None], window.full, mode="nearest-exact")[:, 0]
        (top, left), (height, width) = window.corner, window.size
        self.points = unproject(resized[:, top : top + height, left : left + width], self.cameras)
        self.seen = 0

    def encode(self, images):
        assert images.shape[2:] == self.points.shape[1:3]
        number = torch.arange(self.seen, self.seen + len(images))
        self.seen += len(images)
        return Encoded(number[:, None, None].float(), tuple(side // 16 for side in images.shape[-2:]))

    def decode(self, first, second):
        to_first = self.cameras.world_to_cam[first.tokens[:, 0, 0].long()]
        return tuple(self._seen_from(to_first, view.tokens[:, 0, 0].long()) for view in (first, second))

    def _seen_from(self, to_first, views):
        points = transform(to_first, self.points[views].flatten(1, 2)).reshape(self.points[views].shape)
        return Prediction(points, torch.full(points.shape[:-1], 20.0))


def middle(columns):
    """The room's photos, or the middle of them."""
    views, left = room().inputs(), 80 - columns // 2
    intrinsics = views.cameras.intrinsics.clone()
    intrinsics[:, 0, 2] -= left
    columns_of = lambda maps: maps[:, :, left : left + columns].contiguous()  # noqa: E731
    cameras = replace(views.cameras, intrinsics=intrinsics, width=columns)
    return replace(views, images=columns_of(views.images), masks=columns_of(views.masks), cameras=cameras)


def reconstruct(monkeypatch, views, fixed=None, size=160, crop="auto", **exact):
    monkeypatch.setattr(dust3r, "load_network", lambda load, path: Exact(size, **exact))
    monkeypatch.setattr(dust3r, "find_weights", lambda *names: names)
    return Dust3r(SETTINGS.model_copy(update={"crop": crop}))(views, fixed, draw())


def test_a_right_network_gives_the_right_cameras(monkeypatch):
    inputs = replace(room().inputs(), protocol="unposed")
    pointmaps, kept = reconstruct(monkeypatch, inputs)
    assert kept.tolist() == [0, 1, 2]
    assert_right_cameras(pointmaps.cameras)
    assert_right_depth(pointmaps, same_units=False)
    assert pointmaps.camera_confidence > 0.8


def test_known_cameras_stay_and_give_the_scale(monkeypatch):
    inputs = room().inputs()
    pointmaps, _ = reconstruct(monkeypatch, inputs, inputs.cameras)
    assert torch.equal(pointmaps.cameras.cam_to_world, inputs.cameras.cam_to_world)
    assert torch.equal(pointmaps.cameras.intrinsics, inputs.cameras.intrinsics)
    assert_right_depth(pointmaps)


def test_what_the_window_leaves_out_is_not_trusted(monkeypatch):
    """At 150 pixels the photos are 112 high and 150 wide, of which 144 are whole patches."""
    inputs = room().inputs()
    pointmaps, _ = reconstruct(monkeypatch, inputs, inputs.cameras, size=150)
    assert (pointmaps.confidence[:, :, :3] == 0).all()
    assert (pointmaps.confidence[:, :, -3:] == 0).all()
    assert (pointmaps.confidence[:, 20:-20, 20:-20] > 0.5).float().mean() > 0.7
    assert pointmaps.points_world.isfinite().all()


@pytest.mark.parametrize("posed", [False, True], ids=["unposed", "posed"])
def test_of_square_photos_the_network_sees_the_middle_and_the_cameras_follow(monkeypatch, posed):
    """120 x 120 become 160 x 160, of which the network gets 112 rows in the middle (4:3, in whole patches)."""
    square = middle(120)
    inputs = square if posed else replace(square, protocol="unposed")
    pointmaps, kept = reconstruct(monkeypatch, inputs, square.cameras if posed else None, columns=120, landscape=True)
    assert kept.tolist() == [0, 1, 2]
    assert (pointmaps.confidence[:, :18] == 0).all()
    assert (pointmaps.confidence[:, -18:] == 0).all()
    assert (pointmaps.confidence[:, 20:-20] > 0.5).float().mean() > 0.8
    if posed:
        assert torch.equal(pointmaps.cameras.cam_to_world, square.cameras.cam_to_world)
    else:
        assert_right_cameras(pointmaps.cameras)
    torch.testing.assert_close(pointmaps.cameras.intrinsics[:, :2, 2], square.cameras.intrinsics[:, :2, 2], atol=1e-3, rtol=0)
    depth, truth = depth_of(pointmaps.points_world, pointmaps.cameras), room_depth()[..., 20:140]
    assert (depth > 0).all()  # beyond the crop, too, where it is that of the crop's edge
    good = pointmaps.confidence > 0.5
    ratio = depth[good] / truth[good]
    assert (ratio / (1 if posed else ratio.median()) - 1).abs().quantile(0.9) < 0.02
    cloud = fuse(pointmaps, inputs)
    seen, _ = project(cloud.xyz, pointmaps.cameras.intrinsics[0], pointmaps.cameras.world_to_cam[0])
    assert 0 < len(cloud) <= int(good.sum())
    assert seen[:, 1].isfinite().all()


def test_square_photos_are_seen_whole_if_the_user_says_so(monkeypatch):
    square = middle(120)
    pointmaps, _ = reconstruct(monkeypatch, square, square.cameras, crop="none", columns=120)
    assert (pointmaps.confidence[:, :18] > 0.5).float().mean() > 0.5


def test_a_square_canvas_of_landscape_and_portrait_photos_is_no_square_photo():
    masks = torch.ones(2, 120, 120, dtype=torch.bool)
    assert are_square(masks)
    masks[0, :, :3] = False  # what undistortion leaves out
    assert are_square(masks)
    masks[0, :15], masks[0, -15:], masks[1, :, :15], masks[1, :, -15:] = (torch.tensor(False),) * 4
    assert not are_square(masks)
    assert not are_square(torch.ones(2, 90, 120, dtype=torch.bool))


def test_at_its_size_a_square_photo_becomes_upstreams_crop():
    assert choose_window((256, 256), 512, PATCH, landscape=True) == ((512, 512), (384, 512), (64, 0))
    assert choose_window((300, 500), 512, PATCH, landscape=True).size == (304, 512)


def test_masked_pixels_are_not_trusted(monkeypatch):
    inputs = room().inputs()
    masks = inputs.masks.clone()
    masks[:, :40] = False
    pointmaps, _ = reconstruct(monkeypatch, replace(inputs, masks=masks), inputs.cameras)
    assert (pointmaps.confidence[:, :40] == 0).all()


@pytest.mark.parametrize("side", [170, 50])
def test_a_withheld_camera_is_found_beside_those_that_are_held(monkeypatch, side):
    """Also from every third pixel of the network's."""
    monkeypatch.setattr(predictions, "POSE_SIDE", side)
    monkeypatch.setattr(dust3r, "load_network", lambda load, path: Exact(160))
    monkeypatch.setattr(dust3r, "find_weights", lambda *names: names)
    assert_located(Dust3r(SETTINGS).locate(*withheld(), None, draw()))


def test_known_cameras_give_the_same_edge_by_edge():
    """Half precision and one edge at a time, against all at once in full."""
    network, cameras = Exact(160), room().inputs().cameras
    cameras = to_window(cameras, choose_window((120, 160), 160, PATCH))
    first, second = (Encoded(side[:, None, None].float(), (7, 10)) for side in torch.tensor(PAIRS).unbind(1))
    points = torch.stack([seen.points for seen in network.decode(first, second)], 1)
    points *= 3.0 + torch.arange(len(PAIRS))[:, None, None, None, None] / 7  # every edge in units of its own
    points += 0.01 * torch.randn(points.shape, generator=draw())
    sure = 0.5 + 0.5 * torch.rand(points.shape[:-1], generator=draw(1))
    whole = align_pointmaps(torch.tensor(PAIRS), points, sure, cameras, iterations=0)
    parts = align_edges((Edges(torch.tensor(PAIRS)[k], points[k], sure[k]) for k in torch.arange(6).split(4)), 6, cameras)
    assert torch.allclose(parts.points_world, whole.points_world, rtol=2e-3, atol=2e-3)
    assert (parts.confidence - whole.confidence).abs().max() < 5e-3


def test_cameras_come_back_from_the_window():
    cameras, window = room().inputs().cameras, choose_window((120, 160), 150, PATCH)
    there = to_window(cameras, window)
    assert (there.height, there.width) == window.size
    back = from_window(there, window, 120, 160)
    assert torch.allclose(back.intrinsics, cameras.intrinsics, rtol=1e-6)
    # The window's corner is where the resized photo's camera says.
    full = resize_cameras(cameras, *window.full)
    assert torch.allclose(there.intrinsics[:, :2, 2] + torch.tensor(window.corner[::-1]), full.intrinsics[:, :2, 2])


def test_no_weights_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"no weights for pointcloud.backend=dust3r in .*reconx weights fetch dust3r"):
        make_backend(SETTINGS)(room().inputs(), None, draw())


def test_one_photo_is_a_sentence():
    with pytest.raises(UserError, match="at least two photos"):
        make_backend(SETTINGS)(room().inputs().select(torch.tensor([0])), None, draw())
