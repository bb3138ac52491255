"""The presets hold what their names promise."""

import pytest

from flows.execution.run import resolve_settings
from reconx_core.errors import UserError

PAPER = {  # where the paper's choice is not our default
    "confidence.generator": False,  # C_i is the stereo network's
    "confidence.judge": False,  # all frames count as they are
    "splats.pixels": "all",  # Gaussians start from the pointmaps of the first and the last frame
    "splats.max_gaussians": 0,
    "splats.steps": 1000,
    "splats.fill": False,
    "splats.backdrop": False,
    "splats.sampling": "uniform",  # all 32 frames alike
    "splats.coarse": 0.0,
    "splats.dropout": 0.0,
    "splats.lpips_every": 1,  # eq. 14 on every step
    "splats.lpips_crop": 0,
    "splats.confidence_floor": 0.0,
    "condition.sway": 0.0,
    "condition.frames_per_pair": 30,
    "pointcloud.backend": "dust3r",
    "pointcloud.graph": "complete",
    "pointcloud.exposure": "off",
    "video.backend": "reconx",
}
ALIKE = {"splats.l1_weight": 0.8, "splats.ssim_weight": 0.2, "splats.lpips_weight": 0.5}


def value(settings, name):
    stage, key = name.split(".")
    return getattr(getattr(settings, stage), key)


def test_paper_is_the_paper_and_default_is_ours():
    paper, default = resolve_settings("paper", None), resolve_settings(None, None)
    for name, choice in PAPER.items():
        assert value(paper, name) == choice, name
        assert value(default, name) != choice, name
    for name, choice in ALIKE.items():
        assert value(paper, name) == value(default, name) == choice, name


@pytest.mark.parametrize("name", sorted(PAPER))
def test_each_of_the_papers_choices_can_be_had_alone(name):
    """So that a run can show what it is worth."""
    changed = resolve_settings(None, [f"{name}={PAPER[name]}"])
    default = resolve_settings(None, None)
    assert value(changed, name) == PAPER[name]
    stage, key = name.split(".")
    assert getattr(changed, stage).model_copy(update={key: value(default, name)}) == getattr(default, stage)


def test_a_crop_too_small_for_lpips_is_a_sentence():
    with pytest.raises(UserError, match=r"splats.lpips_crop.* 0 or at least 32"):
        resolve_settings(None, ["splats.lpips_crop=16"])
