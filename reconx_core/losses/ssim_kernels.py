"""SSIM and its gradient for float32 images in memory, one output row at a time (numba kernels).

Each row is blurred vertically, then horizontally, in buffers that fit the L1 cache. The Gaussian blur with mirrored borders
is its own adjoint, so the gradient uses the same blur. Moments are taken about 0.5, which keeps the variances of bright, flat
areas accurate in float32.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from reconx_core.cpu.jit import inlined, kernel
from reconx_core.cpu.simd import LANES, fma, greater, load, negative, select, splat, store

RADIUS, SIGMA = 5, 1.5
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1
CHANNELS = 3
PAD = LANES  # >= RADIUS * CHANNELS floats on either side of a row buffer

f32 = np.float32
_taps = np.exp(-0.5 * (np.arange(-RADIUS, RADIUS + 1) / SIGMA) ** 2)
WINDOW = (_taps / _taps.sum()).astype(np.float32)
# The float32 taps must sum to one, or flat areas get a spurious variance. The outermost taps, which have the finest
# float32 resolution, absorb the rounding error.
WINDOW[[0, -1]] += (1 - WINDOW.sum(dtype=np.float64)) / 2
TAPS = len(WINDOW)
K1, K2, HALF, ONE, TWO, ZERO = f32(C1), f32(C2), f32(0.5), f32(1), f32(2), f32(0)
THIRD = f32(1 / CHANNELS)


@inlined
def mirrored(i, length):
    """Index into [0, length) with the border repeated: -1 is 0, -2 is 1."""
    if i < 0:
        return -1 - i
    return i if i < length else 2 * length - 1 - i


@inlined
def block_start(block, length):
    """Start of a block of lanes; the last block overlaps the one before it, so that it does not exceed the row."""
    return min(block * LANES, length - LANES)


@inlined
def mirror_ends(rows, length):
    """Fill the padding of every row buffer by mirroring."""
    for row in rows:
        for k in range(RADIUS * CHANNELS):
            pixel, channel = k // CHANNELS, k % CHANNELS
            row[PAD - CHANNELS * (pixel + 1) + channel] = row[PAD + CHANNELS * pixel + channel]
            row[PAD + length + CHANNELS * pixel + channel] = row[PAD + length - CHANNELS * (pixel + 1) + channel]


@inlined
def blur_along(row, start):
    """Horizontal blur of one row buffer: 16 values from ``start`` on."""
    total = splat(ZERO)
    for k in range(TAPS):
        total = fma(load(row, PAD + start + (k - RADIUS) * CHANNELS), WINDOW[k], total)
    return total


@inlined
def repeat_channels(values, row, scale):
    """Write one value per pixel, times ``scale``, to all channels of a row buffer."""
    for x in range(len(values)):
        for c in range(CHANNELS):
            row[PAD + x * CHANNELS + c] = values[x] * scale


@inlined
def row_sum(row, length):
    """Sum of a row buffer's pixels; its front padding is overwritten."""
    lanes, whole = splat(ZERO), length // LANES * LANES
    for start in range(0, whole, LANES):
        lanes += load(row, PAD + start)
    store(row, 0, lanes)
    total = ZERO
    for i in range(LANES):
        total += row[i]
    for i in range(PAD + whole, PAD + length):
        total += row[i]
    return total


@inlined
def moments_down(a, b, y, height, length, rows):
    """Blur a, b, a^2, b^2 and a b (all about 0.5) down the columns at row ``y``."""
    for block in range((length + LANES - 1) // LANES):
        start = block_start(block, length)
        m_a, m_b, m_aa, m_bb, m_ab = splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO), splat(ZERO)
        for k in range(TAPS):
            at = mirrored(y + k - RADIUS, height) * length + start
            p, q = load(a, at) - HALF, load(b, at) - HALF
            wp, wq = p * WINDOW[k], q * WINDOW[k]
            m_a += wp
            m_b += wq
            m_aa = fma(wp, p, m_aa)
            m_bb = fma(wq, q, m_bb)
            m_ab = fma(wp, q, m_ab)
        store(rows[0], PAD + start, m_a)
        store(rows[1], PAD + start, m_b)
        store(rows[2], PAD + start, m_aa)
        store(rows[3], PAD + start, m_bb)
        store(rows[4], PAD + start, m_ab)


@inlined
def similarity_block(rows, start):
    """(SSIM, and its derivatives with respect to the blurred a, a^2 and a b) of 16 values."""
    a, b = blur_along(rows[0], start), blur_along(rows[1], start)
    bright_a, bright_b = a + HALF, b + HALF
    n1 = bright_a * bright_b * TWO + K1
    n2 = (blur_along(rows[4], start) - a * b) * TWO + K2
    d1 = bright_a * bright_a + bright_b * bright_b + K1
    d2 = blur_along(rows[2], start) - a * a + (blur_along(rows[3], start) - b * b) + K2
    scale = ONE / (d1 * d2)
    value = n1 * n2 * scale
    by_a = (bright_b * n2 - b * n1) * scale - value * (bright_a * d2 - a * d1) * scale
    return value, by_a * TWO, negative(value * d1 * scale), n1 * scale * TWO


@kernel
def similarity(a, b, weight, scale, with_terms, ssim, terms):
    """Mean SSIM over the channels, [n, h, w], and if ``with_terms`` its derivatives times scale * weight [3, n, h * w * 3]."""
    images, height, width = ssim.shape
    length = width * CHANNELS
    for line in prange(images * height):
        image, y = line // height, line % height
        rows = np.empty((7, length + 2 * PAD), np.float32)
        moments_down(a[image], b[image], y, height, length, rows)
        mirror_ends(rows[:5], length)
        if with_terms:
            repeat_channels(weight[image, y], rows[6], THIRD * scale)
        for block in range((length + LANES - 1) // LANES):
            start = block_start(block, length)
            value, by_a, by_aa, by_ab = similarity_block(rows, start)
            store(rows[5], PAD + start, value)
            if with_terms:
                share = load(rows[6], PAD + start)
                at = y * length + start
                store(terms[0, image], at, by_a * share)
                store(terms[1, image], at, by_aa * share)
                store(terms[2, image], at, by_ab * share)
        for x in range(width):
            at = PAD + x * CHANNELS
            ssim[image, y, x] = (rows[5, at] + rows[5, at + 1] + rows[5, at + 2]) * THIRD


@inlined
def terms_down(terms, image, y, height, length, rows):
    for block in range((length + LANES - 1) // LANES):
        start = block_start(block, length)
        t_a, t_aa, t_ab = splat(ZERO), splat(ZERO), splat(ZERO)
        for k in range(TAPS):
            at = mirrored(y + k - RADIUS, height) * length + start
            t_a = fma(load(terms[0, image], at), WINDOW[k], t_a)
            t_aa = fma(load(terms[1, image], at), WINDOW[k], t_aa)
            t_ab = fma(load(terms[2, image], at), WINDOW[k], t_ab)
        store(rows[0], PAD + start, t_a)
        store(rows[1], PAD + start, t_aa)
        store(rows[2], PAD + start, t_ab)


@inlined
def absolute_difference(p, q, share, l1_scale):
    """(share * |p - q|, its derivative with respect to p, times ``l1_scale``)."""
    none = splat(ZERO)
    slope = select(greater(p, q), share, select(greater(q, p), negative(share), none))
    return slope * (p - q), slope * l1_scale


@kernel
def similarity_gradient(a, b, terms, weight, l1_scale, gradient, l1_rows):
    """Gradient for ``a`` [n, h * w * 3] of the sum of weight * (scale * SSIM + l1_scale * |a - b|), averaged over channels.

    ``terms`` are those of :func:`similarity`. ``l1_rows`` [n, h] is filled with every row's sum of weight * |a - b|.
    """
    images, height, width = weight.shape
    length = width * CHANNELS
    for line in prange(images * height):
        image, y = line // height, line % height
        rows = np.empty((5, length + 2 * PAD), np.float32)
        terms_down(terms, image, y, height, length, rows)
        mirror_ends(rows[:3], length)
        repeat_channels(weight[image, y], rows[3], THIRD)
        for block in range((length + LANES - 1) // LANES):
            start = block_start(block, length)
            at = y * length + start
            p, q = load(a[image], at) - HALF, load(b[image], at) - HALF
            by_moments = blur_along(rows[0], start) + blur_along(rows[1], start) * p * TWO + blur_along(rows[2], start) * q
            difference, by_difference = absolute_difference(p, q, load(rows[3], PAD + start), l1_scale)
            store(gradient[image], at, by_moments + by_difference)
            store(rows[4], PAD + start, difference)
        l1_rows[image, y] = row_sum(rows[4], length)
