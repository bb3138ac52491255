"""Copies of one photo count once; a scene of nothing else is refused by name."""

import shutil

import pytest
import torch
from PIL import Image

from reconx_core.datasets import Capture, Photo
from reconx_core.errors import UserError
from reconx_core.io.images import write_png
from reconx_core.io.video import write_mp4
from reconx_core.settings import ViewsSettings
from reconx_core.views import load_views, views_of


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
