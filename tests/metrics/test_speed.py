"""Frames a second are of the renders alone, and no part of what a stage stores."""

import time

from metrics_scene import make_cameras, make_gaussians

from reconx_core.metrics import speed
from tasks.execute import also_measured, measure


def test_frames_a_second_is_one_over_the_median_time(monkeypatch):
    pauses = iter([0.2, *([0.01] * 10), 0.2, 0.2])  # the first does not count; what else the machine did is outvoted
    seen = []
    monkeypatch.setattr(speed, "rasterize", lambda gaussians, cameras: (seen.append(len(cameras)), time.sleep(next(pauses))))
    assert 40 < speed.frames_a_second(make_gaussians(3), make_cameras(5)) <= 100
    assert seen == [1] * 13


def test_what_a_stage_measures_of_itself_stands_beside_its_time():
    result, measured = measure(lambda: also_measured(fps=30.0) or "done")
    assert (result, measured["fps"]) == ("done", 30.0)
    assert measured["seconds"] >= 0
    also_measured(fps=1.0)  # outside of a stage nobody listens
    assert "fps" not in measure(lambda: None)[1]
