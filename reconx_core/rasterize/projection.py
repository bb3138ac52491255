"""Gaussians to screen-space splats (numba kernels, one camera and 16 Gaussians at a time).

With the camera's rotation W, the projection's Jacobian J (2x3) at the Gaussian's centre and its axes N = R(quat) diag(scales),
the factor U = J W N (2x3) gives the screen covariance U U^T + blur; its inverse is the conic (A, B; B, C).
"""

from __future__ import annotations

import numpy as np
from numba import prange

from reconx_core.cpu.jit import inlined, kernel
from reconx_core.cpu.simd import (
    LANES,
    aligned,
    at,
    both,
    ceiling,
    float_bits,
    greater,
    less,
    maximum,
    minimum,
    negative,
    put,
    root,
    splat,
    store_mask,
)
from reconx_core.rasterize import conventions
from reconx_core.rasterize.algebra import (
    dot,
    matrix_times,
    plus,
    rotation_of,
    row_times,
    scale_columns,
    unit,
    unit_quaternion,
)
from reconx_core.rasterize.harmonics import sh_basis
from reconx_core.rasterize.records import (
    DEPTH,
    EXTENT_X,
    EXTENT_Y,
    FLAT_X,
    FLAT_Y,
    OPACITY,
    RECORD,
    RED,
    SLOPE_X,
    SLOPE_Y,
    A,
    B,
    C,
    X,
    Y,
)  # fmt: skip
from reconx_core.rasterize.tiles import CHUNKS, box_tiles

f32 = np.float32
ZERO, HALF, ONE, TWO = f32(0), f32(0.5), f32(1), f32(2)
NEAR, FAR, BLUR = f32(conventions.NEAR), f32(conventions.FAR), f32(conventions.SCREEN_BLUR)
MIN_ALPHA, MARGIN = f32(conventions.MIN_ALPHA), f32(conventions.VIEW_MARGIN)
LARGEST = f32(1e30)
# Tiles are culled at a level slightly below MIN_ALPHA, so that rounding never drops a contributing pixel.
LEVEL_MARGIN = f32(1e-4)
HARMONICS = 16  # at most

# What is gathered of 16 Gaussians, a vector each.
MEAN, QUAT, SCALE, FAINT, LEVEL = 0, 3, 7, 10, 11
GATHERED = 12


@inlined
def vector3(array, i):
    return array[i, 0], array[i, 1], array[i, 2]


@inlined
def matrix3(array):
    return vector3(array, 0), vector3(array, 1), vector3(array, 2)


@inlined
def view_of(world_to_cam):
    return matrix3(world_to_cam), (world_to_cam[0, 3], world_to_cam[1, 3], world_to_cam[2, 3])


@inlined
def lens_of(intrinsics, width, height):
    """Focal lengths, principal point and the limits of x/z and y/z inside which the projection is linearised."""
    fx, fy, cx, cy = intrinsics[0, 0], intrinsics[1, 1], intrinsics[0, 2], intrinsics[1, 2]
    beyond_x, beyond_y = MARGIN * f32(width) / fx, MARGIN * f32(height) / fy
    x_limits = (-cx / fx - beyond_x, (f32(width) - cx) / fx + beyond_x)
    y_limits = (-cy / fy - beyond_y, (f32(height) - cy) / fy + beyond_y)
    return (fx, fy), (cx, cy), x_limits, y_limits


@inlined
def gather(block, row, array, picked, columns):
    """Columns of the picked rows of ``array`` into as many vectors of ``block``, from ``row`` on."""
    for j in range(LANES):
        for column in range(columns):
            block[(row + column) * LANES + j] = array[picked[j], column]


@inlined
def gather_shapes(block, means, quats, scales, picked, count):
    """What both directions need of the first ``count`` picked Gaussians; the lanes that are left repeat the first."""
    picked[count:] = picked[0]
    gather(block, MEAN, means, picked, 3)
    gather(block, QUAT, quats, picked, 4)
    gather(block, SCALE, scales, picked, 3)


@inlined
def at3(block, row):
    return at(block, row), at(block, row + 1), at(block, row + 2)


@inlined
def put3(block, row, values):
    put(block, row, values[0])
    put(block, row + 1, values[1])
    put(block, row + 2, values[2])


@inlined
def quaternion_at(block):
    return at(block, QUAT), at(block, QUAT + 1), at(block, QUAT + 2), at(block, QUAT + 3)


@inlined
def jacobian(point, lens):
    """Rows of the projection's derivative with respect to the camera-frame point."""
    (fx, fy), _, (x_low, x_high), (y_low, y_high) = lens
    inverse = ONE / point[2]
    slope_x = minimum(maximum(point[0] * inverse, x_low), x_high)
    slope_y = minimum(maximum(point[1] * inverse, y_low), y_high)
    return (inverse * fx, ZERO, slope_x * inverse * -fx), (ZERO, inverse * fy, slope_y * inverse * -fy)


@inlined
def screen_axes(rows, view_rotation, axes):
    """The rows of U = J W N, and of J W."""
    to_x, to_y = row_times(rows[0], view_rotation), row_times(rows[1], view_rotation)
    return row_times(to_x, axes), row_times(to_y, axes), to_x, to_y


@inlined
def project_geometry(block, view, lens, size, out):
    """The geometric part of 16 records, a vector each; returns where they lie in the image."""
    rotation, translation = view
    point = plus(matrix_times(rotation, at3(block, MEAN)), translation)
    quat, _ = unit_quaternion(quaternion_at(block))
    axes = scale_columns(rotation_of(quat), at3(block, SCALE))
    ux, uy, _, _ = screen_axes(jacobian(point, lens), rotation, axes)
    put(out, OPACITY, at(block, FAINT))
    put(out, DEPTH, point[2])
    return write_splats(out, point, dot(ux, ux) + BLUR, dot(ux, uy), dot(uy, uy) + BLUR, at(block, LEVEL), lens, size)


@inlined
def write_splats(out, point, xx, xy, yy, level, lens, size):
    """Place, conic and extent of splats from their covariance and the logarithm of opacity over MIN_ALPHA."""
    (fx, fy), (cx, cy), _, _ = lens
    determinant = xx * yy - xy * xy
    x, y = point[0] * fx / point[2] + cx, point[1] * fy / point[2] + cy
    spread_x, spread_y = root(xx), root(yy)
    reach = root(level * TWO)
    reach_x, reach_y = ceiling(reach * spread_x), ceiling(reach * spread_y)
    seen = both(greater(determinant, ZERO), less(determinant, LARGEST))
    seen = both(seen, both(greater(reach_x, ZERO), greater(reach_y, ZERO)))
    seen = both(seen, both(greater(x + reach_x, ZERO), less(x - reach_x, size[0])))
    seen = both(seen, both(greater(y + reach_y, ZERO), less(y - reach_y, size[1])))
    reach = root((level + LEVEL_MARGIN) * TWO)
    inverse, area = ONE / determinant, root(determinant)
    put(out, X, x)
    put(out, Y, y)
    put(out, A, yy * inverse)
    put(out, B, negative(xy) * inverse)
    put(out, C, xx * inverse)
    put(out, EXTENT_X, reach * spread_x)
    put(out, EXTENT_Y, reach * spread_y)
    put(out, SLOPE_X, xy / yy)
    put(out, SLOPE_Y, xy / xx)
    put(out, FLAT_X, area / yy)
    put(out, FLAT_Y, area / xx)
    return seen


@inlined
def gather_harmonics(coefficients, sh, picked, degree):
    """The SH coefficients of 16 Gaussians: red, green and blue of the first harmonic, and so on."""
    for k in range((degree + 1) * (degree + 1)):
        for j in range(LANES):
            for c in range(3):
                coefficients[(3 * k + c) * LANES + j] = sh[picked[j], k, c]


@inlined
def write_colours(out, coefficients, degree, direction, basis):
    """The colours: max(0, 0.5 + harmonics in the viewing direction)."""
    sh_basis(degree, direction, basis)
    red, green, blue = splat(HALF), splat(HALF), splat(HALF)
    for k in range((degree + 1) * (degree + 1)):
        red += at(basis, k) * at(coefficients, 3 * k)
        green += at(basis, k) * at(coefficients, 3 * k + 1)
        blue += at(basis, k) * at(coefficients, 3 * k + 2)
    put3(out, RED, (maximum(red, ZERO), maximum(green, ZERO), maximum(blue, ZERO)))


@inlined
def write_records(out, seen, picked, count, tiles_x, tiles_y, records, box_counts, depth_keys):
    for j in range(count):
        if seen[j]:
            i = picked[j]
            for field in range(RECORD):
                records[i, field] = out[field * LANES + j]
            box_counts[i] = box_tiles(records[i], tiles_x, tiles_y)
            depth_keys[i] = float_bits(records[i, DEPTH])


@inlined
def may_be_seen(mean, opacity, view):
    rotation, translation = view
    depth = dot(rotation[2], mean) + translation[2]
    return depth >= NEAR and depth <= FAR and opacity >= MIN_ALPHA


@kernel
def project(
    means, quats, scales, opacities, levels, sh, degree, world_to_cam, centre, intrinsics, width, height,
    tiles_x, tiles_y, records, box_counts, depth_keys,
):  # fmt: skip
    """Fill a record, the number of tiles its bounding box touches (0: invisible) and a sortable depth for every Gaussian.

    ``levels``: the logarithm of each opacity over MIN_ALPHA.
    """
    n = len(means)
    per_chunk = (n + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        lens, view = lens_of(intrinsics, width, height), view_of(world_to_cam)
        eye, size = (-centre[0], -centre[1], -centre[2]), (f32(width), f32(height))
        block, out = aligned(GATHERED * LANES), aligned(RECORD * LANES)
        basis, coefficients = aligned(HARMONICS * LANES), aligned(3 * HARMONICS * LANES)
        seen, picked, count = np.empty(LANES, np.bool_), np.zeros(LANES, np.int32), 0
        end = min(n, (chunk + 1) * per_chunk)
        for i in range(chunk * per_chunk, end):
            box_counts[i] = 0
            if may_be_seen(vector3(means, i), opacities[i, 0], view):
                picked[count] = i
                count += 1
            if count == LANES or (count > 0 and i == end - 1):
                gather_shapes(block, means, quats, scales, picked, count)
                gather(block, FAINT, opacities, picked, 1)
                gather(block, LEVEL, levels, picked, 1)
                gather_harmonics(coefficients, sh, picked, degree)
                store_mask(seen, 0, project_geometry(block, view, lens, size, out))
                direction, _ = unit(plus(at3(block, MEAN), eye))
                write_colours(out, coefficients, degree, direction, basis)
                write_records(out, seen, picked, count, tiles_x, tiles_y, records, box_counts, depth_keys)
                count = 0
