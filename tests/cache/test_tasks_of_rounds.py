"""The tasks of rounds, and which of them another setting leaves as they are."""

import pytest

from flows.execution.failures import task_id
from reconx_core.settings import STAGES, Settings, parse_settings
from tasks.execute import resolved_settings
from tasks.graph import IN_ROUNDS, PARENTS, tasks_of

RING = ["condition.path=orbit"]


def ring(*changes):
    return parse_settings({}, [*RING, *changes])


def ids(settings):
    return {node.name: task_id(node.stage, "attic", "photos", settings, node.round) for node in tasks_of(settings)}


def test_without_rounds_the_tasks_are_the_stages():
    nodes = tasks_of(Settings())
    assert [node.name for node in nodes] == [node.stage for node in nodes] == list(STAGES)
    assert all(node.parents == {parent: parent for parent in PARENTS[node.stage]} for node in nodes)
    assert not {"rounds", "advance", "unseen"} & set(resolved_settings("condition", Settings())["condition"])


def test_each_round_stands_on_the_one_before():
    nodes = {node.name: node for node in tasks_of(ring("condition.rounds=3"))}
    assert len(nodes) == 4 + 3 * len(IN_ROUNDS)
    assert nodes["video 3"].parents == {"views": "join 2", "pointcloud": "join 2", "condition": "condition 3"}
    assert nodes["join 2"].parents == {
        "views": "join", "pointcloud": "join", "condition": "condition 2", "confidence": "confidence 2"
    }  # fmt: skip
    assert nodes["splats"].parents == {"pointcloud": "join 3", "confidence": "join 3"}
    assert nodes["metrics"].parents["pointcloud"] == "pointcloud"
    seen = set()
    for name, node in nodes.items():
        assert set(node.parents.values()) <= seen
        seen.add(name)


@pytest.mark.parametrize("stages", [STAGES[:3], STAGES[:5]])
def test_up_to_a_stage_there_is_the_first_round(stages):
    assert [node.name for node in tasks_of(ring("condition.rounds=3"), stages)] == list(stages)


def test_another_number_of_rounds_repeats_only_the_last():
    three, four = ids(ring("condition.rounds=3")), ids(ring("condition.rounds=4"))
    same = {name for name, task in three.items() if four.get(name) == task}
    assert same == {name for name in three if not name.endswith(" 3")} - {"splats", "metrics"}


def test_a_setting_of_rounds_counts_in_rounds_alone():
    assert ids(ring("condition.advance=30")) == ids(ring())
    one, other = ids(ring("condition.rounds=2")), ids(ring("condition.rounds=2", "condition.advance=30"))
    assert {name for name in one if one[name] == other[name]} == {"views", "pointcloud"}
