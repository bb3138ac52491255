"""Frames whose cameras are withheld get them back, frames of another place are left out, told cameras stay."""

import json
from dataclasses import replace

import pytest
import torch
from exact_scene import draw

from reconx_core.confidence import place_frames
from reconx_core.confidence.agreement import expected, frame_agreement
from reconx_core.confidence.cameras import baseline, shifts
from reconx_core.confidence.clips import clips_of
from reconx_core.datasets import procedural
from reconx_core.datasets.raycast import render
from reconx_core.geometry.camera_path import interpolate_path
from reconx_core.geometry.transforms import join_cameras, rigid, so3_exp, unproject
from reconx_core.pointcloud import make_backend
from reconx_core.settings import ConfidenceSettings, PointcloudSettings, ViewsSettings
from reconx_core.types import Frames, Located, PointCloud, Pointmaps
from reconx_core.video import BACKENDS
from reconx_core.video.backends.learned import RECIPES
from reconx_core.views import load_views

pytestmark = pytest.mark.long

SEED, FRAMES = 5, 3
CLASSICAL = make_backend(PointcloudSettings(backend="classical"))


@pytest.fixture(scope="module")
def views():
    """A room's two photos, and what lies between them as targets."""
    source = f"procedural:room?seed={SEED}&views=2&targets={FRAMES}&arc=20&width=320&height=240"
    return load_views(source, ViewsSettings(size=320))


@pytest.fixture(scope="module")
def strangers(views):
    """Frames in a mirror, which no camera in the room sees."""
    return views.targets().images.flip(2)


@pytest.fixture(scope="module")
def pointmaps(views):
    """Exact pointmaps of the two photos."""
    cameras = views.inputs().cameras
    shots = zip(cameras.intrinsics, cameras.cam_to_world)
    depth = torch.stack([render(procedural.build("room", SEED), k, pose, 240, 320)[1] for k, pose in shots])
    points = unproject(depth, cameras)
    return Pointmaps(points, torch.ones(depth.shape), cameras, PointCloud(*(torch.zeros(0, *s) for s in ((3,), (3,), ()))))


def untold(views, images=None):
    """Photos and frames of a generator that was not told cameras: their poses are those of a path beside the true one."""
    inputs, images = views.inputs(), views.targets().images if images is None else images
    path = interpolate_path(inputs.cameras, torch.full((len(images),), 0.5))
    pair = torch.cat([torch.tensor([[0, 0], [1, 1]]), torch.tensor([[0, 1]]).repeat(len(images), 1)])
    confidence = torch.cat([inputs.masks.float(), torch.ones(images.shape[:3])])
    together = torch.cat([inputs.images, images])
    cameras = join_cameras(inputs.cameras, path)
    return Frames(together, cameras, confidence, torch.arange(len(together)) < 2, pair, cameras_told=False)


def place(views, frames, pointmaps, backend=CLASSICAL, **settings):
    return place_frames(views.inputs(), frames, pointmaps, backend, ConfidenceSettings(**settings), draw())


def errors(views, placed, kept):
    truth = views.targets().cameras[kept]
    return shifts(truth, placed.cameras[slice(2, None)], baseline(views.inputs().cameras))


def test_withheld_cameras_are_found(views, pointmaps):
    frames = untold(views)
    placed, placement = place(views, frames, pointmaps)
    turn, shift = errors(views, placed, list(range(FRAMES)))
    assert turn.median() < 0.1
    assert shift.median() < 0.01
    assert turn.max() < 0.5
    assert torch.equal(placed.cameras.cam_to_world[:2], frames.cameras.cam_to_world[:2])
    assert torch.equal(placed.images, frames.images)
    assert (placement.cameras, placement.frames, placement.moved, placement.left_out) == ("find", FRAMES, FRAMES, {})
    assert placement.turn > 1
    assert placement.shift > 0.05
    assert json.loads(placement.as_json())["moved"] == FRAMES
    assert torch.equal(place(views, frames, pointmaps)[0].cameras.cam_to_world, placed.cameras.cam_to_world)


def test_frames_of_another_place_are_left_out(views, pointmaps, strangers):
    images = views.targets().images.clone()
    images[1:2] = strangers[1:2]
    with pytest.warns(UserWarning, match=r"^1 of 3 generated frames are left out"):
        placed, placement = place(views, untold(views, images), pointmaps)
    assert sorted(placement.left_out) == ["1"]
    assert all(placement.left_out.values())
    assert len(placed) == 2 + 2
    assert torch.equal(placed.images[2:], images[[0, 2]])
    assert placed.pair.tolist() == [[0, 0], [1, 1]] + [[0, 1]] * 2
    assert errors(views, placed, [0, 2])[0].max() < 0.5


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_photos_remain_where_no_frame_fits(views, pointmaps, strangers):
    placed, placement = place(views, untold(views, strangers), pointmaps)
    assert bool(placed.is_photo.all())
    assert placement.moved == 0
    assert placement.turn is None
    assert len(placement.left_out) == FRAMES


class Everywhere:
    """A backend that believes every frame to be where the first one is."""

    def __init__(self, camera):
        self.camera = camera

    def locate(self, photos, known, frames, near, generator):
        return Located(self.camera.repeat(len(frames), 1, 1), ("",) * len(frames))


@pytest.mark.filterwarnings("ignore:.*are left out")
def test_frames_that_do_not_show_what_the_photos_show_are_left_out(views, pointmaps, strangers):
    backend = Everywhere(views.targets().cameras.cam_to_world[:1])
    images = torch.cat([views.targets().images[:1], strangers])
    placed, placement = place(views, untold(views, images), pointmaps, backend)
    assert len(placed) == 3
    assert set(placement.left_out.values()) == {"does not show what the photos show from there"}


def test_a_camera_far_away_sees_too_little_to_agree(views, pointmaps):
    """The right frame from too far away shows the scene as a speck; in its place it agrees."""
    truth, images = views.targets().cameras, views.targets().images
    back = truth.cam_to_world @ rigid(torch.eye(3), torch.tensor([0.0, 0.0, -15.0]))
    assert frame_agreement(expected(views.inputs(), pointmaps, images, truth)).min() > 0.9
    assert frame_agreement(expected(views.inputs(), pointmaps, images, replace(truth, cam_to_world=back))).isnan().all()


class Never:
    def locate(self, *given):
        raise AssertionError("nothing is to be located")


def test_told_cameras_stay_unless_asked(views, pointmaps):
    frames = replace(untold(views), cameras_told=True)
    generator = draw()
    placed, placement = place_frames(views.inputs(), frames, pointmaps, Never(), ConfidenceSettings(), generator)
    assert placed is frames
    assert (placement.cameras, placement.moved, placement.frames) == ("given", 0, FRAMES)
    assert torch.equal(generator.get_state(), draw().get_state())
    assert place(views, untold(views), pointmaps, Never(), cameras="given")[1].cameras == "given"


def test_refined_cameras_are_nearer_and_others_stay(views, pointmaps):
    """All but one start within the bound of the truth; the last is told five degrees off, and that is what it keeps."""
    truth, frames = views.targets().cameras, replace(untold(views), cameras_told=True)
    degrees = torch.tensor([0.5] * (FRAMES - 1) + [5.0])
    turn = so3_exp(torch.tensor([0.0, 1.0, 0.0]) * torch.deg2rad(degrees)[:, None])
    off = truth.cam_to_world @ rigid(turn, torch.zeros(FRAMES, 3))
    poses = torch.cat([frames.cameras.cam_to_world[:2], off])
    frames = replace(frames, cameras=replace(frames.cameras, cam_to_world=poses))
    placed, placement = place(views, frames, pointmaps, cameras="refine")
    found, _ = errors(views, placed, list(range(FRAMES)))
    assert found[:-1].max() < 0.1
    assert found[-1] == pytest.approx(5.0, abs=0.01)
    assert (placement.cameras, placement.moved, placement.left_out) == ("refine", FRAMES - 1, {})


def test_a_clip_is_what_lies_between_two_photos(views):
    frames = untold(views).select(torch.tensor([0, 1, 2, 3, 4, 0]))
    three = torch.tensor([[0, 0], [1, 1], [2, 2], [1, 0], [2, 1], [1, 0]])
    clips = clips_of(replace(frames, pair=three, is_photo=torch.arange(6) < 3))
    assert [(c.photos.tolist(), c.frames.tolist()) for c in clips] == [([0, 1], [3, 5]), ([1, 2], [4])]
    whole = clips_of(replace(frames, pair=None, is_photo=torch.arange(6) < 2))
    assert [clip.members.tolist() for clip in whole] == [list(range(6))]
    assert clips_of(frames.select(torch.arange(2))) == []


def test_who_gets_renders_is_told_the_cameras():
    assert {name: BACKENDS[name].cameras_told for name in RECIPES} == {name: r.renders for name, r in RECIPES.items()}


def test_true_frames_of_a_real_room(real_data):
    """Three of the photos between two of a walk, their cameras withheld; the tracks of the set are its own COLMAP's."""
    split = "views:1,13:4,7,10"
    views = load_views(real_data / "posed" / "real_room", ViewsSettings(size=400, split=split))
    inputs = views.inputs()
    settings = PointcloudSettings(backend="classical", stereo_size=160, planes=48, rounds=1, iterations=2)
    pointmaps, _ = make_backend(settings)(inputs, inputs.cameras, draw())
    placed, placement = place(views, untold(views), pointmaps)
    turn, shift = errors(views, placed, [0, 1, 2])
    assert placement.left_out == {}
    assert turn.max() < 0.5
    assert shift.median() < 0.02
