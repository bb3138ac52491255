"""Frames that would hurt are left out or corrected before they count; frames that are fine stay as they are, bit by bit."""

import json
from dataclasses import replace

import pytest
import torch
from exact_scene import draw, room, room_pointmaps, shoot

from flows.runs.results import placement_notes
from reconx_core.confidence import Backends, judge_by_neighbours, judge_frames, trusted_frames
from reconx_core.confidence.cameras import Placement
from reconx_core.geometry.camera_path import interpolate_path
from reconx_core.geometry.transforms import join_cameras, rigid, so3_exp
from reconx_core.settings import ConfidenceSettings
from reconx_core.types import Frames, PointCloud, Pointmaps
from tasks.join import together

GIVEN = Placement("given", 3)
GAIN, OFFSET = torch.tensor([0.8, 1.1, 0.9]), torch.tensor([0.05, 0.0, 0.08])


@pytest.fixture(scope="module")
def true_frames():
    """Three photos and three exact frames between them."""
    inputs = room().inputs()
    path = interpolate_path(inputs.cameras, torch.tensor([0.3, 0.6, 1.5]))
    images = torch.cat([inputs.images, shoot(path)[0]])
    pair = torch.tensor([[0, 0], [1, 1], [2, 2], [0, 1], [0, 1], [0, 1]])
    return Frames(images, join_cameras(inputs.cameras, path), torch.ones(6, 120, 160), torch.arange(6) < 3, pair)


def judged(frames, placement=GIVEN):
    return judge_frames(room().inputs(), frames, room_pointmaps(), placement)


def painted(frames, change, number=1):
    """The frames with one of the generated ones changed."""
    images = frames.images.clone()
    images[3 + number] = change(images[3 + number])
    return replace(frames, images=images)


def tinted(image):
    return GAIN * image + OFFSET


def test_what_is_fine_stays_bit_by_bit(true_frames):
    found, placement = judged(true_frames)
    assert torch.equal(found.images, true_frames.images)
    assert torch.equal(found.confidence, true_frames.confidence)
    assert placement.left_out is None
    assert [one["frame"] for one in placement.judged] == [0, 1, 2]
    assert all(one["agreement"] > 0.9 and one["shift"] < 0.01 and one["off"] == 0 for one in placement.judged)
    assert not any(one["corrected"] for one in placement.judged)
    assert placement_notes(json.loads(placement.as_json())) == ()


def test_a_frame_tinted_as_a_whole_is_corrected_and_the_others_stay(true_frames):
    found, placement = judged(painted(true_frames, tinted))
    assert (found.images[4] - true_frames.images[4]).abs().mean() < 0.01
    assert (tinted(true_frames.images[4]) - true_frames.images[4]).abs().mean() > 0.03
    assert torch.equal(found.images[[3, 5]], true_frames.images[[3, 5]])
    one = placement.judged[1]
    assert (one["corrected"], one["gain"]) == (True, pytest.approx((1 / GAIN).tolist(), rel=0.05))
    (note,) = placement_notes(json.loads(placement.as_json()))
    assert note.startswith("The colours of 1 of 3 generated frames were brought to the photos', by up to")


def test_a_tint_is_found_beside_a_region_of_another_colour(true_frames):
    """The region, a twelfth of the frame, loses its confidence; the map is that of the rest."""

    def change(image):
        image = tinted(image)
        image[32:64, 48:96] = torch.tensor([1.0, 0.0, 1.0])
        return image

    found, placement = judged(painted(true_frames, change))
    region = torch.zeros(120, 160, dtype=torch.bool)
    region[36:60, 52:92] = True
    assert (found.confidence[4][region] == 0).all()
    assert found.confidence[4].mean() > 0.85
    assert placement.judged[1]["gain"] == pytest.approx((1 / GAIN).tolist(), rel=0.05)
    assert torch.equal(found.confidence[[3, 5]], true_frames.confidence[[3, 5]])


def patchy(image):
    image = image.clone()
    image[:60] = image[:60].flip(-1) + torch.tensor([0.4, -0.2, -0.2])
    return image


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda image: image.flip(1), "does not show what the photos show from there"),
        (lambda image: 0.3 * image + 0.65, "its colours are far from the photos'"),
        (patchy, "its colours differ from the photos' by region"),
    ],
)
def test_a_frame_that_would_hurt_is_left_out_with_its_reason(true_frames, change, why):
    with pytest.warns(UserWarning, match=r"^1 of 3 generated frames are left out: 1 because i"):
        found, placement = judged(painted(true_frames, change))
    assert placement.left_out == {"1": why}
    assert torch.equal(found.images, true_frames.images[[0, 1, 2, 3, 5]])
    assert found.pair.tolist() == true_frames.pair[[0, 1, 2, 3, 5]].tolist()
    assert len(placement.judged) == 3


def test_frames_keep_their_numbers_where_others_are_gone_before(true_frames):
    rest = painted(true_frames, lambda image: image.flip(1)).select(torch.tensor([0, 1, 2, 4, 5]))
    before = Placement("find", 3, 2, 1.0, 0.1, {"0": "is lost"})
    with pytest.warns(UserWarning, match="are left out"):
        _, placement = judged(rest, before)
    assert list(placement.left_out) == ["0", "1"]
    assert placement.left_out["0"] == "is lost"
    assert [one["frame"] for one in placement.judged] == [1, 2]


def test_of_what_no_photo_sees_nothing_is_said(true_frames):
    """Tinted frames that look the other way: nobody knows what is right there."""
    away = true_frames.cameras.cam_to_world.clone()
    away[3:] = away[3:] @ rigid(so3_exp(torch.tensor([[0.0, torch.pi, 0.0]])), torch.zeros(1, 3))
    turned = replace(true_frames, cameras=replace(true_frames.cameras, cam_to_world=away))
    turned = painted(turned, tinted)
    found, placement = judged(turned)
    assert torch.equal(found.images, turned.images)
    assert [(one["agreement"], one["shift"]) for one in placement.judged] == [(None, None)] * 3


@pytest.mark.parametrize(("shares", "gone"), [((0.9, 0.1, 0.8), [1]), ((0.9, 0.5, 0.3), []), ((0.1, 0.0, 0.05), [1])])
@pytest.mark.filterwarnings("ignore:.*are left out")
def test_a_frame_that_both_its_neighbours_contradict_is_left_out(true_frames, shares, gone):
    confidence = true_frames.confidence.clone()
    for number, share in enumerate(shares):
        confidence[3 + number, round(120 * share) :] = 0
    found, placement = judge_by_neighbours(replace(true_frames, confidence=confidence), GIVEN)
    assert [int(i) for i in placement.left_out or {}] == gone
    assert len(found) == 6 - len(gone)


def certain(views, fixed, generator):
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    points = torch.zeros(*views.masks.shape, 3)
    return Pointmaps(points, torch.ones(views.masks.shape), fixed, nothing), torch.arange(len(views))


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_the_stage_judges_unless_told_not_to(true_frames):
    bad = painted(painted(true_frames, tinted, 0), lambda image: image.flip(1))
    for judge, frames in ((True, 5), (False, 6)):
        settings = ConfidenceSettings(judge=judge)
        found, placement = trusted_frames(room().inputs(), bad, room_pointmaps(), Backends(certain, certain), settings, draw())
        assert len(found) == frames
        assert torch.equal(found.images[3], bad.images[3]) != judge
        assert (placement.judged is None) != judge
    assert torch.equal(found.images, bad.images)


def test_rounds_count_their_frames_together():
    first = {"cameras": "given", "frames": 3, "moved": 0, "turn": None, "shift": None, "left_out": {"1": "a"}}
    first["judged"] = [{"frame": 0}, {"frame": 1}, {"frame": 2}]
    both = together(first, {**first, "left_out": None, "judged": [{"frame": 0}]})
    assert [one["frame"] for one in both["judged"]] == [0, 1, 2, 3]
    assert both["left_out"] == {"1": "a"}
