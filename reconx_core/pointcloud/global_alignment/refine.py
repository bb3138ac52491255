"""Optimisation of global alignment: Adam on eq. 9 over depths, poses, focals and edge transforms, all edges at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import camera_rays, matrix_to_quaternion, quaternion_to_matrix, rigid
from reconx_core.types import Cameras

Schedule = Literal["linear", "cosine"]

EDGE_SCALE = 0.5  # geometric mean of the edges' scales, which fixes the unit of the loss
FOCAL_GAIN = 20.0  # focals are parametrised as FOCAL_GAIN * log(focal), to match Adam's step size
SOFT = 2e-3  # residual relative to the distance below which predictions count as equal
OUTLIER = 5.0  # times the median residual: predictions above it are down-weighted
BLOCK = {"cpu": 2**19, "cuda": 2**25}  # coordinates per block: fits the CPU cache, limits GPU memory


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation, one per edge."""

    scale: Float[Tensor, " e"]
    rotation: Float[Tensor, "e 3 3"]
    translation: Float[Tensor, "e 3"]

    def __call__(self, points: Float[Tensor, "e *m 3"]) -> Float[Tensor, "e *m 3"]:
        flat = points.flatten(1, -2)
        return (self.scale[:, None, None] * flat @ self.rotation.mT + self.translation[:, None]).reshape(points.shape)


class State(NamedTuple):
    """The variables of eq. 9."""

    depth: Float[Tensor, "n h w"]
    cameras: Cameras
    edges: Similarity


class Held(NamedTuple):
    """Variables that are held fixed."""

    poses: int = 0  # of this many first views
    focals: Bool[Tensor, " n"] | None = None  # mask of views; all or none if the focal is shared
    scale: bool = False  # whether the held poses determine the scale of the world


class Descent(NamedTuple):
    iterations: int = 300
    rate: float = 0.01  # Adam's learning rate at the start
    schedule: Schedule = "linear"
    least: float = 1e-6  # the rate at the end

    def rate_at(self, done: float) -> float:
        """The learning rate after this share of the iterations."""
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.least + (self.rate - self.least) * left


class Predictions(NamedTuple):
    """All pointmaps of all edges, alternating first and second view; coordinates outermost, for fast products and sums."""

    points: Float[Tensor, "k 4 p"]  # x, y, z, 1
    weight: Float[Tensor, "k p"]  # divided by the number of pixels of one side of all edges
    view: Int[Tensor, " k"]


class Variables(NamedTuple):
    """Adam's parameters. Translations are parametrised as sign(t) log(1 + |t|), as upstream does."""

    log_depth: Float[Tensor, "n p"]
    poses: Float[Tensor, "n 7"]  # quaternion wxyz, translation
    focal: Float[Tensor, " f"]  # FOCAL_GAIN * log(focal); one if it is shared
    edges: Float[Tensor, "e 8"]  # quaternion wxyz, translation before scaling, log-scale


def refine(
    state: State,
    pairs: Int[Tensor, "e 2"],
    points: Float[Tensor, "e 2 h w 3"],
    weight: Float[Tensor, "e 2 h w"],
    held: Held,
    shared_focal: bool = False,
    descent: Descent = Descent(),  # noqa: B008
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> State:
    """Minimise eq. 9 from ``state``, whose focals are equal where they are shared.

    Predictions that are outliers at ``state`` are down-weighted (see ``_downweight_outliers``). What is ``held`` is returned
    bit for bit. If the loss after Adam is above that of ``state`` (which then was exact), ``state`` is returned.
    """
    predictions, slope = pack(pairs, points, weight), slopes(state.cameras)
    # Adam's steps have a fixed size, so the world is normalised.
    unit = float(state.edges.scale.log().mean().exp()) / EDGE_SCALE
    variables = encode(scaled(state, 1 / unit), shared_focal)
    predictions = _downweight_outliers(variables, slope, predictions, held)
    before = evaluate(variables, slope, predictions, held)
    descend(variables, slope, predictions, held, descent, progress)
    if not evaluate(variables, slope, predictions, held) < before:
        return state
    return _restore_held(scaled(decode(variables, state.cameras, held), unit), state, held)


def scaled(state: State, factor: float) -> State:
    """The state with the world scaled by ``factor``."""
    edges = Similarity(state.edges.scale * factor, state.edges.rotation, state.edges.translation * factor)
    poses = state.cameras.cam_to_world.clone()
    poses[:, :3, 3] *= factor
    return State(state.depth * factor, replace(state.cameras, cam_to_world=poses), edges)


def _restore_held(found: State, start: State, held: Held) -> State:
    """Restore held poses and intrinsics bit for bit after the conversion to other parametrisations."""
    if held.poses == len(start.depth):
        return found._replace(cameras=start.cameras)
    intrinsics, poses = found.cameras.intrinsics.clone(), found.cameras.cam_to_world.clone()
    if held.focals is not None:
        intrinsics[held.focals] = start.cameras.intrinsics[held.focals]
    poses[: held.poses] = start.cameras.cam_to_world[: held.poses]
    return found._replace(cameras=replace(found.cameras, intrinsics=intrinsics, cam_to_world=poses))


# --- the variables -----------------------------------------------------------------------------------------------------


def encode(state: State, shared_focal: bool = False) -> Variables:
    """Leaf tensors for Adam, from a state with positive depths."""
    cameras, edges = state.cameras, state.edges
    focal = FOCAL_GAIN * cameras.intrinsics[:, 0, 0].log()
    shift = _signed_log(edges.translation / edges.scale[:, None])
    parts = (
        state.depth.flatten(1).log(),
        torch.cat([matrix_to_quaternion(cameras.cam_to_world[:, :3, :3]), _signed_log(cameras.cam_to_world[:, :3, 3])], -1),
        focal[:1] if shared_focal else focal,
        torch.cat([matrix_to_quaternion(edges.rotation), shift, edges.scale.log()[:, None]], -1),
    )
    return Variables(*(part.detach().clone().requires_grad_() for part in parts))


@torch.no_grad()
def decode(variables: Variables, cameras: Cameras, held: Held) -> State:
    """The state of the variables; ``cameras``: the initial ones, of which all but focal and pose is kept."""
    depth = variables.log_depth.exp().unflatten(1, (cameras.height, cameras.width))
    intrinsics = cameras.intrinsics.clone()
    intrinsics[:, :2, :2] *= ((variables.focal / FOCAL_GAIN).exp() / intrinsics[:, 0, 0])[:, None, None]
    rotation, translation = _pose(variables.poses)
    scale = _scales(variables) * (_unit(variables) if held.scale else 1.0)
    turn, shift = _pose(variables.edges)
    edges = Similarity(scale, turn, shift * scale[:, None])
    return State(depth, Cameras(intrinsics, rigid(rotation, translation), cameras.width, cameras.height), edges)


def _pose(variables: Float[Tensor, "m k"]) -> tuple[Float[Tensor, "m 3 3"], Float[Tensor, "m 3"]]:
    return quaternion_to_matrix(variables[:, :4]), _signed_exp(variables[:, 4:7])


def _scales(variables: Variables) -> Float[Tensor, " e"]:
    # Normalised by the mean: otherwise the minimum is a collapse of all points to one place.
    log = variables.edges[:, 7]
    return (log - log.mean() + math.log(EDGE_SCALE)).exp()


def _unit(variables: Variables) -> Float[Tensor, ""]:
    """Unit of the loss if the scale of the world is fixed; otherwise the points would shrink against the held poses."""
    return (variables.edges[:, 7].mean() - math.log(EDGE_SCALE)).exp()


def _signed_log(value: Tensor) -> Tensor:
    return value.sign() * value.abs().log1p()


def _signed_exp(value: Tensor) -> Tensor:
    return value.sign() * value.abs().expm1()


# --- the loss ----------------------------------------------------------------------------------------------------------


def pack(pairs: Int[Tensor, "e 2"], points: Float[Tensor, "e 2 h w 3"], weight: Float[Tensor, "e 2 h w"]) -> Predictions:
    """Predictions in the memory layout of the loss."""
    flat = points.flatten(0, 1).flatten(1, 2).mT
    ones = torch.ones_like(flat[:, :1])
    share = weight.flatten(0, 1).flatten(1) / weight[:, 0].numel()
    return Predictions(torch.cat([flat, ones], 1), share, pairs.flatten().to(points.device))


def slopes(cameras: Cameras) -> Float[Tensor, "n 2 p"]:
    """Pixels' offsets from the principal point; divided by the focal of x they are the ray at z = 1."""
    rays = camera_rays(cameras.intrinsics, cameras.height, cameras.width)[..., :2].flatten(1, 2).mT
    return rays.contiguous() * cameras.intrinsics[:, :1, :1]


def evaluate(variables: Variables, slope: Float[Tensor, "n 2 p"], predictions: Predictions, held: Held) -> float:
    """The value of eq. 9, with the mean over the pixels of one side of all edges, summed over both sides."""
    with torch.no_grad():
        return float(_loss_and_gradients(_world(variables, slope, held), _matrices(variables), predictions)[0])


def descend(
    variables: Variables,
    slope: Float[Tensor, "n 2 p"],
    predictions: Predictions,
    held: Held,
    descent: Descent,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Optimise the variables in place by Adam; ``progress`` is called with the completed and the total iterations."""
    optimiser = torch.optim.Adam(variables, lr=descent.rate, betas=(0.9, 0.9))
    for step in range(descent.iterations):
        optimiser.param_groups[0]["lr"] = descent.rate_at(step / descent.iterations)
        optimiser.zero_grad()
        backpropagate(variables, slope, predictions, held)
        optimiser.step()
        progress(step + 1, descent.iterations)


def backpropagate(
    variables: Variables, slope: Float[Tensor, "n 2 p"], predictions: Predictions, held: Held
) -> Float[Tensor, ""]:
    """Set the gradient of eq. 9 on the variables (0 for held ones) and return its value."""
    world, matrices = _world(variables, slope, held), _matrices(variables)
    with torch.no_grad():
        loss, by_world, by_matrices = _loss_and_gradients(world, matrices, predictions)
    torch.autograd.backward((world, matrices), (by_world, by_matrices))
    return loss


def _world(variables: Variables, slope: Float[Tensor, "n 2 p"], held: Held) -> Float[Tensor, "n 3 p"]:
    """Each pixel's world point, from its depth along its ray, in the units of the loss."""
    depth, focal = variables.log_depth.exp()[:, None], variables.focal
    if held.focals is not None:
        focal = torch.where(held.focals[: len(focal)], focal.detach(), focal)
    rotation, translation = _pose(torch.cat([variables.poses[: held.poses].detach(), variables.poses[held.poses :]]))
    camera = torch.cat([depth * slope / (focal / FOCAL_GAIN).exp()[:, None, None], depth], 1)
    world = torch.baddbmm(translation[..., None], rotation, camera)
    return world / _unit(variables) if held.scale else world


def _matrices(variables: Variables) -> Float[Tensor, "e 3 4"]:
    rotation, translation = _pose(variables.edges)
    return _scales(variables)[:, None, None] * torch.cat([rotation, translation[..., None]], -1)


def _loss_and_gradients(
    world: Float[Tensor, "n 3 p"], matrices: Float[Tensor, "e 3 4"], predictions: Predictions
) -> tuple[Float[Tensor, ""], Float[Tensor, "n 3 p"], Float[Tensor, "e 3 4"]]:
    """Eq. 9 and its gradients with respect to the world's points and the edges' matrices.

    Written explicitly because autograd would need about ten times the memory of the predictions.
    """
    points, weight, view = predictions
    loss, by_world, by_matrices = world.new_zeros(()), torch.zeros_like(world), world.new_zeros(len(points), 3, 4)
    for part, off, distance in _residuals(world, matrices, predictions):
        loss += (weight[part] * distance).sum()
        # The gradient of a zero distance is set to 0.
        off *= (weight[part] / distance.clamp_(min=1e-30))[:, None]
        by_world.index_add_(0, view[part], off)
        torch.bmm(off, points[part].mT, out=by_matrices[part])
    return loss, by_world, -by_matrices.unflatten(0, (-1, 2)).sum(1)


def _residuals(
    world: Float[Tensor, "n 3 p"], matrices: Float[Tensor, "e 3 4"], predictions: Predictions
) -> Iterator[tuple[slice, Float[Tensor, "b 3 p"], Float[Tensor, "b p"]]]:
    """Per block of predictions: its slice, the residual vectors to the world points, and their norms."""
    matrices = matrices.repeat_interleave(2, 0)
    block = max(1, BLOCK[world.device.type] // (3 * world.shape[-1]))
    for part in (slice(first, first + block) for first in range(0, len(matrices), block)):
        off = world.index_select(0, predictions.view[part]).baddbmm_(matrices[part], predictions.points[part], alpha=-1)
        x, y, z = off.unbind(1)
        yield part, off, (x * x).addcmul_(y, y).addcmul_(z, z).sqrt_()


@torch.no_grad()
def _downweight_outliers(
    variables: Variables, slope: Float[Tensor, "n 2 p"], predictions: Predictions, held: Held
) -> Predictions:
    """Reduce the weights of outliers.

    This is not in eq. 9. It is needed for pixels with few predictions: of two, an outlier pulls on the transform of the inlier
    as hard as the inlier on its own, because any point between the two is a minimum.
    """
    world, matrices = _world(variables, slope, held), _matrices(variables)
    depth = variables.log_depth.exp()
    parts = [distance / depth[predictions.view[part]] for part, _, distance in _residuals(world, matrices, predictions)]
    relative = torch.cat(parts)
    cut = OUTLIER * relative[predictions.weight > 0].median().clamp(min=SOFT)
    return predictions._replace(weight=predictions.weight / (1 + (relative / cut).square_()))
