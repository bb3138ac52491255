"""The exported PLY must render like the scene in memory: PLYs that do not are the most common complaint of users."""

import io

import numpy as np
import pytest
import torch
from export_scene import render, some_gaussians, some_points
from plyfile import PlyData

from reconx_core.errors import UserError
from reconx_core.export import gaussians_to_ply, points_from_ply, points_to_ply, read_origin, write_ply
from reconx_core.export.formats import read_gaussians


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_what_is_read_back_renders_the_same_to_the_last_bit(tmp_path, degree):
    scene = some_gaussians(degree)
    write_ply(tmp_path / "scene.ply", scene)
    back = read_gaussians(tmp_path / "scene.ply")
    for name in ("means", "quats", "log_scales", "logit_opacities", "sh"):
        assert torch.equal(getattr(back, name), getattr(scene, name)), name
    rendered = render(scene)
    assert rendered.std() > 0.1
    assert torch.equal(render(back), rendered)


def test_layout_is_inrias():
    scene = some_gaussians(2, count=3)
    vertex = PlyData.read(io.BytesIO(gaussians_to_ply(scene)))["vertex"].data
    rest = [f"f_rest_{i}" for i in range(24)]
    assert list(vertex.dtype.names) == (
        ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, "opacity"]
        + ["scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    )
    # channel-major: f_rest_8 is the first higher coefficient of green
    np.testing.assert_array_equal(vertex["f_rest_0"], scene.sh[:, 1, 0])
    np.testing.assert_array_equal(vertex["f_rest_1"], scene.sh[:, 2, 0])
    np.testing.assert_array_equal(vertex["f_rest_8"], scene.sh[:, 1, 1])
    np.testing.assert_array_equal(vertex["rot_0"], scene.quats[:, 0])


def test_bytes_depend_on_the_scene_alone():
    assert gaussians_to_ply(some_gaussians(1)) == gaussians_to_ply(some_gaussians(1))


def test_an_origin_is_noted_and_changes_no_gaussian(tmp_path):
    scene, origin = some_gaussians(0), (5e5, 5.4e6, 120.25)
    write_ply(tmp_path / "far.ply", scene, origin)
    write_ply(tmp_path / "near.ply", scene)
    assert (read_origin(tmp_path / "far.ply"), read_origin(tmp_path / "near.ply")) == (origin, (0, 0, 0))
    assert torch.equal(read_gaussians(tmp_path / "far.ply").means, scene.means)
    assert b"comment" not in (tmp_path / "near.ply").read_bytes()[:200]


def test_points_round_trip(tmp_path):
    points = some_points()
    (tmp_path / "points.ply").write_bytes(points_to_ply(points))
    back = points_from_ply(tmp_path / "points.ply")
    assert torch.equal(back.xyz, points.xyz)
    assert torch.equal(back.rgb, points.rgb)
    assert torch.equal(back.confidence, points.confidence)


@pytest.mark.parametrize("content", [b"", b"hello", b"ply\nformat ascii 1.0\nend_header\n", points_to_ply(some_points())])
def test_what_is_no_gaussian_ply_is_named(tmp_path, content):
    (tmp_path / "x.ply").write_bytes(content)
    with pytest.raises(UserError, match=r"x\.ply"):
        read_gaussians(tmp_path / "x.ply")


def test_no_such_file(tmp_path):
    with pytest.raises(UserError, match=r"x\.ply"):
        read_gaussians(tmp_path / "x.ply")
