"""One place seen by two cameras, written in each format by hand: the same point must fall on the same pixel."""

import json

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from small_captures import write_greys

from reconx_core.datasets import detect
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views

HEIGHT, WIDTH, FOCAL = 48, 64, 40.0
RIGHT, DOWN, FORWARD = np.array([[0.0, -1, 0], [0, 0, -1], [1, 0, 0]])  # the cameras look along x, and the sky is at z
CENTRES = np.array([[1.0, 2, 3], [1, 1, 3]])  # the second is a step to the right
POINT = CENTRES[0] + 10 * FORWARD + 2 * RIGHT + 1 * DOWN
PIXELS = [[32 + 40 * 0.2, 24 + 40 * 0.1], [32 + 40 * 0.1, 24 + 40 * 0.1]]

WORLD_TO_CAM = np.stack([np.column_stack([[RIGHT, DOWN, FORWARD], -np.stack([RIGHT, DOWN, FORWARD]) @ c]) for c in CENTRES])
INTRINSICS = np.array([[FOCAL, 0, 32], [0, FOCAL, 24], [0, 0, 1]])
AT_1600 = np.diag([25.0, 25, 1]) @ INTRINSICS
LINES = ["\n".join(" ".join(map(str, row)) for row in matrix) for matrix in WORLD_TO_CAM]


def realestate(folder):
    write_greys(folder / "key", ["100.png", "200.png"], HEIGHT, WIDTH)
    cameras = [" ".join(map(str, [40 / 64, 40 / 48, 0.5, 0.5, 0, 0, *matrix.ravel()])) for matrix in WORLD_TO_CAM]
    (folder / "key.txt").write_text(f"https://a.b\n100 {cameras[0]}\n200 {cameras[1]}\n")
    return folder / "key"


def opengl_frames():
    poses = [np.column_stack([RIGHT, -DOWN, -FORWARD, c]).tolist() for c in CENTRES]
    return [{"file_path": f"images/{i}.png", "transform_matrix": pose} for i, pose in enumerate(poses)]


def nerfstudio(folder):
    write_greys(folder / "images", ["0.png", "1.png"], HEIGHT, WIDTH)
    camera = {"fl_x": FOCAL, "fl_y": FOCAL, "cx": 32, "cy": 24, "w": WIDTH, "h": HEIGHT}
    (folder / "transforms.json").write_text(json.dumps(camera | {"frames": opengl_frames()}))
    return folder


def dl3dv(folder):
    write_greys(folder / "images_4", ["0.png", "1.png"], HEIGHT, WIDTH)
    camera = {"fl_x": 4 * FOCAL, "fl_y": 4 * FOCAL, "cx": 4 * 32, "cy": 4 * 24, "w": 4 * WIDTH, "h": 4 * HEIGHT}
    (folder / "transforms.json").write_text(json.dumps(camera | {"frames": opengl_frames()}))
    return folder


def llff(folder):
    write_greys(folder / "images_8", ["0.png", "1.png"], HEIGHT, WIDTH)
    size = [8.0 * HEIGHT, 8 * WIDTH, 8 * FOCAL]
    rows = [[*np.column_stack([DOWN, RIGHT, -FORWARD, c, size]).ravel(), 1, 20] for c in CENTRES]
    np.save(folder / "poses_bounds.npy", np.array(rows))
    return folder


def colmap(folder, images="images_2", factor=2):
    write_greys(folder / images, ["0.png", "1.png"], HEIGHT, WIDTH)
    model = folder / "sparse" / "0"
    model.mkdir(parents=True)
    camera = [factor * n for n in (WIDTH, HEIGHT, FOCAL, FOCAL, 32, 24)]
    (model / "cameras.txt").write_text(f"1 PINHOLE {' '.join(map(str, camera))}\n")
    x, y, z, w = Rotation.from_matrix(WORLD_TO_CAM[0, :, :3]).as_quat()
    lines = [f"{i + 1} {w} {x} {y} {z} {' '.join(map(str, m[:, 3]))} 1 {i}.png\n\n" for i, m in enumerate(WORLD_TO_CAM)]
    (model / "images.txt").write_text("".join(lines))
    (model / "points3D.txt").touch()
    return folder


def mipnerf360(folder):
    np.save(folder / "poses_bounds.npy", np.zeros((2, 17)))  # exists, but the COLMAP model is read
    return colmap(folder, "images_4", 4)


def mvsnet_file(file, intrinsics, i):
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = "\n".join(" ".join(map(str, row)) for row in intrinsics)
    file.write_text(f"extrinsic\n{LINES[i]}\n0.0 0.0 0.0 1.0\n\nintrinsic\n{rows}\n\n425.0 2.5\n")


def dtu_rectified(folder, scan="scan1_train"):
    scene = folder / "Rectified" / scan
    write_greys(scene, [f"rect_00{i + 1}_{light}_r5000.png" for i in range(2) for light in (0, 3, 6)], HEIGHT, WIDTH)
    return scene


def dtu_shared(folder):
    for i in range(2):
        mvsnet_file(folder / "Cameras" / f"0000000{i}_cam.txt", AT_1600, i)
    return dtu_rectified(folder)


def dtu_train(folder):
    """For 160 x 128 pixels, an eighth of MVSNet's centre crop of 1600 x 1200."""
    for i in range(2):
        intrinsics = np.diag([1 / 8, 1 / 8, 1]) @ (AT_1600 - [[0, 0, 160], [0, 0, 88], [0, 0, 0]])
        mvsnet_file(folder / "Cameras" / "train" / f"0000000{i}_cam.txt", intrinsics, i)
    return dtu_rectified(folder)


def dtu_calibration(folder):
    (folder / "Calibration" / "cal18").mkdir(parents=True)
    for i, matrix in enumerate(WORLD_TO_CAM):
        np.savetxt(folder / "Calibration" / "cal18" / f"pos_00{i + 1}.txt", -3.0 * AT_1600 @ matrix)  # any scale is the same
    return dtu_rectified(folder, "scan1")


def dtu_own(folder):
    scene = folder / "scan1"
    write_greys(scene / "images", ["00000000.png", "00000001.png"], HEIGHT, WIDTH)
    for i in range(2):
        mvsnet_file(scene / "cams" / f"0000000{i}_cam.txt", INTRINSICS, i)
    return scene


def dtu_archive(folder):
    scene = folder / "scan1"
    write_greys(scene / "image", ["000000.png", "000001.png"], HEIGHT, WIDTH)
    matrices = {f"world_mat_{i}": np.vstack([INTRINSICS @ m, [0, 0, 0, 1]]) for i, m in enumerate(WORLD_TO_CAM)}
    unit_sphere = {f"scale_mat_{i}": np.diag([300.0, 300, 300, 1]) + np.eye(4)[:, [3]] * [[0, 0, 0, 50]] for i in range(2)}
    np.savez(scene / "cameras_sphere.npz", **matrices, **unit_sphere)
    return scene


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (realestate, "realestate10k"),
        (nerfstudio, "nerfstudio"),
        (dl3dv, "dl3dv"),
        (llff, "llff"),
        (colmap, "colmap"),
        (mipnerf360, "colmap"),
        (dtu_shared, "dtu"),
        (dtu_train, "dtu"),
        (dtu_calibration, "dtu"),
        (dtu_own, "dtu"),
        (dtu_archive, "dtu"),
    ],
)
def test_a_known_point_falls_on_a_known_pixel(tmp_path, write, name):
    scene = write(tmp_path)
    assert detect(scene).name == name
    views = load_views(scene, ViewsSettings(split="all"))
    assert (views.protocol, views.images.shape) == ("posed", (2, HEIGHT, WIDTH, 3))
    in_camera = torch.linalg.inv(views.cameras.cam_to_world) @ torch.tensor([*POINT, 1.0]).float()
    torch.testing.assert_close(in_camera[:, 2], torch.tensor([10.0, 10.0]))
    on_picture = (views.cameras.intrinsics @ in_camera[:, :3, None])[..., 0]
    torch.testing.assert_close(on_picture[:, :2] / on_picture[:, 2:], torch.tensor(PIXELS), atol=2e-4, rtol=0)
