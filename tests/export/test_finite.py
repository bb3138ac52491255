"""Values that are not finite are left out of every export and at every reading, counted and said."""

import io
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from export_scene import render, some_cameras, some_gaussians, some_points
from rich.console import Console

from flows.export import convert
from flows.scene import load_scene
from reconx_core.errors import UserError
from reconx_core.export import (
    gaussians_to_ply,
    gaussians_to_splat,
    points_from_ply,
    write_cameras,
)
from reconx_core.export.formats import FORMATS, read_gaussians, write_gaussians
from reconx_core.types import Views

BROKEN = [("means", math.nan), ("means", -math.inf), ("quats", math.nan), ("log_scales", math.inf), ("log_scales", 100.0)]
BROKEN += [("log_scales", math.nan), ("logit_opacities", math.nan), ("sh", math.nan), ("sh", math.inf)]
BROKEN += [("quats", 0.0), ("means", 1e7), ("log_scales", 15.0)]


def with_value(scene, name, value, index=3):
    values = getattr(scene, name).clone()
    values[index] = value
    return replace(scene, **{name: values})


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("name", "value"), BROKEN)
def test_one_of_them_is_left_out_and_counted(tmp_path, suffix, name, value):
    broken, path = with_value(some_gaussians(1, 20), name, value), tmp_path / f"scene{suffix}"
    with pytest.warns(UserWarning, match=r"1 of 20 Gaussians in .*scene"):
        write_gaussians(path, broken)
    assert len(load_scene(path)) == 19
    (path := tmp_path / "foreign.ply").write_bytes(gaussians_to_ply(broken))  # of a program that looks at nothing
    with pytest.warns(UserWarning, match=r"1 of 20 Gaussians in .*foreign\.ply"):
        scene = read_gaussians(path)
    assert torch.equal(scene.means, broken.means[torch.arange(20) != 3])
    assert render(scene).isfinite().all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("name", "sign"), [("log_scales", -1), ("logit_opacities", 1), ("logit_opacities", -1)])
def test_flat_ones_and_certain_opacities_stay(tmp_path, name, sign):
    scene = with_value(some_gaussians(0, 20), name, sign * math.inf)
    write_gaussians(tmp_path / "a.ply", scene)
    for suffix in FORMATS:
        write_gaussians(tmp_path / f"a{suffix}", read_gaussians(tmp_path / "a.ply"))
        assert len(load_scene(tmp_path / f"a{suffix}")) == 20


def test_export_says_how_many(tmp_path):
    broken = with_value(with_value(some_gaussians(2, 20), "means", math.nan), "log_scales", math.inf, 7)
    (tmp_path / "x.ply").write_bytes(gaussians_to_ply(broken))
    console = Console(file=io.StringIO(), width=300)
    convert(tmp_path / "x.ply", tmp_path / "x.splat", console)
    assert "2 of 20 Gaussians in" in console.file.getvalue()
    assert "18 Gaussians in" in console.file.getvalue()
    records = np.frombuffer((tmp_path / "x.splat").read_bytes(), "<f4").reshape(-1, 8)
    assert len(records) == 18
    assert np.isfinite(records[:, :6]).all()


def test_infinite_splat_records_are_left_out(tmp_path):
    (tmp_path / "x.splat").write_bytes(gaussians_to_splat(with_value(some_gaussians(0, 20), "log_scales", 100.0)))
    with pytest.warns(UserWarning, match="1 of 20 Gaussians"):
        assert len(load_scene(tmp_path / "x.splat")) == 19


@pytest.mark.parametrize("suffix", [".ply", ".splat"])
def test_nothing_to_show_is_a_sentence(tmp_path, suffix):
    encode, path = gaussians_to_ply if suffix == ".ply" else gaussians_to_splat, tmp_path / f"x{suffix}"
    path.write_bytes(encode(with_value(some_gaussians(0, 5), "means", math.nan, slice(None))))
    with pytest.raises(UserError, match="None of the 5 Gaussians"):
        load_scene(path)
    path.write_bytes(encode(some_gaussians(0, 0)))
    with pytest.raises(UserError, match=f"x{suffix}"):
        load_scene(path)


def test_all_rotations_zero_is_a_sentence(tmp_path):
    """As a PLY looks whose writer never filled them."""
    (tmp_path / "x.ply").write_bytes(gaussians_to_ply(with_value(some_gaussians(0, 5), "quats", 0.0, slice(None))))
    with pytest.raises(UserError, match=r"None of the 5 Gaussians in .*x\.ply can be shown: 5 with a rotation of zero\."):
        load_scene(tmp_path / "x.ply")


def test_each_fault_is_counted(tmp_path):
    broken = with_value(with_value(with_value(some_gaussians(1, 20), "sh", math.nan), "quats", 0.0, 5), "means", 1e7, 6)
    why = "1 with values that are not finite, 1 with a rotation of zero and 1 absurdly far or large."
    with pytest.warns(UserWarning, match=why):
        write_gaussians(tmp_path / "x.spz", broken)


def test_a_sky_far_away_is_not_absurd(tmp_path, recwarn):
    scene = with_value(with_value(some_gaussians(0, 50), "means", 2000.0, slice(0, 20)), "log_scales", 5.0, slice(0, 20))
    write_gaussians(tmp_path / "x.ply", scene)
    assert len(load_scene(tmp_path / "x.ply")) == 50
    assert not recwarn.list


def test_points_too(tmp_path):
    points = with_value(some_points(), "xyz", math.nan)
    photos = Views(
        torch.zeros(2, 48, 64, 3), torch.ones(2, 48, 64, dtype=torch.bool), ("a", "b"), torch.zeros(2, dtype=torch.bool), None,
        torch.full((2,), torch.nan),
    )  # fmt: skip
    with pytest.warns(UserWarning, match="1 of 50 points"):
        write_cameras(tmp_path, some_cameras(), photos, points)
    assert len(points_from_ply(tmp_path / "points.ply").xyz) == 49


def test_ply_with_odd_numbers_of_coefficients_is_a_sentence(tmp_path):
    data = gaussians_to_ply(some_gaussians(1, 2)).replace(b"property float f_rest_8\n", b"property float other__\n")
    (tmp_path / "x.ply").write_bytes(data)
    with pytest.raises(UserError, match="f_rest"):
        read_gaussians(tmp_path / "x.ply")
