"""What surrounds Depth-Anything-3's network, against upstream's numbers: photos, known cameras, cameras from rays."""

import pytest
import torch
from da3_upstream import upstream_network
from upstream import assert_close, file, load

from reconx_core.geometry.transforms import rigid, rotation_angle, so3_exp
from reconx_core.pointcloud.backends.da3_given import fit_cameras, move_cameras, normalise_cameras
from reconx_core.pointcloud.backends.da3_photos import change_intrinsics, choose_sizes, normalise, prepare
from reconx_core.pointcloud.networks.da3 import GivenCameras
from reconx_core.pointcloud.networks.da3_camera import decode_cameras


@pytest.fixture(scope="module")
def api():
    return load(file("da3_api.safetensors"))


def square(cameras):
    """3 x 4 matrices as 4 x 4."""
    return rigid(cameras[..., :3, :3], cameras[..., :3, 3])


def images(tensors, case):
    return [tensors[name] for name in sorted(tensors) if name.startswith(f"in.{case}.image.")]


def assert_same_picture(ours, wanted):
    """Two levels in a few values of a hundred, which is what OpenCV and other means differ by."""
    assert ours.shape == wanted.shape
    off = (ours.int() - wanted.int()).abs()
    assert off.max() <= 2
    assert (off > 0).float().mean() <= 0.03


@pytest.mark.parametrize("case", ["tie", "enlarge", "shrink", "mixed", "crop", "lower"])
def test_photos_are_prepared_as_upstream_golden(api, case):
    tensors, metadata = api
    told = metadata["cases"]["pre"][case]
    seen = prepare(images(tensors, f"pre.{case}"), tensors[f"in.pre.{case}.intrinsics"], told["process_res"], told["method"])
    assert_same_picture(seen.photos, tensors[f"out.pre.{case}.pixels"])
    assert_close(seen.intrinsics, tensors[f"out.pre.{case}.intrinsics"])


def test_sizes_and_intrinsics_are_upstreams_golden(api):
    for width, height, method, new_width, new_height, (fx, fy, cx, cy) in api[1]["sizes"]:
        sizes = choose_sizes(height, width, 504, method)
        assert sizes.last == (new_height, new_width)
        focal, middle = 0.9 * width, (width / 2 + 3, height / 2 - 2)
        given = torch.tensor([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1.0]], dtype=torch.float64)
        found = change_intrinsics(given, (height, width), sizes)
        wanted = torch.tensor([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]], dtype=torch.float64)
        torch.testing.assert_close(found, wanted, rtol=2e-5, atol=0)


@pytest.mark.parametrize("views", [1, 2, 3, 4, 7])
def test_known_cameras_are_normalised_as_upstream_golden(api, views):
    assert_close(normalise_cameras(api[0][f"in.normalise.{views}"]), api[0][f"out.normalise.{views}"])


@pytest.mark.parametrize("views", [3, 5, 12])
def test_known_cameras_are_fitted_as_upstream_golden(api, views):
    tensors, _ = api
    given, predicted = tensors[f"in.align.{views}.given"], square(tensors[f"in.align.{views}.predicted"])
    fit = fit_cameras(given, predicted)
    for part in fit._fields:
        assert_close(getattr(fit, part), tensors[f"out.align.{views}.{part}"])
    assert_close(move_cameras(given, fit), tensors[f"out.align.{views}.given_in_predicted"].double())


@torch.no_grad()
def test_a_posed_call_is_upstreams_golden(api):
    tensors, metadata = api
    told, given = metadata["cases"]["posed"], tensors["in.posed.extrinsics"]
    seen = prepare(images(tensors, "posed"), tensors["in.posed.intrinsics"], told["process_res"], told["method"])
    assert_same_picture(seen.photos, tensors["mid.posed.pixels"])
    assert_close(seen.intrinsics, tensors["mid.posed.net_intrinsics_in"])
    normalised = normalise_cameras(given)
    assert_close(normalised, tensors["mid.posed.normalised_extrinsics"])

    pixels = normalise(tensors["mid.posed.pixels"])[None]  # the network from upstream's own pixels
    found = upstream_network(metadata)(pixels, GivenCameras(normalised[None], seen.intrinsics[None]))
    world_to_cam, intrinsics = decode_cameras(found.pose_encoding[0], *pixels.shape[-2:])
    assert_close(found.depth[0], tensors["mid.posed.net_depth"])
    assert_close(world_to_cam[:, :3], tensors["mid.posed.net_extrinsics"])
    assert_close(intrinsics, tensors["mid.posed.net_intrinsics"])

    fit = fit_cameras(given, world_to_cam)
    assert_close(fit.scale, tensors["mid.posed.scale"])
    assert_close((found.depth[0] / fit.scale).float(), tensors["out.posed.depth"])
    assert_close(found.depth_confidence[0], tensors["out.posed.conf"])
    assert_close(given[:, :3], tensors["out.posed.extrinsics"])
    assert_close(seen.intrinsics, tensors["out.posed.intrinsics"])
    assert_close(move_cameras(given, fit), tensors["out.posed_unaligned.extrinsics"])


def cameras(count, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return rigid(so3_exp(0.3 * torch.randn(count, 3, generator=draw)), torch.randn(count, 3, generator=draw))


def test_two_cameras_give_the_ratio_of_their_distances():
    given, predicted = cameras(2), cameras(2, 1)
    distance = [torch.pdist(torch.linalg.inv(poses)[:, :3, 3]) for poses in (given, predicted)]
    torch.testing.assert_close(fit_cameras(given, predicted).scale.float(), (distance[1] / distance[0])[0])


def test_a_similarity_is_found_again_and_wild_cameras_are_left_out():
    given = cameras(12)
    turn, shift = so3_exp(torch.tensor([0.1, 0.5, -0.2])), torch.tensor([1.0, 2.0, 3.0])
    inverse = torch.linalg.inv(given)
    predicted = torch.linalg.inv(rigid(turn @ inverse[:, :3, :3], 2.5 * inverse[:, :3, 3] @ turn.T + shift))
    for wild in (False, True):
        if wild:
            predicted[4, :3, 3] += 30
        fit = fit_cameras(given, predicted)
        assert abs(float(fit.scale) / 2.5 - 1) < 1e-3
        assert rotation_angle(fit.rotation.float(), turn) < 0.1
