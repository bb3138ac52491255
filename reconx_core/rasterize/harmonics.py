"""Spherical harmonics up to degree 3 and the gradient of their weighted sum with respect to the direction (numba)."""

from __future__ import annotations

import numpy as np

from reconx_core.cpu.jit import inlined
from reconx_core.rasterize import conventions

f32 = np.float32
ZERO, TWO, THREE, SIX = f32(0), f32(2), f32(3), f32(6)
C0, C1 = f32(conventions.SH_0), f32(conventions.SH_1)
B, A0, A1, A2 = (f32(value) for value in conventions.SH_2)
D3, D1, D2, D10, D0, D00 = (f32(value) for value in conventions.SH_3)


@inlined
def sh_basis(degree, direction, basis):
    """Fill ``basis`` [16] with the (degree + 1)^2 harmonics of a unit direction."""
    x, y, z = direction
    basis[0] = C0
    if degree < 1:
        return
    basis[1] = -C1 * y
    basis[2] = C1 * z
    basis[3] = -C1 * x
    if degree < 2:
        return
    zz = z * z
    cos2, sin2 = x * x - y * y, TWO * x * y
    basis[4] = A2 * sin2
    basis[5] = -B * z * y
    basis[6] = A0 * zz - A1
    basis[7] = -B * z * x
    basis[8] = A2 * cos2
    if degree < 3:
        return
    ring = D10 - D2 * zz
    basis[9] = -D3 * (x * sin2 + y * cos2)
    basis[10] = D1 * z * sin2
    basis[11] = ring * y
    basis[12] = z * (D0 * zz - D00)
    basis[13] = ring * x
    basis[14] = D1 * z * cos2
    basis[15] = -D3 * (x * cos2 - y * sin2)


@inlined
def sh_direction_gradient(degree, direction, weights):
    """Gradient of sum_k weights[k] * basis[k] with respect to the three components of the direction."""
    x, y, z = direction
    if degree < 1:
        return ZERO, ZERO, ZERO
    gx, gy, gz = -C1 * weights[3], -C1 * weights[1], C1 * weights[2]
    if degree < 2:
        return gx, gy, gz
    gx += TWO * A2 * (x * weights[8] + y * weights[4]) - B * z * weights[7]
    gy += TWO * A2 * (x * weights[4] - y * weights[8]) - B * z * weights[5]
    gz += TWO * A0 * z * weights[6] - B * (x * weights[7] + y * weights[5])
    if degree < 3:
        return gx, gy, gz
    zz = z * z
    cos2, sin2 = x * x - y * y, TWO * x * y
    ring = D10 - D2 * zz
    gx += ring * weights[13] + TWO * D1 * z * (x * weights[14] + y * weights[10])
    gx -= THREE * D3 * cos2 * weights[15] + SIX * D3 * x * y * weights[9]
    gy += ring * weights[11] + TWO * D1 * z * (x * weights[10] - y * weights[14])
    gy -= THREE * D3 * cos2 * weights[9] - SIX * D3 * x * y * weights[15]
    gz += (THREE * D0 * zz - D00) * weights[12] - TWO * D2 * z * (x * weights[13] + y * weights[11])
    gz += D1 * (cos2 * weights[14] + sin2 * weights[10])
    return gx, gy, gz
