import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconx_core.pointcloud.graph import MIN_MATCHES, pair_graph, spanning_tree


def joined(n, pairs):
    reached = {0}
    for _ in range(n):
        reached |= {v for pair in pairs if set(pair) & reached for v in pair}
    return reached == set(range(n))


@given(n=st.integers(2, 20), mode=st.sampled_from(["auto", "complete", "window"]), data=st.data())
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
