"""Photos of an exact room under other exposures: they are brought to one light, and those of one light are left alone."""

import warnings
from dataclasses import replace

import pytest
import torch
from exact_scene import SOURCE, room, room_pointmaps

from reconx_core import pointcloud
from reconx_core.confidence.joining import joined_pointmaps
from reconx_core.geometry import exposure
from reconx_core.geometry.exposure import registered_photos, straight_photos
from reconx_core.settings import ClipSettings, PointcloudSettings
from tasks import clip
from tasks.execute import Inputs, Job, Monitor

POWERS = torch.tensor([[0.6, 0.65, 0.6], [1.0, 1.05, 1.1], [1.4, 1.3, 1.3]])
GAINS = torch.tensor([[0.65, 0.65, 0.7], [0.9, 0.95, 0.9], [1.2, 1.15, 1.1]])


def under_other_light(photos):
    return replace(photos, images=photos.images ** POWERS[:, None, None])


def apart(photos):
    """Median difference of what two photos show."""
    common = exposure.common_colours(photos, room_pointmaps())
    return float(exposure.apart(common, torch.ones(3, 3)).median())


def test_photos_are_brought_to_one_light_which_is_their_mean():
    taken = under_other_light(room().inputs())
    found = exposure.estimate_exposures(taken, room_pointmaps())
    wanted = (1 / POWERS) / (1 / POWERS).mean(0)
    torch.testing.assert_close(found, wanted, atol=0.03, rtol=0)
    assert apart(taken) > 0.1
    assert apart(exposure.in_common_light(taken, found)) < 0.01


def test_gains_are_nearly_made_up_for():
    """As other exposures make them: of a step of 1.85 a third is left."""
    photos = room().inputs()
    taken = replace(photos, images=(GAINS[:, None, None] * photos.images).clamp(0, 1))
    found = exposure.estimate_exposures(taken, room_pointmaps())
    assert apart(exposure.in_common_light(taken, found)) < 0.35 * apart(taken)


def test_photos_of_one_light_stay_as_they_are():
    assert exposure.estimate_exposures(room().inputs(), room_pointmaps()) is None
    photos = room().inputs()
    assert exposure.in_common_light(photos, None) is photos


def test_what_stands_in_one_photo_alone_has_no_say():
    """A quarter of one photo is covered by something red."""
    taken = under_other_light(room().inputs())
    images = taken.images.clone()
    images[1, :, :40] = torch.tensor([0.8, 0.1, 0.1])
    alone, covered = (
        exposure.estimate_exposures(photos, room_pointmaps()) for photos in (taken, replace(taken, images=images))
    )
    torch.testing.assert_close(covered, alone, atol=0.03, rtol=0)


def test_a_photo_that_shares_nothing_stays_as_it_is():
    maps = room_pointmaps()
    confidence = maps.confidence.clone()
    confidence[2] = 0
    found = exposure.estimate_exposures(under_other_light(room().inputs()), replace(maps, confidence=confidence))
    assert float(found[0, 0] - found[1, 0]) > 0.2
    torch.testing.assert_close(found[2], torch.ones(3), atol=0.01, rtol=0)


def test_nothing_in_common_says_nothing():
    maps = room_pointmaps()
    assert exposure.estimate_exposures(room().inputs(), replace(maps, confidence=0 * maps.confidence)) is None


def test_a_photo_gets_its_own_light_back():
    taken = under_other_light(room().inputs())
    found = exposure.estimate_exposures(taken, room_pointmaps())
    lit = exposure.in_common_light(taken, found)
    back = torch.stack([exposure.in_own_light(image, one) for image, one in zip(lit.images, found)])
    torch.testing.assert_close(back, taken.images, atol=1e-5, rtol=0)


def test_stage_says_so_and_all_that_follows_sees_one_light():
    taken = under_other_light(room().inputs())
    with pytest.warns(UserWarning, match=r"differ in exposure .*pointcloud.exposure=off"):
        maps, cloud, kept = pointcloud.estimate(taken, PointcloudSettings(), torch.Generator())
    assert apart(registered_photos(taken, kept, maps)) < 0.02
    assert apart(straight_photos(taken, kept, maps)) > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_is, other, _ = pointcloud.estimate(taken, PointcloudSettings(exposure="off"), torch.Generator())
    assert as_is.exposures is None
    assert (cloud.rgb - other.rgb).abs().mean() > 0.02
    assert joined_pointmaps(maps, maps).exposures is None  # the photos that have joined are in one light


def test_a_training_clip_shows_its_photos_as_they_are_and_says_nothing(monkeypatch, tmp_path):
    photos = room().inputs()
    taken = replace(under_other_light(photos), is_target=torch.tensor([False, True, False]))
    monkeypatch.setattr(clip.views, "views_of", lambda capture, settings: taken)
    job = Job("clip", "hall", SOURCE, "", ClipSettings(), tmp_path, Monitor())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = clip.run(job, Inputs(tmp_path, {}))["clip"]
    torch.testing.assert_close(made.images[0], taken.images[0])
