"""Which scene `reconx reconstruct` takes of a folder of scenes."""

import warnings

import pytest
import torch

from flows.reconstruct import find_scene
from reconx_core.errors import UserError
from reconx_core.io.images import write_png


def write_photos(folder):
    for i in range(2):
        write_png(folder / f"{i}.png", torch.full((12, 16, 3), i / 2))


def test_the_only_folder_of_photos_is_used_with_a_word(tmp_path):
    write_photos(tmp_path / "input")
    with pytest.warns(UserWarning, match="The one scene in .* is its folder input, which is used"):
        assert find_scene(str(tmp_path)) == ("input", str(tmp_path / "input"))
    with warnings.catch_warnings(action="error"):
        assert find_scene(str(tmp_path / "input")) == ("input", str(tmp_path / "input"))


def test_several_folders_of_photos_are_named(tmp_path):
    for name in ("left", "right"):
        write_photos(tmp_path / name)
    with pytest.raises(UserError, match=r"holds 2 scenes \(left, right\); name one of them"):
        find_scene(str(tmp_path))
