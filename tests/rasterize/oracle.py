"""A slow reference renderer in plain torch for any dtype: every Gaussian at every pixel.

It follows gsplat's rules and shares only the constants with the kernels.
"""

from typing import NamedTuple

import torch

from reconx_core.geometry.transforms import pixel_grid, quaternion_to_matrix
from reconx_core.rasterize import conventions as conv


class Scene(NamedTuple):
    """The fields of Gaussians and Cameras without their float32 check."""

    means: torch.Tensor
    quats: torch.Tensor
    log_scales: torch.Tensor
    logit_opacities: torch.Tensor
    sh: torch.Tensor
    cam_to_world: torch.Tensor  # [4, 4]
    intrinsics: torch.Tensor  # [3, 3]


def harmonics(directions, degree):
    """Real spherical harmonics [n, (degree + 1)^2] of unit directions, as polynomials."""
    x, y, z = directions.unbind(-1)
    xy_yz, zz, minus, x2_y2 = conv.SH_2
    d3, d2, ring_zz, ring, d0_zz, d0 = conv.SH_3
    basis = [
        torch.full_like(x, conv.SH_0), -conv.SH_1 * y, conv.SH_1 * z, -conv.SH_1 * x,
        xy_yz * x * y, -xy_yz * y * z, zz * z**2 - minus, -xy_yz * x * z, x2_y2 * (x**2 - y**2),
        -d3 * y * (3 * x**2 - y**2), 2 * d2 * x * y * z, -y * (ring_zz * z**2 - ring), z * (d0_zz * z**2 - d0),
        -x * (ring_zz * z**2 - ring), d2 * z * (x**2 - y**2), -d3 * x * (x**2 - 3 * y**2),
    ]  # fmt: skip
    return torch.stack(basis[: (degree + 1) ** 2], -1)


def project(scene, width, height):
    """Screen positions [n, 2], conics [n, 2, 2] and depths [n]."""
    world_to_cam = torch.linalg.inv(scene.cam_to_world)
    rotation, (fx, fy) = world_to_cam[:3, :3], scene.intrinsics.diagonal()[:2]
    x, y, z = (scene.means @ rotation.T + world_to_cam[:3, 3]).unbind(-1)
    slopes = torch.stack([x / z, y / z], -1)
    size, focal, middle = scene.means.new_tensor([width, height]), torch.stack([fx, fy]), scene.intrinsics[:2, 2]
    beyond = conv.VIEW_MARGIN * size / focal
    ux, uy = slopes.clamp(-middle / focal - beyond, (size - middle) / focal + beyond).unbind(-1)
    zero = torch.zeros_like(z)
    jacobian = torch.stack([fx / z, zero, -fx * ux / z, zero, fy / z, -fy * uy / z], -1).unflatten(-1, (2, 3))
    axes = jacobian @ rotation @ quaternion_to_matrix(scene.quats) @ torch.diag_embed(scene.log_scales.exp())
    covariance = axes @ axes.mT + conv.SCREEN_BLUR * torch.eye(2).to(axes)
    return slopes * focal + middle, torch.linalg.inv(covariance), z


def render(scene, width, height, degree, background):
    """rgb [h, w, 3], accumulated depth [h, w] and alpha [h, w]."""
    position, conic, depth = project(scene, width, height)
    directions = torch.nn.functional.normalize(scene.means - scene.cam_to_world[:3, 3], dim=-1)
    colour = torch.einsum("nk,nkc->nc", harmonics(directions, degree), scene.sh[:, : (degree + 1) ** 2]) + 0.5
    features = torch.cat([colour.clamp(min=0), depth[:, None]], -1)
    order = torch.argsort(depth.detach().float(), stable=True)
    order = order[(depth[order] >= conv.NEAR) & (depth[order] <= conv.FAR)]
    offset = pixel_grid(height, width).reshape(-1, 2).to(position) - position[order][:, None]
    exponent = -0.5 * torch.einsum("npi,nij,npj->np", offset, conic[order], offset)
    alpha = (scene.logit_opacities[order].sigmoid()[:, None] * exponent.exp()).clamp(max=conv.MAX_ALPHA)
    alpha = torch.where((exponent <= 0) & (alpha >= conv.MIN_ALPHA), alpha, 0)
    # The splat that would reduce the transmittance below the limit, and all behind it, are skipped.
    alpha = torch.where((1 - alpha.detach()).cumprod(0) > conv.MIN_TRANSMITTANCE, alpha, 0)
    left = torch.cat([torch.ones_like(alpha[:1]), (1 - alpha).cumprod(0)])
    image = (alpha * left[:-1]).T @ features[order]
    rgb = image[:, :3] + left[-1][:, None] * background
    return rgb.reshape(height, width, 3), image[:, 3].reshape(height, width), 1 - left[-1].reshape(height, width)
