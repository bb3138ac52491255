"""`reconx compare`: paired differences, intervals that mean something, refusal to compare what cannot be compared."""

import json

import numpy as np
import pytest

from flows import compare
from reconx_core.errors import UserError


def scene(psnr, **changes):
    summary = {"psnr": psnr, "ssim": 0.5, "lpips": None, "gaussians": 10.0}
    return {"error": None, "protocol": "posed", "split": "train_3", "size": [400, 300], "summary": summary} | changes


def write_run(folder, scenes, **settings):
    folder.mkdir(parents=True)
    record = {"title": folder.name, "settings": {"seed": 0, "splats": {"steps": 1000} | settings}, "scenes": scenes}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_difference_interval_scenes_and_settings_are_told(tmp_path, reconx):
    a = write_run(tmp_path / "a", {name: scene(20 + i) for i, name in enumerate("uvw")})
    b = write_run(tmp_path / "b", {name: scene(21 + i) for i, name in enumerate("uvwx")}, steps=500)
    outcome = reconx("compare", a, b)
    assert outcome.code == 0
    for expected in ("+1.000", "+1.000 … +1.000", "splats.steps: 1000 → 500", "Not in both runs: x", "paired over 3 scene(s)"):
        assert expected in " ".join(outcome.out.split()), expected
    assert "LPIPS" not in outcome.out


def test_interval_covers_the_true_mean_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(100):
        low, high = compare.interval(rng.normal(0.5, 1.0, 40))
        covered += low <= 0.5 <= high
    assert 86 <= covered <= 100


def test_interval_is_the_same_every_time_and_absent_for_one_scene():
    differences = np.array([0.1, 0.5, -0.2, 0.7])
    assert compare.interval(differences) == compare.interval(differences)
    assert compare.interval(np.array([0.1])) is None


@pytest.mark.parametrize("change", [{"protocol": "unposed"}, {"split": "train_6"}, {"size": [512, 384]}])
def test_runs_on_other_terms_are_not_compared(tmp_path, change):
    a = compare.read_record(write_run(tmp_path / "a", {"u": scene(20)}))
    b = compare.read_record(write_run(tmp_path / "b", {"u": scene(21, **change)}))
    with pytest.raises(UserError, match="cannot be compared"):
        compare.shared_scenes(a, b)


def test_failed_scenes_do_not_count(tmp_path):
    a = compare.read_record(write_run(tmp_path / "a", {"u": scene(20), "v": scene(20)}))
    b = compare.read_record(write_run(tmp_path / "b", {"u": scene(21), "v": {"error": "lost", "summary": {}}}))
    assert compare.shared_scenes(a, b) == ["u"]
