"""What later stages rely on: inputs first and in order, no leak from targets, exact cameras on a common canvas."""

import json
import math

import numpy as np
import pycolmap
import pytest
import torch

from reconx_core.datasets import Capture, Photo, Split, read
from reconx_core.errors import UserError
from reconx_core.export.dataset import write_photos
from reconx_core.geometry.transforms import pixel_grid, project, unproject
from reconx_core.io.images import encode, write_png
from reconx_core.io.video import write_mp4
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views, select_photos, thin

HALL = "procedural:hall?seed=1&views=3&width=96&height=72"


def write_photo(path, height: int, width: int, seed: int = 0) -> None:
    small = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    image = torch.nn.functional.interpolate(small, (height, width), mode="bilinear")[0].permute(1, 2, 0)
    write_png(path, image)


def test_inputs_come_first_in_capture_order_then_targets():
    views = load_views(HALL, ViewsSettings())
    assert views.names == ("view_000", "view_002", "view_004", "view_001", "view_003")
    assert views.is_target.tolist() == [False] * 3 + [True] * 2
    assert views.protocol == "posed"
    assert views.masks.all()
    assert views.images.shape == (5, 72, 96, 3)  # never enlarged


def test_the_same_source_gives_the_same_bytes():
    first, again = (load_views(HALL, ViewsSettings(size=80)) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.cameras.cam_to_world, again.cameras.cam_to_world)


def test_resizing_keeps_the_geometry():
    full, half = load_views(HALL, ViewsSettings()), load_views(HALL, ViewsSettings(size=64))
    assert half.images.shape == (5, 48, 64, 3)
    depth = torch.full((1, 72, 96), 2.0)
    points = unproject(depth, full.cameras[[0]]).reshape(-1, 3)
    pixels, _ = project(points, half.cameras.intrinsics[0], half.cameras.world_to_cam[0])
    expected = pixel_grid(72, 96).reshape(-1, 2) * (64 / 96)
    torch.testing.assert_close(pixels, expected, atol=1e-3, rtol=0)


def test_a_written_folder_gives_the_views_of_the_capture(tmp_path):
    write_photos(read(HALL), tmp_path, format="PNG")
    from_disk, direct = load_views(tmp_path, ViewsSettings()), load_views(HALL, ViewsSettings())
    assert from_disk.names == direct.names
    assert torch.equal(from_disk.is_target, direct.is_target)
    assert (from_disk.images - direct.images).abs().max() <= 0.51 / 255
    torch.testing.assert_close(from_disk.cameras.intrinsics, direct.cameras.intrinsics)


@pytest.mark.parametrize("protocol", ["unposed", "intrinsics", "posed"])
def test_a_protocol_restricts_what_is_given_and_keeps_the_ground_truth(protocol):
    views = load_views(HALL, ViewsSettings(protocol=protocol))
    assert views.cameras is not None
    assert views.protocol == protocol
    assert (views.given_cameras is not None) == (protocol == "posed")
    assert (views.given_intrinsics is not None) == (protocol != "unposed")
    assert views.focal_prior.isnan().all()  # calibration must not leak as a prior


def test_a_protocol_that_needs_cameras_which_are_not_there(tmp_path):
    for i in range(2):
        write_photo(tmp_path / f"{i}.png", 20, 30, i)
    with pytest.raises(UserError, match=r"views\.protocol=posed"):
        load_views(tmp_path, ViewsSettings(protocol="posed"))


def test_intrinsics_without_poses(tmp_path):
    for i in range(2):
        write_photo(tmp_path / f"{i}.png", 20, 30, i)
    frames = [{"file_path": f"{i}.png"} for i in range(2)]
    (tmp_path / "transforms.json").write_text(json.dumps({"fl_x": 25, "frames": frames}))
    views = load_views(tmp_path, ViewsSettings())
    assert views.protocol == "intrinsics"
    assert views.given_intrinsics[0].tolist() == [[25, 0, 15], [0, 25, 10], [0, 0, 1]]
    assert views.cameras.cam_to_world.isnan().all()  # unknown poses are NaN, so that nothing uses them by mistake
    assert views.true_cameras is None


def test_mixed_sizes_and_orientations_share_a_canvas(tmp_path):
    write_photo(tmp_path / "a.png", 60, 80)
    write_photo(tmp_path / "b.png", 80, 60)
    write_photo(tmp_path / "c.png", 30, 40)
    views = load_views(tmp_path, ViewsSettings(size=64))
    assert views.images.shape == (3, 64, 64, 3)
    assert [int(m.sum()) for m in views.masks] == [48 * 64, 64 * 48, 30 * 40]
    assert views.masks[0].any(1).nonzero()[[0, -1], 0].tolist() == [8, 55]  # centred
    assert views.images[~views.masks].abs().max() == 0


def test_the_principal_point_follows_onto_the_canvas(tmp_path):
    write_photo(tmp_path / "a.png", 60, 80)
    write_photo(tmp_path / "b.png", 80, 60)
    frames = [{"file_path": f"{n}.png", "w": w, "h": h, "cx": w / 2, "cy": h / 2, "fl_x": 70,
               "transform_matrix": [[1, 0, 0, w], *torch.eye(4)[1:].tolist()]}
              for n, w, h in (("a", 80, 60), ("b", 60, 80))]  # fmt: skip
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    views = load_views(tmp_path, ViewsSettings())
    assert views.cameras.intrinsics[:, :2, 2].tolist() == [[40, 40], [40, 40]]
    assert views.cameras.intrinsics[:, 0, 0].tolist() == [70, 70]


def test_calibration_of_another_picture_is_refused(tmp_path):
    write_photo(tmp_path / "a.png", 60, 80)
    write_photo(tmp_path / "b.png", 80, 60)
    frames = [{"file_path": f"{n}.png", "transform_matrix": torch.eye(4).tolist()} for n in "ab"]
    (tmp_path / "transforms.json").write_text(json.dumps({"w": 80, "h": 60, "fl_x": 70, "frames": frames}))
    with pytest.raises(UserError, match="'b' is 60x80"):
        load_views(tmp_path, ViewsSettings())


def test_exif_focal_follows_the_resize(tmp_path):
    write_photos(read(HALL), tmp_path, cameras=False)
    full, small = load_views(tmp_path, ViewsSettings()), load_views(tmp_path, ViewsSettings(size=64))
    torch.testing.assert_close(small.focal_prior, full.focal_prior * 64 / 96)
    assert full.protocol == "unposed"


def test_masks_are_resized_with_the_photo(tmp_path):
    write_photo(tmp_path / "a.png", 60, 80)
    write_photo(tmp_path / "b.png", 60, 80, seed=1)
    mask = torch.ones(60, 80)
    mask[:, :20] = 0
    write_png(tmp_path / "masks" / "a.png", mask)
    views = load_views(tmp_path, ViewsSettings(size=64))
    assert not views.masks[0, :, :16].any()
    assert views.masks[0, :, 16:].all()
    assert views.masks[1].all()


def test_a_mask_that_leaves_nothing_is_told(tmp_path):
    for i in range(2):
        write_photo(tmp_path / f"{i}.png", 20, 30, i)
    write_png(tmp_path / "masks" / "1.png", torch.zeros(20, 30))
    with pytest.warns(UserWarning, match="mask of photo '1' leaves nothing"):
        load_views(tmp_path, ViewsSettings())


def test_a_mask_of_another_shape_is_not_stretched(tmp_path):
    for i in range(3):
        write_photo(tmp_path / f"{i}.png", 20, 30, i)
    write_png(tmp_path / "masks" / "1.png", torch.ones(30, 20))
    with pytest.warns(UserWarning, match=r"mask of photo '1' is 20x30, but the photo 30x20.* It is left out"):
        assert load_views(tmp_path, ViewsSettings()).names == ("0", "2")


def test_broken_photos_are_left_out_by_name(tmp_path):
    for i in range(3):
        write_photo(tmp_path / f"{i}.png", 20, 30, i)
    whole = encode(torch.rand(200, 300, 3), "JPEG")
    (tmp_path / "holiday.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=r"holiday\.jpg"):
        views = load_views(tmp_path, ViewsSettings())
    assert views.names == ("0", "1", "2")


def test_grey_photos_are_fine(tmp_path):
    for i in range(2):
        write_png(tmp_path / f"{i}.png", torch.rand(20, 30))
    views = load_views(tmp_path, ViewsSettings())
    assert torch.equal(views.images[..., 0], views.images[..., 2])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_photos(tmp_path, count):
    for i in range(count):
        write_photo(tmp_path / f"{i}.png", 20, 30)
    with pytest.raises(UserError, match="no photos" if count == 0 else "at least two"):
        load_views(tmp_path, ViewsSettings())


def test_one_photo_and_a_broken_one_are_too_few(tmp_path):
    write_photo(tmp_path / "a.png", 20, 30)
    (tmp_path / "b.jpg").write_bytes(b"no picture")
    with pytest.warns(UserWarning, match=r"b\.jpg"), pytest.raises(UserError, match="at least two"):
        load_views(tmp_path, ViewsSettings())


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="There is no"):
        load_views(tmp_path / "absent", ViewsSettings())


def test_video_frames_are_the_sharpest_of_equal_windows(tmp_path):
    sharp = torch.nn.functional.interpolate(torch.rand(1, 3, 12, 16), (48, 64))[0].permute(1, 2, 0)
    blurred = torch.nn.functional.avg_pool2d(sharp.permute(2, 0, 1), 9, 1, 4).permute(1, 2, 0)
    write_mp4(tmp_path / "a.mp4", [(sharp if i in (2, 4, 7, 9) else blurred).roll(4 * i, 1) for i in range(12)])
    views = load_views(tmp_path / "a.mp4", ViewsSettings(max_inputs=4))
    assert views.names == ("frame_00002", "frame_00004", "frame_00007", "frame_00009")


def test_thinning():
    unknown = [math.nan] * 10
    assert thin(unknown, 12) == list(range(10))
    assert thin(unknown, 4) == [0, 3, 6, 9]
    assert thin(unknown, 2) == [0, 9]
    assert thin([1, 5, 2, 3, 9, 4, 8, 7], 4) == [1, 3, 4, 6]


def capture(count: int, **splits: Split) -> Capture:
    photos = tuple(Photo(str(i), lambda: torch.zeros(2, 2, 3)) for i in range(count))
    return Capture("scene", photos, splits, next(iter(splits), None))


def test_splits_are_chosen_by_name():
    scene = capture(9, ours=Split((1, 4, 7), (0, 8)), theirs=Split((0, 1), (5,)))
    assert select_photos(scene, ViewsSettings()) == ([1, 4, 7], [0, 8])
    assert select_photos(scene, ViewsSettings(split="theirs")) == ([0, 1], [5])
    assert select_photos(scene, ViewsSettings(split="all", max_inputs=5)) == ([0, 2, 4, 6, 8], [])
    assert select_photos(scene, ViewsSettings(max_inputs=2)) == ([1, 7], [0, 8])  # targets are never thinned
    with pytest.raises(UserError, match="all, ours, theirs"):
        select_photos(scene, ViewsSettings(split="train_3"))


def test_a_clip_has_its_ends_as_inputs_and_the_frames_between_as_targets():
    assert select_photos(capture(10), ViewsSettings(split="clip:1:2:4")) == ([1, 7], [3, 5])


@pytest.mark.parametrize("split", ["clip:4:2:4", "clip:-1:1:3", "clip:0:1", "clip:0:0:3", "clip:a:1:3", "clip:0:1:1"])
def test_a_clip_that_is_not_there_is_refused(split):
    with pytest.raises(UserError, match=r"split 'clip:.*(should look like|no view beyond the last of 10)"):
        select_photos(capture(10), ViewsSettings(split=split))


def test_a_target_among_the_inputs_is_refused():
    with pytest.raises(UserError, match="among its inputs and its targets"):
        select_photos(capture(4, bad=Split((0, 1), (1, 2))), ViewsSettings())


def test_real_splits_follow_the_published_rule(real_data):
    for name in ("fox", "llff_fern", "fountain_p11"):
        scene = real_data / "posed" / name
        split, frames = (json.loads((scene / f).read_text()) for f in ("split.json", "transforms.json"))
        names = [f["file_path"].split("/")[-1].split(".")[0] for f in frames["frames"]]
        for key in ("train_3", "pair_easy"):
            listed = split[key] if key == "train_3" else split[key]["train"]
            held_out = split[key]["test_between"] if key != "train_3" else split.get("test_3", split.get("test"))
            views = load_views(scene, ViewsSettings(size=64, split=key))
            assert views.inputs().names == tuple(names[i] for i in sorted(listed))
            assert set(views.targets().names) == {names[i] for i in held_out}


def match(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixels of mutual SIFT matches between two pictures."""
    options = pycolmap.FeatureExtractionOptions(num_threads=1, use_gpu=False)
    sift = pycolmap.FeatureExtractor.create(options, pycolmap.Device.cpu)
    found = [sift.extract_from_uint8_array((image.mean(-1) * 255).byte().numpy()) for image in images]
    points = [torch.from_numpy(pycolmap.keypoints_to_matrix(k)[:, :2].copy()).float() for k, _ in found]
    distance = torch.cdist(*(torch.from_numpy(np.array(d.data)).float() for _, d in found))
    best, order = distance.topk(2, largest=False)
    mutual = distance.argmin(0)[order[:, 0]] == torch.arange(len(distance))
    good = mutual & (best[:, 0] < 0.75 * best[:, 1])
    return points[0][good], points[1][order[good, 0]]


def epipolar_errors(intrinsics: torch.Tensor, second_from_first: torch.Tensor, matches) -> torch.Tensor:
    """Distances in pixels of the second picture's points to the epipolar lines of their partners in the first."""
    x, y, z = second_from_first[:3, 3].tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0, -x], [-y, x, 0]])
    inverse = torch.linalg.inv(intrinsics)
    fundamental = inverse[1].T @ cross @ second_from_first[:3, :3] @ inverse[0]
    a, b = (torch.nn.functional.pad(m, (0, 1), value=1.0) for m in matches)
    lines = a @ fundamental.T
    return (b * lines).sum(-1).abs() / lines[:, :2].norm(dim=-1)


def depths(intrinsics: torch.Tensor, second_from_first: torch.Tensor, matches) -> torch.Tensor:
    """Depths in the first camera at which the rays of matched pixels come closest."""
    a, b = (torch.nn.functional.pad(m, (0, 1), value=1.0) @ torch.linalg.inv(k).T for m, k in zip(matches, intrinsics))
    turned, moved = a @ second_from_first[:3, :3].T, second_from_first[:3, 3]
    left, right = torch.linalg.cross(turned, b), -torch.linalg.cross(moved.expand_as(b), b)
    return (left * right).sum(-1) / (left * left).sum(-1)


@pytest.mark.long
@pytest.mark.parametrize(("name", "gap"), [("fox", 3), ("real_room", 6), ("fountain_p11", 1), ("llff_fern", 2)])
def test_real_poses_agree_with_the_photos(real_data, name, gap):
    """Matches of two views lie on the epipolar lines of their cameras, after undistortion, and in front of both."""
    views = load_views(real_data / "posed" / name, ViewsSettings(size=400, split="all", max_inputs=50))
    pair = [2, 2 + gap]
    matches = match(views.images[pair])
    cameras = views.cameras[pair]
    relative = cameras.world_to_cam[1] @ cameras.cam_to_world[0]
    error = epipolar_errors(cameras.intrinsics, relative, matches)
    assert (error < 2).sum() > 60
    assert error.median() < 0.7
    assert (depths(cameras.intrinsics, relative, matches)[error < 1] > 0).float().mean() > 0.95
    opengl = torch.diag(torch.tensor([1.0, -1, -1, 1]))
    wrong_axes = opengl @ relative @ opengl
    error_of_wrong_axes = epipolar_errors(cameras.intrinsics, wrong_axes, matches)
    in_front = depths(cameras.intrinsics, wrong_axes, matches)[error_of_wrong_axes < 1] > 0
    assert error_of_wrong_axes.median() > 1.5 or in_front.float().mean() < 0.5  # so the checks above can fail


@pytest.mark.parametrize("height", [0.0, 5e5])
def test_cameras_that_all_stand_at_one_place_are_refused(tmp_path, height):
    for name in "ab":
        write_photo(tmp_path / f"{name}.png", 60, 80)
    turned = [[0, -1, 0, 7], [1, 0, 0, 8], [0, 0, 1, height], [0, 0, 0, 1]]
    straight = [[1, 0, 0, 7], [0, 1, 0, 8], [0, 0, 1, height], [0, 0, 0, 1]]
    frames = [{"file_path": f"{n}.png", "fl_x": 70, "transform_matrix": p} for n, p in zip("ab", (turned, straight))]
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": frames}))
    with pytest.raises(UserError, match=r"All 2 cameras of .* stand at one place, so nothing can be triangulated"):
        load_views(tmp_path, ViewsSettings())
    assert load_views(tmp_path, ViewsSettings(protocol="intrinsics")).protocol == "intrinsics"
