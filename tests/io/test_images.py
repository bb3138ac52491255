"""Photos of every kind a phone or a camera makes must be read upright, in colour and in [0, 1], or fail with a name."""

import math

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from reconx_core.io import images


@pytest.fixture
def gradient() -> torch.Tensor:
    """A smooth picture, 24 x 40, whose corners all differ."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 24), torch.linspace(0, 1, 40), indexing="ij")
    return torch.stack([x, y, 1 - x], -1)


def save(image: torch.Tensor, path, **options) -> None:
    Image.fromarray(images.to_uint8(image)).save(path, **options)


TOLERANCE = {".png": 0.5 / 255, ".tif": 0.5 / 255, ".jpg": 0.03, ".heic": 0.04, ".webp": 0.05}


@pytest.mark.parametrize("suffix", TOLERANCE)
def test_every_format_is_read_in_colour(tmp_path, gradient, suffix):
    path = tmp_path / f"photo{suffix}"
    save(gradient, path)
    read = images.read_image(path)
    assert read.dtype == torch.float32
    assert read.shape == gradient.shape
    assert (read - gradient).abs().mean() < TOLERANCE[suffix]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_unless_the_calibration_wants_stored_pixels(tmp_path, gradient, orientation):
    mirrored, quarter_turns = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 1), 7: (1, 3), 8: (0, 3)}[
        orientation
    ]
    upright = images.to_uint8(gradient)
    stored = np.ascontiguousarray(np.rot90(np.fliplr(upright) if mirrored else upright, quarter_turns))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored).save(tmp_path / "photo.png", exif=exif)
    assert (images.read_image(tmp_path / "photo.png") - gradient).abs().max() < 0.01
    assert images.read_image(tmp_path / "photo.png", upright=False).shape[:2] == stored.shape[:2]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "CMYK"])
def test_other_pixel_kinds_become_rgb(tmp_path, gradient, mode):
    path = tmp_path / ("photo.tif" if mode == "CMYK" else "photo.png")
    Image.fromarray(images.to_uint8(gradient)).convert(mode).save(path)
    read = images.read_image(path)
    assert read.shape == gradient.shape
    assert read.min() >= 0
    assert read.max() <= 1


def test_sixteen_bit_grey_keeps_its_range(tmp_path):
    grey = np.linspace(0, 65535, 12 * 10).reshape(12, 10).astype(np.uint16)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    read = images.read_image(tmp_path / "deep.png")
    torch.testing.assert_close(read[..., 1], torch.from_numpy(grey.astype(np.float32) / 65535))


def test_transparent_pixels_are_composited_over_white(tmp_path):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "cutout.png")
    read = images.read_image(tmp_path / "cutout.png")
    assert read[0, 0].tolist() == [1, 0, 0]
    assert read[3, 3].tolist() == [1, 1, 1]


@pytest.mark.parametrize("content", ["truncated", "text", "empty", "missing"])
def test_unreadable_pictures_are_named(tmp_path, gradient, content):
    path = tmp_path / "broken.jpg"
    save(gradient, path)
    whole = path.read_bytes()
    {"truncated": lambda: path.write_bytes(whole[: len(whole) // 2]), "text": lambda: path.write_text("no picture"),
     "empty": lambda: path.write_bytes(b""), "missing": path.unlink}[content]()  # fmt: skip
    with pytest.raises(images.ImageError, match=r"broken\.jpg"):
        images.read_image(path)
    assert math.isnan(images.read_focal(path))


def exif_with(**tags) -> Image.Exif:
    exif = Image.Exif()
    exif.get_ifd(ExifTags.IFD.Exif).update({getattr(ExifTags.Base, name): value for name, value in tags.items()})
    return exif


def test_focal_from_the_35mm_equivalent_goes_by_the_diagonal(tmp_path):
    # 26 mm on the 43.27 mm diagonal of 36 x 24; the picture's diagonal is 50 px
    save(torch.zeros(30, 40, 3), tmp_path / "a.jpg", exif=exif_with(FocalLengthIn35mmFilm=26))
    assert images.read_focal(tmp_path / "a.jpg") == pytest.approx(26 / 43.2666 * 50, rel=1e-4)


def test_focal_from_the_sensor_follows_a_resize(tmp_path):
    # 50 mm at 2 px per mm when it was taken 80 px wide, now stored 40 px wide
    tags = {"FocalLength": 50.0, "FocalPlaneXResolution": 20.0, "FocalPlaneResolutionUnit": 3, "ExifImageWidth": 80}
    save(torch.zeros(30, 40, 3), tmp_path / "a.jpg", exif=exif_with(**tags))
    assert images.read_focal(tmp_path / "a.jpg") == pytest.approx(50)


@pytest.mark.parametrize("tags", [{}, {"FocalLength": 50.0}, {"FocalLengthIn35mmFilm": 0}])
def test_focal_is_nan_where_nothing_usable_is_written(tmp_path, tags):
    save(torch.zeros(30, 40, 3), tmp_path / "a.jpg", exif=exif_with(**tags))
    assert math.isnan(images.read_focal(tmp_path / "a.jpg"))


def test_resize_is_antialiased():
    stripes = (torch.arange(64) % 2).float()[None, :, None].expand(64, 64, 3)
    small = images.resize(stripes, 16, 16)
    assert small.shape == (16, 16, 3)
    assert (small[2:-2, 2:-2] - 0.5).abs().max() < 0.02


def test_a_resized_mask_only_keeps_pixels_that_were_wholly_free():
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:, 3] = False
    assert images.resize_mask(mask, 4, 4).tolist() == [[True, False, True, True]] * 4


def test_png_round_trip_is_exact_and_leaves_no_temporary_file(tmp_path):
    pixels = torch.randint(256, (5, 7, 3), generator=torch.Generator().manual_seed(0)) / 255
    images.write_png(tmp_path / "new" / "a.png", pixels)
    assert torch.equal(images.read_image(tmp_path / "new" / "a.png"), pixels)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]
