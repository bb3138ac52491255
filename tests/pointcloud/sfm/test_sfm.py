"""Photos of a procedural room, whose cameras are exact: they must come back from the pixels alone."""

from dataclasses import replace
from functools import cache

import pytest
import torch

from reconx_core.errors import UserError
from reconx_core.geometry.transforms import project, transform
from reconx_core.metrics.pose import pose_errors
from reconx_core.pointcloud.sfm.matching import add_tilted, extract_features, match_features, verify_matches
from reconx_core.pointcloud.sfm.solve import _warn_dropped, solve_cameras
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views

pytestmark = pytest.mark.long

NAN = float("nan")


@cache
def room(views: int = 3, seed: int = 1, arc: float = 9, width: int = 320):
    source = f"procedural:room?seed={seed}&views={views}&targets=0&arc={arc}&width={width}&height={width * 3 // 4}"
    return load_views(source, ViewsSettings())


@pytest.fixture(scope="module")
def three():
    return room()


def unposed(views):
    return replace(views, protocol="unposed")


def solve(views, fixed=None, seed=0):
    return solve_cameras(views, fixed, torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def solved(three):
    return solve(unposed(three))


def test_three_photos_give_their_cameras_and_lens(three, solved):
    sfm = solved
    errors = pose_errors(sfm.cameras, three.cameras)
    assert sfm.registered.all()
    assert errors["rotation_error"] < 0.5
    assert errors["translation_error"] < 2
    assert (sfm.cameras.intrinsics[:, 0, 0] / three.cameras.intrinsics[:, 0, 0] - 1).abs().max() < 0.05
    assert len(set(sfm.cameras.intrinsics[:, 0, 0].tolist())) == 1  # photos of one size share a lens


def test_the_world_is_the_first_camera_at_unit_depth(solved):
    sfm = solved
    assert torch.equal(sfm.cameras.cam_to_world[0], torch.eye(4))
    depth = transform(sfm.cameras.world_to_cam, sfm.sparse.xyz[None])[..., 2]
    assert float(depth[sfm.observations].median()) == pytest.approx(1, abs=0.1)


def test_points_project_to_where_they_were_seen(three, solved):
    """The colour under each projection is the point's, so that points, cameras and observations belong together."""
    sfm = solved
    assert (sfm.observations.sum(0) >= 2).all()
    pixels, depth = project(sfm.sparse.xyz, sfm.cameras.intrinsics, sfm.cameras.world_to_cam)
    for view in range(3):
        seen = sfm.observations[view]
        column, row = pixels[view, seen].floor().long().unbind(-1)
        assert (depth[view, seen] > 0).all()
        off = (three.images[view, row.clamp(0, 239), column.clamp(0, 319)] - sfm.sparse.rgb[seen]).abs().mean(-1)
        assert off.median() < 0.05


@pytest.mark.slow
def test_two_photos_are_enough():
    views = room(2, seed=2)
    sfm = solve(unposed(views))
    errors = pose_errors(sfm.cameras, views.cameras)
    assert errors["rotation_error"] < 2
    assert errors["translation_error"] < 6


def test_same_photos_same_bytes(three, solved, computed_anew):
    one, two = solved, solve(unposed(three))
    assert torch.equal(one.cameras.cam_to_world, two.cameras.cam_to_world)
    assert torch.equal(one.cameras.intrinsics, two.cameras.intrinsics)
    assert torch.equal(one.sparse.xyz, two.sparse.xyz)
    assert torch.equal(one.observations, two.observations)


def test_known_cameras_stay_and_give_frame_and_units(three):
    sfm = solve(three, fixed=three.cameras)
    assert torch.equal(sfm.cameras.cam_to_world, three.cameras.cam_to_world)
    assert torch.equal(sfm.cameras.intrinsics, three.cameras.intrinsics)
    height = sfm.sparse.xyz[:, 1]  # metres, y down, floor at 0: nothing is below it
    assert float(height.quantile(0.98)) < 0.05


def test_views_after_the_known_ones_join_their_frame():
    views = room(4)
    sfm = solve(views, fixed=views.cameras[:2])
    assert torch.equal(sfm.cameras.cam_to_world[:2], views.cameras.cam_to_world[:2])
    off = (sfm.cameras.cam_to_world[2:, :3, 3] - views.cameras.cam_to_world[2:, :3, 3]).norm(dim=-1)
    assert off.max() < 0.02  # metres, in a room


def test_known_intrinsics_are_kept_where_poses_are_not_known(three):
    sfm = solve(replace(three, protocol="intrinsics"))
    assert torch.equal(sfm.cameras.intrinsics, three.cameras.intrinsics)
    assert pose_errors(sfm.cameras, three.cameras)["rotation_error"] < 0.3


def test_exif_focal_is_believed(three):
    focal = three.cameras.intrinsics[:, 0, 0]
    sfm = solve(replace(unposed(three), focal_prior=focal))
    assert (sfm.cameras.intrinsics[:, 0, 0] / focal - 1).abs().max() < 0.02


def test_exif_focals_that_the_photos_contradict_are_told_and_left(three):
    """As of photos that were cropped."""
    focal = three.cameras.intrinsics[:, 0, 0]
    with pytest.warns(UserWarning, match=r"focal length 1\.[89] times as long as their EXIF data say"):
        sfm = solve(replace(unposed(three), focal_prior=focal / 1.8))
    assert (sfm.cameras.intrinsics[:, 0, 0] / focal - 1).abs().max() < 0.05
    assert pose_errors(sfm.cameras, three.cameras)["rotation_error"] < 0.5


def test_photos_of_different_sizes_have_different_focals(three):
    """The second photo half as large, on a black margin, as the reader lays out mixed sizes."""
    small = torch.nn.functional.interpolate(three.images[1:2].movedim(-1, 1), scale_factor=0.75, mode="area").movedim(1, -1)[0]
    images, masks = three.images.clone(), three.masks.clone()
    images[1], masks[1] = 0, False
    images[1, 30:210, 40:280], masks[1, 30:210, 40:280] = small, True
    sfm = solve(replace(unposed(three), images=images, masks=masks))
    focal = sfm.cameras.intrinsics[:, 0, 0]
    assert focal[0] == focal[2]
    assert float(focal[1] / focal[0]) == pytest.approx(0.75, abs=0.08)


def test_masked_pixels_have_no_features(three):
    mask = three.masks[0].clone()
    mask[:, :160] = False
    for features in (
        extract_features(three.images[0], mask),
        add_tilted(extract_features(three.images[0], mask), three.images[0], mask),
    ):
        assert len(features.keypoints) > 50
        assert features.keypoints[:, 0].min() >= 160


@pytest.mark.slow
def test_tilted_copies_find_what_a_wide_baseline_hides():
    views = room(2, seed=0, arc=55)
    plain = [extract_features(i, m) for i, m in zip(views.images, views.masks)]
    tilted = [add_tilted(f, i, m) for f, i, m in zip(plain, views.images, views.masks)]
    for before, after in zip(plain, tilted):
        assert (after.keypoints[: len(before.keypoints)] == before.keypoints).all()
    few, many = (len(verify_matches(a, b, match_features(a, b), 2.0, 0)) for a, b in (plain, tilted))
    assert many > max(20, 1.2 * few)


@pytest.mark.slow
def test_a_photo_of_another_place_is_left_out_by_name():
    views, stranger = room(2), room(2, seed=2)
    images = torch.cat([views.images, stranger.images[:1]])
    mixed = replace(
        unposed(views), images=images, masks=torch.ones(images.shape[:3], dtype=torch.bool), names=(*views.names, "elsewhere"),
        is_target=torch.zeros(3, dtype=torch.bool), cameras=None, focal_prior=torch.full((3,), NAN),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="Left out elsewhere"):
        sfm = solve(mixed)
    assert sfm.registered.tolist() == [True, True, False]
    assert len(sfm.cameras) == 2


def test_photos_of_different_places_are_refused_in_one_sentence():
    rooms = [room(2, seed=seed, width=200) for seed in (1, 2)]
    images = torch.cat([one.images[:1] for one in rooms])
    views = replace(unposed(rooms[0]), images=images, names=("kitchen", "garden"), cameras=None)
    with pytest.raises(UserError, match=r"kitchen and garden do not show enough of the same place.*overlap"):
        solve(views)


def test_the_size_of_photos_is_named_only_where_they_are_small_and_show_little():
    large, small, registered = room(2), room(2, width=192), torch.tensor([True, False])
    for views, found, hinted in ((large, 150, False), (small, 150, True), (small, 300, False)):
        with pytest.warns(UserWarning, match="Left out") as said:
            _warn_dropped(views, registered, [900, found])
        hint = "Their size is a likely cause: 192 pixels show at most 150 features; give larger photos, or a larger views.size."
        assert str(said[0].message).endswith(f" {hint}" if hinted else "in common with the other photos.")


def test_one_photo_is_refused():
    views = room(2)
    with pytest.raises(UserError, match="at least two photos"):
        solve(unposed(views).select(torch.tensor([0])))


def test_real_photos_without_their_cameras(real_data):
    views = load_views(real_data / "posed" / "fountain_p11", ViewsSettings(split="train_3", size=400)).inputs()
    # A facade at this size fits focals up to twice as long nearly as well, and that is said.
    with pytest.warns(UserWarning, match="do not determine the focal length"):
        sfm = solve(unposed(views))
    errors = pose_errors(sfm.cameras, views.cameras)
    assert 0 < sfm.camera_confidence < 0.5
    assert errors["auc_10"] > 0.8


def test_a_focal_that_two_photos_leave_open_is_the_one_that_they_show(real_data):
    """From the matches alone it is a fifth too long, and the cameras are turned by 8 degrees."""
    views = load_views(real_data / "posed" / "fox", ViewsSettings(split="pair_easy", size=512, protocol="posed")).inputs()
    with pytest.warns(UserWarning, match="do not determine the focal length"):
        sfm = solve(unposed(views))
    errors = pose_errors(sfm.cameras, views.cameras)
    assert errors["rotation_error"] < 3
    assert (sfm.cameras.intrinsics[0, 0, 0] / views.cameras.intrinsics[0, 0, 0] - 1).abs() < 0.1
