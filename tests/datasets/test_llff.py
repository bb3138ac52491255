import numpy as np
import pytest
import torch
from small_captures import cameras_of, write_greys

from reconx_core.datasets import detect, llff, nerfstudio
from reconx_core.errors import UserError


def poses_bounds(cam_to_world_opengl: np.ndarray, height: float, width: float, focal: float) -> np.ndarray:
    """What LLFF's own script stores; its loaders undo it by [y, -x, z] -> [x, y, z] on the columns."""
    right, up, back, origin = np.moveaxis(cam_to_world_opengl[:, :3], -1, 0)
    size = np.broadcast_to([height, width, focal], right.shape)
    matrices = np.stack([-up, right, back, origin, size], -1)
    return np.concatenate([matrices.reshape(len(right), 15), np.tile([1.0, 9.0], (len(right), 1))], 1)


def some_poses(count: int) -> np.ndarray:
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, :3] = np.linalg.qr(np.random.default_rng(0).normal(size=(count, 3, 3)))[0]
    poses[:, :3, 3] = np.random.default_rng(1).normal(size=(count, 3))
    return poses


def write(folder, count: int, images: str = "images", height: int = 12, width: int = 16):
    write_greys(folder / images, [f"{i:02d}.png" for i in range(count)], height, width)
    np.save(folder / "poses_bounds.npy", poses_bounds(some_poses(count), 24, 32, 40))
    return folder


def test_axes_and_intrinsics(tmp_path):
    capture = llff.read(write(tmp_path, 3))
    expected = torch.from_numpy(some_poses(3)).float() * torch.tensor([1.0, -1, -1, 1])
    torch.testing.assert_close(cameras_of(capture).cam_to_world, expected)
    assert capture.photos[0].intrinsics.tolist() == [[40, 0, 16], [0, 40, 12], [0, 0, 1]]
    assert capture.photos[0].size == (24, 32)


def test_every_eighth_is_held_out_and_sparse_inputs_are_even(tmp_path):
    capture = llff.read(write(tmp_path, 20))
    assert detect(tmp_path).name == "llff"
    assert capture.default_split == "every_8th"
    assert capture.splits["every_8th"].targets == (0, 8, 16)
    assert capture.splits["train_3"].inputs == (1, 10, 19)
    assert capture.splits["train_3"].targets == (0, 8, 16)
    assert not set(capture.splits["train_9"].inputs) & {0, 8, 16}


def test_reduced_images_serve_where_the_full_ones_are_not_there(tmp_path):
    write(tmp_path, 3, "images_8", 3, 4)
    write(tmp_path, 3, "images_4", 6, 8)
    assert llff.read(tmp_path).photos[0].load().shape == (6, 8, 3)


def test_number_of_poses_and_images_must_agree(tmp_path):
    write(tmp_path, 3)
    (tmp_path / "images" / "01.png").unlink()
    with pytest.raises(UserError, match="3 poses"):
        llff.read(tmp_path)


@pytest.mark.parametrize("array", [np.zeros((3, 16)), np.full((2, 17), np.nan), np.zeros(17)])
def test_other_arrays_are_refused(tmp_path, array):
    np.save(tmp_path / "poses_bounds.npy", array)
    with pytest.raises(UserError, match=r"poses_bounds\.npy"):
        llff.read(tmp_path)


def test_fern_reads_the_same_from_either_format(tmp_path, real_data):
    scene = real_data / "posed" / "llff_fern"
    expected = nerfstudio.read(scene)
    opengl = (cameras_of(expected).cam_to_world * torch.tensor([1.0, -1, -1, 1])).numpy()
    focal = float(expected.photos[0].intrinsics[0, 0])
    np.save(tmp_path / "poses_bounds.npy", poses_bounds(opengl, 600, 800, focal))
    (tmp_path / "images").symlink_to(scene / "images")
    capture = llff.read(tmp_path)
    torch.testing.assert_close(cameras_of(capture).cam_to_world, cameras_of(expected).cam_to_world)
    torch.testing.assert_close(cameras_of(capture).intrinsics, cameras_of(expected).intrinsics)
    assert capture.splits["train_3"] == expected.splits["train_3"]


@pytest.mark.parametrize("kind", ["empty", "page", "archive", "objects"])
def test_what_is_no_array_is_told_without_jargon(tmp_path, kind):
    file = write(tmp_path, 3) / "poses_bounds.npy"
    if kind == "archive":
        with file.open("wb") as stream:
            np.savez(stream, a=np.zeros((3, 17)))
    elif kind == "objects":
        np.save(file, np.full((3, 17), None), allow_pickle=True)
    else:
        file.write_text("" if kind == "empty" else "<html>404</html>")
    with pytest.raises(UserError, match=r"poses_bounds\.npy .* is no array of numbers") as error:
        llff.read(tmp_path)
    assert "pickle" not in str(error.value)
