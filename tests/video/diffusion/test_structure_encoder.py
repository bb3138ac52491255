"""Farthest point sampling against the plain rule, and what the structure encoder owes to its points."""

import math
import time

import numpy as np
import pytest
import torch

from reconx_core.errors import UserError
from reconx_core.video.diffusion.structure_encoder import StructureEncoder, fourier_features
from reconx_core.video.diffusion.structure_points import farthest_point_sample, normalise_points

SMALL = {"width": 32, "heads": 4, "frequencies": 4}


def cloud(count, seed=0):
    """Points on a sphere and some around it."""
    points = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    points[: count // 2] /= points[: count // 2].norm(dim=-1, keepdim=True)
    return points


def shuffled(points, seed=0):
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))
    return points[order], order


def chosen_by_hand(points, count):
    """The plain rule, every distance computed."""
    points = points.numpy()
    offsets = points - points.mean(0, dtype=np.float64).astype(np.float32)
    picked, nearest = [int(np.square(offsets).sum(1).argmax())], np.full(len(points), np.inf, np.float32)
    while len(picked) < count:
        offsets = points - points[picked[-1]]
        nearest = np.minimum(nearest, np.square(offsets).sum(1))
        picked.append(int(nearest.argmax()))
    return picked


@pytest.mark.parametrize("count", [1, 2, 130, 700])
def test_sampling_follows_the_plain_rule(count):
    points = cloud(1000)
    assert farthest_point_sample(points, count).tolist() == chosen_by_hand(points, count)


def test_sampling_ignores_the_order_of_points_even_where_distances_tie():
    axis = torch.arange(8.0)
    lattice = torch.cartesian_prod(axis, axis, axis)
    points, _ = shuffled(lattice)
    for count in (1, 9, 64, 300):
        first, second = lattice[farthest_point_sample(lattice, count)], points[farthest_point_sample(points, count)]
        assert torch.equal(first, second)


def test_every_point_is_chosen_once():
    points = torch.cat([cloud(90), torch.zeros(40, 3)])  # many at one place
    assert sorted(farthest_point_sample(points, 130).tolist()) == list(range(130))
    assert sorted(farthest_point_sample(torch.ones(5, 3), 5).tolist()) == list(range(5))


def test_sampling_covers_the_cloud():
    points = cloud(4000)
    picked = points[farthest_point_sample(points, 500)]
    gaps = torch.cdist(picked, picked).fill_diagonal_(math.inf).min()
    assert torch.cdist(points, picked).min(1).values.max() <= gaps  # else the farthest point would have been chosen


def test_sampling_is_not_quadratic():
    points = cloud(100_000)
    farthest_point_sample(points[:1000], 10)  # compiled
    start = time.process_time()
    farthest_point_sample(points, 12_500)
    assert time.process_time() - start < 3  # 0.15 s alone on a core; all distances in numpy take minutes


@pytest.mark.parametrize(
    ("points", "count", "words"),
    [
        (torch.zeros(4, 3), 5, "5 of 4 points"),
        (torch.zeros(4, 3), 0, "0 of 4"),
        (torch.full((4, 3), math.nan), 2, "not finite"),
    ],
)
def test_clouds_that_cannot_be_sampled_are_refused(points, count, words):
    with pytest.raises(UserError, match=words):
        farthest_point_sample(points, count)


def test_features_are_sines_and_cosines_of_doubling_frequencies():
    points = torch.tensor([[0.3, -1.2, 0.7]])
    angles = [value * 2**k * math.pi for value in points[0].tolist() for k in range(3)]
    expected = [*map(math.sin, angles), *map(math.cos, angles), *points[0].tolist()]
    assert torch.allclose(fourier_features(points, 3), torch.tensor([expected]), atol=1e-6)


def small_encoder(**changes):
    torch.manual_seed(0)
    return StructureEncoder(**{**SMALL, **changes}).eval()


@torch.no_grad()
def test_tokens_depend_on_the_points_but_not_on_their_order():
    encoder, points = small_encoder(), torch.stack([cloud(200), cloud(200, seed=1)])
    tokens = encoder(points)
    assert tokens.shape == (2, 25, 32)
    mixed = torch.stack([shuffled(clouds)[0] for clouds in points])
    assert torch.allclose(encoder(mixed), tokens, atol=1e-5)
    moved = points.clone()
    moved[1, 7] += 0.5
    difference = (encoder(moved) - tokens).abs().amax((1, 2))
    assert difference[0] < 1e-5 < 1e-3 < difference[1]


@torch.no_grad()
def test_sampling_may_come_from_elsewhere():
    encoder, points = small_encoder(ratio=4), cloud(100)[None]
    indices = encoder.sample(points)
    assert indices.tolist() == [farthest_point_sample(points[0], 25).tolist()]
    assert torch.equal(encoder(points, indices=indices), encoder(points))
    assert torch.allclose(encoder(points, indices=indices[:, [3, 1]]), encoder(points)[:, [3, 1]], atol=1e-5)


@torch.no_grad()
def test_features_count():
    encoder, points = small_encoder(feature_dim=3), cloud(64)[None]
    colours = torch.rand(1, 64, 3, generator=torch.Generator().manual_seed(0))
    assert (encoder(points, colours) - encoder(points, 1 - colours)).abs().max() > 1e-3


def test_every_weight_learns():
    encoder = small_encoder()
    weights = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    (encoder(cloud(64)[None]) * weights).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in encoder.parameters())


@torch.no_grad()
def test_half_precision_keeps_the_fine_frequencies():
    points = cloud(64)[None]
    full = small_encoder(frequencies=10)
    expected, half = full(points), small_encoder(frequencies=10).to(torch.bfloat16)
    assert (half(points).float() - expected).abs().max() < 0.15


@torch.no_grad()
def test_saving_and_loading_is_lossless(tmp_path):
    encoder, points = small_encoder(feature_dim=1), cloud(64)[None]
    encoder.save_pretrained(tmp_path)
    features = torch.ones(1, 64, 1)
    assert torch.equal(StructureEncoder.from_pretrained(tmp_path)(points, features), encoder(points, features))


def test_points_are_seen_from_the_first_camera_at_median_depth_one():
    cam_to_world = torch.tensor([[0.0, 0, 1, 5], [-1, 0, 0, 6], [0, -1, 0, 7], [0, 0, 0, 1]])  # looks along x
    points = torch.tensor([[7.0, 6, 7], [9, 5, 7], [11, 6, 9], [-5, 6, 7]])  # depths 2, 4, 6 and behind
    expected = torch.tensor([[0, 0, 0.5], [0.25, 0, 1], [0, -0.5, 1.5], [0, 0, -2.5]])
    assert torch.allclose(normalise_points(points, cam_to_world), expected)
    with pytest.raises(UserError, match="in front of the first camera"):
        normalise_points(points[3:], cam_to_world)
