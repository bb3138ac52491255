"""The Gaussians that the optimisation starts from."""

from dataclasses import replace

import pytest
import torch
from exact_scene import room, room_pointmaps

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import join_cameras
from reconx_core.rasterize import rasterize
from reconx_core.settings import SplatsSettings
from reconx_core.splats import initial_gaussians
from reconx_core.splats.initial import (
    add_backdrop,
    concatenate,
    fill_holes,
    from_pointmaps,
    from_sparse,
    occludes,
    render_surfaces,
    widen,
)
from reconx_core.types import Frames, Gaussians, PointCloud, Pointmaps


def photos() -> Frames:
    inputs = room().inputs()
    return Frames(inputs.images, inputs.cameras, inputs.masks.float(), torch.ones(3, dtype=torch.bool))


def some(confidence) -> Pointmaps:
    return replace(room_pointmaps(), confidence=confidence)


def start_from(pointmaps: Pointmaps, most=100_000, sh_degree=0) -> Gaussians:
    return from_pointmaps(photos(), pointmaps, most, sh_degree, "cpu")


def test_the_start_already_looks_like_the_photos():
    start = start_from(room_pointmaps())
    renders = rasterize(start, room_pointmaps().cameras).rgb
    assert -10 * torch.log10((renders - room().inputs().images).square().mean()) > 22


def test_what_several_photos_see_is_held_once():
    start = start_from(room_pointmaps())
    assert 120 * 160 < len(start) < 2 * 120 * 160


@pytest.mark.parametrize("most", [100, 777, 5000])
def test_never_more_than_the_most(most):
    start = start_from(room_pointmaps(), most, 1)
    assert most / 5 < len(start) <= most


def test_masked_pixels_start_no_gaussians():
    confidence = torch.zeros(3, 120, 160)
    confidence[0, 30:60, 40:80] = 1
    pointmaps = some(confidence)
    start = start_from(pointmaps)
    assert len(start) == 30 * 40
    torch.testing.assert_close(start.means, pointmaps.points_world[0, 30:60, 40:80].reshape(-1, 3), atol=1e-4, rtol=0)


def test_unsure_points_start_less_opaque():
    sure, unsure = (start_from(some(torch.full((3, 120, 160), c)), 5000) for c in (0.9, 0.2))
    assert sure.logit_opacities.min() > unsure.logit_opacities.max()


def test_colours_and_degree():
    start = start_from(room_pointmaps(), 5000, 2)
    assert start.sh.shape[1:] == (9, 3)
    assert (start.sh[:, 1:] == 0).all()


def test_feature_points_start_as_in_gaussian_splatting():
    sparse = room_pointmaps().sparse
    start = from_sparse(sparse, 1)
    assert torch.equal(start.means, sparse.xyz)
    torch.testing.assert_close(start.logit_opacities.sigmoid(), torch.full((len(sparse),), 0.1))
    distance = torch.cdist(sparse.xyz, sparse.xyz).topk(4, largest=False).values[:, 1:]
    torch.testing.assert_close(start.log_scales[:, 0].exp(), distance.square().mean(1).sqrt(), rtol=1e-2, atol=1e-4)


def test_no_feature_points_is_said():
    none = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    pointmaps = replace(room_pointmaps(), sparse=none)
    with pytest.raises(UserError, match="needs feature points"):
        initial_gaussians(photos(), pointmaps, SplatsSettings(init="sparse"), "cpu", torch.Generator())


def test_without_trusted_depth_the_start_is_random_and_that_is_said():
    with pytest.warns(UserWarning, match="No depth of the photos could be trusted"):
        start = initial_gaussians(photos(), some(torch.zeros(3, 120, 160)), SplatsSettings(), "cpu", torch.Generator())
    assert len(start) > 0
    assert start.means.isfinite().all()


def test_unsure_points_move_behind_what_is_confirmed():
    """Half of the third photo is unsure and far too near: it would stand before what the other photos confirm."""
    pointmaps = room_pointmaps()
    eye = pointmaps.cameras.cam_to_world[2, :3, 3]
    points, confidence = pointmaps.points_world.clone(), torch.ones(3, 120, 160)
    points[2, :, :80] = eye + 0.4 * (points[2, :, :80] - eye)
    confidence[2, :, :80] = 0.2
    start = start_from(replace(pointmaps, points_world=points, confidence=confidence))
    sure = start.logit_opacities > 1
    assert int((~sure).sum()) > 100
    surfaces = render_surfaces(start_from(some(torch.where(confidence > 0.4, 1.0, 0.0))), photos().cameras, "cpu")
    assert occludes(start.means[~sure], surfaces).float().mean() < 0.02
    assert occludes(points[2, :, :80].reshape(-1, 3), surfaces).float().mean() > 0.5


def start_by(made: Frames, pointmaps: Pointmaps, **changes) -> Gaussians:
    settings = SplatsSettings(**{"fill": False, "backdrop": False, "sh_degree": 0} | changes)
    return initial_gaussians(made, pointmaps, settings, "cpu", torch.Generator())


def test_every_usable_pixel_may_start_a_gaussian_where_it_lies():
    """Also one that another photo covers, or whose depth nothing confirms; but none that is masked out or margin."""
    masks = torch.ones(3, 120, 160)
    masks[1, :, :30] = 0
    pointmaps = some(torch.where(torch.arange(120)[:, None] < 15, 0.0, 1.0).expand(3, 120, 160).contiguous())
    start = start_by(replace(photos(), confidence=masks), pointmaps, pixels="all", max_gaussians=0)
    assert len(start) == int(masks.sum())
    torch.testing.assert_close(start.means, pointmaps.points_world[masks > 0], atol=1e-4, rtol=1e-4)
    assert len(start_by(photos(), pointmaps, pixels="all", max_gaussians=5000)) <= 5000
    distinct = len(start_by(photos(), pointmaps, max_gaussians=0))
    assert 105 * 160 < distinct < 2 * 105 * 160  # no limit, but what several photos see once


def test_masked_out_pixels_start_no_gaussians_at_random_depths_either():
    white = replace(photos(), images=torch.ones(3, 120, 160, 3))
    margin = torch.arange(160) < 40
    black = replace(white, images=white.images * ~margin[:, None], confidence=white.confidence * ~margin)
    start = start_by(black, room_pointmaps(), init="random", max_gaussians=2000)
    assert 1200 < len(start) < 1800
    assert start.sh[:, 0].min() > 1  # none is black


def test_filling_and_backdrop_are_settings_of_their_own():
    sizes = {
        (fill, backdrop): len(start_by(photos(), room_pointmaps(), fill=fill, backdrop=backdrop, max_gaussians=500))
        for fill in (False, True)
        for backdrop in (False, True)
    }
    assert sizes[False, False] <= 500
    assert sizes[True, True] > max(sizes[True, False], sizes[False, True])
    assert min(sizes[True, False], sizes[False, True]) > sizes[False, False]


@pytest.fixture(scope="module")
def filled():
    """(start, start and filling) of a room of whose photos the right side is not known."""
    confidence = torch.where(torch.arange(160) < 110, 1.0, 0.0).expand(3, 120, 160)
    start = start_from(some(confidence.contiguous()), 20_000)
    return start, fill_holes(start, photos(), "cpu")


def test_filling_closes_holes_around_what_is_known(filled):
    cameras = widen(photos().cameras, 1.3)
    before, after = (rasterize(g, cameras).alpha.gt(0.5).float().mean() for g in filled)
    assert after > before + 0.15


def test_filling_leaves_what_was_there_and_hides_nothing(filled):
    start, both = filled
    n = len(start)
    assert len(both) > n
    assert torch.equal(both.means[:n], start.means)
    surfaces = render_surfaces(start, photos().cameras, "cpu")
    assert not occludes(both.means[n:], surfaces).any()


def test_the_backdrop_shines_through_gaps_and_hides_nothing():
    known = torch.ones(3, 120, 160)
    known[:, 30:90, 40:120] = 0
    start = start_from(some(known))
    both = add_backdrop(start, photos(), "cpu")
    before, after = (rasterize(g, photos().cameras) for g in (start, both))
    gap = before.alpha < 0.1
    assert gap.sum() > 500
    assert after.alpha[gap].min() > 0.8
    assert (after.rgb - photos().images)[gap].abs().mean() < 0.6 * (before.rgb - photos().images)[gap].abs().mean()
    assert not occludes(both.means[len(start) :], render_surfaces(start, photos().cameras, "cpu")).any()


def test_frames_that_have_joined_the_photos_leave_no_backdrop():
    """They go all around a scene: what is behind it in one view is before it in another."""
    joined = replace(photos(), is_photo=torch.tensor([True, False, False]))
    alone, added = (start_by(joined, room_pointmaps(), backdrop=backdrop) for backdrop in (False, True))
    of_all = start_by(photos(), room_pointmaps(), backdrop=True)
    assert len(alone) == len(start_by(photos(), room_pointmaps()))
    assert len(alone) < len(added) < len(alone) + 0.5 * (len(of_all) - len(alone))


def test_no_backdrop_is_fog_before_a_camera_that_stands_in_it():
    start, wide = start_from(room_pointmaps()), torch.eye(4)[None]
    alone = add_backdrop(start, photos(), "cpu")
    wide[0, :3, :3], wide[0, :3, 3] = photos().cameras.cam_to_world[1, :3, :3], alone.means[-1]  # looks on, away from all
    cameras = join_cameras(photos().cameras, replace(photos().cameras[:1], cam_to_world=wide))
    nothing, one = torch.zeros(1, 120, 160), torch.zeros(1, dtype=torch.bool)
    together = Frames(
        torch.cat([photos().images, nothing[..., None].expand(-1, -1, -1, 3)]), cameras,
        torch.cat([photos().confidence, nothing]), torch.cat([photos().is_photo, one]),
    )  # fmt: skip

    def nearest(gaussians):
        """Distance of the backdrop from the camera, in deviations."""
        apart = (gaussians.means - wide[0, :3, 3]).norm(dim=-1) / gaussians.log_scales[:, 0].exp()
        return apart[len(start) :].min()

    beside = add_backdrop(start, together, "cpu")
    assert nearest(alone) < 1e-3
    assert nearest(beside) > 3
    assert len(start) + 100 < len(beside) < len(alone)


def test_what_is_masked_out_does_not_colour_the_backdrop():
    start = start_from(some(torch.where(torch.arange(160) < 80, 1.0, 0.0).expand(3, 120, 160).contiguous()))
    whole = replace(photos(), images=torch.full_like(photos().images, 0.5))
    left = torch.arange(160) < 80
    half = replace(whole, images=whole.images * left[:, None], confidence=whole.confidence * left)
    torch.testing.assert_close(add_backdrop(start, half, "cpu").sh, add_backdrop(start, whole, "cpu").sh, atol=1e-4, rtol=0)


def test_a_point_before_a_surface_hides_it_and_one_behind_does_not():
    surfaces = render_surfaces(start_from(room_pointmaps()), photos().cameras[:1], "cpu")
    eye, point = room_pointmaps().cameras.cam_to_world[0, :3, 3], room_pointmaps().points_world[0, 60, 80]
    near, far = eye.lerp(point, 0.5), eye.lerp(point, 1.2)
    assert occludes(torch.stack([near, far]), surfaces).tolist() == [True, False]


def test_nothing_is_put_beside_a_camera_where_others_on_the_way_would_look_into_it():
    surfaces = render_surfaces(start_from(room_pointmaps()), photos().cameras, "cpu", 0.4)
    typical = float(surfaces.depth[surfaces.depth > 0].median())
    right, eye = photos().cameras.cam_to_world[2, :3, 0], photos().cameras.cam_to_world[2, :3, 3]
    beside = torch.stack([eye + share * typical * right for share in (0.3, 0.5)])
    assert occludes(beside, surfaces).tolist() == [True, False]


def test_widening_keeps_the_middle_and_sees_more():
    cameras = photos().cameras
    wide = widen(cameras, 1.5)
    assert (wide.width, wide.height) == (120, 90)
    sees, saw = (float(c.width / c.intrinsics[0, 0, 0]) for c in (wide, cameras))
    assert sees == pytest.approx(1.5 * saw, rel=0.01)
    off_centre = wide.intrinsics[:, :2, 2] - torch.tensor([60.0, 45.0])
    torch.testing.assert_close(off_centre, 0.5 * (cameras.intrinsics[:, :2, 2] - torch.tensor([80.0, 60.0])))


def test_concatenation_keeps_the_order():
    start = from_sparse(room_pointmaps().sparse, 0)
    both = concatenate([start, start])
    assert len(both) == 2 * len(start)
    assert torch.equal(both.means[len(start) :], start.means)
