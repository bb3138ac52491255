"""Generated content that contradicts the photos loses its confidence, consistent content keeps it."""

from dataclasses import replace

import pytest
import torch
from exact_scene import draw, room, room_pointmaps, shoot

from reconx_core.confidence import estimate_confidence
from reconx_core.geometry.camera_path import interpolate_path
from reconx_core.pointcloud import make_backend
from reconx_core.pointcloud.backends import classical
from reconx_core.settings import ConfidenceSettings, PointcloudSettings
from reconx_core.types import Cameras, Frames

pytestmark = pytest.mark.long

BLOCK = (slice(40, 90), slice(50, 110))  # of the first generated frame


@pytest.fixture(scope="module")
def inputs():
    """A corner of the second photo is masked out."""
    views = room().inputs()
    masks = views.masks.clone()
    masks[1, :30, :40] = False
    return replace(views, masks=masks)


@pytest.fixture(scope="module")
def frames(inputs):
    """The photos and two exact frames, one of them with a corrupted block."""
    between = interpolate_path(inputs.cameras, torch.tensor([0.5, 1.5]))
    images, _ = shoot(between)
    images[0][BLOCK] = torch.rand(50, 60, 3, generator=draw())
    together = Cameras(
        torch.cat([inputs.cameras.intrinsics, between.intrinsics]),
        torch.cat([inputs.cameras.cam_to_world, between.cam_to_world]), 160, 120,
    )  # fmt: skip
    confidence = torch.cat([inputs.masks.float(), torch.ones(2, 120, 160)])
    confidence[4, :, :20] = 0  # a hole that the generator filled
    return Frames(torch.cat([inputs.images, images]), together, confidence, torch.arange(5) < 3)


def estimate(inputs, frames, enabled=True, known=None):
    backend = make_backend(PointcloudSettings(planes=48), fast=True, known=known)
    settings = ConfidenceSettings(enabled=enabled, size=160)
    return estimate_confidence(inputs, frames, None, backend, settings, draw())


@pytest.fixture(scope="module")
def judged(inputs, frames):
    return estimate(inputs, frames)


def test_a_corrupted_block_loses_its_confidence(judged):
    block = torch.zeros(120, 160, dtype=torch.bool)
    block[BLOCK] = True
    first = judged.confidence[3]
    assert first[block].mean() < first[~block].mean() - 0.05


def test_where_the_photos_points_are_known_no_feature_is_looked_for(inputs, frames, judged, monkeypatch):
    monkeypatch.setattr(classical, "solve_cameras", None)
    known = estimate(inputs, frames, known=room_pointmaps())
    block = torch.zeros(120, 160, dtype=torch.bool)
    block[BLOCK] = True
    assert known.confidence[3][block].mean() < known.confidence[3][~block].mean() - 0.05
    assert (known.confidence[3:].mean() - judged.confidence[3:].mean()).abs() < 0.05


def test_what_the_photos_confirm_keeps_it(judged):
    assert judged.confidence[4, 20:-20, 40:-20].mean() > 0.5


def test_a_filled_hole_is_worth_nothing(judged):
    assert (judged.confidence[4, :, :20] == 0).all()


def test_photos_count_fully_where_they_are_valid(inputs, judged):
    assert torch.equal(judged.confidence[:3], inputs.masks.float())


def test_confidence_is_a_share_and_nothing_else_changes(frames, judged):
    assert judged.confidence.min() >= 0
    assert judged.confidence.max() <= 1
    assert torch.equal(judged.images, frames.images)
    assert torch.equal(judged.cameras.cam_to_world, frames.cameras.cam_to_world)


def test_switched_off_every_pixel_counts_the_same(inputs, frames):
    off = estimate(inputs, frames, enabled=False)
    assert (off.confidence[3:] == 1).all()
    assert torch.equal(off.confidence[:3], inputs.masks.float())


def test_photos_alone_need_no_matching(inputs, frames):
    photos = Frames(frames.images[:3], frames.cameras[:3], torch.zeros(3, 120, 160), frames.is_photo[:3])
    assert torch.equal(estimate(inputs, photos).confidence, inputs.masks.float())


@pytest.mark.slow
def test_same_bytes_again(inputs, frames, judged):
    assert torch.equal(estimate(inputs, frames).confidence, judged.confidence)
