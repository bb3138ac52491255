import math

import pytest
import torch
from PIL import Image
from small_captures import tiny_hall, write_greys

from reconx_core.datasets import files_of, photos, read, scene_names
from reconx_core.errors import UserError
from reconx_core.export.dataset import write_photos
from reconx_core.io.images import ImageError, write_png


def test_natural_order(tmp_path):
    write_greys(tmp_path, ["img10.png", "img2.png", "IMG1.PNG"])
    assert [p.name for p in photos.read(tmp_path).photos] == ["IMG1", "img2", "img10"]


def test_names_are_unique(tmp_path):
    write_greys(tmp_path, ["a.png", "a.webp", "b.png"])
    assert [p.name for p in photos.read(tmp_path).photos] == ["a", "a_2", "b"]


BESIDE = ["a.mask.png", "a_mask.png", "a-mask.PNG", "mask_a.jpg", "a.png.mask.png"]


@pytest.mark.parametrize("mask", [*BESIDE, "masks/a.png", "masks/a.png.png", "masks/a_mask.png", "mask/a.jpg"])
def test_masks_belong_to_their_photo_and_are_none_themselves(tmp_path, mask):
    write_greys(tmp_path, ["a.png", "b.png"])
    half = torch.zeros(12, 16)
    half[:, :8] = 1
    write_png(tmp_path / mask, half)
    a, b = photos.read(tmp_path).photos
    assert (a.load_mask() == half.bool()).float().mean() > 0.9  # a JPEG's edge is not sharp
    assert b.load_mask is None


@pytest.mark.parametrize(("folder", "masks"), [("images", "masks"), ("Images", "Masks"), ("IMAGES_2", "MASKS_2")])
def test_masks_beside_an_images_folder(tmp_path, folder, masks):
    write_greys(tmp_path / folder, ["a.png", "b.png"])
    write_greys(tmp_path / masks, ["b.png"])
    path = tmp_path if folder.lower() == "images" else tmp_path / folder
    assert [p.load_mask is not None for p in photos.read(path).photos] == [False, True]
    assert any(name.lower().endswith(f"{masks.lower()}/b.png") for name in files_of(path))


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


def test_a_dynamic_mask_is_white_where_not_to_look(tmp_path):
    write_greys(tmp_path, ["a.png", "b.png"])
    write_png(tmp_path / "dynamic_mask_a.png", torch.ones(12, 16))
    with pytest.warns(UserWarning, match=r"such as dynamic_mask_a\.png, .* used as masks"):
        a, _ = photos.read(tmp_path).photos
    assert not a.load_mask().any()


def test_a_picture_named_as_the_mask_of_no_photo_is_a_photo(tmp_path):
    write_greys(tmp_path, ["venetian_mask.png", "mask_shop.png", "b.png"])
    assert [p.name for p in photos.read(tmp_path).photos] == ["b", "mask_shop", "venetian_mask"]


def test_masks_that_belong_to_no_photo_are_told(tmp_path):
    write_greys(tmp_path / "images", ["a.png", "b.png"])
    write_greys(tmp_path / "masks", ["0001.png"])
    with pytest.warns(UserWarning, match="No mask in .*masks"):
        photos.read(tmp_path)


def test_a_mask_that_is_a_link_to_nothing_is_not_passed_over(tmp_path):
    write_greys(tmp_path, ["a.png"])
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(ImageError, match=r"masks/a\.png is a link"):
        photos.read(tmp_path).photos[0].load_mask()


@pytest.mark.parametrize("place", ["images", "keyframes/images"])
@pytest.mark.parametrize("cover", ["preview.png", "thumbnail.jpg"])
def test_a_preview_beside_the_photos_is_no_scene(tmp_path, place, cover):
    write_greys(tmp_path / place, ["a.png", "b.png"])
    write_greys(tmp_path, [cover])
    with pytest.warns(UserWarning, match=f"photos in {place} are used; .*{cover}"):
        assert [p.name for p in read(tmp_path).photos] == ["a", "b"]


def test_one_photo_beside_folders_of_scenes_is_no_scene(tmp_path):
    write_greys(tmp_path, ["overview.png"])
    write_greys(tmp_path / "attic", ["a.png", "b.png"])
    with pytest.warns(UserWarning, match="The one photo in .* is no scene"):
        assert [name for name, _ in scene_names(tmp_path)] == ["attic"]
    write_greys(tmp_path, ["second.png"])
    assert [path for _, path in scene_names(tmp_path)] == [tmp_path]


def test_links_to_nothing_are_named(tmp_path):
    write_greys(tmp_path, ["a.png", "b.png"])
    for name in ("c.png", "d.png", "e.png"):
        (tmp_path / name).symlink_to(tmp_path / ".git" / "annex" / name)
    with pytest.warns(UserWarning, match=r"Left out: 3 file\(s\), such as c\.png, .* links to files that are not there"):
        assert [p.name for p in photos.read(tmp_path).photos] == ["a", "b"]


def test_pictures_of_other_formats_are_named_once(tmp_path):
    write_greys(tmp_path, ["a.png", "b.png"])
    for name in ("a.cr2", "IMG_1.DNG", "IMG_2.DNG", "notes.txt"):
        (tmp_path / name).write_bytes(b"II*\0")
    words = r"2 file\(s\), such as IMG_1\.DNG, "  # a.cr2 is the raw file of a.png
    with pytest.warns(UserWarning, match=words) as noted:
        assert len(photos.read(tmp_path).photos) == 2
    assert len(noted) == 1


@pytest.mark.parametrize("place", [".", "images"])
def test_a_folder_without_readable_photos_says_why(tmp_path, place):
    (tmp_path / "scene" / place).mkdir(parents=True)
    (tmp_path / "scene" / place / "IMG_1.NEF").write_bytes(b"MM")
    (tmp_path / "scene" / place / "b.jpg").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match=r"b\.jpg, .* links .*IMG_1\.NEF, .* not read"):
        read(tmp_path / "scene")


def test_photos_beside_half_a_model_say_so(tmp_path):
    write_greys(tmp_path / "images", ["a.png", "b.png"])
    (tmp_path / "sparse" / "0").mkdir(parents=True)
    (tmp_path / "sparse" / "0" / "cameras.bin").touch()
    with pytest.warns(UserWarning, match="no whole set of cameras. They are estimated"):
        read(tmp_path)


def test_a_photo_that_is_called_a_panorama_by_its_file_is_refused(tmp_path):
    xmp = b'<rdf:Description GPano:ProjectionType="equirectangular"/>'
    Image.new("RGB", (64, 32)).save(tmp_path / "a.jpg", xmp=xmp)
    with pytest.raises(ImageError, match=r"a\.jpg is a panorama"):
        photos.read(tmp_path).photos[0].load()
