"""Photos of an exact room under other exposures: they are brought to one light, and those of one light are left alone."""

import warnings
from dataclasses import replace

import pytest
import torch
from exact_scene import room, room_pointmaps

from reconx_core import pointcloud
from reconx_core.confidence.joining import joined_pointmaps
from reconx_core.geometry import exposure
from reconx_core.geometry.undistort import registered_photos, straight_photos
from reconx_core.settings import PointcloudSettings

GAINS = torch.tensor([[0.7, 0.7, 0.75], [1.0, 1.05, 1.0], [1.3, 1.25, 1.25]])


def under_other_light(photos, offset=0.0):
    offsets = offset * torch.tensor([-1.0, 0.0, 1.0])[:, None, None, None]
    return replace(photos, images=(GAINS[:, None, None] * photos.images + offsets).clamp(0, 1))


def apart(photos):
    """Median difference of what two photos show."""
    common = exposure.common_colours(photos, room_pointmaps())
    identity = torch.stack([torch.ones(3, 3), torch.zeros(3, 3)], 1)
    return float(exposure.apart(common, identity).median())


@pytest.mark.parametrize("offset", [0.0, 0.05])
def test_photos_are_brought_to_one_light_which_is_their_mean(offset):
    taken = under_other_light(room().inputs(), offset)
    found = exposure.estimate_exposures(taken, room_pointmaps())
    torch.testing.assert_close(found.mean(0), torch.tensor([[1.0] * 3, [0.0] * 3]), atol=1e-3, rtol=0)
    assert apart(taken) > 0.1
    assert apart(exposure.in_common_light(taken, found)) < 0.015


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
    assert found[:2, 0].max() - found[:2, 0].min() > 0.2
    torch.testing.assert_close(found[2], torch.tensor([[1.0] * 3, [0.0] * 3]), atol=0.01, rtol=0)


def test_nothing_in_common_says_nothing():
    maps = room_pointmaps()
    assert exposure.estimate_exposures(room().inputs(), replace(maps, confidence=0 * maps.confidence)) is None


def test_a_photo_gets_its_own_light_back():
    taken = under_other_light(room().inputs())
    found = exposure.estimate_exposures(taken, room_pointmaps())
    lit = exposure.in_common_light(taken, found)
    plain = (lit.images > 0) & (lit.images < 1)
    back = torch.stack([exposure.in_own_light(image, one) for image, one in zip(lit.images, found)])
    torch.testing.assert_close(back[plain], taken.images[plain], atol=1e-5, rtol=0)


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
