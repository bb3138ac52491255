"""What a report says of the generated frames' cameras."""

import pytest

from flows.runs.results import placement_notes
from tasks.metrics import placed_share

FOUND = {
    "cameras": "find",
    "frames": 30,
    "moved": 28,
    "turn": 1.24,
    "shift": 0.081,
    "left_out": {"3": "why", "9": "why"},
    "judged": None,
}


def test_frames_whose_cameras_were_found_are_counted():
    (note,) = placement_notes(FOUND)
    assert note.startswith("The cameras of 28 of 30 generated frames were found; in the median they are 1.2 degrees and 8% of")
    assert placed_share(FOUND) == {"frames_placed": pytest.approx(28 / 30)}


def test_of_given_cameras_there_is_nothing_to_say():
    given = {"cameras": "given", "frames": 30, "moved": 0, "turn": None, "shift": None, "left_out": None, "judged": None}
    assert placement_notes(given) == ()
    assert placed_share(given) == {}
    assert placed_share(FOUND | {"frames": 0, "moved": 0}) == {}


def test_refined_cameras_are_no_share_of_frames():
    assert "were refined" in placement_notes(FOUND | {"cameras": "refine"})[0]
    assert placed_share(FOUND | {"cameras": "refine"}) == {}
