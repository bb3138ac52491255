"""Pictures are found by names that differ from theirs, where that is unambiguous."""

import unicodedata

import pytest
from small_captures import write_greys

from reconx_core.datasets.locate import PictureFinder


@pytest.mark.parametrize(
    ("there", "name", "found"),
    [
        (["a.png", "a.JPG"], "a.jpg", "a.JPG"),  # the same format goes before the same capitals
        (["a.png", "A.png"], "a.jpg", "a.png"),
        (["A.png", "a.PNG"], "a.jpg", "a.PNG"),
        (["A.png", "A.jpg"], "a.jpeg", None),
        (["a.png", "a.jpg"], "a", "a.png"),
        (["a.webp"], "a", "a.webp"),
        (["a.jpg"], "a.NEF", "a.jpg"),  # converted from a raw file
        (["a.jpg"], "a.0001", None),  # no suffix, but a part of the name
        (["cam0/a.png", "a.png"], "D:\\scan\\cam0\\a.png", "cam0/a.png"),
        (["a.png"], "../scan/a.png", "a.png"),
        (["a.png"], "", None),
    ],
)
def test_what_fits_best_is_found(tmp_path, there, name, found):
    write_greys(tmp_path / "scene", there)
    picture = PictureFinder().find(tmp_path / "scene", name)
    assert picture == (found and tmp_path / "scene" / found)


def test_a_link_to_nothing_is_found_and_no_other_picture_taken_for_it(tmp_path):
    write_greys(tmp_path, ["a.jpg"])
    (tmp_path / "a.png").symlink_to(tmp_path / "lost.png")
    assert PictureFinder().find(tmp_path, "a.png") == tmp_path / "a.png"


@pytest.mark.parametrize(
    ("on_disk", "written"),
    [
        (unicodedata.normalize("NFD", "Büro.png"), unicodedata.normalize("NFC", "Büro.png")),
        (unicodedata.normalize("NFC", "Büro.png"), unicodedata.normalize("NFD", "Büro")),
        ("a b.png", "a%20b.png"),
        ("a b.png", "file:///home/me/a%20b.png"),
        ("a%20b.png", "a%20b.png"),
    ],
)
def test_other_spellings_of_one_name(tmp_path, on_disk, written):
    (tmp_path / on_disk).write_bytes(b"")
    (tmp_path / "other.png").write_bytes(b"")
    assert PictureFinder().find(tmp_path, written) == tmp_path / on_disk
