"""Rules written down before a run: what they say, whether they hold, and when they were written."""

import os

import numpy as np
import pytest
from small_runs import record_scene, write_run

from flows.evaluation.rules import find_rule, judge, parse_rule, student_interval
from flows.runs.records import read_run
from reconx_core.errors import UserError

RULE = "mean difference > 0.1 dB with 95 % confidence"


def runs(tmp_path, gains, seeds=(), **record):
    """A run and another whose scenes have these gains in PSNR; per seed the gain plus what is in ``seeds``."""
    made = []
    for k, name in enumerate("AB"):
        scenes = {}
        for i, gain in enumerate(gains):
            of = {str(s): {"psnr": 20 + i + k * (gain + more)} for s, more in enumerate(seeds)}
            scenes[f"s{i}"] = record_scene(20 + i + k * gain) | ({"seeds": of} if seeds else {})
        made.append(read_run(str(write_run(tmp_path / name, scenes, started=1000.0, **(record if k else {}))), name))
    return made


@pytest.mark.parametrize(
    ("text", "expected"),
    [(RULE, ("psnr", ">", 0.1, 95, "scenes")),
     ("PSNR mean  difference > 1 DB with 90% confidence over seeds", ("psnr", ">", 1, 90, "seeds")),
     ("lpips mean difference < -0.01 with 99.5 % confidence", ("lpips", "<", -0.01, 99.5, "scenes")),
     ("Photo PSNR mean difference > +0 dB with 95 % confidence over scenes", ("photo_psnr", ">", 0, 95, "scenes")),
     ("rotation mean difference < 0 degrees with 95 % confidence", ("rotation_error", "<", 0, 95, "scenes"))],
)  # fmt: skip
def test_rules_are_read(text, expected):
    rule = parse_rule(text)
    assert (rule.key, rule.sign, rule.threshold, rule.confidence, rule.over) == expected


@pytest.mark.parametrize(
    ("text", "wrong"),
    [("B is better", "should look like"), ("mean difference > 0.1 with 95 % confidence", "whose unit is dB, not none"),
     ("ssim mean difference > 0.1 dB with 95 % confidence", "of SSIM, whose unit is none, not dB"),
     ("beauty mean difference > 0.1 with 95 % confidence", "no score that there is: 'beauty'"),
     ("mean difference > 0.1 dB with 100 % confidence", "from 50 to below 100 %"),
     ("mean difference > 0.1 dB with 5 % confidence", "from 50 to below 100 %")],
)  # fmt: skip
def test_what_is_no_rule_is_told_in_a_sentence(text, wrong):
    with pytest.raises(UserError, match=wrong):
        parse_rule(text)


@pytest.mark.parametrize(("gains", "code"), [((0.3, 0.2, 0.4), 0), ((0.3, 0.0, 0.4), 1), ((0.05, 0.05, 0.05), 1), ((3, 3), 1)])
def test_the_exit_code_says_whether_the_runs_own_rule_holds(tmp_path, reconx, gains, code):
    runs(tmp_path, gains, rule=RULE)
    outcome = reconx("compare", tmp_path / "A", tmp_path / "B")
    assert outcome.code == code, outcome.err
    assert f"hown: '{RULE}' (written down when B began, but {len(gains)} of its" not in outcome.out
    assert (f"\nShown: '{RULE}' (written down when B began); PSNR of B - A is" in outcome.out) == (code == 0)


def test_without_a_rule_nothing_is_judged_and_a_wrong_one_is_a_mistake(tmp_path, reconx):
    runs(tmp_path, (0, 0, 0))
    assert reconx("compare", tmp_path / "A", tmp_path / "B").code == 0
    outcome = reconx("compare", tmp_path / "A", tmp_path / "B", "--rule", "B wins")
    assert (outcome.code, outcome.err.startswith("reconx: The rule 'B wins' should look like")) == (2, True)
    assert reconx("evaluate", tmp_path, "--rule", "B wins", "-o", tmp_path / "out").code == 2
    assert not (tmp_path / "out").exists()


def test_when_a_rule_was_written_is_said(tmp_path):
    _, b = runs(tmp_path, (1, 1, 1), rule=RULE)
    assert find_rule(None, b)[1] == "written down when B began"
    assert find_rule(RULE, b)[1] == "written down when B began"
    assert find_rule(RULE.replace("0.1", "0.05"), b)[1] == "not written down before B"
    for scene in b.record["scenes"].values():
        scene["costs"].append({"stage": "metrics", "seconds": 1.0, "peak_mib": 9.0, "cached": True})
    assert find_rule(None, b)[1] == "written down when B began, but 3 of its 3 scenes had been scored before"
    file = tmp_path / "rule.txt"
    file.write_text(f"{RULE}\n")
    assert find_rule(str(file), b) == (parse_rule(RULE), f"in {file}, last changed after B began")
    os.utime(file, (900, 900))
    assert find_rule(str(file), b)[1] == f"in {file}, last changed before B began"


def test_over_seeds_a_single_scene_can_be_judged(tmp_path):
    a, b = runs(tmp_path, (0.5,), seeds=(-0.1, 0.0, 0.1, 0.05))
    rule = parse_rule(f"{RULE} over seeds")
    decision = judge(rule, "now", a, b)
    assert decision.holds
    assert "+0.513 dB over 4 seeds" in decision.sentence
    assert not judge(parse_rule(RULE), "now", a, b).holds
    noisy = runs(tmp_path / "noisy", (0.5,), seeds=(-0.9, 0.0, 0.9))
    assert not judge(rule, "now", *noisy).holds
    assert "not every seed of both runs has PSNR" in judge(rule, "now", *runs(tmp_path / "one", (0.5,))).sentence


def test_students_interval_holds_the_mean_of_few_values_as_often_as_it_says():
    rng = np.random.default_rng(0)
    found = [student_interval(rng.normal(size=3), 0.9) for _ in range(1000)]
    assert np.mean([low < 0 < high for low, high in found]) == pytest.approx(0.9, abs=0.03)


def test_less_is_better_where_the_rule_says_so(tmp_path):
    a, b = runs(tmp_path, (-1, -1.2, -1.1))
    assert judge(parse_rule("mean difference < -0.9 dB with 95 % confidence"), "now", a, b).holds
    assert not judge(parse_rule("mean difference < -1.05 dB with 95 % confidence"), "now", a, b).holds
