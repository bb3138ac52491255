"""Tile lists: the tiles that each splat touches, and for every tile its splats from front to back (numba kernels)."""

from __future__ import annotations

import math

import numpy as np
from numba import prange

from reconx_core.cpu.jit import inlined, kernel, serial_kernel
from reconx_core.rasterize.conventions import TILE
from reconx_core.rasterize.records import EXTENT_X, EXTENT_Y, FLAT_X, FLAT_Y, SLOPE_X, SLOPE_Y, X, Y

CHUNKS = 64  # work items of Gaussians; a fixed number, so that sums over chunks do not depend on the number of threads

f32 = np.float32
ZERO, HALF = f32(0), f32(0.5)
INVERSE_SIDE, LAST_CENTRE, LAST = f32(1 / TILE), f32(TILE - 0.5), f32(TILE - 1)

# A list entry packs a tile index and the pixel rows of the tile that a splat covers: first row (5 bits) and end row (5 bits).
ROW_BITS = 5
ROW_MASK = (1 << ROW_BITS) - 1
TILE_SHIFT = 2 * ROW_BITS


@inlined
def first_row(entry):
    return entry & ROW_MASK


@inlined
def end_row(entry):
    return (entry >> ROW_BITS) & ROW_MASK


@inlined
def tile_range(centre, extent, tiles):
    """First and one past the last tile along an axis that hold a pixel centre within ``extent`` of ``centre``."""
    first = math.ceil((centre - extent - LAST_CENTRE) * INVERSE_SIDE)
    last = math.floor((centre + extent - HALF) * INVERSE_SIDE)
    return max(0, first), min(tiles - 1, last) + 1


@inlined
def box_tiles(record, tiles_x, tiles_y):
    """Number of tiles that the splat's bounding box touches, an upper bound of those that its ellipse touches."""
    left, right = tile_range(record[X], record[EXTENT_X], tiles_x)
    top, bottom = tile_range(record[Y], record[EXTENT_Y], tiles_y)
    return max(0, right - left) * max(0, bottom - top)


@inlined
def ellipse_span(slope, flat, extent, tip, low, high):
    """(any, left, right): the range of x that an ellipse covers between y = low and y = high, both relative to its centre.

    At height y it spans slope * y -+ flat * sqrt(extent^2 - y^2); its rightmost point is at y = tip.
    """
    low, high = max(low, -extent), min(high, extent)
    if not low <= high:
        return False, ZERO, ZERO
    y_left, y_right = min(high, max(low, -tip)), min(high, max(low, tip))
    width_left = math.sqrt(max(ZERO, extent * extent - y_left * y_left))
    width_right = math.sqrt(max(ZERO, extent * extent - y_right * y_right))
    return True, slope * y_left - flat * width_left, slope * y_right + flat * width_right


@inlined
def lies_in_column(record, tile_x):
    """Whether the splat reaches no pixel centre to the left and to the right of a column of tiles."""
    start = f32(tile_x * TILE) - HALF
    return record[X] - record[EXTENT_X] > start and record[X] + record[EXTENT_X] < start + f32(TILE + 1)


@inlined
def tile_columns(record, tile_y, left, right, alone):
    """Tiles in one row of tiles that the splat touches: first and one past the last, between ``left`` and ``right``."""
    if alone:
        return left, right
    low = f32(tile_y * TILE) + HALF - record[Y]
    tip = record[SLOPE_Y] * record[EXTENT_X]
    hit, start, end = ellipse_span(record[SLOPE_X], record[FLAT_X], record[EXTENT_Y], tip, low, low + LAST)
    if not hit:
        return 0, 0
    first = math.ceil((record[X] + start - LAST_CENTRE) * INVERSE_SIDE)
    last = math.floor((record[X] + end - HALF) * INVERSE_SIDE)
    return max(left, first), min(right, last + 1)


@inlined
def list_entry(record, tile_x, tile_y, tiles_x, alone):
    """The packed entry: the tile and the pixel rows of it that the splat covers; ``alone``: it lies in one column."""
    hit, start, end = True, -record[EXTENT_Y], record[EXTENT_Y]
    if not alone:
        low = f32(tile_x * TILE) + HALF - record[X]
        tip = record[SLOPE_X] * record[EXTENT_Y]
        hit, start, end = ellipse_span(record[SLOPE_Y], record[FLAT_Y], record[EXTENT_X], tip, low, low + LAST)
    tile = (tile_y * tiles_x + tile_x) << TILE_SHIFT
    if not hit:
        return tile
    top = record[Y] - f32(tile_y * TILE) - HALF
    first, last = max(0, math.ceil(top + start)), min(TILE - 1, math.floor(top + end))
    return tile | max(first, last + 1) << ROW_BITS | first if first < TILE else tile


@kernel
def list_tiles(records, entry_starts, tiles_x, tiles_y):
    """Entries of every Gaussian i from index ``entry_starts[i]`` on, and their number."""
    n = len(records)
    entries, counts = np.empty(entry_starts[-1], np.int32), np.empty(n, np.int32)
    per_chunk = (n + CHUNKS - 1) // CHUNKS
    for chunk in prange(CHUNKS):
        for i in range(chunk * per_chunk, min(n, (chunk + 1) * per_chunk)):
            place = entry_starts[i]
            if place < entry_starts[i + 1]:
                record = records[i]
                left, right = tile_range(record[X], record[EXTENT_X], tiles_x)
                top, bottom = tile_range(record[Y], record[EXTENT_Y], tiles_y)
                alone = lies_in_column(record, left)
                for tile_y in range(top, bottom):
                    first, end = tile_columns(record, tile_y, left, right, alone)
                    for tile_x in range(first, end):
                        entries[place] = list_entry(record, tile_x, tile_y, tiles_x, alone)
                        place += 1
            counts[i] = place - entry_starts[i]
    return entries, counts


@serial_kernel
def running_starts(counts):
    """Exclusive prefix sum of ``counts`` with the total appended: item i occupies [starts[i], starts[i + 1])."""
    starts = np.empty(len(counts) + 1, np.int32)
    starts[0] = 0
    for i in range(len(counts)):
        starts[i + 1] = starts[i] + counts[i]
    return starts


@serial_kernel
def depth_order(counts, keys):
    """Indices of the Gaussians that touch a tile, from front to back: a stable radix sort of the depths' bit patterns."""
    n = len(keys)
    order, sorted_keys = np.empty(n, np.int32), np.empty(n, np.uint32)
    histograms = np.zeros((3, 2048), np.int32)
    visible = 0
    for i in range(n):
        if counts[i] > 0:
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


@inlined
def offsets_per_tile(counts, tile_starts):
    """Replace each part's count per tile by the index at which it writes its first splat; fill ``tile_starts``."""
    total = 0
    for tile in range(counts.shape[1]):
        tile_starts[tile] = total
        for part in range(counts.shape[0]):
            count = counts[part, tile]
            counts[part, tile] = total
            total += count
    tile_starts[counts.shape[1]] = total


@kernel
def fill_tiles(order, entry_starts, entries, slot_starts, tiles, parts):
    """Lists per tile, front to back: (tile_starts, and for every list element its Gaussian, slot and entry).

    A stable counting sort: each of ``parts`` threads takes a contiguous part of the depth order, so the lists do not depend
    on the number of threads.
    """
    n, total = len(order), slot_starts[-1]
    tile_starts = np.empty(tiles + 1, np.int32)
    gaussians, slots, placed = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
    counts = np.zeros((parts, tiles), np.int32)
    for part in prange(parts):
        for k in range(n * part // parts, n * (part + 1) // parts):
            i = order[k]
            for j in range(slot_starts[i + 1] - slot_starts[i]):
                counts[part, entries[entry_starts[i] + j] >> TILE_SHIFT] += 1
    offsets_per_tile(counts, tile_starts)
    for part in prange(parts):
        for k in range(n * part // parts, n * (part + 1) // parts):
            i = order[k]
            for j in range(slot_starts[i + 1] - slot_starts[i]):
                entry = entries[entry_starts[i] + j]
                place = counts[part, entry >> TILE_SHIFT]
                counts[part, entry >> TILE_SHIFT] = place + 1
                gaussians[place] = i
                slots[place] = slot_starts[i] + j
                placed[place] = entry
    return tile_starts, gaussians, slots, placed
