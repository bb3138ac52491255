import pycolmap
import pytest
import torch
from small_captures import cameras_of, tiny_hall, write_greys

from reconx_core.datasets import colmap, detect
from reconx_core.datasets.write import write_photos
from reconx_core.errors import UserError
from reconx_core.export import write_colmap
from reconx_core.types import PointCloud

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
    """pycolmap itself allocates for minutes, or takes garbage for focal lengths."""
    hall = tiny_hall()
    files = [f"{p.name}.png" for p in hall.photos]
    write_greys(tmp_path / "images", files)
    write_colmap(tmp_path / "sparse", cameras_of(hall), files, CLOUD)
    colmap.read(tmp_path)
    file = tmp_path / "sparse" / f"{name}.bin"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(UserError, match=f"{name}.bin is truncated"):
        colmap.read(tmp_path)
