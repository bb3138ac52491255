"""Cameras from Depth-Anything-3's rays: upstream's numbers, and exact cameras with any principal point."""

import torch
from upstream import assert_close, file, load

from reconx_core.geometry.transforms import camera_rays, rigid, rotation_angle, so3_exp
from reconx_core.pointcloud.networks.da3_rays import cameras_from_rays, decompose


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cameras_from_rays_equal_upstream_golden():
    tensors, metadata = load(file("da3_api.safetensors"))
    size = metadata["cases"]["rays"]
    world_to_cam, intrinsics = cameras_from_rays(
        tensors["in.rays.ray"][0], tensors["in.rays.conf"][0], size["height"], size["width"], draw(),
        tensors["in.rays.samples"], centred=True,
    )  # fmt: skip
    assert_close(world_to_cam[:, :3], tensors["out.rays.extrinsics"][0])
    assert_close(intrinsics, tensors["out.rays.intrinsics"][0])


def exact_rays(noise=0.0):
    """Two cameras of 210 x 280 pixels, the second with its principal point off the middle, and their rays."""
    intrinsics = torch.tensor([[[250.0, 0, 140], [0, 240, 105], [0, 0, 1]], [[260.0, 0, 170], [0, 250, 80], [0, 0, 1]]])
    cam_to_world = rigid(so3_exp(0.4 * torch.randn(2, 3, generator=draw(1))), torch.randn(2, 3, generator=draw(2)))
    scale = torch.tensor([20 / 280, 15 / 210, 1.0])
    directions = camera_rays(intrinsics * scale[:, None], 15, 20) @ cam_to_world[:, None, :3, :3].mT
    origins = cam_to_world[:, None, None, :3, 3].expand_as(directions)
    rays = torch.cat([directions, origins], -1)
    return rays + noise * torch.randn(rays.shape, generator=draw(3)), intrinsics, cam_to_world


def test_any_principal_point_is_found():
    rays, intrinsics, cam_to_world = exact_rays()
    world_to_cam, found = cameras_from_rays(rays, torch.ones(2, 15, 20), 210, 280, draw())
    torch.testing.assert_close(found, intrinsics, rtol=1e-3, atol=0.2)
    torch.testing.assert_close(torch.linalg.inv(world_to_cam), cam_to_world, rtol=0, atol=2e-3)


def test_wild_rays_are_left_out_and_the_generator_decides():
    rays, intrinsics, cam_to_world = exact_rays(noise=1e-3)
    rays[:, ::3, ::2, :3] = torch.randn(rays[:, ::3, ::2, :3].shape, generator=draw(4))
    runs = [cameras_from_rays(rays, torch.ones(2, 15, 20), 210, 280, draw(5)) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*runs))
    world_to_cam, found = runs[0]
    assert rotation_angle(torch.linalg.inv(world_to_cam)[:, :3, :3], cam_to_world[:, :3, :3]).max() < 1
    assert (found[:, 0, 0] / intrinsics[:, 0, 0] - 1).abs().max() < 0.03


def test_the_factors_make_the_homography():
    rotation = so3_exp(torch.tensor([0.1, -0.2, 0.3]))
    intrinsics = torch.tensor([[1.5, 0.0, 0.2], [0.0, 1.2, -0.1], [0.0, 0.0, 1.0]])
    found = decompose(3.0 * rotation @ torch.linalg.inv(intrinsics))
    torch.testing.assert_close(found[0], rotation)
    torch.testing.assert_close(found[1], intrinsics)
