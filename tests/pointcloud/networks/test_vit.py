"""The transformer pieces of DUSt3R and VGGT: where positions count, and which precision is used where."""

import pytest
import torch

from reconx_core.pointcloud.networks.vit import Block, attend, grid_positions, lower_precision, make_rotation, rotate


def scores(query_position, key_position):
    """One query's product with one key, per head."""
    query, key = torch.randn(2, 1, 1, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).unbind()
    turns = (make_rotation(torch.tensor([place], dtype=torch.float64), 16, 100.0) for place in (query_position, key_position))
    return (rotate(query, next(turns)) * rotate(key, next(turns))).sum(-1)


@pytest.mark.parametrize("shift", [(5.0, 0.0), (0.0, 3.0), (-7.0, 40.0)])
def test_rotary_scores_depend_on_the_displacement_alone(shift):
    (row, column), (down, right) = (2.0, 9.0), shift
    expected = scores((0.0, 0.0), (row, column))
    torch.testing.assert_close(scores((down, right), (row + down, column + right)), expected, rtol=0, atol=1e-12)
    assert (scores((0.0, 0.0), (row + down, column + right)) - expected).abs().max() > 1e-2


def test_rows_and_columns_turn_a_half_of_each_head():
    states = torch.ones(1, 6, 1, 8)
    change = rotate(states, make_rotation(grid_positions(2, 3), 8, 100.0)) - states
    assert change[0, 0].abs().max() == 0  # row 0, column 0
    assert change[0, 2, :, :4].abs().max() == 0  # row 0, column 2
    assert change[0, 3, :, 4:].abs().max() == 0  # row 1, column 0
    assert change[0, 2, :, 4:].abs().min() > 0.01
    assert change[0, 3, :, :4].abs().min() > 0.01


def test_attention_over_one_key_returns_its_value():
    value = torch.randn(2, 1, 3, 4)
    attended = attend(torch.randn(2, 5, 3, 4), torch.randn(2, 1, 3, 4), value)
    torch.testing.assert_close(attended, value.flatten(-2).expand(2, 5, 12))


@torch.no_grad()
def test_lower_precision_is_that_of_autocast_with_half_the_weights():
    torch.manual_seed(0)
    block, x = Block(32, 4, layer_scale=0.5, normed=True), torch.randn(2, 6, 32)
    turn = make_rotation(grid_positions(2, 3), 8, 100.0)
    exact = block(x, turn)
    with torch.autocast("cpu", torch.bfloat16):
        expected = block(x, turn)
    lower_precision(block, torch.bfloat16)
    result = block(x, turn)
    assert result.dtype == torch.float32
    assert 1e-4 < (result - exact).abs().max() < 0.05
    assert (result - expected).abs().max() < (result - exact).abs().max() / 2
    lowered = {name for name, weight in block.named_parameters() if weight.dtype == torch.bfloat16}
    assert lowered == {
        f"{layer}.{kind}" for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in ("weight", "bias")
    }
