import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reconx_core.pointcloud.global_alignment.graph import MIN_MATCHES, overlap_pairs, pair_graph, spanning_tree, token_overlap


def joined(n, pairs):
    reached = {0}
    for _ in range(n):
        reached |= {v for pair in pairs if set(pair) & reached for v in pair}
    return reached == set(range(n))


@given(n=st.integers(2, 20), mode=st.sampled_from(["auto", "complete", "window", "star"]), data=st.data())
def test_every_graph_joins_all_views_by_ordered_distinct_pairs(n, mode, data):
    every = list(itertools.combinations(range(n), 2))
    counts = data.draw(st.none() | st.dictionaries(st.sampled_from(every), st.integers(0, 300)))
    pairs = pair_graph(n, mode, counts)
    assert joined(n, pairs)
    assert pairs == sorted(set(pairs))
    assert all(i < j for i, j in pairs)


def test_few_views_are_all_paired_and_many_in_a_window_with_a_loop():
    assert len(pair_graph(5)) == 10
    pairs = pair_graph(20)
    assert (0, 19) in pairs
    assert (0, 10) not in pairs
    assert len(pairs) < 20 * 19 / 2 / 2


def test_pairs_without_content_in_common_are_dropped():
    counts = {(0, 1): 100, (1, 2): 80, (0, 2): MIN_MATCHES - 1}
    assert pair_graph(3, "complete", counts) == [(0, 1), (1, 2)]


def test_an_unordered_set_keeps_its_best_partners_outside_the_window():
    counts = dict.fromkeys(itertools.combinations(range(20), 2), 20) | {(2, 15): 500}
    assert (2, 15) in pair_graph(20, "window", counts)


def test_one_view_has_no_graph():
    with pytest.raises(ValueError, match="two views"):
        pair_graph(1)


def test_spanning_tree_takes_the_heaviest_edges():
    assert spanning_tree(3, {(0, 1): 1.0, (1, 2): 5.0, (0, 2): 3.0}) == [(1, 2), (0, 2)]


def test_a_star_pairs_the_first_view_with_all_others():
    assert pair_graph(5, "star") == [(0, 1), (0, 2), (0, 3), (0, 4)]


def landmarks(views, seed=0):
    """Tokens of views along a closed walk: each sees, in an order of its own and with noise, a quarter of all that there is."""
    draw = torch.Generator().manual_seed(seed)
    known = torch.randn(160, 24, generator=draw) + 3.0  # all of them have much in common
    seen = [torch.arange(start, start + 40) % 160 for start in torch.linspace(0, 160, views + 1)[:-1].long()]
    return torch.stack([known[s[torch.randperm(40, generator=draw)]] + 0.3 * torch.randn(40, 24, generator=draw) for s in seen])


def test_tokens_tell_how_much_views_overlap():
    overlap = token_overlap(landmarks(16))  # neighbours share 30 of 40 landmarks, the next ones 20, 10, none
    assert torch.equal(overlap, overlap.T)
    by_distance = [overlap.diagonal(step).mean() for step in range(7)]
    assert by_distance[0] > by_distance[1] > by_distance[2] > by_distance[3] > max(by_distance[4:])


def test_many_views_are_paired_with_those_they_overlap_most():
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))  # the photos' order says nothing
    pairs = overlap_pairs(token_overlap(landmarks(16)[order]), neighbours=4)
    apart = [min((a - b) % 16, (b - a) % 16) for a, b in ((int(order[i]), int(order[j])) for i, j in pairs)]
    assert len(pairs) == 32
    assert max(apart) == 2


def test_groups_that_share_nothing_are_joined_all_the_same():
    overlap = torch.block_diag(torch.ones(4, 4), torch.ones(4, 4))
    pairs = overlap_pairs(overlap, neighbours=2)
    assert joined(8, pairs)
    assert sum((i < 4) != (j < 4) for i, j in pairs) == 1
