"""Copies of one photo count once; a scene of nothing else is refused by name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from reconx_core.datasets import Capture, Photo, read
from reconx_core.errors import UserError
from reconx_core.io.images import write_png
from reconx_core.io.video import write_mp4
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views, views_of

HALL = Path("procedural:hall?seed=1&views=3&width=96&height=72")


def write_photo(path, seed: int) -> None:
    write_png(path, torch.rand(20, 30, 3, generator=torch.Generator().manual_seed(seed)))


def test_copies_alone_are_refused_by_name(tmp_path):
    write_photo(tmp_path / "a.png", 0)
    shutil.copy(tmp_path / "a.png", tmp_path / "a (copy).png")
    with pytest.raises(UserError, match=r"copies of one picture: a \(copy\), a; give photos from at least two places"):
        load_views(tmp_path, ViewsSettings())


def test_a_copy_among_others_counts_once(tmp_path):
    for i in range(2):
        write_photo(tmp_path / f"{i}.png", i)
    shutil.copy(tmp_path / "0.png", tmp_path / "2.png")
    with pytest.warns(UserWarning, match="Photo '2' is the same picture as '0'; it counts once"):
        assert load_views(tmp_path, ViewsSettings()).names == ("0", "1")


def test_it_is_the_pixels_that_count(tmp_path):
    write_photo(tmp_path / "a.png", 0)
    Image.open(tmp_path / "a.png").save(tmp_path / "b.bmp")
    with pytest.raises(UserError, match="copies of one picture: a, b"):
        load_views(tmp_path, ViewsSettings())


@pytest.mark.parametrize(("suffix", "quality"), [(".jpg", 60), (".webp", 75), (".heic", 80)])
def test_a_photo_stored_anew_counts_once(tmp_path, suffix, quality):
    for i, photo in enumerate(read(HALL).photos[:2]):
        write_png(tmp_path / f"{i}.png", photo.load())
    Image.open(tmp_path / "0.png").save(tmp_path / f"2{suffix}", quality=quality)
    with pytest.warns(UserWarning, match="Photo '2' is the same picture as '0'; it counts once"):
        assert load_views(tmp_path, ViewsSettings()).names == ("0", "1")


def hall_seen(name: str, photo: Photo, x: float, shade: float) -> Photo:
    """A photo of a known camera ``x`` to the side, a little darker."""
    pose = torch.eye(4)
    pose[0, 3] = x
    return replace(photo, name=name, cam_to_world=pose, load=lambda: photo.load() * shade)


def test_likeness_of_photos_with_other_known_cameras_is_no_copy(recwarn):
    first, other = read(HALL).photos[:2]
    alike = hall_seen("a", first, 0, 1), hall_seen("b", first, 1, 0.999), other
    assert len(views_of(Capture("hall", alike), ViewsSettings())) == 3
    assert not [w for w in recwarn if "same picture" in str(w.message)]


def test_a_video_of_one_picture_is_refused(tmp_path):
    write_mp4(tmp_path / "still.mp4", [torch.full((16, 16, 3), 0.5)] * 12)
    with pytest.raises(UserError, match=r"copies of one picture: frame_00000, .* and 4 more"):
        load_views(tmp_path / "still.mp4", ViewsSettings())


def bare_wall(name: str, x: float) -> Photo:
    pose = torch.eye(4)
    pose[0, 3] = x
    return Photo(name, lambda: torch.ones(20, 30, 3), intrinsics=torch.eye(3), cam_to_world=pose)


def test_a_wall_seen_from_two_places_stays():
    other = Photo("c", lambda: torch.rand(20, 30, 3), intrinsics=torch.eye(3), cam_to_world=torch.eye(4))
    with pytest.warns(UserWarning, match="'b' is the same picture as 'a'; both are used"):
        assert views_of(Capture("wall", (bare_wall("a", 0), bare_wall("b", 1), other)), ViewsSettings()).names == (
            "a",
            "b",
            "c",
        )
    walls = (bare_wall("a", 1), bare_wall("b", 1))
    with pytest.warns(UserWarning, match="'b' is the same picture as 'a'; it counts once"):
        assert views_of(Capture("wall", (*walls, other)), ViewsSettings()).names == ("a", "c")
