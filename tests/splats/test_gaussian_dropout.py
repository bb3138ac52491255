"""A share of the Gaussians is missing from a step's render, and the others stand in for them."""

from dataclasses import fields

import pytest
import torch
from exact_scene import draw

from reconx_core.rasterize import rasterize
from reconx_core.settings import SplatsSettings
from reconx_core.splats.optimise import GONE, drop_some, dropout_share
from reconx_core.types import Cameras, Gaussians


def gaussians(logits):
    n = len(logits)
    means = torch.rand(n, 3, generator=draw(1)) + torch.tensor([-0.5, -0.5, 2.0])
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(n, 1)
    return Gaussians(means, quats, torch.full((n, 3), -3.0), logits, torch.ones(n, 1, 3))


def test_more_photos_need_less():
    shares = [dropout_share(SplatsSettings(dropout=0.3), photos) for photos in (1, 2, 3, 6, 9)]
    assert shares == pytest.approx([0.3, 0.3, 0.3, 0.15, 0.1])
    assert dropout_share(SplatsSettings(dropout=0.0), 2) == 0


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_so_many_are_gone_and_the_others_are_more_opaque(share):
    logits = torch.linspace(-4, -1, 10_000)
    dropped = drop_some(gaussians(logits), share, draw()).logit_opacities
    gone = dropped == GONE
    assert abs(float(gone.float().mean()) - share) < 0.02
    torch.testing.assert_close(dropped[~gone].sigmoid(), logits[~gone].sigmoid() / (1 - share))


def test_the_mean_over_many_draws_is_what_was():
    whole, generator = torch.linspace(-4, 0, 50), draw()
    draws = torch.stack([drop_some(gaussians(whole), 0.2, generator).logit_opacities.sigmoid() for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), whole.sigmoid(), atol=0.02, rtol=0)


def test_nothing_is_drawn_without_dropout():
    made, generator = gaussians(torch.zeros(5)), draw()
    before = generator.get_state()
    assert drop_some(made, 0.0, generator) is made
    assert torch.equal(generator.get_state(), before)


def test_what_is_gone_is_not_rendered_and_what_is_opaque_still_learns():
    logits = torch.full((60,), 4.0).requires_grad_()
    dropped = drop_some(gaussians(logits), 0.3, draw(2))
    intrinsics = torch.tensor([[[20.0, 0, 16], [0, 20.0, 16], [0, 0, 1]]])
    camera = Cameras(intrinsics, torch.eye(4)[None], 32, 32)
    gone = dropped.logit_opacities == GONE
    stay = Gaussians(*(getattr(dropped, field.name)[~gone] for field in fields(dropped)))
    image = rasterize(dropped, camera, "cpu").rgb
    torch.testing.assert_close(image, rasterize(stay, camera, "cpu").rgb)
    image.square().sum().backward()
    assert (logits.grad[gone] == 0).all()
    assert (logits.grad[~gone] != 0).float().mean() > 0.8
