import json

import numpy as np
import pytest
import torch
from small_captures import cameras_of, write_greys

from reconx_core.datasets import detect, dtu, files_of, nerfstudio, read, scene_names
from reconx_core.errors import UserError
from reconx_core.io.images import write_png
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views

INTRINSICS = np.array([[2892.33, 0, 823.205], [0, 2883.18, 619.071], [0, 0, 1]])  # DTU's own, for 1600 x 1200
SMALL = np.diag([1 / 100, 1 / 100, 1]) @ INTRINSICS


def pose(view: int) -> np.ndarray:
    """World to camera: turned a little, and away from the origin."""
    rotation = np.linalg.qr(np.eye(3) + 0.01 * view * np.arange(9).reshape(3, 3))[0]
    return np.column_stack([rotation * np.sign(np.linalg.det(rotation)), [view, 2.0, 600]])


def camera_text(intrinsics: np.ndarray, world_to_cam: np.ndarray) -> str:
    rows = ["\n".join(" ".join(map(str, row)) for row in matrix) for matrix in (world_to_cam, intrinsics)]
    return f"extrinsic\n{rows[0]}\n0.0 0.0 0.0 1.0\n\nintrinsic\n{rows[1]}\n\n425.0 2.5\n"


def write_cams(folder, intrinsics, views):
    folder.mkdir(parents=True)
    for view in range(views):
        (folder / f"{view:08d}_cam.txt").write_text(camera_text(intrinsics, pose(view)))


def write_archive(scene, views=3, masks=False, archive="cameras.npz", intrinsics=SMALL, height=12, width=16):
    """IDR's layout."""
    write_greys(scene / "image", [f"{view:06d}.png" for view in range(views)], height, width)
    worlds = {f"world_mat_{v}": np.vstack([intrinsics @ pose(v), [0, 0, 0, 1]]).astype(np.float32) for v in range(views)}
    scales = {f"scale_mat_{v}": np.diag([300.0, 300, 300, 1]) for v in range(views)}
    np.savez(scene / archive, **worlds, **scales)
    if masks:
        write_masks(scene / "mask", views, height, width)
    return scene


def write_masks(folder, views, height=12, width=16):
    """The object fills one more column in each view."""
    for view in range(views):
        mask = torch.zeros(height, width)
        mask[:, : view + 1] = 1
        write_png(folder / f"{view:03d}.png", mask)


def write_rectified(root, scans=("scan1_train",), pictures=3, cameras=3, height=16, width=20):
    """MVSNet's layout: cameras of all scans in one place, and every view under seven lights."""
    write_cams(root / "Cameras", INTRINSICS, cameras)
    (root / "Cameras" / "pair.txt").write_text("3\n")
    for scan in scans:
        names = [f"rect_{view + 1:03d}_{light}_r5000.png" for view in range(pictures) for light in range(7)]
        write_greys(root / "Rectified" / scan, names, height, width)
    return root


def test_mvsnets_layout_is_found_from_its_top(tmp_path):
    write_rectified(tmp_path, ["scan10_train", "scan2_train"])
    scans = scene_names(tmp_path)
    assert [name for name, _ in scans] == ["scan2_train", "scan10_train"]
    assert scene_names(tmp_path / "Rectified") == scans
    capture = read(scans[0][1])
    assert [p.name for p in capture.photos] == [f"rect_00{i}_3_r5000" for i in (1, 2, 3)]
    expected = torch.linalg.inv(torch.tensor(np.vstack([pose(2), [0, 0, 0, 1]])))
    torch.testing.assert_close(capture.photos[2].cam_to_world, expected.float())


def test_a_picture_that_mvsnet_cropped_has_the_middle_of_the_full_ones_camera(tmp_path):
    """640 x 512 is 80 and 44 pixels inside 800 x 600."""
    write_rectified(tmp_path, height=16, width=20)
    views = load_views(tmp_path / "Rectified" / "scan1_train", ViewsSettings())
    at_640 = np.diag([0.5, 0.5, 1]) @ INTRINSICS - [[0, 0, 80], [0, 0, 44], [0, 0, 0]]
    torch.testing.assert_close(views.cameras.intrinsics[0], torch.tensor(np.diag([1 / 32, 1 / 32, 1]) @ at_640).float())


def test_full_pictures_with_the_same_cameras(tmp_path):
    write_rectified(tmp_path, height=12, width=16)
    views = load_views(tmp_path / "Rectified" / "scan1_train", ViewsSettings())
    torch.testing.assert_close(views.cameras.intrinsics[0], torch.tensor(SMALL).float())


def test_cameras_in_the_scans_own_folder(tmp_path):
    write_cams(tmp_path / "scan1" / "cams", SMALL, 3)
    write_greys(tmp_path / "scan1" / "images", [f"{view:08d}.jpg" for view in range(3)])
    assert detect(tmp_path / "scan1").name == "dtu"
    assert len(read(tmp_path / "scan1").photos) == 3


@pytest.mark.parametrize("scale", [1.0, -0.002])
def test_a_projection_matrix_is_taken_apart(scale):
    intrinsics, world_to_cam = dtu.decompose(scale * INTRINSICS @ pose(5))
    np.testing.assert_allclose(intrinsics, INTRINSICS, atol=1e-8)
    np.testing.assert_allclose(world_to_cam, pose(5), atol=1e-9)


def test_the_unit_sphere_of_idr_is_another_frame_for_the_same_camera(tmp_path):
    """world_mat @ scale_mat projects from the unit sphere, world_mat alone from DTU's millimetres: the reader's frame."""
    scale = np.array([[300.0, 0, 0, 20], [0, 300, 0, -30], [0, 0, 300, 600], [0, 0, 0, 1]])
    sphere, sphere_pose = dtu.decompose(INTRINSICS @ pose(5) @ scale)
    np.testing.assert_allclose(sphere, INTRINSICS, atol=1e-8)
    np.testing.assert_allclose(sphere_pose[:, :3], pose(5)[:, :3], atol=1e-9)
    centres = [-m[:, :3].T @ m[:, 3] for m in (pose(5), sphere_pose)]
    np.testing.assert_allclose(300 * centres[1] + scale[:3, 3], centres[0], atol=1e-6)
    centre = read(write_archive(tmp_path / "scan1", 6)).photos[5].cam_to_world[:3, 3]
    np.testing.assert_allclose(centre, centres[0], atol=0.01)  # world_mat is float32


@pytest.mark.parametrize("matrix", [np.zeros((3, 4)), np.full((3, 4), np.nan), np.eye(4)])
def test_what_is_no_projection_matrix(matrix):
    with pytest.raises(ValueError, match="projection matrix"):
        dtu.decompose(matrix)


def test_object_masks_say_where_to_score_and_not_what_may_be_used(tmp_path):
    photos = read(write_archive(tmp_path / "scan1", masks=True)).photos
    assert all(p.load_mask is None for p in photos)
    assert [int(p.load_object_mask().sum()) for p in photos] == [12, 24, 36]
    assert read(write_archive(tmp_path / "scan2")).photos[0].load_object_mask is None


@pytest.mark.parametrize("place", ["idrmasks/scan1", "idrmasks/scan1/mask", "submission_data/idrmasks/scan1"])
def test_published_masks_lie_beside_the_scans(tmp_path, place):
    write_masks(tmp_path / place, 3)
    scene = write_archive(tmp_path / "scan1")
    assert int(read(scene).photos[2].load_object_mask().sum()) == 36
    assert f"../{place}/002.png" in files_of(scene)
    assert scene_names(tmp_path) == [("scan1", scene)]


def test_the_mask_of_a_cropped_picture_is_cropped(tmp_path):
    """The mask is for 1600 x 1200, of which columns 160 to 1440 and rows 88 to 1112 are in the picture."""
    write_rectified(tmp_path, height=16, width=20)
    full = torch.zeros(300, 400)
    full[21:279, 39:361] = 1
    write_png(tmp_path / "idrmasks" / "scan1" / "001.png", full)
    photos = read(tmp_path / "Rectified" / "scan1_train").photos
    mask = photos[1].load_object_mask()
    assert mask.shape == (256, 320)
    assert mask.all()
    assert photos[0].load_object_mask is None


def test_the_split_is_regnerfs(tmp_path):
    capture = read(write_archive(tmp_path / "scan1", 64))
    assert capture.default_split == "train_3"
    assert {name: split.inputs for name, split in capture.splits.items()} == {
        "train_3": (22, 25, 28),
        "train_6": (22, 25, 28, 40, 44, 48),
        "train_9": (0, 8, 13, 22, 25, 28, 40, 44, 48),
    }
    scored = (1, 2, 9, 10, 11, 12, 14, 15, 23, 24, 26, 27, 29, 30, 31, 32, 33, 34, 35, 41, 42, 43, 45, 46, 47)
    assert {split.targets for split in capture.splits.values()} == {scored}
    views = load_views(tmp_path / "scan1", ViewsSettings())
    assert views.names[:4] == ("000022", "000025", "000028", "000001")


def test_views_without_a_picture_or_a_camera_are_left_out_and_the_split_with_them(tmp_path):
    scene = write_archive(tmp_path / "scan1", 49)
    (scene / "image" / "000007.png").unlink()
    with pytest.warns(UserWarning, match=r"1 of 49 pictures of .*scan1.* such as view 7"):
        capture = read(scene)
    assert [p.name for p in capture.photos[6:8]] == ["000006", "000008"]
    torch.testing.assert_close(capture.photos[7].cam_to_world[:3, :3], torch.tensor(pose(8)[:, :3].T).float())
    assert (capture.splits, capture.default_split) == ({}, None)
    write_rectified(tmp_path, pictures=3, cameras=2)
    with pytest.warns(UserWarning, match="1 pictures of .* have no camera"):
        assert len(read(tmp_path / "Rectified" / "scan1_train").photos) == 2


def test_shared_cameras_of_64_views_and_a_scan_of_49(tmp_path, recwarn):
    write_rectified(tmp_path, pictures=49, cameras=64, height=3, width=4)
    assert "train_9" in read(tmp_path / "Rectified" / "scan1_train").splits
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]


def test_pictures_with_names_of_their_own_belong_to_the_matrices_in_order(tmp_path):
    scene = write_archive(tmp_path / "mine")
    for i, name in enumerate(("c", "a", "b")):
        (scene / "image" / f"00000{i}.png").rename(scene / "image" / f"{name}.png")
    photos = read(scene).photos
    assert [p.name for p in photos] == ["a", "b", "c"]
    np.testing.assert_allclose(torch.linalg.inv(photos[2].cam_to_world)[:3], pose(2), atol=1e-2)


def test_files_of_a_scan_are_all_that_is_read_wherever_it_lies(tmp_path):
    write_rectified(tmp_path, pictures=2, cameras=2)
    write_masks(tmp_path / "idrmasks" / "scan1", 1)
    assert sorted(files_of(tmp_path / "Rectified" / "scan1_train")) == [
        "../../Cameras/00000000_cam.txt",
        "../../Cameras/00000001_cam.txt",
        "../../idrmasks/scan1/000.png",
        "rect_001_3_r5000.png",
        "rect_002_3_r5000.png",
    ]
    scene = write_archive(tmp_path / "scan5", 2, masks=True)
    assert sorted(files_of(scene)) == ["cameras.npz", "image/000000.png", "image/000001.png", "mask/000.png", "mask/001.png"]


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("has no cameras", lambda scene: (scene / "cameras.npz").unlink()),
        ("cameras.npz", lambda scene: (scene / "cameras.npz").write_bytes((scene / "cameras.npz").read_bytes()[:700])),
        ("cameras.npz", lambda scene: (scene / "cameras.npz").write_bytes(b"")),
        ("no pictures", lambda scene: [file.unlink() for file in (scene / "image").iterdir()]),
        (r"cameras\.npz is no archive", lambda scene: (scene / "cameras.npz").write_text("<html>")),
        (r"cameras\.npz is no archive", lambda scene: (scene / "cameras.npz").write_bytes(b"")),
        ("view 0 in .* damaged", lambda scene: np.savez(scene / "cameras.npz", world_mat_0=np.zeros((4, 4)))),
        ("none of its 3 pictures", lambda scene: np.savez(scene / "cameras.npz", world_mat_9=np.eye(4))),
        ("not for a picture of 16x12", lambda scene: write_archive(scene, intrinsics=INTRINSICS)),
        ("skewed", lambda scene: write_archive(scene, intrinsics=SMALL + [[0, 0.1, 0], [0, 0, 0], [0, 0, 0]])),
    ],
)
def test_broken_scans_are_explained(tmp_path, message, damage):
    scene = write_archive(tmp_path / "scan1")
    damage(scene)
    with pytest.raises(UserError, match=message):
        dtu.read(scene)


@pytest.mark.parametrize(
    "text", ["", "extrinsic\n1 0 0", camera_text(INTRINSICS, 2 * pose(0)), camera_text(INTRINSICS, -pose(0))]
)
def test_damaged_camera_files_are_named(tmp_path, text):
    write_rectified(tmp_path)
    (tmp_path / "Cameras" / "00000001_cam.txt").write_text(text)
    with pytest.raises(UserError, match=r"view 1 in .*00000001_cam\.txt is damaged"):
        read(tmp_path / "Rectified" / "scan1_train")


def test_camera_files_with_a_byte_order_mark(tmp_path):
    write_rectified(tmp_path)
    for file in (tmp_path / "Cameras").glob("*.txt"):
        file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read(tmp_path / "Rectified" / "scan1_train").photos[0].cam_to_world is not None


@pytest.mark.parametrize("layout", ["archive", "cams", "calibration"])
def test_a_real_scan_reads_the_same_from_each_layout(tmp_path, real_data, layout):
    source = real_data / "posed" / "dtu_scan118"
    expected = nerfstudio.read(source)
    cameras = cameras_of(expected)
    poses = torch.linalg.inv(cameras.cam_to_world.double()).numpy()[:, :3]
    intrinsics = cameras.intrinsics.double().numpy()
    scene = tmp_path / "Rectified" / "scan118"
    scene.mkdir(parents=True)
    names = json.loads((source / "transforms.json").read_text())["frames"]
    if layout == "calibration":
        (tmp_path / "Calibration" / "cal18").mkdir(parents=True)
        for i, (k, w) in enumerate(zip(intrinsics, poses)):
            np.savetxt(tmp_path / "Calibration" / "cal18" / f"pos_{i + 1:03d}.txt", np.diag([2, 2, 1]) @ k @ w)
            (scene / f"rect_{i + 1:03d}_3_r5000.jpg").symlink_to(source / names[i]["file_path"])
    else:
        (scene / "image").symlink_to(source / "images")
    if layout == "archive":
        matrices = zip(intrinsics, poses)
        np.savez(
            scene / "cameras.npz", **{f"world_mat_{i}": np.vstack([k @ w, [0, 0, 0, 1]]) for i, (k, w) in enumerate(matrices)}
        )
    if layout == "cams":
        (scene / "cams").mkdir()
        for i, (k, w) in enumerate(zip(intrinsics, poses)):
            (scene / "cams" / f"{i:08d}_cam.txt").write_text(camera_text(k, w))
    views, wanted = (load_views(p, ViewsSettings(split="all")) for p in (scene, source))
    torch.testing.assert_close(views.cameras.intrinsics, wanted.cameras.intrinsics, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(views.cameras.cam_to_world, wanted.cameras.cam_to_world, rtol=1e-4, atol=1e-2)
    assert torch.equal(views.images, wanted.images)
