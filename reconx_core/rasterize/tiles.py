"""Which tiles a splat touches, and for every tile its splats from front to back (numba kernels)."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from reconx_core.jit import exact, inlined, kernel, serial_kernel
from reconx_core.rasterize.conventions import TILE
from reconx_core.rasterize.records import DETERMINANT, EXTENT_X, EXTENT_Y, LEVEL, A, B, C, X, Y

f32 = np.float32
ZERO, HALF, TWO = f32(0), f32(0.5), f32(2)
SIDE, INVERSE_SIDE, LAST_CENTRE = f32(TILE), f32(1 / TILE), f32(TILE - 0.5)


@exact
def ellipse_span(a, b, c, level, determinant, extent_along, extent_across, low, high):
    """(any, left, right): extent along one axis of a dx^2 + 2 b dx dy + c dy^2 <= 2 level between dy = low and high."""
    low, high = max(low, -extent_across), min(high, extent_across)
    if not low <= high:
        return False, ZERO, ZERO
    tip = b / c * extent_along  # dy of the leftmost point; the rightmost lies opposite
    y_left, y_right = min(high, max(low, tip)), min(high, max(low, -tip))
    inside_left = max(ZERO, TWO * level * a - determinant * y_left * y_left)
    inside_right = max(ZERO, TWO * level * a - determinant * y_right * y_right)
    return True, (-b * y_left - math.sqrt(inside_left)) / a, (-b * y_right + math.sqrt(inside_right)) / a


@exact
def tile_columns(record, tile_y, tiles_x):
    """First and last tile that the splat touches in a row of tiles; last < first where there is none."""
    low = f32(tile_y) * SIDE + HALF - record[Y]
    hit, left, right = ellipse_span(
        record[A], record[B], record[C], record[LEVEL], record[DETERMINANT], record[EXTENT_X], record[EXTENT_Y],
        low, low + SIDE - HALF - HALF,
    )  # fmt: skip
    if not hit:
        return 0, -1
    first = math.ceil((record[X] + left - LAST_CENTRE) * INVERSE_SIDE)
    last = math.floor((record[X] + right - HALF) * INVERSE_SIDE)
    return int(max(ZERO, first)), int(min(f32(tiles_x - 1), last))


@exact
def tile_rows(record, tiles_y):
    """Rows of tiles that the splat's bounding box touches: first and one past the last."""
    first = math.floor((record[Y] - record[EXTENT_Y]) * INVERSE_SIDE)
    last = math.floor((record[Y] + record[EXTENT_Y]) * INVERSE_SIDE)
    return int(max(ZERO, first)), int(min(f32(tiles_y - 1), last)) + 1


@exact
def count_tiles(record, tiles_x, tiles_y):
    """Number of tiles that hold a pixel centre inside the splat's ellipse (or nearly so)."""
    count = 0
    top, bottom = tile_rows(record, tiles_y)
    for tile_y in range(top, bottom):
        first, last = tile_columns(record, tile_y, tiles_x)
        count += max(0, last - first + 1)
    return count


@inlined
def pixel_rows(record, tile_x, tile_y):
    """First and one past the last pixel row of a tile that the splat reaches, packed as first + 32 * end."""
    low = f32(tile_x) * SIDE + HALF - record[X]
    hit, top, bottom = ellipse_span(
        record[C], record[B], record[A], record[LEVEL], record[DETERMINANT], record[EXTENT_Y], record[EXTENT_X],
        low, low + SIDE - HALF - HALF,
    )  # fmt: skip
    if not hit:
        return 0
    y = record[Y] - f32(tile_y) * SIDE - HALF
    first = max(ZERO, math.ceil(y + top))
    last = min(SIDE - HALF - HALF, math.floor(y + bottom))
    return int(first) + 32 * (int(last) + 1)


@serial_kernel
def depth_order(tile_counts, keys):
    """Indices of the visible Gaussians from front to back: a stable radix sort of the depths' bit patterns."""
    n = len(keys)
    order, sorted_keys = np.empty(n, np.int32), np.empty(n, np.uint32)
    histograms = np.zeros((3, 2048), np.int32)
    visible = 0
    for i in range(n):
        if tile_counts[i] > 0:
            key = keys[i]
            order[visible] = i
            sorted_keys[visible] = key
            visible += 1
            for digit in range(3):
                histograms[digit, (key >> (11 * digit)) & 2047] += 1
    next_order, next_keys = np.empty(visible, np.int32), np.empty(visible, np.uint32)
    for digit in range(3):
        starts = histograms[digit]
        total = 0
        for value in range(2048):
            starts[value], total = total, total + starts[value]
        for i in range(visible):
            value = (sorted_keys[i] >> (11 * digit)) & 2047
            next_order[starts[value]] = order[i]
            next_keys[starts[value]] = sorted_keys[i]
            starts[value] += 1
        order, next_order = next_order, order
        sorted_keys, next_keys = next_keys, sorted_keys
    return order[:visible]


@serial_kernel
def slot_starts(tile_counts):
    """Running sum of the tile counts: Gaussian i owns the slots from [i] up to [i + 1]."""
    starts = np.empty(len(tile_counts) + 1, np.int32)
    starts[0] = 0
    for i in range(len(tile_counts)):
        starts[i + 1] = starts[i] + tile_counts[i]
    return starts


@inlined
def offsets_per_tile(counts, tile_starts):
    """Turn the parts' counts into where each part writes its first splat of a tile; fill the tiles' starts."""
    total = 0
    for tile in range(counts.shape[1]):
        tile_starts[tile] = total
        for part in range(counts.shape[0]):
            count = counts[part, tile]
            counts[part, tile] = total
            total += count
    tile_starts[counts.shape[1]] = total


@kernel
def fill_tiles(records, order, starts, tiles_x, tiles_y, parts):
    """Lists per tile, front to back: (tile_starts, Gaussian, slot, packed pixel rows).

    A stable counting sort: each of ``parts`` threads takes a stretch of the depth order, so the lists do not depend on
    their number.
    """
    n, total = len(order), starts[-1]
    gaussians, slots, rows = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
    tile_of, tile_starts = np.empty(total, np.int32), np.empty(tiles_x * tiles_y + 1, np.int32)
    counts = np.zeros((parts, tiles_x * tiles_y), np.int32)
    for part in prange(parts):
        for k in range(n * part // parts, n * (part + 1) // parts):
            slot = starts[order[k]]
            record = records[order[k]]
            top, bottom = tile_rows(record, tiles_y)
            for tile_y in range(top, bottom):
                first, last = tile_columns(record, tile_y, tiles_x)
                for tile_x in range(first, last + 1):
                    tile_of[slot] = tile_y * tiles_x + tile_x
                    counts[part, tile_of[slot]] += 1
                    slot += 1
    offsets_per_tile(counts, tile_starts)
    for part in prange(parts):
        for k in range(n * part // parts, n * (part + 1) // parts):
            i = order[k]
            for slot in range(starts[i], starts[i + 1]):
                tile = tile_of[slot]
                place = counts[part, tile]
                counts[part, tile] = place + 1
                gaussians[place] = i
                slots[place] = slot
                rows[place] = pixel_rows(records[i], tile % tiles_x, tile // tiles_x)
    return tile_starts, gaussians, slots, rows
