"""Positions of marks and ticks."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconx_core.reporting.plots import MAX_NAMED_ROWS, axis, reach, scene_plot, whisker

VALUES = st.lists(st.floats(-1e4, 1e4, allow_nan=False).map(lambda v: round(v, 4)), min_size=1, max_size=20)


@given(VALUES)
def test_axis_holds_all_values_between_round_ticks(values):
    low, high, ticks = axis(values)
    assert low <= min(values) + 1e-9
    assert high >= max(values) - 1e-9
    assert 2 <= len(ticks) <= 8
    assert ticks[0][0] == low
    assert ticks[-1][0] == high
    labels = [label for _, label in ticks]
    assert len(set(labels)) == len(labels)
    assert [float(label) for label in labels] == pytest.approx([value for value, _ in ticks])


def test_marks_are_where_their_scores_are_best_scene_first():
    plot = scene_plot("PSNR", {"u": [20.0, 25.0], "v": [30.0, None], "w": [None, None]}, ("A", "B"), "{:.1f}".format)
    assert [row.name for row in plot.rows] == ["v", "u"]
    places = {label: at for at, label in plot.ticks}
    assert [mark.at for mark in plot.rows[1].marks] == [places["20"], pytest.approx((places["24"] + places["26"]) / 2)]
    assert [mark.title for mark in plot.rows[1].marks] == ["u · A · 20.0", "u · B · 25.0"]
    assert [mark.run for mark in plot.rows[0].marks] == [0]


def test_infinite_score_is_at_the_end_of_the_axis():
    plot = scene_plot("PSNR", {"u": [20.0], "v": [math.inf]}, ("",), str)
    assert plot.rows[0].marks[0].at == 100.0


def test_scenes_are_named_while_there_are_few():
    assert scene_plot("", {str(i): [float(i)] for i in range(MAX_NAMED_ROWS)}, ("",), str).named
    assert not scene_plot("", {str(i): [float(i)] for i in range(MAX_NAMED_ROWS + 1)}, ("",), str).named


def test_whisker_lies_about_zero_in_the_middle():
    drawn = whisker(-0.2, (-0.4, 0.0), 0.1, reach(-0.2, (-0.4, 0.0), 0.1))
    assert (drawn.low, drawn.at, drawn.high, drawn.spread) == pytest.approx((7.0, 28.5, 50.0, 10.75))
    assert whisker(0.0, None, None, 0.0).at == 50.0
