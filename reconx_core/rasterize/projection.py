"""Gaussians to screen-space splats, and the gradients back (numba kernels, one camera at a time).

With the camera's rotation W, the projection's Jacobian J (2x3) at the Gaussian's centre and its axes N = R(quat) diag(scales),
the factor U = J W N (2x3) gives the screen covariance U U^T + blur; its inverse is the conic (A, B; B, C).
"""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from reconx_core.cpu.jit import inlined, kernel
from reconx_core.cpu.simd import float_bits, load, splat, store
from reconx_core.rasterize import conventions
from reconx_core.rasterize.harmonics import sh_basis, sh_direction_gradient
from reconx_core.rasterize.records import (
    BLUE,
    DEPTH,
    EXTENT_X,
    EXTENT_Y,
    FLAT_X,
    FLAT_Y,
    GREEN,
    OPACITY,
    RED,
    SLOPE_X,
    SLOPE_Y,
    SLOT,
    A,
    B,
    C,
    X,
    Y,
)  # fmt: skip
from reconx_core.rasterize.tiles import CHUNKS, box_tiles

CAMERA_SUMS = 15  # gradient of the view rotation (9), the view translation (3) and the camera centre (3)

f32 = np.float32
ZERO, HALF, ONE, TWO, MAX_ALPHA_LEVEL = f32(0), f32(0.5), f32(1), f32(2), f32(255)
NEAR, FAR, BLUR = f32(conventions.NEAR), f32(conventions.FAR), f32(conventions.SCREEN_BLUR)
MIN_ALPHA, MARGIN = f32(conventions.MIN_ALPHA), f32(conventions.VIEW_MARGIN)
LARGEST = f32(1e30)
# Tiles are culled at a level slightly below MIN_ALPHA, so that rounding never drops a contributing pixel.
LEVEL_MARGIN = f32(1e-4)


@inlined
def vector3(array, i):
    return array[i, 0], array[i, 1], array[i, 2]


@inlined
def matrix3(array):
    return vector3(array, 0), vector3(array, 1), vector3(array, 2)


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
    inverse = ONE / math.sqrt(dot(v, v))
    return times(v, inverse), inverse


@inlined
def unit_quaternion(quats, i):
    w, x, y, z = quats[i, 0], quats[i, 1], quats[i, 2], quats[i, 3]
    inverse = ONE / math.sqrt(w * w + x * x + y * y + z * z)
    return (w * inverse, x * inverse, y * inverse, z * inverse), inverse


@inlined
def rotation_of(q):
    w, x, y, z = q
    return (
        (ONE - TWO * (y * y + z * z), TWO * (x * y - w * z), TWO * (x * z + w * y)),
        (TWO * (x * y + w * z), ONE - TWO * (x * x + z * z), TWO * (y * z - w * x)),
        (TWO * (x * z - w * y), TWO * (y * z + w * x), ONE - TWO * (x * x + y * y)),
    )


@inlined
def rotation_gradient(v, q, inverse_length):
    """Gradient of the unnormalised quaternion from the gradient ``v`` of its rotation matrix."""
    w, x, y, z = q
    s01, s02, s12 = v[0][1] + v[1][0], v[0][2] + v[2][0], v[1][2] + v[2][1]
    d21, d02, d10 = v[2][1] - v[1][2], v[0][2] - v[2][0], v[1][0] - v[0][1]
    gw = TWO * (x * d21 + y * d02 + z * d10)
    gx = TWO * (w * d21 - TWO * x * (v[1][1] + v[2][2]) + y * s01 + z * s02)
    gy = TWO * (w * d02 + x * s01 - TWO * y * (v[0][0] + v[2][2]) + z * s12)
    gz = TWO * (w * d10 + x * s02 + y * s12 - TWO * z * (v[0][0] + v[1][1]))
    along = gw * w + gx * x + gy * y + gz * z
    n = inverse_length
    return (gw - along * w) * n, (gx - along * x) * n, (gy - along * y) * n, (gz - along * z) * n


@inlined
def lens_of(intrinsics, width, height):
    """Focal lengths, principal point and the limits of x/z and y/z inside which the projection is linearised."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    beyond_x, beyond_y = MARGIN * f32(width) / fx, MARGIN * f32(height) / fy
    x_limits = (-cx / fx - beyond_x, (f32(width) - cx) / fx + beyond_x)
    y_limits = (-cy / fy - beyond_y, (f32(height) - cy) / fy + beyond_y)
    return (fx, fy), (cx, cy), x_limits, y_limits


@inlined
def jacobian(point, lens):
    """Rows of the projection's derivative with respect to the camera-frame point."""
    (fx, fy), _, (x_low, x_high), (y_low, y_high) = lens
    inverse = ONE / point[2]
    slope_x = min(x_high, max(x_low, point[0] * inverse))
    slope_y = min(y_high, max(y_low, point[1] * inverse))
    return (fx * inverse, ZERO, -fx * slope_x * inverse), (ZERO, fy * inverse, -fy * slope_y * inverse)


@inlined
def screen_axes(rows, view_rotation, axes):
    """The rows of U = J W N, and of J W."""
    to_x, to_y = row_times(rows[0], view_rotation), row_times(rows[1], view_rotation)
    return row_times(to_x, axes), row_times(to_y, axes), to_x, to_y


@inlined
def scales_of(log_scales, i):
    return math.exp(log_scales[i, 0]), math.exp(log_scales[i, 1]), math.exp(log_scales[i, 2])


@inlined
def write_splat(record, point, covariance, opacity, lens, size):
    """Fill the geometric part of a record; returns False if the Gaussian is outside the image."""
    (fx, fy), (cx, cy), _, _ = lens
    xx, xy, yy = covariance
    determinant = xx * yy - xy * xy
    if not (determinant > ZERO and determinant < LARGEST):
        return False
    x, y = fx * point[0] / point[2] + cx, fy * point[1] / point[2] + cy
    level = math.log(opacity * MAX_ALPHA_LEVEL)
    reach = math.sqrt(TWO * level)
    reach_x, reach_y = math.ceil(reach * math.sqrt(xx)), math.ceil(reach * math.sqrt(yy))
    if not (reach_x > ZERO and reach_y > ZERO and x + reach_x > ZERO and x - reach_x < size[0]):
        return False
    if not (y + reach_y > ZERO and y - reach_y < size[1]):
        return False
    reach = math.sqrt(TWO * (level + LEVEL_MARGIN))
    inverse, area = ONE / determinant, math.sqrt(determinant)
    record[X], record[Y], record[OPACITY] = x, y, opacity
    record[A], record[B], record[C] = yy * inverse, -xy * inverse, xx * inverse
    record[EXTENT_X], record[EXTENT_Y] = reach * math.sqrt(xx), reach * math.sqrt(yy)
    record[SLOPE_X], record[SLOPE_Y] = xy / yy, xy / xx
    record[FLAT_X], record[FLAT_Y] = area / yy, area / xx
    record[DEPTH] = point[2]
    return True


@inlined
def write_colour(record, coefficients, degree, direction, basis):
    """Fill the colour: max(0, 0.5 + harmonics in the viewing direction)."""
    sh_basis(degree, direction, basis)
    red, green, blue = HALF, HALF, HALF
    for k in range((degree + 1) * (degree + 1)):
        red += basis[k] * coefficients[k, 0]
        green += basis[k] * coefficients[k, 1]
        blue += basis[k] * coefficients[k, 2]
    record[RED], record[GREEN], record[BLUE] = max(ZERO, red), max(ZERO, green), max(ZERO, blue)


@inlined
def project_one(i, means, quats, log_scales, logit_opacities, view, lens, size, record):
    """Fill the geometric part of Gaussian i's record; returns False if it is invisible."""
    rotation, translation = view
    mean = vector3(means, i)
    depth = dot(rotation[2], mean) + translation[2]
    if not (depth >= NEAR and depth <= FAR):
        return False
    opacity = ONE / (ONE + math.exp(-logit_opacities[i]))
    if not opacity >= MIN_ALPHA:
        return False
    point = (dot(rotation[0], mean) + translation[0], dot(rotation[1], mean) + translation[1], depth)
    quat, _ = unit_quaternion(quats, i)
    axes = scale_columns(rotation_of(quat), scales_of(log_scales, i))
    ux, uy, _, _ = screen_axes(jacobian(point, lens), rotation, axes)
    covariance = (dot(ux, ux) + BLUR, dot(ux, uy), dot(uy, uy) + BLUR)
    return write_splat(record, point, covariance, opacity, lens, size)


@kernel
def project(
    means, quats, log_scales, logit_opacities, sh, degree, world_to_cam, centre, intrinsics, width, height,
    tiles_x, tiles_y, records, box_counts, depth_keys,
):  # fmt: skip
    """Fill a record, the number of tiles its bounding box touches (0: invisible) and a sortable depth for every Gaussian."""
    n = len(means)
    per_chunk = (n + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        lens = lens_of(intrinsics, width, height)
        view = (matrix3(world_to_cam), (world_to_cam[0, 3], world_to_cam[1, 3], world_to_cam[2, 3]))
        eye = (-centre[0], -centre[1], -centre[2])
        basis = np.empty(16, np.float32)
        for i in range(chunk * per_chunk, min(n, (chunk + 1) * per_chunk)):
            box_counts[i] = 0
            record = records[i]
            if project_one(i, means, quats, log_scales, logit_opacities, view, lens, (f32(width), f32(height)), record):
                box_counts[i] = box_tiles(record, tiles_x, tiles_y)
                if box_counts[i] > 0:
                    depth_keys[i] = float_bits(record[DEPTH])
                    direction, _ = unit(plus(vector3(means, i), eye))
                    write_colour(record, sh[i], degree, direction, basis)


@inlined
def conic_gradient(record, moments):
    """Gradients of the screen position and of the screen covariance (doubled, ready for U) from a splat's pixel moments."""
    a, b, c = record[A], record[B], record[C]
    gx, gy = -(a * moments[1] + b * moments[2]), -(b * moments[1] + c * moments[2])
    g_xx, g_xy, g_yy = HALF * moments[3], HALF * moments[4], HALF * moments[5]
    # d(conic) = -conic d(covariance) conic
    m00, m01 = a * g_xx + b * g_xy, a * g_xy + b * g_yy
    m10, m11 = b * g_xx + c * g_xy, b * g_xy + c * g_yy
    return (gx, gy), (-TWO * (m00 * a + m01 * b), -TWO * (m00 * b + m01 * c), -TWO * (m10 * b + m11 * c))


@inlined
def point_gradient(point, lens, rows, v_screen, v_row_x, v_row_y, v_depth):
    """Gradient of the camera-frame point through its pixel, the Jacobian and its depth."""
    (fx, fy), _, (x_low, x_high), (y_low, y_high) = lens
    inverse = ONE / point[2]
    slope_x, slope_y = point[0] * inverse, point[1] * inverse
    (j00, _, j02), (_, j11, j12) = rows
    gx, gy = j00 * v_screen[0], j11 * v_screen[1]
    gz = v_depth - gx * slope_x - gy * slope_y - inverse * (j00 * v_row_x[0] + j11 * v_row_y[1])
    gz -= inverse * (j02 * v_row_x[2] + j12 * v_row_y[2])
    # Within its limits (not clamped) the slope depends on the point.
    if slope_x >= x_low and slope_x <= x_high:
        gx -= fx * inverse * inverse * v_row_x[2]
        gz -= inverse * j02 * v_row_x[2]
    if slope_y >= y_low and slope_y <= y_high:
        gy -= fy * inverse * inverse * v_row_y[2]
        gz -= inverse * j12 * v_row_y[2]
    return gx, gy, gz


@inlined
def colour_gradient(degree, direction, record, moments, coefficients, v_coefficients, basis, weights):
    """Add to the gradient of the SH coefficients and return that of the (unit) viewing direction."""
    sh_basis(degree, direction, basis)
    red = moments[6] if record[RED] > ZERO else ZERO
    green = moments[7] if record[GREEN] > ZERO else ZERO
    blue = moments[8] if record[BLUE] > ZERO else ZERO
    for k in range((degree + 1) * (degree + 1)):
        v_coefficients[k, 0] += basis[k] * red
        v_coefficients[k, 1] += basis[k] * green
        v_coefficients[k, 2] += basis[k] * blue
        weights[k] = coefficients[k, 0] * red + coefficients[k, 1] * green + coefficients[k, 2] * blue
    return sh_direction_gradient(degree, direction, weights)


@inlined
def add_row(array, i, values):
    array[i, 0] += values[0]
    array[i, 1] += values[1]
    array[i, 2] += values[2]


@inlined
def add_camera(sums, v_rotation, v_point, v_centre):
    for row in range(3):
        sums[9 + row] += v_point[row]
        sums[12 + row] += v_centre[row]
        for column in range(3):
            sums[3 * row + column] += v_rotation[row][column]


@inlined
def unproject_one(i, means, quats, log_scales, view, lens, record, moments, v_quats, v_log_scales):
    """Gradients of quaternion and scales; returns those of the camera-frame point and of the view rotation."""
    rotation, translation = view
    mean = vector3(means, i)
    point = plus(matrix_times(rotation, mean), translation)
    quat, inverse_length = unit_quaternion(quats, i)
    turn = rotation_of(quat)
    scales = scales_of(log_scales, i)
    axes = scale_columns(turn, scales)
    rows = jacobian(point, lens)
    ux, uy, to_x, to_y = screen_axes(rows, rotation, axes)
    v_screen, (c_xx, c_xy, c_yy) = conic_gradient(record, moments)
    v_ux, v_uy = plus(times(ux, c_xx), times(uy, c_xy)), plus(times(ux, c_xy), times(uy, c_yy))
    v_axes = sum3(outer(to_x, v_ux), outer(to_y, v_uy))
    v_to_x, v_to_y = matrix_times(axes, v_ux), matrix_times(axes, v_uy)
    v_row_x, v_row_y = matrix_times(rotation, v_to_x), matrix_times(rotation, v_to_y)
    v_point = point_gradient(point, lens, rows, v_screen, v_row_x, v_row_y, moments[9])
    scaled = (product(v_axes[0], axes[0]), product(v_axes[1], axes[1]), product(v_axes[2], axes[2]))
    add_row(v_log_scales, i, plus(plus(scaled[0], scaled[1]), scaled[2]))
    v_quat = rotation_gradient(scale_columns(v_axes, scales), quat, inverse_length)
    for k in range(4):
        v_quats[i, k] += v_quat[k]
    v_rotation = sum3(sum3(outer(rows[0], v_to_x), outer(rows[1], v_to_y)), outer(v_point, mean))
    return v_point, v_rotation


@inlined
def sum_slots(slots, first, last, moments):
    """Sum a Gaussian's moments over the tiles that it touches, in their fixed order."""
    total = splat(ZERO)
    for slot in range(first, last):
        total += load(slots, slot * SLOT)
    store(moments, 0, total)


@inlined
def clear(i, v_means, v_quats, v_log_scales, v_logit_opacities, v_sh):
    v_logit_opacities[i] = ZERO
    for k in range(3):
        v_means[i, k] = ZERO
        v_log_scales[i, k] = ZERO
    for k in range(4):
        v_quats[i, k] = ZERO
    for k in range(v_sh.shape[1]):
        for c in range(3):
            v_sh[i, k, c] = ZERO


@kernel
def project_backward(
    means, quats, log_scales, sh, degree, world_to_cam, centre, intrinsics, width, height, records, slot_starts, slots,
    fresh, v_means, v_quats, v_log_scales, v_logit_opacities, v_sh, camera_sums,
):  # fmt: skip
    """Add one camera's gradients to the Gaussians' (overwrite them if ``fresh``) and to the camera's own [CHUNKS, 15]."""
    n, flat_slots = len(means), slots.reshape(-1)
    per_chunk = (n + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        lens = lens_of(intrinsics, width, height)
        view = (matrix3(world_to_cam), (world_to_cam[0, 3], world_to_cam[1, 3], world_to_cam[2, 3]))
        eye = (-centre[0], -centre[1], -centre[2])
        basis, weights, moments = np.empty(16, np.float32), np.empty(16, np.float32), np.empty(16, np.float32)
        for i in range(chunk * per_chunk, min(n, (chunk + 1) * per_chunk)):
            if fresh:
                clear(i, v_means, v_quats, v_log_scales, v_logit_opacities, v_sh)
            if slot_starts[i] == slot_starts[i + 1]:
                continue
            record = records[i]
            sum_slots(flat_slots, slot_starts[i], slot_starts[i + 1], moments)
            v_logit_opacities[i] -= moments[0] * (ONE - record[OPACITY])
            v_point, v_rotation = unproject_one(
                i, means, quats, log_scales, view, lens, record, moments, v_quats, v_log_scales
            )  # fmt: skip
            direction, inverse_length = unit(plus(vector3(means, i), eye))
            v_direction = colour_gradient(degree, direction, record, moments, sh[i], v_sh[i], basis, weights)
            across = plus(v_direction, times(direction, -dot(v_direction, direction)))
            v_offset = times(across, inverse_length)
            add_row(v_means, i, plus(row_times(v_point, view[0]), v_offset))
            add_camera(camera_sums[chunk], v_rotation, v_point, times(v_offset, -ONE))
