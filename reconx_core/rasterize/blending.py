"""Alpha blending of the splats of every tile, and its gradients (numba kernels).

A tile is processed one splat at a time, front to back, and each of its 16 pixel rows is one vector; the tile's state fits the
L1 cache. The transmittance in the state is negated once a pixel is finished. The backward pass repeats the forward pass in
the same order and keeps, per pixel, the contribution of the remaining splats to the loss.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from reconx_core.cpu.jit import inlined, kernel
from reconx_core.cpu.simd import (
    aligned,
    any_lane,
    both,
    either,
    fma,
    greater,
    greater_equal,
    lane_centres,
    lane_sums,
    less_equal,
    load,
    maximum,
    minimum,
    negative,
    select,
    splat,
    store,
)
from reconx_core.rasterize import conventions
from reconx_core.rasterize.records import BLUE, DEPTH, GREEN, OPACITY, RECORD, RED, SLOT, A, B, C, X, Y
from reconx_core.rasterize.tiles import end_row, first_row

f32 = np.float32
TILE = conventions.TILE
BATCH = 32  # records copied into contiguous memory at a time; also the interval of the check whether a tile is finished
FORWARD, BACKWARD = 5 * TILE, 6 * TILE  # floats of state per pixel row

ZERO, HALF, ONE = f32(0), f32(0.5), f32(1)
MIN_ALPHA, MAX_ALPHA = f32(conventions.MIN_ALPHA), f32(conventions.MAX_ALPHA)
MIN_TRANSMITTANCE = f32(conventions.MIN_TRANSMITTANCE)
EIGHTH, SIXTEENTH = f32(-1 / 8), f32(-1 / 16)
LOWEST = f32(-0.7)  # just below -ln(255) / 8
# Minimax polynomial of exp on [LOWEST, 0].
P0, P1, P2 = f32(0.9999999403953552), f32(0.9999921917915344), f32(0.4998783469200134)
P3, P4, P5 = f32(0.16595570743083954), f32(0.03974061831831932), f32(0.005827279761433601)


@inlined
def exp_of_eighth(x):
    """exp(8 x) for x in [LOWEST, 0]; clamped below, where a splat is cut off anyway."""
    x = maximum(x, LOWEST)
    p = fma(x, P5, P4)
    p = fma(p, x, P3)
    p = fma(p, x, P2)
    p = fma(p, x, P1)
    p = fma(p, x, P0)
    p = p * p
    p = p * p
    return p * p


@inlined
def absorb(exponent, opacity, light):
    """Blend a splat into 16 pixels with transmittance ``light``.

    Returns alpha / (1 - alpha), the splat's weight, the remaining transmittance (negated where the pixel is finished) and a
    mask of where the weight does not depend on the exponent.
    """
    zero = splat(ZERO)
    alpha = exp_of_eighth(exponent) * opacity
    saturated = greater(alpha, MAX_ALPHA)
    alpha = minimum(alpha, MAX_ALPHA)
    counts = both(both(greater_equal(alpha, MIN_ALPHA), less_equal(exponent, ZERO)), greater(light, ZERO))
    alpha = select(counts, alpha, zero)
    weight = alpha * light
    rest = light - weight
    ends = both(counts, less_equal(rest, MIN_TRANSMITTANCE))
    left = select(ends, negative(light), rest)
    return alpha / (ONE - alpha), select(ends, zero, weight), left, either(ends, saturated)


@inlined
def any_unfinished(state, row_length):
    unfinished = greater(load(state, 0), ZERO)
    for y in range(1, TILE):
        unfinished = either(unfinished, greater(load(state, y * row_length), ZERO))
    return any_lane(unfinished)


@inlined
def copy_batch(batch, records, gaussians, first, count):
    for k in range(count):
        store(batch, k * RECORD, load(records, gaussians[first + k] * RECORD))


@inlined
def write_tile(state, x0, y0, background, rgb, depth, alpha):
    for y in range(min(TILE, alpha.shape[0] - y0)):
        for x in range(min(TILE, alpha.shape[1] - x0)):
            left = abs(state[y * FORWARD + x])
            alpha[y0 + y, x0 + x] = ONE - left
            for c in range(3):
                rgb[y0 + y, x0 + x, c] = state[y * FORWARD + (1 + c) * TILE + x] + left * background[c]
            depth[y0 + y, x0 + x] = state[y * FORWARD + 4 * TILE + x]


@inlined
def blend_splat(state, batch, k, x0, y0, entry):
    """Add one splat to the pixel rows of a tile that it covers."""
    dx = lane_centres() - (batch[k + X] - x0)
    y = batch[k + Y] - y0 - HALF
    along, cross, down = dx * (batch[k + A] * SIXTEENTH), batch[k + B] * EIGHTH, batch[k + C] * SIXTEENTH
    opacity = batch[k + OPACITY]
    red, green, blue, depth = batch[k + RED], batch[k + GREEN], batch[k + BLUE], batch[k + DEPTH]
    for row in range(first_row(entry), end_row(entry)):
        dy = f32(row) - y
        exponent = fma(along + cross * dy, dx, down * dy * dy)
        at = row * FORWARD
        _, weight, light, _ = absorb(exponent, opacity, load(state, at))
        store(state, at, light)
        store(state, at + 16, fma(weight, red, load(state, at + 16)))
        store(state, at + 32, fma(weight, green, load(state, at + 32)))
        store(state, at + 48, fma(weight, blue, load(state, at + 48)))
        store(state, at + 64, fma(weight, depth, load(state, at + 64)))


@kernel
def blend(records, tile_starts, gaussians, entries, background, rgb, depth, alpha, parts):
    """Fill rgb [h, w, 3], accumulated depth [h, w] and alpha [h, w] of one camera."""
    tiles_x = (alpha.shape[1] + TILE - 1) // TILE
    flat = records.reshape(-1)
    for part in prange(parts):
        state, batch = aligned(TILE * FORWARD), aligned(BATCH * RECORD)
        for tile in range(part, len(tile_starts) - 1, parts):
            state[:] = ZERO
            for y in range(TILE):
                store(state, y * FORWARD, splat(ONE))
            x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
            for first in range(tile_starts[tile], tile_starts[tile + 1], BATCH):
                count = min(BATCH, tile_starts[tile + 1] - first)
                copy_batch(batch, flat, gaussians, first, count)
                for k in range(count):
                    blend_splat(state, batch, k * RECORD, f32(x0), f32(y0), entries[first + k])
                if not any_unfinished(state, FORWARD):
                    break
            write_tile(state, x0, y0, background, rgb, depth, alpha)


@inlined
def read_tile(state, x0, y0, images, gradients):
    """State of the backward pass: transmittance, all splats' contribution to the loss, gradients of red, green, blue, depth."""
    rgb, depth, alpha = images
    v_rgb, v_depth, v_alpha = gradients
    for y in range(TILE):
        for x in range(TILE):
            at = y * BACKWARD + x
            if y0 + y < alpha.shape[0] and x0 + x < alpha.shape[1]:
                rest = (alpha[y0 + y, x0 + x] - ONE) * v_alpha[y0 + y, x0 + x]
                for c in range(3):
                    v = v_rgb[y0 + y, x0 + x, c]
                    state[at + (2 + c) * TILE] = v
                    rest += v * rgb[y0 + y, x0 + x, c]
                v = v_depth[y0 + y, x0 + x]
                state[at + 5 * TILE] = v
                state[at] = ONE
                state[at + TILE] = rest + v * depth[y0 + y, x0 + x]
            else:
                state[at] = -ONE
                for c in range(1, 6):
                    state[at + c * TILE] = ZERO


@inlined
def unblend_splat(state, batch, k, x0, y0, entry, slots, slot):
    """Repeat the blending of one splat and write the moments of its gradients over the tile's pixels to its slot."""
    zero = splat(ZERO)
    dx = lane_centres() - (batch[k + X] - x0)
    y = batch[k + Y] - y0 - HALF
    along, cross, down = dx * (batch[k + A] * SIXTEENTH), batch[k + B] * EIGHTH, batch[k + C] * SIXTEENTH
    opacity = batch[k + OPACITY]
    red, green, blue, depth = batch[k + RED], batch[k + GREEN], batch[k + BLUE], batch[k + DEPTH]
    g, g_y, g_yy, g_red, g_green, g_blue, g_depth = zero, zero, zero, zero, zero, zero, zero
    for row in range(first_row(entry), end_row(entry)):
        dy = f32(row) - y
        exponent = fma(along + cross * dy, dx, down * dy * dy)
        at = row * BACKWARD
        odds, weight, light, fixed = absorb(exponent, opacity, load(state, at))
        store(state, at, light)
        v_red, v_green, v_blue, v_depth = load(state, at + 32), load(state, at + 48), load(state, at + 64), load(state, at + 80)
        g_red = fma(weight, v_red, g_red)
        g_green = fma(weight, v_green, g_green)
        g_blue = fma(weight, v_blue, g_blue)
        g_depth = fma(weight, v_depth, g_depth)
        gain = weight * fma(v_red, red, fma(v_green, green, fma(v_blue, blue, v_depth * depth)))
        behind = load(state, at + 16) - gain
        store(state, at + 16, behind)
        v_exponent = select(fixed, zero, fma(odds, behind, negative(gain)))
        g += v_exponent
        v_exponent *= dy
        g_y += v_exponent
        g_yy = fma(v_exponent, dy, g_yy)
    g_x = g * dx
    moments = (g, g_x, g_y, g_x * dx, g_y * dx, g_yy, g_red, g_green, g_blue, g_depth, zero, zero)
    store(slots, slot * SLOT, lane_sums(moments))


@kernel
def blend_backward(
    records, tile_starts, gaussians, slot_of, entries, rgb, depth, alpha, v_rgb, v_depth, v_alpha, slots, parts
):  # fmt: skip
    """Fill ``slots`` [(Gaussian, tile) pairs, 16] with the moments of one camera's image gradients."""
    tiles_x = (alpha.shape[1] + TILE - 1) // TILE
    flat, flat_slots = records.reshape(-1), slots.reshape(-1)
    for part in prange(parts):
        state, batch = aligned(TILE * BACKWARD), aligned(BATCH * RECORD)
        for tile in range(part, len(tile_starts) - 1, parts):
            x0, y0 = (tile % tiles_x) * TILE, (tile // tiles_x) * TILE
            end = tile_starts[tile + 1]
            read_tile(state, x0, y0, (rgb, depth, alpha), (v_rgb, v_depth, v_alpha))
            done = tile_starts[tile]
            while done < end and (done == tile_starts[tile] or any_unfinished(state, BACKWARD)):
                count = min(BATCH, end - done)
                copy_batch(batch, flat, gaussians, done, count)
                for k in range(count):
                    unblend_splat(state, batch, k * RECORD, f32(x0), f32(y0), entries[done + k], flat_slots, slot_of[done + k])
                done += count
            for place in range(done, end):
                store(flat_slots, slot_of[place] * SLOT, splat(ZERO))
