"""Guidance over several conditions: its passes, and upstream's forms as special cases."""

import pytest
import torch

from reconx_core.video.diffusion.guidance import guidance_passes, guided_prediction

CONDITIONS = ("image", "structure", "text")


def network(x, seen):
    """A nonlinear stand-in that treats each clip by itself."""
    return torch.tanh(x * seen.sum(1, keepdim=True) + (seen**2).mean(1, keepdim=True))


def passes(scales):
    vectors = torch.tensor([[0.3, 0.1, 0.0], [0.0, -0.7, 0.4], [1.1, 0.0, 0.5]])
    return [
        ({"seen": sum((vectors[CONDITIONS.index(name)] for name in seen), torch.full((3,), 0.2)).expand(2, 3)}, scale)
        for seen, scale in guidance_passes(scales)
    ]


@pytest.fixture
def x():
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(0))


def predictions(x, *conditions):
    return [network(x, passes(dict.fromkeys(names, 1.0))[0][0]["seen"]) for names in conditions]


def test_which_passes_there_are():
    everything = frozenset(CONDITIONS)
    assert guidance_passes(dict.fromkeys(CONDITIONS, 1.0)) == [(everything, 1.0)]
    assert guidance_passes(dict.fromkeys(CONDITIONS, 7.5)) == [(frozenset(), 1.0), (everything, 7.5)]
    assert guidance_passes({"image": 2.0, "structure": 3.0, "text": 3.0}) == [
        (frozenset(), 1.0), (frozenset({"image"}), 2.0), (everything, 3.0),
    ]  # fmt: skip
    assert guidance_passes({"image": 1.0, "structure": 3.0}) == [
        (frozenset({"image"}), 1.0), (frozenset({"image", "structure"}), 3.0),
    ]  # fmt: skip
    assert guidance_passes({}) == [(frozenset(), 1.0)]


def test_three_conditions(x):
    none, image, both, everything = predictions(x, (), CONDITIONS[:1], CONDITIONS[:2], CONDITIONS)
    expected = none + 2 * (image - none) + 3 * (both - image) + 4 * (everything - both)
    ours = guided_prediction(network, {"x": x}, passes({"image": 2.0, "structure": 3.0, "text": 4.0}))
    assert torch.allclose(ours, expected, atol=1e-6)


def test_upstream_forms_are_special_cases(x):
    none, image, both = predictions(x, (), ("image",), ("image", "text"))
    plain = guided_prediction(network, {"x": x}, passes({"image": 7.5, "text": 7.5}))
    assert torch.equal(plain, none + 7.5 * (both - none))
    three = guided_prediction(network, {"x": x}, passes({"image": 3.0, "text": 7.5}))
    assert torch.equal(three, none + 3.0 * (image - none) + 7.5 * (both - image))


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_batched_or_one_by_one_is_the_same(x, rescale):
    planned = passes({"image": 2.0, "structure": 3.0, "text": 4.0})
    together, apart = (guided_prediction(network, {"x": x}, planned, rescale, batched) for batched in (True, False))
    assert torch.allclose(together, apart, atol=1e-6)


def test_rescale_brings_back_the_deviation_of_the_conditional_prediction(x):
    conditional = predictions(x, ("image", "text"))[0]
    planned = passes({"image": 7.5, "text": 7.5})
    plain, full, half = (guided_prediction(network, {"x": x}, planned, amount) for amount in (0.0, 1.0, 0.5))
    assert torch.allclose(full.std(1), conditional.std(1))
    assert torch.allclose(half, (plain + full) / 2, atol=1e-6)


def test_a_prediction_of_zeros_stays_zeros(x):
    planned = passes({"image": 7.5})
    assert torch.equal(guided_prediction(lambda x, seen: 0 * x, {"x": x}, planned, 0.7), torch.zeros_like(x))


def test_half_precision_is_combined_in_float32(x):
    def half(x, seen):
        return network(x, seen).bfloat16()

    assert guided_prediction(half, {"x": x}, passes({"image": 7.5})).dtype == torch.float32
