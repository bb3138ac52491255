"""Photos stored on their side, with an EXIF rotation, and cameras for either orientation."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps
from test_colmap_reader import CLOUD

from reconx_core.datasets import read
from reconx_core.errors import UserError
from reconx_core.export import write_colmap
from reconx_core.io.images import read_image
from reconx_core.settings import ViewsSettings
from reconx_core.types import Cameras
from reconx_core.views import load_views

STORED = (24, 32)  # height, width; upright it is 32 x 24


def write_on_its_side(path, orientation, seed=0):
    """A noisy PNG with an EXIF orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = np.random.default_rng(seed).integers(256, size=(*STORED, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, exif=exif)


def write(folder, orientation=6, **camera):
    for i in range(2):
        write_on_its_side(folder / f"{i}.png", orientation, i)
    frames = [{"file_path": f"{i}.png", "transform_matrix": [[1, 0, 0, i], *torch.eye(4)[1:].tolist()]} for i in range(2)]
    (folder / "transforms.json").write_text(json.dumps({"fl_x": 40, **camera, "frames": frames}))
    return folder


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_camera_for_the_upright_picture_turns_it(tmp_path, orientation):
    write(tmp_path, orientation, w=24, h=32)
    photo = read(tmp_path).photos[1]
    with Image.open(tmp_path / "1.png") as picture:
        upright = np.array(ImageOps.exif_transpose(picture))
    assert torch.equal((photo.load() * 255).round().byte(), torch.from_numpy(upright))
    assert load_views(tmp_path, ViewsSettings()).images.shape == (2, 32, 24, 3)


def test_a_photo_above_the_pixel_limit_of_pillow_is_turned_too(tmp_path, monkeypatch):
    write(tmp_path, w=24, h=32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 // 4)  # Pillow refuses twice the limit
    assert read(tmp_path).photos[0].load().shape == (32, 24, 3)


@pytest.mark.parametrize(
    ("camera", "turned"),
    [
        ({"w": 32, "h": 24}, False),
        ({"w": 240, "h": 320}, True),  # of a larger version of the picture
        ({"cx": 16, "cy": 12}, False),  # the principal point tells where the size is not given
        ({"cx": 12.5, "cy": 15.8}, True),
        ({}, False),  # nothing tells: as stored, as most programs calibrate
    ],
)
def test_what_the_camera_is_for_decides(tmp_path, camera, turned):
    photo = read(write(tmp_path, **camera)).photos[0]
    assert torch.equal(photo.load(), read_image(tmp_path / "0.png", upright=turned))
    assert (photo.size[0] > photo.size[1]) == turned


@pytest.mark.parametrize("orientation", [1, 3])
def test_without_a_quarter_turn_in_exif_another_orientation_is_still_refused(tmp_path, orientation):
    write(tmp_path, orientation, w=24, h=32)
    with pytest.raises(UserError, match="its camera is for 24x32"):
        load_views(tmp_path, ViewsSettings())


@pytest.mark.parametrize("upright", [True, False])
def test_masks_follow_their_photo(tmp_path, upright):
    write(tmp_path, w=24, h=32)
    mask = np.zeros((32, 24) if upright else STORED, dtype=np.uint8)
    if upright:
        mask[:8] = 255
    else:
        mask[:, :8] = 255  # orientation 6: what is stored on the left is seen at the top
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask).save(tmp_path / "masks" / "0.png")
    seen = read(tmp_path).photos[0].load_mask()
    assert seen.shape == (32, 24)
    assert seen[:8].all()
    assert not seen[8:].any()


def test_colmap_cameras_for_upright_pictures(tmp_path):
    write_on_its_side(tmp_path / "images" / "a.png", 8)
    camera = Cameras(torch.tensor([[[30.0, 0, 12], [0, 30, 16], [0, 0, 1]]]), torch.eye(4)[None], 24, 32)
    write_colmap(tmp_path / "sparse" / "0", camera, ["a.png"], CLOUD)
    assert torch.equal(read(tmp_path).photos[0].load(), read_image(tmp_path / "images" / "a.png", upright=True))


def test_llff_cameras_for_upright_pictures(tmp_path):
    write_on_its_side(tmp_path / "images" / "a.png", 6)
    pose = np.column_stack([[0.0, -1, 0], [1.0, 0, 0], [0.0, 0, 1], [0, 0, 0], [32, 24, 30]])
    np.save(tmp_path / "poses_bounds.npy", np.array([[*pose.ravel(), 1, 9]]))
    assert torch.equal(read(tmp_path).photos[0].load(), read_image(tmp_path / "images" / "a.png", upright=True))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_a_picture_as_stored(tmp_path):
    write(tmp_path, w=32, h=24, cx=16, cy=12)
    with Image.open(tmp_path / "0.png") as picture:
        picture.save(tmp_path / "0.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    photo = read(tmp_path).photos[0]
    assert math.isnan(photo.focal)
    assert photo.load().shape == (*STORED, 3)
