"""The ablation's rows: valid settings, off in exactly the parts that the paper's Table V names, all else shared."""

import json

import pytest

from flows.evaluation.ablation import load_ablation, switch_letters, switches_of
from flows.execution.run import resolve_settings
from reconx_core.settings import STAGES
from tasks.execute import PARENTS, resolved_settings

# video diffusion, structure condition, stereo init, confidence-aware, LPIPS: Table V from top to bottom
TABLE_V = ["--x--", "x-x--", "x-xxx", "xx-xx", "xxx-x", "xxxx-", "xxxxx"]
CHANGED = {
    "baseline": {"video", "confidence", "splats"},
    "video": {"video", "confidence", "splats"},
    "no-structure": {"video"},
    "no-stereo": {"splats"},
    "no-confidence": {"confidence"},
    "no-lpips": {"splats"},
    "full": set(),
}


def task_ids(settings):
    """What each stage's artifact depends on: its settings and, through its parents, theirs."""
    keys = {}
    for stage in STAGES:
        own = json.dumps(resolved_settings(stage, settings), sort_keys=True)
        keys[stage] = (stage, own, *(keys[parent] for parent in PARENTS[stage]))
    return keys


def test_rows_are_those_of_the_paper():
    assert ["".join("x" if on else "-" for on in row.switches.values()) for row in load_ablation()] == TABLE_V
    assert len(set(switch_letters())) == 5


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_settings_of_every_row_say_its_switches(preset):
    for row in load_ablation():
        settings = resolve_settings(preset, list(row.overrides)).model_dump(mode="json")
        assert switches_of(settings) == row.switches, row.name


def test_a_preset_without_a_part_does_not_get_its_tick():
    assert not switches_of(resolve_settings("permissive", None).model_dump(mode="json"))["lpips"]
    assert not switches_of(resolve_settings(None, ["video.backend=points"]).model_dump(mode="json"))["video"]


def test_rows_differ_from_the_full_method_in_the_right_stages_alone():
    full = resolve_settings(None, None)
    changed = {}
    for row in load_ablation():
        settings = resolve_settings(None, list(row.overrides))
        changed[row.name] = {s for s in STAGES if resolved_settings(s, settings) != resolved_settings(s, full)}
    assert changed == CHANGED


def test_rows_share_what_they_have_in_common():
    ids = [task_ids(resolve_settings(None, list(row.overrides))) for row in load_ablation()]
    counts = {stage: len({keys[stage] for keys in ids}) for stage in STAGES}
    assert counts == {
        "views": 1, "pointcloud": 1, "condition": 1, "video": 3, "confidence": 5, "splats": 7, "metrics": 7,
    }  # fmt: skip
