"""The learned geometry gives the same results on a GPU as on the CPU, and the backends load weights and run there."""

import pytest
import torch
from exact_scene import draw, room, room_depth
from small_models import save_hub, small_da3, small_dust3r, small_vggt

from reconx_core.geometry.transforms import rotation_angle, transform, unproject
from reconx_core.pointcloud import make_backend
from reconx_core.pointcloud.global_alignment.align import align_pointmaps
from reconx_core.settings import PointcloudSettings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
SMALL = {"dust3r": small_dust3r, "vggt": small_vggt, "da3": small_da3}
FOLDERS = {"dust3r": "DUSt3R_ViTLarge_BaseDecoder_512_dpt", "vggt": "VGGT-1B", "da3": "DA3-BASE"}


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    """Disable TF32, whose 10-bit mantissa would hide other differences."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def same(found, wanted):
    return float((found.cpu() - wanted).norm() / wanted.norm())


def test_dust3r_equals_the_cpu():
    _, network = small_dust3r()
    photos = torch.rand(2, 1, 3, 48, 64, generator=draw())
    with torch.inference_mode():
        wanted = network(*photos)
        found = network.cuda()(*photos.cuda())
    for a, b in zip(found, wanted):
        assert same(a.points, b.points) < 1e-4
        assert same(a.confidence, b.confidence) < 1e-4


def test_vggt_equals_the_cpu():
    _, network = small_vggt()
    photos = torch.rand(1, 3, 3, 56, 70, generator=draw())
    with torch.inference_mode():
        wanted = network(photos)
        found = network.cuda()(photos.cuda())
    for a, b in zip(found, wanted):
        assert same(a, b) < 1e-4


def test_da3_equals_the_cpu():
    _, network = small_da3()
    photos = torch.rand(1, 3, 3, 56, 70, generator=draw())
    with torch.inference_mode():
        wanted = network(photos)
        found = network.cuda()(photos.cuda())
    assert torch.equal(found.reference.cpu(), wanted.reference)
    for a, b in zip(found[:5], wanted[:5]):
        assert same(a, b) < 1e-4


@pytest.mark.filterwarnings("ignore:The photos' feature matches")
@pytest.mark.parametrize("backend", SMALL)
@pytest.mark.parametrize("posed", [False, True])
def test_backends_run_there_in_bfloat16(monkeypatch, tmp_path, backend, posed):
    monkeypatch.setenv("RECONX_WEIGHTS", str(tmp_path))
    save_hub(tmp_path / FOLDERS[backend], *SMALL[backend]())
    inputs = room().inputs()
    run = make_backend(PointcloudSettings(backend=backend, batch=2))
    pointmaps, kept = run(inputs, inputs.cameras if posed else None, draw())
    assert kept.tolist() == [0, 1, 2]
    assert pointmaps.points_world.device.type == "cpu"
    assert pointmaps.points_world.isfinite().all()
    assert 0 < pointmaps.confidence.amax() <= 1
    if posed:
        assert torch.equal(pointmaps.cameras.cam_to_world, inputs.cameras.cam_to_world)


def test_alignment_equals_the_cpu():
    cameras, pairs = room().inputs().cameras, torch.tensor([(i, j) for i in range(3) for j in range(3) if i != j])
    world = unproject(room_depth(), cameras)[pairs]
    points = transform(cameras.world_to_cam[pairs[:, 0]], world.flatten(1, 3)).reshape(world.shape)
    points = points * (1 + 0.01 * torch.randn(points.shape[:-1], generator=draw())[..., None])
    wanted, found = (align_pointmaps(pairs, p, torch.ones(p.shape[:-1], device=p.device)) for p in (points, points.cuda()))
    turned = rotation_angle(found.cameras.cam_to_world[:, :3, :3].cpu(), wanted.cameras.cam_to_world[:, :3, :3])
    assert turned.max() < 0.01
    assert same(found.cameras.intrinsics, wanted.cameras.intrinsics) < 1e-3
    assert ((found.points_world.cpu() - wanted.points_world).norm(dim=-1) / wanted.points_world.norm(dim=-1)).median() < 1e-3
