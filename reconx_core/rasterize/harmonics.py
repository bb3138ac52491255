"""Spherical harmonics up to degree 3 and the gradient of their weighted sum with respect to the direction (numba).

Of 16 directions at a time; an array of 16 harmonics holds a vector of each.
"""

from __future__ import annotations

import numpy as np

from reconx_core.cpu.jit import inlined
from reconx_core.cpu.simd import at, put, splat
from reconx_core.rasterize import conventions

f32 = np.float32
ZERO, TWO, THREE, SIX = f32(0), f32(2), f32(3), f32(6)
C0, C1 = f32(conventions.SH_0), f32(conventions.SH_1)
B, A0, A1, A2 = (f32(value) for value in conventions.SH_2)
D3, D1, D2, D10, D0, D00 = (f32(value) for value in conventions.SH_3)


@inlined
def sh_basis(degree, direction, basis):
    """Fill ``basis`` [16 x 16] with the (degree + 1)^2 harmonics of unit directions."""
    x, y, z = direction
    put(basis, 0, splat(C0))
    if degree < 1:
        return
    put(basis, 1, -C1 * y)
    put(basis, 2, C1 * z)
    put(basis, 3, -C1 * x)
    if degree < 2:
        return
    zz = z * z
    cos2, sin2 = x * x - y * y, TWO * x * y
    put(basis, 4, A2 * sin2)
    put(basis, 5, -B * z * y)
    put(basis, 6, A0 * zz - A1)
    put(basis, 7, -B * z * x)
    put(basis, 8, A2 * cos2)
    if degree < 3:
        return
    ring = D10 - D2 * zz
    put(basis, 9, -D3 * (x * sin2 + y * cos2))
    put(basis, 10, D1 * z * sin2)
    put(basis, 11, ring * y)
    put(basis, 12, z * (D0 * zz - D00))
    put(basis, 13, ring * x)
    put(basis, 14, D1 * z * cos2)
    put(basis, 15, -D3 * (x * cos2 - y * sin2))


@inlined
def sh_direction_gradient(degree, direction, weights):
    """Gradient of sum_k weights[k] * basis[k] with respect to the three components of the direction."""
    x, y, z = direction
    if degree < 1:
        return splat(ZERO), splat(ZERO), splat(ZERO)
    gx, gy, gz = -C1 * at(weights, 3), -C1 * at(weights, 1), C1 * at(weights, 2)
    if degree < 2:
        return gx, gy, gz
    gx += TWO * A2 * (x * at(weights, 8) + y * at(weights, 4)) - B * z * at(weights, 7)
    gy += TWO * A2 * (x * at(weights, 4) - y * at(weights, 8)) - B * z * at(weights, 5)
    gz += TWO * A0 * z * at(weights, 6) - B * (x * at(weights, 7) + y * at(weights, 5))
    if degree < 3:
        return gx, gy, gz
    zz = z * z
    cos2, sin2 = x * x - y * y, TWO * x * y
    ring = D10 - D2 * zz
    gx += ring * at(weights, 13) + TWO * D1 * z * (x * at(weights, 14) + y * at(weights, 10))
    gx -= THREE * D3 * cos2 * at(weights, 15) + SIX * D3 * x * y * at(weights, 9)
    gy += ring * at(weights, 11) + TWO * D1 * z * (x * at(weights, 10) - y * at(weights, 14))
    gy -= THREE * D3 * cos2 * at(weights, 9) - SIX * D3 * x * y * at(weights, 15)
    gz += (THREE * D0 * zz - D00) * at(weights, 12) - TWO * D2 * z * (x * at(weights, 13) + y * at(weights, 11))
    gz += D1 * (cos2 * at(weights, 14) + sin2 * at(weights, 10))
    return gx, gy, gz
