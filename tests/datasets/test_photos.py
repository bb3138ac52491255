import math

import pytest
import torch
from small_captures import tiny_hall, write_greys

from reconx_core.datasets import files_of, photos
from reconx_core.export.dataset import write_photos
from reconx_core.io.images import write_png


def test_natural_order(tmp_path):
    write_greys(tmp_path, ["img10.png", "img2.png", "IMG1.PNG"])
    assert [p.name for p in photos.read(tmp_path).photos] == ["IMG1", "img2", "img10"]


def test_names_are_unique(tmp_path):
    write_greys(tmp_path, ["a.png", "a.webp", "b.png"])
    assert [p.name for p in photos.read(tmp_path).photos] == ["a", "a_2", "b"]


@pytest.mark.parametrize("mask", ["a.mask.png", "masks/a.png", "masks/a.png.png"])
def test_masks_belong_to_their_photo_and_are_none_themselves(tmp_path, mask):
    write_greys(tmp_path, ["a.png", "b.png"])
    half = torch.zeros(12, 16)
    half[:, :8] = 1
    write_png(tmp_path / mask, half)
    a, b = photos.read(tmp_path).photos
    assert torch.equal(a.load_mask(), half.bool())
    assert b.load_mask is None


def test_masks_beside_an_images_folder(tmp_path):
    write_greys(tmp_path / "images", ["a.png", "b.png"])
    write_greys(tmp_path / "masks", ["b.png"])
    assert [p.load_mask is not None for p in photos.read(tmp_path).photos] == [False, True]


@pytest.mark.parametrize("folder", ["images", "images_4"])
def test_files_of_pictures_given_by_their_own_folder(tmp_path, folder):
    write_greys(tmp_path / folder, ["a.png", ".hidden.png"])
    write_greys(tmp_path / "masks", ["a.png"])
    assert photos.read(tmp_path / folder).photos[0].load_mask is not None
    assert set(files_of(tmp_path / folder)) == {"a.png", "../masks/a.png"}


def test_files_behind_links_count(tmp_path):
    """pathlib's own walk does not follow links, so a changed picture would go unnoticed."""
    write_greys(tmp_path / "elsewhere", ["a.png"])
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "place")
    assert len(photos.read(tmp_path / "place").photos) == 1
    assert set(files_of(tmp_path / "place")) == {"images/a.png"}


def test_hidden_files_and_other_files_are_no_photos(tmp_path):
    write_greys(tmp_path, ["a.png", ".b.png"])
    (tmp_path / "notes.txt").write_text("taken on a Sunday")
    assert [p.name for p in photos.read(tmp_path).photos] == ["a"]


def test_focal_comes_from_exif_and_cameras_from_nowhere(tmp_path):
    hall = tiny_hall()
    write_photos(hall, tmp_path, cameras=False)
    for photo, truth in zip(photos.read(tmp_path).photos, hall.photos):
        assert photo.focal == pytest.approx(float(truth.intrinsics[0, 0]), rel=1e-4)
        assert photo.intrinsics is None
    write_photos(hall, tmp_path / "plain", format="PNG", cameras=False)
    assert all(math.isnan(p.focal) for p in photos.read(tmp_path / "plain").photos)
