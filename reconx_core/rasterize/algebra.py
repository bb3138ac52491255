"""Small vectors, matrices and quaternions in kernels, as tuples of numbers or of SIMD vectors (of 16 Gaussians at a time)."""

from __future__ import annotations

import numpy as np

from reconx_core.cpu.jit import inlined
from reconx_core.cpu.simd import negative, root

f32 = np.float32
ONE, TWO = f32(1), f32(2)


@inlined
def dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@inlined
def times(a, s):
    return a[0] * s, a[1] * s, a[2] * s


@inlined
def plus(a, b):
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


@inlined
def minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@inlined
def product(a, b):
    return a[0] * b[0], a[1] * b[1], a[2] * b[2]


@inlined
def matrix_times(m, v):
    return dot(m[0], v), dot(m[1], v), dot(m[2], v)


@inlined
def row_times(v, m):
    return plus(plus(times(m[0], v[0]), times(m[1], v[1])), times(m[2], v[2]))


@inlined
def outer(a, b):
    return times(b, a[0]), times(b, a[1]), times(b, a[2])


@inlined
def sum3(m, n):
    return plus(m[0], n[0]), plus(m[1], n[1]), plus(m[2], n[2])


@inlined
def scale_columns(m, s):
    return product(m[0], s), product(m[1], s), product(m[2], s)


@inlined
def unit(v):
    inverse = ONE / root(dot(v, v))
    return times(v, inverse), inverse


@inlined
def unit_quaternion(q):
    w, x, y, z = q
    inverse = ONE / root(w * w + x * x + y * y + z * z)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse


@inlined
def rotation_of(q):
    w, x, y, z = q
    return (
        (ONE - (y * y + z * z) * TWO, (x * y - w * z) * TWO, (x * z + w * y) * TWO),
        ((x * y + w * z) * TWO, ONE - (x * x + z * z) * TWO, (y * z - w * x) * TWO),
        ((x * z - w * y) * TWO, (y * z + w * x) * TWO, ONE - (x * x + y * y) * TWO),
    )


@inlined
def rotation_gradient(v, q, inverse_length):
    """Gradient of the unnormalised quaternion from the gradient ``v`` of its rotation matrix."""
    w, x, y, z = q
    s01, s02, s12 = v[0][1] + v[1][0], v[0][2] + v[2][0], v[1][2] + v[2][1]
    d21, d02, d10 = v[2][1] - v[1][2], v[0][2] - v[2][0], v[1][0] - v[0][1]
    gw = (x * d21 + y * d02 + z * d10) * TWO
    gx = (w * d21 - x * (v[1][1] + v[2][2]) * TWO + y * s01 + z * s02) * TWO
    gy = (w * d02 + x * s01 - y * (v[0][0] + v[2][2]) * TWO + z * s12) * TWO
    gz = (w * d10 + x * s02 + y * s12 - z * (v[0][0] + v[1][1]) * TWO) * TWO
    along = gw * w + gx * x + gy * y + gz * z
    n = inverse_length
    return (gw - along * w) * n, (gx - along * x) * n, (gy - along * y) * n, (gz - along * z) * n


@inlined
def opposite(v):
    return negative(v[0]), negative(v[1]), negative(v[2])
