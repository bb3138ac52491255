import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reconx_core.geometry.transforms import rigid, rotation_angle, so3_exp
from reconx_core.metrics.pose import (
    AUC_THRESHOLDS,
    Similarity,
    align_cameras,
    auc,
    binned_auc,
    pose_errors,
    relative_pose_errors,
    trapezoid_auc,
)
from reconx_core.types import Cameras


def cameras_of(cam_to_world):
    intrinsics = torch.tensor([[50.0, 0, 32], [0, 50, 24], [0, 0, 1]]).expand(len(cam_to_world), 3, 3)
    return Cameras(intrinsics.contiguous(), cam_to_world, 64, 48)


def some_cameras(n, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return cameras_of(rigid(so3_exp(0.5 * torch.randn(n, 3, generator=draw)), torch.randn(n, 3, generator=draw)))


def turned(cameras, view, degrees):
    poses = cameras.cam_to_world.clone()
    poses[view, :3, :3] = poses[view, :3, :3] @ so3_exp(torch.tensor([0.0, math.radians(degrees), 0.0]))
    return cameras_of(poses)


def errors_after_alignment(estimated, truth):
    """Per view: rotation in degrees, distance of centres."""
    moved = align_cameras(estimated, truth).cameras(estimated).cam_to_world
    rotation = rotation_angle(moved[:, :3, :3], truth.cam_to_world[:, :3, :3])
    return rotation, (moved[:, :3, 3] - truth.cam_to_world[:, :3, 3]).norm(dim=-1)


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(2, 6), seed=st.integers(0, 1000), scale=st.floats(0.01, 100.0),
    omega=st.tuples(*[st.floats(-3, 3)] * 3), shift=st.tuples(*[st.floats(-50, 50)] * 3),
)  # fmt: skip
def test_alignment_undoes_any_similarity(n, seed, scale, omega, shift):
    truth = some_cameras(n, seed)
    away = Similarity(scale, so3_exp(torch.tensor(omega)), torch.tensor(shift)).inverse()
    estimated = away.cameras(truth)
    rotation, distance = errors_after_alignment(estimated, truth)
    assert rotation.max() < 0.05
    assert distance.max() < 1e-3 + 1e-4 * max(map(abs, shift))
    assert pose_errors(estimated, truth)["auc_5"] > 0.97


def test_cameras_in_one_place_are_aligned_by_their_rotations():
    truth = some_cameras(3)
    truth.cam_to_world[:, :3, 3] = torch.tensor([1.0, 2.0, 3.0])
    turn = so3_exp(torch.tensor([0.2, -0.1, 0.7]))
    estimated = Similarity(1.0, turn, torch.zeros(3)).cameras(truth)
    found = align_cameras(estimated, truth)
    assert rotation_angle(found.rotation, turn.mT) < 0.01
    assert errors_after_alignment(estimated, truth)[1].max() < 1e-5


def test_a_turned_camera_shows_by_its_angle():
    truth = some_cameras(3)
    rotation, translation = relative_pose_errors(turned(truth, 2, 10), truth)
    assert rotation.tolist() == pytest.approx([0, 10, 10], abs=0.05)  # pairs (0,1), (0,2), (1,2)
    assert translation[0] < 0.05
    assert ((translation[1:] > 1) & (translation[1:] < 10.1)).all()


def test_opposite_translation_is_180_degrees_off():
    truth = cameras_of(rigid(torch.eye(3).expand(2, 3, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0]])))
    wrong = cameras_of(rigid(torch.eye(3).expand(2, 3, 3), torch.tensor([[0.0, 0, 0], [-1, 0, 0]])))
    assert float(relative_pose_errors(wrong, truth)[1]) == pytest.approx(180)


def test_auc_is_the_area_under_the_recall_curve():
    errors = torch.tensor([0.5, 3.0, 4.0, 12.0, 80.0])
    x = torch.linspace(0, 10, 200001)
    curve = (errors[:, None] <= x).float().mean(0)
    assert auc(errors, 10) == pytest.approx(float(torch.trapezoid(curve, x)) / 10, abs=1e-4)


ERRORS = st.lists(st.floats(0, 45), min_size=1, max_size=30).map(lambda values: torch.tensor(values, dtype=torch.float64))


@settings(deadline=None, max_examples=50)
@given(errors=ERRORS, threshold=st.sampled_from(AUC_THRESHOLDS))
def test_superglues_area(errors, threshold):
    """Transcribed from its definition, with numpy."""
    x, share = np.sort(errors.numpy()), (np.arange(len(errors)) + 1) / len(errors)
    x, share = np.r_[0, x], np.r_[0, share]
    last = np.searchsorted(x, threshold)
    wanted = np.trapezoid(np.r_[share[:last], share[last - 1]], np.r_[x[:last], threshold]) / threshold
    assert trapezoid_auc(errors, threshold) == pytest.approx(wanted, abs=1e-9)


@settings(deadline=None, max_examples=50)
@given(errors=ERRORS, threshold=st.sampled_from(AUC_THRESHOLDS))
def test_vggts_area(errors, threshold):
    histogram, _ = np.histogram(errors.numpy(), bins=np.arange(threshold + 1))
    assert binned_auc(errors, threshold) == pytest.approx(np.cumsum(histogram / len(errors)).mean(), abs=1e-9)


def test_the_three_areas_of_one_pair():
    """3.5 degrees off: of ten degrees 6.5 lie beyond, under a straight line half of 3.5 more; of ten bins the last 7."""
    one = torch.tensor([3.5])
    assert (auc(one, 10), trapezoid_auc(one, 10), binned_auc(one, 10)) == pytest.approx((0.65, 0.825, 0.7))


def test_the_fields_areas_count_an_opposite_translation_as_right():
    truth = cameras_of(rigid(torch.eye(3).expand(2, 3, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0]])))
    wrong = cameras_of(rigid(torch.eye(3).expand(2, 3, 3), torch.tensor([[0.0, 0, 0], [-1, 0, 0]])))
    scores = pose_errors(wrong, truth)
    assert scores["auc_30"] == 0
    assert scores["auc_30_trapezoid"] == scores["auc_30_binned"] == pytest.approx(1)


def test_summary_takes_the_larger_angle_of_each_pair():
    truth = some_cameras(2)
    summary = pose_errors(turned(truth, 1, 6), truth)
    assert summary["rotation_error"] == pytest.approx(6, abs=0.05)
    worst = max(summary["rotation_error"], summary["translation_error"])
    assert summary["auc_30"] == pytest.approx(max(0.0, 1 - worst / 30), abs=0.01)
