"""Fewer Gaussians: what a picture owes to each is measured, and the least are left out."""

import io
import math

import pytest
import torch
from export_scene import psnr, render, some_cameras, some_gaussians, some_points
from rich.console import Console

from flows.export import convert
from reconx_core.errors import UserError
from reconx_core.export import write_cameras
from reconx_core.export.finite import select_gaussians
from reconx_core.export.formats import read_gaussians, write_gaussians
from reconx_core.export.prune import cameras_of_scene, choose, contributions, fidelity
from reconx_core.rasterize import rasterize
from reconx_core.types import Gaussians, Views


def test_contributions_are_the_weights_of_the_pictures():
    scene = some_gaussians(2)
    weights = contributions(scene, some_cameras())
    assert weights.sum() == pytest.approx(float(rasterize(scene, some_cameras()).alpha.sum()), rel=1e-4)
    without = select_gaussians(scene, torch.arange(400) != int(weights.argmax()))
    assert weights.min() >= 0
    assert psnr(render(without), render(scene)) < psnr(
        render(select_gaussians(scene, torch.arange(400) != int(weights.argmin()))), render(scene)
    )


def test_those_behind_a_wall_and_behind_the_cameras_add_nothing():
    scene = some_gaussians(0, 4)
    means = torch.tensor([[0.0, 0, 2], [0, 0, 4], [0, 0, -3], [0.1, 0, 1.9]])
    wall = Gaussians(
        means, scene.quats, torch.tensor([2.0, -3, -3, -3])[:, None].repeat(1, 3), torch.full((4,), 20.0), scene.sh
    )
    weights = contributions(wall, some_cameras())
    assert weights[0] > 1000
    assert weights[3] > 1
    assert weights[1:3].abs().max() < 0.01 * weights[3]


def test_the_most_visible_are_kept_and_in_order():
    scene, cameras = some_gaussians(1), some_cameras()
    kept = choose(scene, cameras, 100)
    weights = contributions(scene, cameras)
    assert kept.tolist() == sorted(kept.tolist())
    assert set(kept.tolist()) == set(weights.topk(100).indices.tolist())
    chance = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:100]
    ours, theirs = (fidelity(select_gaussians(scene, index), scene, cameras) for index in (kept, chance))
    assert ours > theirs + 5


def test_opacity_alone_needs_no_cameras():
    scene = some_gaussians(0)
    kept = choose(scene, None, min_opacity=0.5)
    assert torch.equal(kept, (scene.logit_opacities >= 0).nonzero()[:, 0])
    assert len(choose(scene, None, most=400)) == 400
    with pytest.raises(UserError, match="the scene's cameras are needed"):
        choose(scene, None, most=399)
    with pytest.raises(UserError, match=r"None of the 400 Gaussians has an opacity of 1 or more"):
        choose(scene, None, min_opacity=1.0)


def test_the_same_scene_is_the_same():
    assert fidelity(some_gaussians(0), some_gaussians(0), some_cameras()) == math.inf


def test_the_path_adds_cameras_between():
    assert len(cameras_of_scene(some_cameras(), 5)) == 7
    assert len(cameras_of_scene(some_cameras()[:1])) == 1


def test_export_says_what_it_costs(tmp_path):
    masks = torch.ones(2, 48, 64, dtype=torch.bool)
    photos = Views(torch.rand(2, 48, 64, 3), masks, ("a", "b"), masks[:, 0, 0] & False, None, torch.full((2,), torch.nan))
    write_cameras(tmp_path / "cameras", some_cameras(), photos, some_points())
    write_gaussians(tmp_path / "scene.ply", some_gaussians(1))
    console = Console(file=io.StringIO(), width=300)
    convert(tmp_path, tmp_path / "few.spz", console, most=100)
    said = console.file.getvalue()
    assert "100 of 400 Gaussians are kept; the pictures are within " in said
    assert "dB of those of all (26 cameras)" in said
    assert len(read_gaussians(tmp_path / "few.spz")) == 100


def test_a_mistake_leaves_no_folder_behind(tmp_path):
    write_gaussians(tmp_path / "scene.ply", some_gaussians(1))
    with pytest.raises(UserError, match="cameras are needed"):
        convert(tmp_path, tmp_path / "new" / "few.spz", Console(file=io.StringIO()), most=100)
    assert not (tmp_path / "new").exists()
