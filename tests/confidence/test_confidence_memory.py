"""The memory of judging frames: that of one clip, however many there are, and of its pairs only what is needed of them."""

import pytest
import torch
from exact_scene import draw
from torch import nn

from benchmarks.live_memory import LiveMemory
from reconx_core.confidence import estimate_confidence
from reconx_core.geometry.transforms import rigid
from reconx_core.pointcloud.backends import dust3r
from reconx_core.pointcloud.backends.dust3r import Dust3r
from reconx_core.pointcloud.networks.dust3r import DUSt3RConfig, Encoded, Prediction
from reconx_core.settings import ConfidenceSettings, PointcloudSettings
from reconx_core.types import Cameras, Frames, Views

pytestmark = pytest.mark.long

SIDE, PER_CLIP = 64, 10


class Free(nn.Module):
    """A network that takes no memory but that of its predictions: a wall two metres away."""

    def __init__(self):
        super().__init__()
        self.config, self.marker = DUSt3RConfig(image_size=SIDE), nn.Parameter(torch.zeros(1))

    def encode(self, images):
        return Encoded(torch.zeros(len(images), 1, 1), (SIDE // 16, SIDE // 16))

    def decode(self, first, second):
        return tuple(
            Prediction(torch.full((len(first.tokens), SIDE, SIDE, 3), 2.0), torch.full((len(first.tokens), SIDE, SIDE), 9.0))
            for _ in range(2)
        )


def photos_and_frames(clips):
    """Photos along a line and ``PER_CLIP`` frames between any two."""
    n, between = clips + 1, clips * PER_CLIP
    x = torch.cat([torch.arange(n).float(), (torch.arange(between) + 0.5) / PER_CLIP])
    intrinsics = torch.tensor([[SIDE, 0, SIDE / 2], [0, SIDE, SIDE / 2], [0, 0, 1.0]]).repeat(len(x), 1, 1)
    poses = rigid(torch.eye(3).repeat(len(x), 1, 1), 0.1 * torch.stack([x, x * 0, x * 0], -1))
    cameras, images = Cameras(intrinsics, poses, SIDE, SIDE), torch.rand(len(x), SIDE, SIDE, 3, generator=draw())
    first = torch.arange(clips).repeat_interleave(PER_CLIP)
    pair = torch.cat([torch.arange(n)[:, None].repeat(1, 2), torch.stack([first, first + 1], 1)])
    frames = Frames(images, cameras, torch.ones(images.shape[:3]), torch.arange(len(x)) < n, pair)
    masks, names = torch.ones(n, SIDE, SIDE, dtype=torch.bool), tuple(map(str, range(n)))
    photos = Views(
        images[:n], masks, names, torch.zeros(n, dtype=torch.bool), cameras[:n], torch.full((n,), torch.nan), "posed"
    )
    return photos, frames


@pytest.fixture
def peak(monkeypatch):
    """Peak of the tensors that judging so many clips makes, in bytes, and the judged frames."""
    monkeypatch.setattr(dust3r, "load_network", lambda load, path: Free())
    monkeypatch.setattr(dust3r, "find_weights", lambda *names: names)
    backend = Dust3r(PointcloudSettings(backend="dust3r", graph="complete", crop="none"))

    def judge(clips):
        photos, frames = photos_and_frames(clips)
        with LiveMemory() as memory:
            judged = estimate_confidence(photos, frames, None, backend, ConfidenceSettings(size=SIDE), draw())
        return memory.peak, judged

    return judge


def test_more_clips_take_no_more_memory(peak):
    one, _ = peak(1)
    two, judged = peak(2)
    result = judged.confidence.nbytes  # the confidence of all frames, which is what is asked for
    assert two < 1.05 * one + 2 * result
    assert judged.confidence[3:].max() > 0


def test_of_a_pair_no_more_than_depth_and_confidence_in_half_precision_stays(peak):
    n = PER_CLIP + 2
    edges = n * (n - 1) * 2 * SIDE * SIDE  # pixels of the pointmaps of all pairs of a clip
    assert peak(1)[0] < 0.75 * 16 * edges  # what the maps alone would take in full
