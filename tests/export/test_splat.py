import numpy as np
import pytest
import torch
from export_scene import psnr, render, some_gaussians

from reconx_core.errors import UserError
from reconx_core.export import gaussians_from_splat, gaussians_to_splat
from reconx_core.export.formats import read_gaussians, write_gaussians
from reconx_core.types import Gaussians


def test_what_is_read_back_renders_alike(tmp_path):
    scene = some_gaussians(0)
    write_gaussians(tmp_path / "a.splat", scene)
    back = read_gaussians(tmp_path / "a.splat")
    assert (len(back), back.sh_degree) == (len(scene), 0)
    assert psnr(render(back), render(scene)) > 35


def test_a_record_is_antimatter15s():
    quat = torch.tensor([[2.0, 0.0, -2.0, 0.0]])  # not normalised
    one = Gaussians(
        means=torch.tensor([[1.0, 2.0, 3.0]]), quats=quat, log_scales=torch.tensor([[0.0, 1.0, -1.0]]),
        logit_opacities=torch.zeros(1), sh=torch.tensor([[[0.0, 1.0, -1.0]]]),
    )  # fmt: skip
    data = gaussians_to_splat(one)
    assert len(data) == 32
    np.testing.assert_allclose(np.frombuffer(data, "<f4", 6), [1, 2, 3, 1, np.e, 1 / np.e], rtol=1e-6)
    # 0.5 + 0.2821 * (0, 1, -1), opacity 0.5; then the unit quaternion wxyz, 128 is zero
    assert list(data[24:]) == [128, 199, 56, 128, 219, 128, 37, 128]


def test_the_most_visible_come_first():
    records = np.frombuffer(gaussians_to_splat(some_gaussians(0)), np.uint8).reshape(-1, 32)
    records = records[records[:, 27] > 50]  # where a rounding step of the opacity is at most 1 %
    visible = records[:, 12:24].copy().view("<f4").prod(1) * records[:, 27]
    assert len(visible) > 100
    assert (visible[1:] <= 1.02 * visible[:-1]).all()


def test_higher_degrees_lose_only_their_view_dependence():
    scene = some_gaussians(2)
    flat = Gaussians(scene.means, scene.quats, scene.log_scales, scene.logit_opacities, scene.sh[:, :1])
    assert gaussians_to_splat(scene) == gaussians_to_splat(flat)


def test_extreme_opacities_stay_finite():
    scene = some_gaussians(0, count=2)
    extreme = Gaussians(scene.means, scene.quats, scene.log_scales, torch.tensor([40.0, -40.0]), scene.sh)
    assert gaussians_from_splat(gaussians_to_splat(extreme)).logit_opacities.isfinite().all()


def test_other_files_are_named(tmp_path):
    (tmp_path / "a.splat").write_bytes(bytes(33))
    with pytest.raises(UserError, match=r"a\.splat"):
        read_gaussians(tmp_path / "a.splat")
