"""The kernels one by one: vectors, harmonics, projection, lists of tiles, depth order."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import Scene, harmonics, project
from scenes import blobs, orbit

from reconx_core.cpu.jit import serial_kernel
from reconx_core.cpu.simd import LANES, at, lane_sums, load, put, store
from reconx_core.rasterize import conventions as conv
from reconx_core.rasterize import records as rec
from reconx_core.rasterize.blending import exp_of_eighth
from reconx_core.rasterize.cpu import scene_of, splats_of
from reconx_core.rasterize.harmonics import sh_basis, sh_direction_gradient
from reconx_core.rasterize.tiles import TILE_SHIFT, depth_order, end_row, fill_tiles, first_row, list_tiles, running_starts


def arrays(gaussians):
    return [field.numpy() for field in vars(gaussians).values()]


def view_of(cameras):
    return [np.ascontiguousarray(x) for x in (cameras.world_to_cam[0], cameras.cam_to_world[0, :3, 3], cameras.intrinsics[0])]


def splat_scene(n=400, size=(90, 70), blob=0.1, seed=0):
    gaussians, cameras = blobs(n, 1, seed=seed, size=blob), orbit(1, *size)
    return gaussians, cameras, splats_of(scene_of(*arrays(gaussians)), view_of(cameras), (cameras.height, cameras.width), 1)


@serial_kernel
def _exp_rows(values, out):
    for start in range(0, len(values), LANES):
        store(out, start, exp_of_eighth(load(values, start)))


@serial_kernel
def _sum_rows(values, out):
    vectors = (
        load(values, 0 * LANES), load(values, 1 * LANES), load(values, 2 * LANES),
        load(values, 3 * LANES), load(values, 4 * LANES), load(values, 5 * LANES),
        load(values, 6 * LANES), load(values, 7 * LANES), load(values, 8 * LANES),
        load(values, 9 * LANES), load(values, 10 * LANES), load(values, 11 * LANES),
    )  # fmt: skip
    store(out, 0, lane_sums(vectors))


@serial_kernel
def _basis_and_gradient(degree, directions, weights, basis, gradient):
    direction = at(directions, 0), at(directions, 1), at(directions, 2)
    sh_basis(degree, direction, basis)
    gx, gy, gz = sh_direction_gradient(degree, direction, weights)
    put(gradient, 0, gx)
    put(gradient, 1, gy)
    put(gradient, 2, gz)


def test_exponential_is_accurate_where_a_splat_counts():
    x = np.linspace(-np.log(255), 0, 4096, dtype=np.float32)
    out = np.empty_like(x)
    _exp_rows(x / 8, out)
    np.testing.assert_allclose(out, np.exp(x.astype(np.float64)), rtol=4e-6)
    _exp_rows(np.full(16, -100, np.float32), out)
    assert out[0] < conv.MIN_ALPHA


def test_lane_sums_are_those_of_each_vector():
    values, out = np.random.default_rng(0).standard_normal((12, LANES)).astype(np.float32), np.empty(LANES, np.float32)
    _sum_rows(values.ravel(), out)
    np.testing.assert_allclose(out[:12], values.sum(1), atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(degree=st.integers(0, 3), seed=st.integers(0, 1000))
def test_harmonics_and_their_gradient(degree, seed):
    generator = torch.Generator().manual_seed(seed)
    direction = torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0).requires_grad_()
    weights = torch.randn(16, generator=generator, dtype=torch.float64)
    wanted = harmonics(direction[None], degree)[0]
    ((wanted * weights[: len(wanted)]).sum() + 0 * direction.sum()).backward()
    basis, gradient = np.zeros((16, LANES), np.float32), np.zeros((3, LANES), np.float32)
    lanes = [x.detach().float()[:, None].repeat(1, LANES).numpy().ravel() for x in (direction, weights)]
    _basis_and_gradient(degree, *lanes, basis.ravel(), gradient.ravel())
    np.testing.assert_allclose(basis[: len(wanted)], wanted.detach()[:, None].repeat(1, LANES), atol=1e-6)
    np.testing.assert_allclose(gradient, direction.grad[:, None].repeat(1, LANES), atol=3e-5)


def test_harmonics_are_orthonormal():
    """Integral of the product of two harmonics over the sphere: the identity (checks the constants themselves)."""
    nodes, weights = np.polynomial.legendre.leggauss(8)
    angles = torch.arange(16) * (2 * torch.pi / 16)
    z, ring = torch.from_numpy(nodes)[:, None], torch.from_numpy(np.sqrt(1 - nodes**2))[:, None]
    directions = torch.stack([ring * angles.cos(), ring * angles.sin(), z.expand(8, 16)], -1).reshape(-1, 3)
    basis = harmonics(directions, 3)
    area = torch.from_numpy(weights)[:, None].expand(8, 16).reshape(-1, 1) * (2 * torch.pi / 16)
    np.testing.assert_allclose((basis * area).T @ basis, np.eye(16), atol=1e-6)


def test_projection_fills_the_records():
    gaussians, cameras, splats = splat_scene()
    fields = [field.double() for field in vars(gaussians).values()]
    scene = Scene(*fields, cameras.cam_to_world[0].double(), cameras.intrinsics[0].double())
    position, conic, depth = project(scene, cameras.width, cameras.height)
    seen = np.diff(splats.slot_starts) > 0
    assert 100 < seen.sum() < 400
    records = splats.records[seen]
    np.testing.assert_allclose(records[:, [rec.X, rec.Y]], position[seen], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(records[:, [rec.A, rec.B, rec.C]], conic.flatten(1)[seen][:, [0, 1, 3]], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(records[:, rec.DEPTH], depth[seen], rtol=1e-5)
    np.testing.assert_allclose(records[:, rec.OPACITY], fields[3].sigmoid()[seen], rtol=1e-5)


def alphas_of(records, width, height):
    """Alpha of every splat at every pixel [n, h, w], in float64."""
    r = records.astype(np.float64)[:, :, None, None]
    dx = np.arange(width)[None, None] + 0.5 - r[:, rec.X]
    dy = np.arange(height)[None, :, None] + 0.5 - r[:, rec.Y]
    exponent = -0.5 * (r[:, rec.A] * dx * dx + r[:, rec.C] * dy * dy) - r[:, rec.B] * dx * dy
    return r[:, rec.OPACITY] * np.exp(exponent)


def listed_pixels(splats, n, width, height):
    """True where a Gaussian's list entries say that a pixel has to be visited [n, h, w]."""
    tiles_x = -(-width // conv.TILE)
    listed = np.zeros((n, height, width), bool)
    for i, entry in zip(splats.gaussians, splats.entries):
        y0, x0 = (entry >> TILE_SHIFT) // tiles_x * conv.TILE, (entry >> TILE_SHIFT) % tiles_x * conv.TILE
        listed[i, y0 + first_row.py_func(entry) : y0 + end_row.py_func(entry), x0 : x0 + conv.TILE] = True
    return listed


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), blob=st.floats(0.01, 1.0), width=st.integers(5, 90), height=st.integers(5, 90))
def test_lists_cover_every_pixel_that_counts(seed, blob, width, height):
    gaussians, _, splats = splat_scene(60, (width, height), blob, seed)
    drawn = np.diff(splats.slot_starts) > 0
    visited = listed_pixels(splats, len(gaussians), width, height)
    counts = alphas_of(splats.records[drawn], width, height) >= conv.MIN_ALPHA * (1 + 1e-5)
    assert not (counts & ~visited[drawn]).any()


def test_lists_hold_little_else():
    _, cameras, splats = splat_scene(blob=0.05)
    drawn = np.diff(splats.slot_starts) > 0
    counts = alphas_of(splats.records[drawn], cameras.width, cameras.height) >= conv.MIN_ALPHA
    pairs = sum(counts[:, y : y + 16, x : x + 16].any((1, 2)).sum() for y in range(0, 70, 16) for x in range(0, 90, 16))
    assert len(splats.entries) <= 1.01 * pairs


def test_gaussians_that_no_list_holds_are_invisible():
    gaussians, cameras, splats = splat_scene()
    fields = [field.double() for field in vars(gaussians).values()]
    scene = Scene(*fields, cameras.cam_to_world[0].double(), cameras.intrinsics[0].double())
    position, conic, depth = project(scene, cameras.width, cameras.height)
    y, x = np.mgrid[: cameras.height, : cameras.width] + 0.5
    offset = torch.from_numpy(np.stack([x, y], -1)) - position[:, None, None]
    alpha = fields[3].sigmoid()[:, None, None] * torch.exp(-0.5 * torch.einsum("nhwi,nij,nhwj->nhw", offset, conic, offset))
    visible = ((alpha >= conv.MIN_ALPHA * 1.001).any(-1).any(-1) & (depth > conv.NEAR)).numpy()
    assert visible.sum() > 100
    assert not (visible & (np.diff(splats.slot_starts) == 0)).any()


def test_lists_are_sorted_by_depth_and_own_one_slot_per_entry():
    _, _, splats = splat_scene()
    depth = splats.records[splats.gaussians, rec.DEPTH]
    for start, end in zip(splats.tile_starts, splats.tile_starts[1:]):
        assert (np.diff(depth[start:end]) >= 0).all()
        assert len(np.unique(splats.entries[start:end] >> TILE_SHIFT)) <= 1
    assert np.array_equal(np.sort(splats.slots), np.arange(len(splats.slots)))
    assert np.array_equal(np.searchsorted(splats.slot_starts, splats.slots, side="right") - 1, splats.gaussians)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_lists_do_not_depend_on_the_number_of_threads(parts):
    _, cameras, splats = splat_scene()
    tiles_x, tiles_y = -(-cameras.width // conv.TILE), -(-cameras.height // conv.TILE)
    entry_starts = running_starts(np.full(len(splats.records), tiles_x * tiles_y, np.int32) * (np.diff(splats.slot_starts) > 0))
    entries, counts = list_tiles(splats.records, entry_starts, tiles_x, tiles_y)
    order = depth_order(counts, splats.records[:, rec.DEPTH].copy().view(np.uint32))
    lists = fill_tiles(order, entry_starts, entries, splats.slot_starts, tiles_x * tiles_y, parts)
    for got, wanted in zip(lists, (splats.tile_starts, splats.gaussians, splats.slots, splats.entries)):
        assert np.array_equal(got, wanted)


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.floats(0, 1e10, width=32), max_size=200).flatmap(
        lambda depths: st.tuples(st.just(depths), st.lists(st.integers(0, 2), min_size=len(depths), max_size=len(depths)))
    )
)
def test_depth_order_is_stable_and_skips_the_invisible(scene):
    depths, counts = np.array(scene[0], np.float32), np.array(scene[1], np.int32)
    order = depth_order(counts, depths.view(np.uint32))
    by_depth = np.argsort(depths, kind="stable")
    assert order.tolist() == by_depth[counts[by_depth] > 0].tolist()
