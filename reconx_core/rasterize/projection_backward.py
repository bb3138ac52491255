"""Gradients of the Gaussians from those of their splats (numba kernel, one camera and 16 Gaussians at a time)."""

from __future__ import annotations

import numpy as np
from numba import prange

from reconx_core.cpu.jit import inlined, kernel
from reconx_core.cpu.simd import (
    LANES,
    aligned,
    at,
    both,
    greater,
    greater_equal,
    less_equal,
    load,
    negative,
    put,
    select,
    splat,
    store,
)
from reconx_core.rasterize.algebra import (
    dot,
    matrix_times,
    minus,
    opposite,
    outer,
    plus,
    product,
    rotation_gradient,
    rotation_of,
    row_times,
    scale_columns,
    sum3,
    times,
    unit,
    unit_quaternion,
)
from reconx_core.rasterize.harmonics import sh_basis, sh_direction_gradient
from reconx_core.rasterize.projection import (
    HARMONICS,
    MEAN,
    SCALE,
    at3,
    gather_shapes,
    jacobian,
    lens_of,
    put3,
    quaternion_at,
    screen_axes,
    view_of,
)
from reconx_core.rasterize.records import BLUE, GREEN, OPACITY, RED, SLOT, A, B, C
from reconx_core.rasterize.tiles import CHUNKS

CAMERA_SUMS = 15  # gradient of the view rotation (9), the view translation (3) and the camera centre (3)

f32 = np.float32
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)

# What is gathered of 16 Gaussians besides means, quaternions and scales, a vector each: of their records, and their moments.
CONIC, CLARITY, COLOUR, MOMENTS = 10, 13, 14, 17
MOMENTS_USED = 10
GATHERED = MOMENTS + MOMENTS_USED
# Gradients of 16 Gaussians, a vector each.
V_MEAN, V_QUAT, V_SCALE, V_OPACITY = 0, 3, 7, 10
GRADIENTS = 11


@inlined
def gather_records(block, records, picked):
    for j in range(LANES):
        i = picked[j]
        block[CONIC * LANES + j], block[(CONIC + 1) * LANES + j] = records[i, A], records[i, B]
        block[(CONIC + 2) * LANES + j], block[CLARITY * LANES + j] = records[i, C], records[i, OPACITY]
        block[COLOUR * LANES + j], block[(COLOUR + 1) * LANES + j] = records[i, RED], records[i, GREEN]
        block[(COLOUR + 2) * LANES + j] = records[i, BLUE]


@inlined
def gather_moments(block, slots, slot_starts, picked, count, moments):
    """Each Gaussian's moments, summed over the tiles that it touches in their fixed order; 0 after the first ``count``."""
    for j in range(LANES):
        total = splat(ZERO)
        if j < count:
            for slot in range(slot_starts[picked[j]], slot_starts[picked[j] + 1]):
                total += load(slots, slot * SLOT)
        store(moments, 0, total)
        for k in range(MOMENTS_USED):
            block[(MOMENTS + k) * LANES + j] = moments[k]


@inlined
def conic_gradient(block):
    """Gradients of the screen position and of the screen covariance (doubled, ready for U) from the moments."""
    a, b, c = at3(block, CONIC)
    m_x, m_y = at(block, MOMENTS + 1), at(block, MOMENTS + 2)
    gx, gy = negative(a * m_x + b * m_y), negative(b * m_x + c * m_y)
    g_xx, g_xy, g_yy = times(at3(block, MOMENTS + 3), HALF)
    # d(conic) = -conic d(covariance) conic
    m00, m01 = a * g_xx + b * g_xy, a * g_xy + b * g_yy
    m10, m11 = b * g_xx + c * g_xy, b * g_xy + c * g_yy
    return (gx, gy), ((m00 * a + m01 * b) * -TWO, (m00 * b + m01 * c) * -TWO, (m10 * b + m11 * c) * -TWO)


@inlined
def within(x, limits):
    return both(greater_equal(x, limits[0]), less_equal(x, limits[1]))


@inlined
def point_gradient(point, lens, rows, v_screen, v_row_x, v_row_y, v_depth):
    """Gradient of the camera-frame point through its pixel, the Jacobian and its depth."""
    (fx, fy), _, x_limits, y_limits = lens
    inverse = ONE / point[2]
    slope_x, slope_y = point[0] * inverse, point[1] * inverse
    (j00, _, j02), (_, j11, j12) = rows
    gx, gy = j00 * v_screen[0], j11 * v_screen[1]
    gz = v_depth - gx * slope_x - gy * slope_y - inverse * (j00 * v_row_x[0] + j11 * v_row_y[1])
    gz -= inverse * (j02 * v_row_x[2] + j12 * v_row_y[2])
    # Within its limits (not clamped) the slope depends on the point.
    v_slope_x = select(within(slope_x, x_limits), inverse * v_row_x[2], ZERO)
    v_slope_y = select(within(slope_y, y_limits), inverse * v_row_y[2], ZERO)
    gz -= j02 * v_slope_x + j12 * v_slope_y
    return gx - inverse * v_slope_x * fx, gy - inverse * v_slope_y * fy, gz


@inlined
def colour_moments(block):
    """The gradients of red, green and blue, where these are not clamped."""
    zero = splat(ZERO)
    return (
        select(greater(at(block, COLOUR), ZERO), at(block, MOMENTS + 6), zero),
        select(greater(at(block, COLOUR + 1), ZERO), at(block, MOMENTS + 7), zero),
        select(greater(at(block, COLOUR + 2), ZERO), at(block, MOMENTS + 8), zero),
    )


@inlined
def harmonics_gradient(degree, sh, v_sh, picked, count, fresh, colours, basis, weights):
    """Add the gradient of the SH coefficients, and fill ``weights`` with that of the harmonics."""
    weights[:] = ZERO  # after the first ``count``, too
    for j in range(count):
        i = picked[j]
        red, green, blue = colours[j], colours[LANES + j], colours[2 * LANES + j]
        for k in range((degree + 1) * (degree + 1)):
            share = basis[k * LANES + j]
            add(v_sh[i], k, 0, share * red, fresh)
            add(v_sh[i], k, 1, share * green, fresh)
            add(v_sh[i], k, 2, share * blue, fresh)
            weights[k * LANES + j] = sh[i, k, 0] * red + sh[i, k, 1] * green + sh[i, k, 2] * blue


@inlined
def geometry_gradient(block, view, lens, out):
    """Fill the gradients of quaternion and scales; returns those of the camera-frame point and of the view rotation."""
    rotation, translation = view
    mean = at3(block, MEAN)
    point = plus(matrix_times(rotation, mean), translation)
    quat, inverse_length = unit_quaternion(quaternion_at(block))
    scales = at3(block, SCALE)
    axes = scale_columns(rotation_of(quat), scales)
    rows = jacobian(point, lens)
    ux, uy, to_x, to_y = screen_axes(rows, rotation, axes)
    v_screen, (c_xx, c_xy, c_yy) = conic_gradient(block)
    v_ux, v_uy = plus(times(ux, c_xx), times(uy, c_xy)), plus(times(ux, c_xy), times(uy, c_yy))
    v_axes = sum3(outer(to_x, v_ux), outer(to_y, v_uy))
    v_to_x, v_to_y = matrix_times(axes, v_ux), matrix_times(axes, v_uy)
    v_row_x, v_row_y = matrix_times(rotation, v_to_x), matrix_times(rotation, v_to_y)
    v_point = point_gradient(point, lens, rows, v_screen, v_row_x, v_row_y, at(block, MOMENTS + 9))
    scaled = (product(v_axes[0], axes[0]), product(v_axes[1], axes[1]), product(v_axes[2], axes[2]))
    put3(out, V_SCALE, plus(plus(scaled[0], scaled[1]), scaled[2]))
    v_quat = rotation_gradient(scale_columns(v_axes, scales), quat, inverse_length)
    put(out, V_QUAT, v_quat[0])
    put3(out, V_QUAT + 1, (v_quat[1], v_quat[2], v_quat[3]))
    v_rotation = sum3(sum3(outer(rows[0], v_to_x), outer(rows[1], v_to_y)), outer(v_point, mean))
    return v_point, v_rotation


@inlined
def add3(block, row, values):
    put3(block, row, plus(at3(block, row), values))


@inlined
def add_camera(totals, v_rotation, v_point, v_centre):
    add3(totals, 0, v_rotation[0])
    add3(totals, 3, v_rotation[1])
    add3(totals, 6, v_rotation[2])
    add3(totals, 9, v_point)
    add3(totals, 12, v_centre)


@inlined
def add(array, i, k, value, fresh):
    """Add to an element, or overwrite what is not initialised."""
    array[i, k] = value if fresh else array[i, k] + value


@inlined
def scatter(array, picked, count, fresh, block, row, columns):
    """Add vectors of ``block``, from ``row`` on, to columns of the picked rows of ``array``: the reverse of gather."""
    for j in range(count):
        for column in range(columns):
            add(array, picked[j], column, block[(row + column) * LANES + j], fresh)


@inlined
def clear(i, v_means, v_quats, v_log_scales, v_logit_opacities):
    v_logit_opacities[i, 0] = ZERO
    for k in range(3):
        v_means[i, k] = ZERO
        v_log_scales[i, k] = ZERO
    for k in range(4):
        v_quats[i, k] = ZERO


@inlined
def clear_harmonics(v_sh, i, first):
    for k in range(first, v_sh.shape[1]):
        for c in range(3):
            v_sh[i, k, c] = ZERO


@kernel
def project_backward(
    means, quats, scales, sh, degree, world_to_cam, centre, intrinsics, width, height, records, slot_starts, slots,
    fresh, v_means, v_quats, v_log_scales, v_logit_opacities, v_sh, camera_sums,
):  # fmt: skip
    """Add one camera's gradients to the Gaussians' (overwrite them if ``fresh``) and to the camera's own [CHUNKS, 15]."""
    n, flat_slots = len(means), slots.reshape(-1)
    per_chunk = (n + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        lens, view = lens_of(intrinsics, width, height), view_of(world_to_cam)
        eye = (-centre[0], -centre[1], -centre[2])
        block, out, totals = aligned(GATHERED * LANES), aligned(GRADIENTS * LANES), aligned(CAMERA_SUMS * LANES)
        basis, weights, moments = aligned(HARMONICS * LANES), aligned(HARMONICS * LANES), aligned(SLOT)
        colours = aligned(3 * LANES)
        picked, count, used = np.zeros(LANES, np.int32), 0, (degree + 1) * (degree + 1)
        totals[:] = ZERO
        end = min(n, (chunk + 1) * per_chunk)
        for i in range(chunk * per_chunk, end):
            seen = slot_starts[i] < slot_starts[i + 1]
            if fresh:
                clear_harmonics(v_sh, i, used if seen else 0)
                if not seen:
                    clear(i, v_means, v_quats, v_log_scales, v_logit_opacities)
            if seen:
                picked[count] = i
                count += 1
            if count == LANES or (count > 0 and i == end - 1):
                gather_shapes(block, means, quats, scales, picked, count)
                gather_records(block, records, picked)
                gather_moments(block, flat_slots, slot_starts, picked, count, moments)
                put(out, V_OPACITY, at(block, MOMENTS) * (at(block, CLARITY) - ONE))
                v_point, v_rotation = geometry_gradient(block, view, lens, out)
                direction, inverse_length = unit(plus(at3(block, MEAN), eye))
                sh_basis(degree, direction, basis)
                put3(colours, 0, colour_moments(block))
                harmonics_gradient(degree, sh, v_sh, picked, count, fresh, colours, basis, weights)
                v_direction = sh_direction_gradient(degree, direction, weights)
                across = minus(v_direction, times(direction, dot(v_direction, direction)))
                v_offset = times(across, inverse_length)
                put3(out, V_MEAN, plus(row_times(v_point, view[0]), v_offset))
                add_camera(totals, v_rotation, v_point, opposite(v_offset))
                scatter(v_means, picked, count, fresh, out, V_MEAN, 3)
                scatter(v_quats, picked, count, fresh, out, V_QUAT, 4)
                scatter(v_log_scales, picked, count, fresh, out, V_SCALE, 3)
                scatter(v_logit_opacities, picked, count, fresh, out, V_OPACITY, 1)
                count = 0
        for k in range(CAMERA_SUMS):
            for j in range(LANES):
                camera_sums[chunk, k] += totals[k * LANES + j]
