import numpy as np
import pycolmap
import pytest
import torch
from small_captures import cameras_of, tiny_hall, write_greys

from reconx_core.datasets import colmap, detect, files_of, read, scene_names
from reconx_core.errors import UserError
from reconx_core.export import write_colmap
from reconx_core.export.dataset import write_photos
from reconx_core.io.images import ImageError
from reconx_core.settings import ViewsSettings
from reconx_core.types import PointCloud
from reconx_core.views import load_views

CLOUD = PointCloud(torch.rand(5, 3), torch.rand(5, 3), torch.ones(5))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("place", ["sparse/0", "sparse", "."])
def test_text_and_binary_models_read_back(tmp_path, text, place):
    hall = tiny_hall()
    files = write_photos(hall, tmp_path, cameras=False)
    write_colmap(tmp_path / place, cameras_of(hall), [f.name for f in files], CLOUD, text)
    assert detect(tmp_path).name == "colmap"
    back = colmap.read(tmp_path)
    torch.testing.assert_close(cameras_of(back).intrinsics, cameras_of(hall).intrinsics)
    torch.testing.assert_close(cameras_of(back).cam_to_world, cameras_of(hall).cam_to_world, atol=2e-6, rtol=0)
    assert back.photos[0].load().shape == (72, 96, 3)


def one_camera_model(folder, model: str, parameters: list[float]) -> None:
    write_greys(folder / "images", ["a.png"])
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model=model, width=16, height=12, params=parameters)
    reconstruction.add_camera_with_trivial_rig(camera)
    reconstruction.add_image_with_trivial_frame(pycolmap.Image(name="a.png", camera_id=1, image_id=1), pycolmap.Rigid3d())
    (folder / "sparse" / "0").mkdir(parents=True)
    reconstruction.write_binary(str(folder / "sparse" / "0"))


@pytest.mark.parametrize(
    ("model", "parameters", "expected"),
    [
        ("SIMPLE_PINHOLE", [9, 8, 6], (9, 9, 0, 0, 0, 0)),
        ("PINHOLE", [9, 10, 8, 6], (9, 10, 0, 0, 0, 0)),
        ("SIMPLE_RADIAL", [9, 8, 6, 0.1], (9, 9, 0.1, 0, 0, 0)),
        ("RADIAL", [9, 8, 6, 0.1, 0.2], (9, 9, 0.1, 0.2, 0, 0)),
        ("OPENCV", [9, 10, 8, 6, 0.1, 0.2, 0.3, 0.4], (9, 10, 0.1, 0.2, 0.3, 0.4)),
        ("FULL_OPENCV", [9, 10, 8, 6, 1, 2, 3, 4, 5, 6, 7, 8], (9, 10, 1, 2, 3, 4, 5, 6, 7, 8)),
    ],
)
def test_camera_models(tmp_path, model, parameters, expected):
    one_camera_model(tmp_path, model, parameters)
    photo = colmap.read(tmp_path).photos[0]
    assert (float(photo.intrinsics[0, 0]), float(photo.intrinsics[1, 1]), *photo.distortion) == expected
    assert photo.intrinsics[:2, 2].tolist() == [8, 6]


def test_fisheye_is_refused(tmp_path):
    one_camera_model(tmp_path, "OPENCV_FISHEYE", [9, 10, 8, 6, 0.1, 0, 0, 0])
    with pytest.raises(UserError, match="OPENCV_FISHEYE"):
        colmap.read(tmp_path)


def test_missing_images_are_named(tmp_path):
    one_camera_model(tmp_path, "PINHOLE", [9, 10, 8, 6])
    (tmp_path / "images" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png"):
        colmap.read(tmp_path)


@pytest.mark.parametrize("name", ["cameras", "images", "points3D"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_model_is_named_at_once(tmp_path, name, share):
    """pycolmap itself would allocate memory for minutes, or read garbage as focal lengths."""
    hall = tiny_hall()
    files = [f"{p.name}.png" for p in hall.photos]
    write_greys(tmp_path / "images", files)
    write_colmap(tmp_path / "sparse", cameras_of(hall), files, CLOUD)
    colmap.read(tmp_path)
    file = tmp_path / "sparse" / f"{name}.bin"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match=f"{name}.bin is truncated"):
        colmap.read(tmp_path)


def write(folder, names, images=("images",), model="PINHOLE", parameters=(9.0, 10, 8, 6)):
    """A scene of one camera at several places, with pictures of any size in the folders of ``images``."""
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera(camera_id=1, model=model, width=16, height=12, params=list(parameters))
    reconstruction.add_camera_with_trivial_rig(camera)
    for i, name in enumerate(names):
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d([0.0, 0, 0, 1]), np.array([-float(i), 0, 0]))
        image = pycolmap.Image(name=name, camera_id=1, image_id=i + 1)
        reconstruction.add_image_with_trivial_frame(image, pose)
    (folder / "sparse" / "0").mkdir(parents=True)
    reconstruction.write_binary(str(folder / "sparse" / "0"))
    for version in images:
        factor = int(version.removeprefix("images").removeprefix("_") or 1)
        write_greys(folder / version, names, 12 // factor, 16 // factor)
    return folder


NAMES = ["a.png", "b.png", "c.png"]


@pytest.mark.parametrize(
    ("images", "width"), [(("images", "images_2", "images_4"), 16), (("images_4", "images_2"), 8), (("images_4",), 4)]
)
def test_the_largest_pictures_that_are_there(tmp_path, images, width):
    scene = write(tmp_path, NAMES, images)
    photo = colmap.read(scene).photos[2]
    assert photo.load().shape[1] == width
    assert (photo.size, float(photo.intrinsics[0, 0]), float(photo.cam_to_world[0, 3])) == ((12, 16), 9, 2)
    views = load_views(scene, ViewsSettings(split="all"))
    wanted = torch.tensor([[9.0, 0, 8], [0, 10, 6], [0, 0, 16 / width]]) * width / 16
    torch.testing.assert_close(views.cameras.intrinsics[0], wanted)


def test_full_pictures_that_are_half_downloaded_do_not_count(tmp_path):
    write(tmp_path, NAMES, ("images", "images_2"))
    (tmp_path / "images" / "b.png").unlink()
    assert colmap.read(tmp_path).photos[0].load().shape[1] == 8
    (tmp_path / "images_2" / "b.png").unlink()
    assert colmap.read(tmp_path).photos[0].load().shape[1] == 16
    for name in ("a.png", "c.png"):
        (tmp_path / "images" / name).unlink()
    assert colmap.read(tmp_path).photos[0].load().shape[1] == 8


def test_every_eighth_counts_in_alphabetical_order(tmp_path):
    """As Mip-NeRF 360 and 3D Gaussian Splatting do; the photos themselves are in capture order."""
    capture = colmap.read(write(tmp_path, [f"{i}.png" for i in range(1, 21)]))
    assert [p.name for p in capture.photos] == [str(i) for i in range(1, 21)]
    inputs, targets = capture.splits["every_8th"]
    alphabetical = sorted(p.name for p in capture.photos)
    assert {capture.photos[i].name for i in targets} == {alphabetical[0], alphabetical[8], alphabetical[16]} == {"1", "17", "6"}
    assert sorted((*inputs, *targets)) == list(range(20))
    assert capture.default_split is None


def poses_bounds(folder, count):
    array = np.tile([0.0, 1, 0, 0, 12, 1, 0, 0, 0, 16, 0, 0, -1, 0, 9, 1, 9], (count, 1))
    np.save(folder / "poses_bounds.npy", array)


def test_mip_nerf_360_is_colmaps_and_scored_on_every_eighth(tmp_path):
    poses_bounds(write(tmp_path, NAMES, ("images", "images_2")), 3)
    assert detect(tmp_path).name == "colmap"
    capture = read(tmp_path)
    assert (capture.default_split, capture.splits["every_8th"]) == ("every_8th", ((1, 2), (0,)))
    assert float(capture.photos[0].intrinsics[1, 1]) == 10  # poses_bounds has one focal length


def test_llffs_own_model_with_distortion_is_left_for_its_poses(tmp_path):
    poses_bounds(write(tmp_path, NAMES, model="SIMPLE_RADIAL", parameters=(9.0, 8, 6, 0.1)), 3)
    assert detect(tmp_path).name == "llff"
    model = pycolmap.Reconstruction(str(tmp_path / "sparse" / "0"))
    for file in (tmp_path / "sparse" / "0").iterdir():
        file.unlink()
    model.write_text(str(tmp_path / "sparse" / "0"))
    assert detect(tmp_path).name == "llff"


def test_a_damaged_model_is_not_passed_over_for_poses(tmp_path):
    poses_bounds(write(tmp_path, NAMES), 3)
    file = tmp_path / "sparse" / "0" / "cameras.bin"
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(UserError, match=r"cameras\.bin is truncated"):
        read(tmp_path)


def test_half_a_model_is_not_passed_over_either(tmp_path):
    poses_bounds(write(tmp_path / "garden", NAMES), 3)
    poses_bounds(write(tmp_path / "stump", NAMES), 3)
    (tmp_path / "garden" / "sparse" / "0" / "images.bin").unlink()
    with pytest.raises(UserError, match="remove sparse to use"):
        read(tmp_path / "garden")
    with pytest.warns(UserWarning, match="1 of 2 scenes.*garden/sparse is not whole"):
        assert [name for name, _ in scene_names(tmp_path)] == ["stump"]


def test_other_files_that_3dgs_writes_beside_a_scene_are_ignored(tmp_path):
    write(tmp_path, NAMES)
    write_greys(tmp_path / "input", ["raw.png"])
    (tmp_path / "distorted" / "sparse").mkdir(parents=True)
    assert [p.name for p in read(tmp_path).photos] == ["a", "b", "c"]


def test_files_of_a_model_given_by_its_own_folder(tmp_path):
    write(tmp_path, NAMES)
    write_greys(tmp_path / "masks", ["a.png"])
    files = files_of(tmp_path / "sparse" / "0")
    assert read(tmp_path / "sparse" / "0").photos[0].load_mask is not None
    assert {"cameras.bin", "images.bin", "../../images/a.png", "../../masks/a.png"} <= set(files)
    assert {"sparse/0/cameras.bin", "images/a.png", "masks/a.png"} <= set(files_of(tmp_path))


def as_text(scene, place="sparse/0"):
    """The model of a scene as text instead of binary."""
    folder = scene / place
    model = pycolmap.Reconstruction(str(folder))
    for file in folder.iterdir():
        file.unlink()
    model.write_text(str(folder))
    return folder


BLANKS = ["DJI 0001 (2).png", "DJI 0002.png", "a b  c.png"]


@pytest.mark.parametrize("text", [False, True])
def test_names_with_blanks(tmp_path, text):
    write(tmp_path, BLANKS)
    if text:
        as_text(tmp_path)
    capture = colmap.read(tmp_path)
    assert {p.name for p in capture.photos} == {"DJI 0001 (2)", "DJI 0002", "a b  c"}
    assert [float(p.cam_to_world[0, 3]) for p in capture.photos] == [2, 0, 1]
    assert all(p.load().shape == (12, 16, 3) for p in capture.photos)


@pytest.mark.parametrize("text", [False, True])
def test_only_cameras_are_needed(tmp_path, text):
    write(tmp_path, NAMES)
    folder = as_text(tmp_path) if text else tmp_path / "sparse" / "0"
    for file in folder.iterdir():
        if file.stem not in ("cameras", "images"):
            file.unlink()
    assert detect(tmp_path).name == "colmap"
    assert [float(p.cam_to_world[0, 3]) for p in colmap.read(tmp_path).photos] == [0, 1, 2]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-be"])
@pytest.mark.parametrize("points", ["\n", "", "1.5 2.5 -1 3.5 4.5 7\n"])
def test_text_written_by_other_tools(tmp_path, points, encoding):
    """A byte-order mark, Windows' ends of lines, a quaternion that is not of unit length, points left empty or out."""
    write_greys(tmp_path / "images", NAMES)
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    cameras = "# a comment\r\n1 PINHOLE 16 12 9 10 8 6\r\n"
    marked = cameras if encoding == "utf-16" else f"\ufeff{cameras}"  # which sets its own
    (tmp_path / "sparse" / "0" / "cameras.txt").write_text(marked, encoding)
    lines = "".join(f"{i} 2 0 0 0 {-i} 0 0 1 {name}\n{points}" for i, name in enumerate(NAMES))
    (tmp_path / "sparse" / "0" / "images.txt").write_text(lines)
    photos = colmap.read(tmp_path).photos
    assert [p.name for p in photos] == ["a", "b", "c"]
    assert [p.cam_to_world[:, 3].tolist() for p in photos] == [[i, 0, 0, 1] for i in range(3)]
    assert torch.equal(photos[0].cam_to_world[:3, :3], torch.eye(3))


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("images.txt", "1 1 0 0 0 0 0\n", r"images\.txt: the line '1 1 0"),
        ("cameras.txt", "1 PINHOLE 16 12 9 10\n", r"cameras\.txt: camera 1 has 2 parameters, but PINHOLE has 4"),
        ("images.txt", "1 1 0 0 0 0 0 0 1 a\0.png\n", r"images\.txt: 'a\\x00\.png' is no name of a picture"),
        ("cameras.txt", "2 PINHOLE 16 12 9 10 8 6\n", r"a\.png has camera 1, which is not in its cameras"),
    ],
)
def test_damaged_text_is_named(tmp_path, file, content, words):
    write(tmp_path, NAMES)
    (as_text(tmp_path) / file).write_text(content)
    with pytest.raises(UserError, match=words):
        colmap.read(tmp_path)


def test_an_image_without_a_valid_pose_is_left_out_by_name(tmp_path):
    write(tmp_path, NAMES)
    file = as_text(tmp_path) / "images.txt"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join("2 nan 0 0 0 0 0 0 1 b.png\n" if line.endswith(" b.png\n") else line for line in lines))
    with pytest.warns(UserWarning, match=r"1 of 3 images .* no valid pose, such as b\.png"):
        assert [p.name for p in colmap.read(tmp_path).photos] == ["a", "c"]
    for value in ("nan", "1e999"):
        file.write_text("".join(f"{i} 1 0 0 0 {value} 0 0 1 {name}\n" for i, name in enumerate(NAMES)))
        with pytest.raises(UserError, match="has no images with a valid pose"):
            colmap.read(tmp_path)
    file.write_text("".join(f"{i} 1 0 0 0 1e300 0 0 1 {name}\n" for i, name in enumerate(NAMES)))
    with pytest.warns(UserWarning, match="None of the 3 poses in .* is valid"):
        assert all(photo.cam_to_world is None for photo in colmap.read(tmp_path).photos)


def test_of_several_models_the_largest_is_used_and_said(tmp_path):
    write(tmp_path, ["a.png", "b.png"])
    (tmp_path / "sparse" / "0").rename(tmp_path / "small")
    write(tmp_path, NAMES)
    (tmp_path / "sparse" / "0").rename(tmp_path / "sparse" / "1")
    (tmp_path / "small").rename(tmp_path / "sparse" / "0")
    for path in (tmp_path, tmp_path / "sparse"):
        with pytest.warns(UserWarning, match=r"2 COLMAP models, .*: 0 \(2\), 1 \(3\); 1 is used"):
            assert len(read(path).photos) == 3
    assert len(read(tmp_path / "sparse" / "0").photos) == 2  # the user's choice


def test_a_folder_of_scenes_whose_names_have_colmap_in_them_is_no_scene(tmp_path):
    for scene in ("room_colmap", "hall_colmap"):
        write(tmp_path / scene, NAMES)
    assert [name for name, _ in scene_names(tmp_path)] == ["hall_colmap", "room_colmap"]


@pytest.mark.parametrize(
    "name", ["sparse/1", "colmap/sparse/2", "Sparse/0", "sparse_txt", "colmap_text", "colmap_out/sparse/0"]
)
def test_the_only_model_may_have_any_number_and_lie_where_other_tools_write_it(tmp_path, name):
    write(tmp_path, NAMES)
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "sparse" / "0").rename(tmp_path / name)
    assert detect(tmp_path).name == "colmap"
    assert len(read(tmp_path).photos) == 3


@pytest.mark.parametrize("name", ["a.PNG", "A.png", "a.jpg", "cam0\\\\a.png", "C:\\\\data\\\\a.png", "/data/images/a.png"])
def test_pictures_are_found_under_other_names(tmp_path, name):
    scene = write(tmp_path, ["a.png", "b.png"])
    file = as_text(scene) / "images.txt"
    file.write_text(file.read_text().replace(" a.png", f" {name}"))
    photos = {p.name.lower(): p for p in colmap.read(scene).photos}
    assert photos["a"].load().shape == (12, 16, 3)


def test_another_format_of_a_picture_is_said(tmp_path):
    scene = write(tmp_path, NAMES)
    for file in (scene / "images").iterdir():
        file.rename(file.with_suffix(".jpg"))
    with pytest.warns(UserWarning, match=r"3 picture\(s\) .* such as a\.jpg for a\.png"):
        assert all(p.load().shape == (12, 16, 3) for p in colmap.read(scene).photos)


def test_a_name_that_fits_two_pictures_is_not_guessed(tmp_path):
    scene = write(tmp_path, NAMES)
    (scene / "images" / "a.png").rename(scene / "images" / "a.jpg")
    write_greys(scene / "images", ["a.tif"])
    photos = colmap.read(scene).photos
    with pytest.raises(ImageError, match=r"no picture .*a\.png"):
        photos[0].load()


def test_a_picture_that_one_image_has_by_its_name_is_no_others(tmp_path):
    scene = write(tmp_path, ["a.jpg", "a.png", "b.png"])
    (scene / "images" / "a.jpg").unlink()
    first, second, _ = colmap.read(scene).photos
    with pytest.raises(ImageError, match=r"a\.jpg"):
        first.load()
    assert second.load().shape == (12, 16, 3)


def test_masks_beside_the_pictures(tmp_path):
    scene = write(tmp_path, NAMES)
    write_greys(scene / "images", ["a_mask.png", "dynamic_mask_b.png"])
    assert [p.load_mask is not None for p in colmap.read(scene).photos] == [True, True, False]
