"""Whether the generator's own confidence counts beside that of the geometry backend."""

import pytest
import torch
from exact_scene import draw, room, room_pointmaps

from reconx_core.confidence import estimate_confidence
from reconx_core.settings import ConfidenceSettings
from reconx_core.types import Frames, PointCloud, Pointmaps


def a_quarter_sure(views, fixed, generator):
    """A geometry backend that trusts every pixel by 0.25."""
    points = torch.zeros(*views.masks.shape, 3)
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return Pointmaps(points, torch.full(views.masks.shape, 0.25), fixed, nothing), torch.arange(len(views))


@pytest.mark.parametrize(("generator", "expected"), [(True, 0.4), (False, 0.25)])
def test_the_geometry_backends_confidence_stands_alone_or_with_the_generators(generator, expected):
    inputs, settings = room().inputs(), ConfidenceSettings(generator=generator)
    own = torch.cat([torch.ones(2, 120, 160), torch.full((1, 120, 160), 0.64)])
    frames = Frames(inputs.images, inputs.cameras, own, torch.arange(3) < 2)
    photos = inputs.select(torch.tensor([0, 1]))
    judged = estimate_confidence(photos, frames, room_pointmaps(), a_quarter_sure, settings, draw())
    torch.testing.assert_close(judged.confidence[2], torch.full((120, 160), expected))
    assert (judged.confidence[:2] == 1).all()
