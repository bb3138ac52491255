"""The CPU rasteriser: numba kernels behind one autograd function."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.cpu.jit import one_at_a_time
from reconx_core.rasterize.blending import blend, blend_backward
from reconx_core.rasterize.conventions import MIN_ALPHA, TILE
from reconx_core.rasterize.projection import project
from reconx_core.rasterize.projection_backward import CAMERA_SUMS, project_backward
from reconx_core.rasterize.records import RECORD, SLOT
from reconx_core.rasterize.tiles import CHUNKS, depth_order, fill_tiles, list_tiles, running_starts
from reconx_core.types import Cameras, Gaussians


class Splats(NamedTuple):
    """The projected Gaussians of one camera and its tile lists."""

    records: np.ndarray  # [n, RECORD]
    slot_starts: np.ndarray  # [n + 1] Gaussian i owns the slots from [i] up to [i + 1]
    tile_starts: np.ndarray  # [tiles + 1]
    gaussians: np.ndarray  # [pairs] per tile, front to back
    slots: np.ndarray  # [pairs]
    entries: np.ndarray  # [pairs] tile and pixel rows, packed


def rasterize_cpu(
    gaussians: Gaussians, cameras: Cameras, background: Float[Tensor, " 3"], sh_degree: int
) -> tuple[Float[Tensor, "c h w 3"], Float[Tensor, "c h w"], Float[Tensor, "c h w"]]:
    """Colour, accumulated depth and alpha; differentiable for the Gaussians and ``cameras.cam_to_world``."""
    return _Rasterize.apply(
        gaussians.means, gaussians.quats, gaussians.log_scales, gaussians.logit_opacities, gaussians.sh,
        cameras.world_to_cam, cameras.cam_to_world[:, :3, 3], cameras.intrinsics, background,
        (cameras.height, cameras.width), sh_degree,
    )  # fmt: skip


def _arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _lines(count: int, floats: int) -> np.ndarray:
    """Uninitialised rows of 16 floats, aligned to cache lines; torch's allocator guarantees that, numpy's does not."""
    return torch.empty(count, floats).numpy()


def scene_of(
    means: np.ndarray, quats: np.ndarray, log_scales: np.ndarray, logit_opacities: np.ndarray, sh: np.ndarray
) -> list[np.ndarray]:
    """What the projection gets of the Gaussians; by numpy, whose exponentials and logarithms are vectors in one thread."""
    with np.errstate(over="ignore", divide="ignore"):
        opacities = (1 / (1 + np.exp(-logit_opacities)))[:, None]
        return [means, quats, np.exp(log_scales), opacities, np.log(opacities / np.float32(MIN_ALPHA)), sh]


def splats_of(scene: list[np.ndarray], view: list[np.ndarray], size: tuple[int, int], degree: int) -> Splats:
    """Project the Gaussians into one camera and list them per tile, front to back."""
    n, (height, width) = len(scene[0]), size
    tiles_x, tiles_y = -(-width // TILE), -(-height // TILE)
    records, box_counts, keys = _lines(n, RECORD), np.empty(n, np.int32), np.empty(n, np.uint32)
    project(*scene, degree, *view, width, height, tiles_x, tiles_y, records, box_counts, keys)
    entry_starts = running_starts(box_counts)
    entries, counts = list_tiles(records, entry_starts, tiles_x, tiles_y)
    slot_starts = running_starts(counts)
    order = depth_order(counts, keys)
    lists = fill_tiles(order, entry_starts, entries, slot_starts, tiles_x * tiles_y, numba.get_num_threads())
    return Splats(records, slot_starts, *lists)


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, means: Tensor, quats: Tensor, log_scales: Tensor, logit_opacities: Tensor, sh: Tensor,
        world_to_cam: Tensor, centres: Tensor, intrinsics: Tensor, background: Tensor, size: tuple[int, int], degree: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        scene = scene_of(*_arrays(means, quats, log_scales, logit_opacities, sh))
        views = list(zip(*_arrays(world_to_cam, centres, intrinsics)))
        (backdrop,) = _arrays(background)
        images = tuple(torch.empty(len(views), *size, *channels) for channels in ((3,), (), ()))
        splats = []
        with one_at_a_time():
            for view, *image in zip(views, *_arrays(*images)):
                splats.append(splats_of(scene, view, size, degree))
                records, _, tile_starts, order, _, entries = splats[-1]
                blend(records, tile_starts, order, entries, backdrop, *image, numba.get_num_threads())
        ctx.save_for_backward(means, quats, sh, *images)
        ctx.projected = views, splats, scene[2], size, degree
        ctx.set_materialize_grads(True)
        return images

    @staticmethod
    def backward(ctx: Any, *v_images: Tensor) -> tuple[Tensor | None, ...]:
        views, splats, scales, size, degree = ctx.projected
        means, quats, sh, *images = _arrays(*ctx.saved_tensors)
        empty = torch.empty if views else torch.zeros  # the first camera's gradients overwrite uninitialised memory
        v_scene = [empty(shape) for shape in (means.shape, quats.shape, scales.shape, (len(means), 1), sh.shape)]
        camera_sums = np.zeros((len(views), CHUNKS, CAMERA_SUMS))
        with one_at_a_time():
            for view, splat, sums, *image in zip(views, splats, camera_sums, *images, *_arrays(*v_images)):
                slots = _lines(len(splat.slots), SLOT)
                blend_backward(
                    splat.records, splat.tile_starts, splat.gaussians, splat.slots, splat.entries, *image, slots,
                    numba.get_num_threads(),
                )  # fmt: skip
                project_backward(
                    means, quats, scales, sh, degree, *view, size[1], size[0], splat.records, splat.slot_starts, slots,
                    splat is splats[0], *_arrays(*v_scene), sums,
                )  # fmt: skip
        v_scene[3] = v_scene[3][:, 0]
        return (*v_scene, *_camera_gradients(camera_sums), None, None, None, None)


def _camera_gradients(sums: np.ndarray) -> tuple[Float[Tensor, "c 4 4"], Float[Tensor, "c 3"]]:
    """Gradients of world_to_cam and of the camera centre from the chunks' sums."""
    total = torch.from_numpy(sums.sum(1).astype(np.float32))
    view = torch.zeros(len(total), 4, 4)
    view[:, :3, :3] = total[:, :9].unflatten(1, (3, 3))
    view[:, :3, 3] = total[:, 9:12]
    return view, total[:, 12:]
