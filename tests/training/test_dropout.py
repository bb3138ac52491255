"""Dropout by clip: what is dropped of a clip does not depend on the batch, and is the same when a block runs again."""

import pytest
import torch
from torch import nn

from reconx_core.training.dropout import use_clip_dropout


@pytest.fixture
def network():
    seeds = [5, 9]
    made = nn.Sequential(nn.Dropout(0.25), nn.Sequential(nn.Dropout(0.25)), nn.Dropout(0.0))
    use_clip_dropout(made, seeds)
    return made, seeds


def test_a_clip_is_dropped_from_as_if_it_were_alone(network):
    made, seeds = network
    values = torch.ones(6, 400)  # two clips of three frames
    together = made(values)
    assert torch.equal(together, made(values))
    seeds[:] = [9]
    assert torch.equal(made(values[3:]), together[3:])
    assert not torch.equal(together[:3], together[3:])


def test_it_drops_its_share_and_keeps_the_mean(network):
    made, _ = network
    dropped = made[0](torch.ones(2, 20_000))
    assert (dropped == 0).float().mean() == pytest.approx(0.25, abs=0.01)
    assert dropped.mean() == pytest.approx(1, abs=0.02)
    assert not torch.equal(dropped == 0, made[1][0](torch.ones(2, 20_000)) == 0), "layers have masks of their own"
    assert isinstance(made[2], nn.Dropout)
    assert torch.equal(made.eval()(torch.ones(2, 3)), torch.ones(2, 3))
