"""Splits by rule: what each rule takes, and what it refuses."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconx_core.datasets import Split
from reconx_core.errors import UserError
from reconx_core.views.splits import explicit, is_rule, split_by_rule


def test_every_rule_on_a_capture_of_twenty():
    assert split_by_rule("every8:3", 20) == ((1, 10, 19), (0, 8, 16))
    assert split_by_rule("spread:3", 20) == ((0, 10, 19), (1, 9, 18))
    assert split_by_rule("gap:12", 20) == ((3, 15), (6, 9, 12))
    assert split_by_rule("outside:2", 20) == ((6, 12), (0, 1, 2, 3, 4, 5, 13, 14, 15, 16, 17, 18))
    assert split_by_rule("clip:4:2:4", 20) == ((4, 10), (6, 8))
    assert split_by_rule("views:7,2:3,2", 20) == ((2, 7), (3, 2))


@given(count=st.integers(2, 9), photos=st.integers(20, 300), kind=st.sampled_from(["every8", "spread"]))
def test_inputs_are_as_many_as_asked_for_and_never_scored(count, photos, kind):
    inputs, targets = split_by_rule(f"{kind}:{count}", photos)
    assert len(set(inputs)) == count
    assert not set(inputs) & set(targets)
    assert list(inputs) == sorted(inputs)
    assert {*inputs, *targets} <= set(range(photos))


@given(photos=st.integers(5, 400), gap=st.integers(4, 300))
def test_a_gap_is_as_wide_as_asked_for_or_refused(photos, gap):
    if gap >= photos:
        with pytest.raises(UserError, match=f"no view beyond the last of {photos} photos"):
            split_by_rule(f"gap:{gap}", photos)
        return
    (first, last), targets = split_by_rule(f"gap:{gap}", photos)
    assert last - first == gap
    assert len(targets) == 3
    assert all(first < target < last for target in targets)
    assert abs((photos - 1 - last) - first) <= 1


@given(photos=st.integers(2, 300), count=st.integers(2, 9))
def test_what_lies_outside_is_no_farther_than_the_inputs_from_each_other(photos, count):
    if photos < count + 2:
        with pytest.raises(UserError, match="needs at least two inputs"):
            split_by_rule(f"outside:{count}", photos)
        return
    inputs, targets = split_by_rule(f"outside:{count}", photos)
    (gap,) = {after - before for before, after in pairwise(inputs)}
    before, after = [i for i in targets if i < inputs[0]], [i for i in targets if i > inputs[-1]]
    assert before + after == list(targets)
    assert len(before) == len(after) == gap
    assert (min(targets), max(targets)) == (inputs[0] - gap, inputs[-1] + gap)


def test_a_ring_is_scored_all_around():
    inputs, targets = split_by_rule("ring:2", 36)
    assert inputs == (0, 3)
    assert targets == (2, 4, 8, 10, 14, 16, 20, 22, 26, 28, 32, 34)
    assert not set(split_by_rule("ring:12", 24).inputs) & set(split_by_rule("ring:12", 24).targets)
    with pytest.raises(UserError, match="24 photos or more, all the way round; here are 20 photos"):
        split_by_rule("ring:2", 20)


@pytest.mark.parametrize("name", ["every8:", "spread:a", "gap:1:2", "views:1,2", "views:1,2:3:4", "clip:1:2"])
def test_a_malformed_rule_says_how_it_should_look(name):
    with pytest.raises(UserError, match=f"The split '{name}' should look like {name.split(':')[0]}:"):
        split_by_rule(name, 20)


@pytest.mark.parametrize("name", ["every8:1", "every8:40", "spread:21", "views:1:2", "views:1,20:2", "views:-1,3:2", "gap:3"])
def test_what_a_capture_does_not_have_is_refused(name):
    with pytest.raises(UserError, match="at least two inputs and no view beyond the last of 20 photos"):
        split_by_rule(name, 20)


@given(st.lists(st.integers(0, 99), min_size=2, unique=True), st.lists(st.integers(0, 99), min_size=1))
def test_a_listed_split_comes_back(inputs, targets):
    split = Split(tuple(sorted(inputs)), tuple(targets))
    assert is_rule(explicit(split))
    assert split_by_rule(explicit(split), 100) == split


@pytest.mark.parametrize("name", ["train_3", "auto", "every_8th", "test:mine"])
def test_names_of_datasets_are_no_rules(name):
    assert not is_rule(name)
