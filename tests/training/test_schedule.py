"""Which samples an update has: those of all processes and parts together, whoever has them."""

import pytest

from reconx_core.training.schedule import Schedule


def samples(update, **split):
    """Seed and clip of all samples of an update."""
    found = set()
    for process in range(split.get("processes", 1)):
        schedule = Schedule(7, 5, **split, process=process)
        for part in range(schedule.accumulate):
            found |= {(schedule.draw("noise", update, i), schedule.clip(update, i)) for i in schedule.indices(part)}
    return found


@pytest.mark.parametrize("split", [{"processes": 3}, {"accumulate": 3}, {"processes": 1, "accumulate": 1}])
def test_processes_and_accumulation_share_out_the_same_samples(split):
    batch = 12 // (split.get("processes", 1) * split.get("accumulate", 1))
    assert samples(4, batch=batch, **split) == samples(4, batch=12)
    assert len(samples(4, batch=12)) == 12


def test_an_epoch_visits_every_clip():
    schedule = Schedule(0, 10, batch=5)
    orders = [[schedule.clip(update, i) for update in updates for i in range(5)] for updates in ((0, 1), (2, 3))]
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert orders[0] != orders[1]
    assert [schedule.epoch(update) for update in range(4)] == [0, 0, 1, 1]
