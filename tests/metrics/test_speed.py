"""Frames a second are of the renders alone, and no part of what a stage stores."""

import pytest
from metrics_scene import make_cameras, make_gaussians

from reconx_core.metrics import speed
from tasks.execute import also_measured, measure


def test_frames_a_second_is_one_over_the_median_time(monkeypatch):
    now, pauses, seen = [0.0], iter([0.2, *([0.01] * 10), 0.2, 0.2]), []  # what else the machine did is outvoted

    def render(gaussians, cameras):
        seen.append(len(cameras))
        now[0] += next(pauses)

    monkeypatch.setattr(speed, "rasterize", render)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    assert speed.frames_a_second(make_gaussians(3), make_cameras(5)) == pytest.approx(100)
    assert seen == [1] * 13


def test_what_a_stage_measures_of_itself_stands_beside_its_time():
    result, measured = measure(lambda: also_measured(fps=30.0) or "done")
    assert (result, measured["fps"]) == ("done", 30.0)
    assert measured["seconds"] >= 0
    also_measured(fps=1.0)  # outside of a stage nobody listens
    assert "fps" not in measure(lambda: None)[1]
