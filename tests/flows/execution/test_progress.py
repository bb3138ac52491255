"""What is printed while a run goes on: little where there are thousands of scenes, enough where nobody looks at a terminal."""

import io
import json
import re
import time

import pytest
from rich.console import Console

from flows.execution import progress
from flows.execution.forecast import Forecast, Size, expected_seconds
from flows.execution.progress import Display, clock
from reconx_core.settings import STAGES

MEASURED = {"seconds": 2.0, "peak_mib": 512.0, "notes": []}


def run_through(display, scenes, broken=()):
    for scene in scenes:
        for stage in STAGES:
            display.planned(stage, scene)
    for scene in scenes:
        if scene in broken:
            display.failed([scene], "views", "No photos.")
            continue
        for stage in STAGES:
            display.started(stage, scene)
            display.finished(stage, scene, MEASURED, cached=False)


def printed(tmp_path, scenes, broken=(), terminal=False):
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100, height=30, color_system=None)
    display = Display(console, tmp_path, len(scenes))
    with display.live():
        run_through(display, scenes, broken)
        display._update()
    return out.getvalue()


def test_few_scenes_have_a_line_for_every_stage(tmp_path):
    attic = 120 * "attic"  # as long a name does not make a line two
    lines = printed(tmp_path, [attic, "den"], ["den"]).rstrip("\n").splitlines()
    assert [line.split()[:2] for line in lines] == [*([attic, stage] for stage in STAGES), ["den", "failed"]]


@pytest.mark.parametrize("terminal", [False, True])
def test_of_many_scenes_only_the_failures_stay(tmp_path, terminal):
    scenes = [f"scene{number}" for number in range(40)]
    text = printed(tmp_path, scenes, ["scene7"], terminal)
    assert text.count("scene7 failed in views: No photos.") == 1
    if terminal:
        assert "40 scenes done, 1 failed" in text
        assert re.search(r"scene39 +metrics +2\.0 s", text)
        # The last lines are part of what is drawn over again: at its end the screen holds the failure alone.
        final = text.rsplit("\x1b[2K", 1)[-1]
        assert "scene39" not in final
    else:
        assert text.rstrip("\n").splitlines() == ["  scene7 failed in views: No photos."]


def test_piped_output_says_how_far_it_is_at_least_every_30_seconds(tmp_path, monkeypatch):
    out, now = io.StringIO(), [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    display = Display(Console(file=out, width=300), tmp_path, 20)
    for number in range(20):
        for stage in STAGES:
            display.planned(stage, f"scene{number}")
    for tick in range(400):
        if tick == 100:
            display.started("views", "scene0")
        if tick == 150:
            for stage in STAGES:
                display.finished(stage, "scene0", MEASURED, cached=False)
        now[0] += 0.25
        display._update()
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"  0 of 20 scenes done, about \S+ left; now views scene0", lines[0]), lines[0]
    assert re.fullmatch(r"  1 of 20 scenes done, about \S+ left", lines[1]), lines[1]


def test_notes_that_are_alike_are_told_a_few_times(tmp_path):
    out = io.StringIO()
    display = Display(Console(file=out, width=300), tmp_path, 7289)
    for number in range(100):
        display.say(f"Photo 'a b{number}.png' of scene_{number} is dark.")
    display.say("The disk is slow.")
    lines = out.getvalue().splitlines()
    assert len(lines) == 5
    assert lines[3].startswith("  More notes like this one are not shown")
    assert lines[4] == "  The disk is slow."


def test_what_rows_share_fails_once(tmp_path):
    out = io.StringIO()
    display = Display(Console(file=out, width=300), tmp_path, 14)
    display.failed([f"den · row{number}" for number in range(7)], "views", "No photos.")
    assert out.getvalue() == "  den · row0 (and 6 other rows or seeds) failed in views: No photos.\n"


def test_time_left_goes_by_measured_stages_and_by_how_many_run_side_by_side(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    forecast = Forecast(dict.fromkeys(STAGES, 1.0))
    for number in range(100):
        for stage in STAGES:
            forecast.plan(stage, f"scene{number}")
    assert forecast.left({}) == 700.0
    now[0] = 1.0
    forecast.begin()
    for scene in ("scene0", "scene1", "scene2", "scene3"):
        for stage in STAGES:
            assert forecast.end(stage, scene, 10.0)
            assert not forecast.end(stage, scene, 10.0), "told before"
    now[0] = 71.0  # 280 s of work in 70 s: four at a time
    assert forecast.left({}) == pytest.approx(96 * 70 / 4)
    forecast.give_up("scene4")
    assert forecast.left({}) == pytest.approx(95 * 70 / 4)
    assert (forecast.done, forecast.scenes) == (4, 100)


def test_more_photos_prolong_what_follows_pointcloud_but_not_the_fit():
    forecast = Forecast({"pointcloud": 10.0, "confidence": 8.0, "splats": 30.0})
    for stage in ("pointcloud", "confidence", "splats"):
        forecast.plan(stage, "u")
    assert forecast.left({}) == 48.0
    forecast.end("pointcloud", "u", 30.0)
    assert (forecast.expect("confidence"), forecast.expect("splats")) == (24.0, 30.0)
    forecast.end("confidence", "u", 20.0)
    assert (forecast.expect("confidence"), forecast.expect("splats")) == (20.0, 30.0)


def test_time_left_goes_by_how_many_photos_of_what_size_there_are():
    """Twelve photos of 1,024 px were said to be done in a minute and a half after the first stage, and took over ten."""
    stages = ("pointcloud", "video", "splats")
    usual, large = (
        Forecast({"pointcloud": 10.0, "video": 8.0, "splats": 30.0}),
        Forecast({"pointcloud": 10.0, "video": 8.0, "splats": 30.0}),
    )
    for stage in stages:
        usual.plan(stage, "u")
        large.plan(stage, "u")
    usual.learn("u", Size(3, 512 * 384))
    large.learn("u", Size(12, 1024 * 768))
    assert usual.left({}) == 48.0
    assert large.expect("pointcloud") == pytest.approx(10 * 5.5 * 4**0.45)
    assert large.expect("video") == pytest.approx(8 * 5.5 * 4**1.2)
    assert large.expect("splats") == pytest.approx(30 * 4**0.6)
    large.end("pointcloud", "u", 10 * 5.5 * 4**0.45)
    assert large.expect("video") == pytest.approx(8 * 5.5 * 4**1.2)  # as fast a machine as was thought


def test_what_large_scenes_took_tells_of_small_ones(tmp_path):
    for key, photos, seconds in (("a", 3, 20.0), ("b", 5, 40.0), ("c", 9, 80.0)):
        (tmp_path / "confidence" / key).mkdir(parents=True)
        measured = {"seconds": seconds, "photos": photos, "pixels": 512 * 384}
        (tmp_path / "confidence" / key / "measured.json").write_text(json.dumps(measured))
    assert expected_seconds(tmp_path)["confidence"] == 20.0
    assert expected_seconds(tmp_path, [Size(7, 512 * 384)])["confidence"] == 60.0


def test_time_left_knows_what_passes_beside_the_stages(monkeypatch):
    """Quick stages in workers: most of the time goes into handing them out. What is in the store already takes time, too."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    forecast = Forecast(dict.fromkeys(STAGES, 0.1))
    for number in range(10):
        for stage in STAGES:
            forecast.plan(stage, f"scene{number}")
    now[0] = 1.0
    forecast.begin()
    for scene, seconds in (("scene0", 0.1), ("scene1", None)):
        for stage in STAGES:
            forecast.end(stage, scene, seconds)
    now[0] = 8.7  # 0.7 s of work, and half a second beside each of the 14 stages
    assert forecast.left({}) == pytest.approx(8 * 7 * (0.1 + 0.5))


def test_thousands_of_scenes_and_failures_take_no_time(tmp_path):
    display = Display(Console(file=io.StringIO()), tmp_path, 7289)
    start = time.process_time()
    scenes = [f"scene{number}" for number in range(7289)]
    run_through(display, scenes, set(scenes[::7]))
    display._update()
    assert time.process_time() - start < 3.0
    assert (display.forecast.done, len(display.failures)) == (7289 - 1042, 1042)


def test_clock():
    assert [clock(seconds) for seconds in (7, 750, 3600, 51120)] == ["0:07", "12:30", "1 h 00 min", "14 h 12 min"]
