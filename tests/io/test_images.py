"""Photos of every kind a phone or a camera makes must be read upright, in colour and in [0, 1], or fail with a name."""

import math
import struct
import warnings
import zlib

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


EXACT = dict.fromkeys((".png", ".tif", ".bmp", ".ppm", ".tga"), 0.5 / 255)
TOLERANCE = EXACT | {".jpg": 0.03, ".jfif": 0.03, ".heic": 0.04, ".webp": 0.05, ".avif": 0.05, ".jp2": 0.05}


@pytest.mark.parametrize("suffix", TOLERANCE)
def test_every_format_is_read_in_colour(tmp_path, gradient, suffix):
    path = tmp_path / f"photo{suffix}"
    save(gradient, path)
    read = images.read_image(path)
    assert read.dtype == torch.float32
    assert read.shape == gradient.shape
    assert (read - gradient).abs().mean() < TOLERANCE[suffix]


@pytest.mark.parametrize("suffix", [".png", ".tif"])  # Pillow turns TIFF by itself, and no other format
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_unless_the_calibration_wants_stored_pixels(tmp_path, gradient, orientation, suffix):
    mirrored, quarter_turns = {1: (0, 0), 2: (1, 0), 3: (0, 2), 4: (1, 2), 5: (1, 1), 6: (0, 1), 7: (1, 3), 8: (0, 3)}[
        orientation
    ]
    upright = images.to_uint8(gradient)
    stored = np.ascontiguousarray(np.rot90(np.fliplr(upright) if mirrored else upright, quarter_turns))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    path = tmp_path / f"photo{suffix}"
    Image.fromarray(stored).save(path, exif=exif)
    assert (images.read_image(path) - gradient).abs().max() < 0.01
    assert np.array_equal(images.to_uint8(images.read_image(path, upright=False)), stored)
    assert images.read_size(path) == stored.shape[:2]


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


NO_FOCALS = [
    {},
    {"FocalLength": 50.0},
    {"FocalLengthIn35mmFilm": 0},
    {"FocalLengthIn35mmFilm": 1},
    {"FocalLengthIn35mmFilm": 65535},
]


@pytest.mark.parametrize("tags", NO_FOCALS)
def test_focal_is_nan_where_nothing_usable_is_written(tmp_path, tags):
    save(torch.zeros(30, 40, 3), tmp_path / "a.jpg", exif=exif_with(**tags))
    assert math.isnan(images.read_focal(tmp_path / "a.jpg"))


def test_resize_is_antialiased():
    stripes = (torch.arange(64) % 2).float()[None, :, None].expand(64, 64, 3)
    small = images.resize(stripes, 16, 16)
    assert small.shape == (16, 16, 3)
    assert (small[2:-2, 2:-2] - 0.5).abs().max() < 0.02


@pytest.mark.parametrize(
    ("size", "method"), [((30, 40), Image.Resampling.LANCZOS), ((90, 120), Image.Resampling.BICUBIC)], ids=["down", "up"]
)
def test_networks_get_what_pillow_makes_of_eight_bits(size, method):
    stored = torch.randint(0, 256, (2, 60, 80, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    resized = images.resize_for_network(stored.float() / 255, *size)
    for one, other in zip(resized, stored):
        wanted = np.asarray(Image.fromarray(other.numpy()).resize(size[::-1], method))
        assert np.array_equal(images.to_uint8(one), wanted)
    assert images.resize_for_network(resized, *size) is resized


def test_a_resized_mask_only_keeps_pixels_that_were_wholly_free():
    mask = torch.ones(8, 8, dtype=torch.bool)
    mask[:, 3] = False
    assert images.resize_mask(mask, 4, 4).tolist() == [[True, False, True, True]] * 4


def test_png_round_trip_is_exact_and_leaves_no_temporary_file(tmp_path):
    pixels = torch.randint(256, (5, 7, 3), generator=torch.Generator().manual_seed(0)) / 255
    images.write_png(tmp_path / "new" / "a.png", pixels)
    assert torch.equal(images.read_image(tmp_path / "new" / "a.png"), pixels)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.png"]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize("exif", [b"Exif\0\0MM\0", b"Exif\0\0no TIFF at all", b"Exif\0\0II*\0\x08\0\0\0\xff"])
def test_a_photo_with_broken_exif_is_used_as_stored(tmp_path, gradient, suffix, exif):
    path = tmp_path / f"a{suffix}"
    save(gradient, path, exif=exif)
    assert (images.read_image(path) - gradient).abs().mean() < 0.05
    assert math.isnan(images.read_focal(path))
    images.require_pinhole(path)


def test_exif_that_cannot_be_read_is_said(tmp_path, gradient):
    save(gradient, tmp_path / "a.png", exif=b"Exif\0\0no TIFF at all")
    with pytest.warns(UserWarning, match=r"EXIF data of .*a\.png cannot be read"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize(("values", "mode"), [((0, 1), "L"), ((0, 1), "I;16"), ((0, 100), "L"), ((0, 255), "L"), ((0, 1), "P")])
def test_a_mask_of_two_values_may_have_any_two(tmp_path, values, mode):
    levels = np.array([[values[0]] * 3 + [values[1]] * 5] * 4, np.uint16 if mode == "I;16" else np.uint8)
    mask = Image.fromarray(levels)
    if mode == "P":
        mask.putpalette([0, 0, 0, 128, 0, 0])
    mask.save(tmp_path / "mask.png")
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False] * 3 + [True] * 5] * 4


def test_what_is_numbered_in_a_mask_may_be_used(tmp_path):
    Image.fromarray(np.array([[0, 1, 2, 7, 25]], np.uint8)).save(tmp_path / "mask.png")
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False, True, True, True, True]]


def test_a_mask_of_many_values_is_cut_at_half(tmp_path):
    Image.fromarray(np.array([[0, 60, 127, 128, 255]], np.uint8)).save(tmp_path / "mask.png")
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False, False, False, True, True]]
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "black.png")
    assert not images.read_mask(tmp_path / "black.png").any()


@pytest.mark.parametrize(("colours", "usable"), [((255, 255), True), ((0, 0), False), ((128, 128), True), ((40, 160), True)])
def test_what_is_transparent_in_a_mask_may_not_be_used(tmp_path, colours, usable):
    """White or grey on nothing is usable, black on nothing is not, and of a cut-out photo what was cut out is."""
    grey = np.linspace(*colours, 5).round().astype(np.uint8)[None].repeat(4, 0)
    alpha = np.full((4, 5), 255, np.uint8)
    alpha[:2] = 0
    Image.fromarray(np.dstack([grey] * 3 + [alpha])).save(tmp_path / "mask.png")
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False] * 5] * 2 + [[usable] * 5] * 2


@pytest.mark.parametrize("opacity", [0, 255])
def test_a_transparency_that_is_the_same_everywhere_says_nothing(tmp_path, opacity):
    levels = np.array([[0, 255, 0]], np.uint8)
    Image.fromarray(np.dstack([levels] * 3 + [np.full_like(levels, opacity)])).save(tmp_path / "mask.png")
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False, True, False]]


def test_a_palette_whose_first_colour_is_transparent_hides_it(tmp_path):
    mask = Image.fromarray(np.array([[0, 0, 1]], np.uint8))
    mask.putpalette([0, 0, 0, 128, 0, 0])
    mask.save(tmp_path / "mask.png", transparency=0)
    assert images.read_mask(tmp_path / "mask.png").tolist() == [[False, False, True]]


def test_dynamic_masks_of_instant_ngp_are_white_where_not_to_look(tmp_path):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "dynamic_mask_a.png")
    assert images.read_mask(tmp_path / "dynamic_mask_a.png").tolist() == [[True, False]]


@pytest.fixture
def small_limits(monkeypatch):
    monkeypatch.setattr(images, "_MOST_LOADED", 300)
    monkeypatch.setattr(images, "_MOST_DECODED", 2000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "1", "RGBA", "I;16"])
def test_huge_photos_are_reduced_beyond_pillows_limit(tmp_path, gradient, small_limits, mode):
    exif = exif_with(FocalLengthIn35mmFilm=26)
    exif[ExifTags.Base.Make] = "camera"
    Image.fromarray(images.to_uint8(gradient)).convert(mode).save(tmp_path / "a.png", exif=exif)
    read = images.read_image(tmp_path / "a.png")
    assert read.shape == (12, 20, 3)
    assert images.read_size(tmp_path / "a.png") == (24, 40)
    assert images.read_focal(tmp_path / "a.png") == pytest.approx(26 / 43.2666 * math.hypot(20, 12), rel=1e-4)
    if mode == "RGB":
        reduced = gradient.reshape(12, 2, 20, 2, 3).mean((1, 3))
        assert (read - reduced).abs().max() < 0.01


def test_a_huge_jpeg_is_reduced_while_it_is_decoded(tmp_path, gradient, small_limits):
    large = images.resize(gradient, 96, 160)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    save(large, tmp_path / "a.jpg", exif=exif)
    assert images.read_image(tmp_path / "a.jpg").shape == (20, 12, 3)
    assert (images.read_image(tmp_path / "a.jpg", upright=False) - images.resize(large, 12, 20)).abs().mean() < 0.05


def test_a_picture_too_large_to_decode_is_named(tmp_path, small_limits):
    Image.new("L", (100, 60)).save(tmp_path / "a.png")
    with pytest.raises(images.ImageError, match=r"a\.png: it has \d+ megapixels; reduce it"):
        images.read_image(tmp_path / "a.png")


def test_pixels_that_a_file_only_claims_end_in_a_sentence(tmp_path):
    """Nothing is allocated by what the header says alone."""
    header = struct.pack(">IIBBBBB", 400_000, 400_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    data = b"".join(struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    with pytest.raises(images.ImageError, match=r"bomb\.png: it has 160000 megapixels"):
        images.read_image(tmp_path / "bomb.png")


def test_pillows_own_limit_is_back_afterwards(tmp_path, gradient):
    usual = Image.MAX_IMAGE_PIXELS
    save(gradient, tmp_path / "a.png")
    images.read_image(tmp_path / "a.png")
    assert usual == Image.MAX_IMAGE_PIXELS


GPANO = b'<x:xmpmeta><rdf:Description GPano:ProjectionType="equirectangular"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"xmp": GPANO}, r"a panorama \(equirectangular\)"),
        (
            {"xmp": GPANO.replace(b'="equirectangular"/>', b">cylindrical</GPano>")},
            r"a panorama \(cylindrical\)",
        ),
        ({"exif": {"CustomRendered": 6}}, "a panorama"),
        ({"exif": {"LensModel": "8-15mm f/4L Fish-Eye USM"}}, "of a fisheye lens"),
    ],
)
def test_panoramas_and_fisheye_photos_are_told_by_their_metadata(tmp_path, gradient, options, words):
    exif = exif_with(**options.get("exif", {}))
    save(gradient, tmp_path / "a.jpg", **({"xmp": options["xmp"]} if "xmp" in options else {"exif": exif}))
    with pytest.raises(images.ImageError, match=rf"a\.jpg is {words}"):
        images.require_pinhole(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n", "git lfs pull"),
        (b"/annex/objects/SHA256E-s5--12.jpg\n", "git annex get"),
    ],
)
def test_pointers_to_pictures_say_how_to_fetch_them(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(images.ImageError, match=words):
        images.read_image(tmp_path / "a.jpg")


def test_a_dangling_link_is_called_one(tmp_path):
    (tmp_path / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(images.ImageError, match=r"a\.jpg is a link to a file that is not there"):
        images.read_image(tmp_path / "a.jpg")


def test_the_preview_in_a_raw_file_is_not_taken_for_the_photo(tmp_path, gradient):
    save(gradient, tmp_path / "a.tif")
    (tmp_path / "a.tif").rename(tmp_path / "a.DNG")
    with pytest.raises(images.ImageError, match=r"a\.DNG is a camera's raw file"):
        images.read_image(tmp_path / "a.DNG")


RAMP = np.linspace(0, 1, 12 * 10).reshape(12, 10)


@pytest.mark.parametrize(
    ("white", "kind", "suffix", "warned"),
    [
        (1.0, np.float32, "tif", None),
        (255, np.float32, "tif", "255 is taken for white"),
        (65535, np.int32, "tif", None),
        (4095, np.uint16, "png", "no pixel brighter than 4095, so 4095 is taken for white"),
        (255, np.int32, "tif", "255 is taken for white"),
    ],
)
def test_pixels_of_more_than_8_bits(tmp_path, white, kind, suffix, warned):
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray((RAMP * white).astype(kind)).save(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        image = images.read_image(path)
    torch.testing.assert_close(image[..., 0], torch.from_numpy(RAMP).float(), atol=1 / min(255, white + 254), rtol=0)
    assert [warned in str(t.message) for t in told] == ([True] if warned else [])


@pytest.mark.parametrize("pixels", [RAMP * 1e6, RAMP - 0.5, RAMP * np.nan])
def test_floats_whose_white_is_unknown_are_refused(tmp_path, pixels):
    Image.fromarray(pixels.astype(np.float32)).save(tmp_path / "deep.tif")
    with pytest.raises(images.ImageError, match=r"deep\.tif has pixels from .*, whose white is unknown"):
        images.read_image(tmp_path / "deep.tif")


def test_further_pages_are_told(tmp_path, gradient):
    first = Image.fromarray(images.to_uint8(gradient))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=[first.rotate(180)])
    with pytest.warns(UserWarning, match=r"pages\.tif holds 2 pictures; the first is used"):
        assert torch.equal(images.read_image(tmp_path / "pages.tif"), images.read_image(saved(gradient, tmp_path / "one.tif")))


def saved(image, path):
    save(image, path)
    return path
