"""Accuracy of estimated cameras, up to the similarity transform that an unposed reconstruction leaves free."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.geometry.transforms import fit_similarity, rotation_angle
from reconx_core.types import Cameras

AUC_THRESHOLDS = (5, 10, 20, 30)  # degrees


class Similarity(NamedTuple):
    """x -> scale * rotation @ x + translation, from the estimate's world to the true one."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    translation: Float[Tensor, " 3"]

    def points(self, xyz: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Points moved from the estimate's world to the true one."""
        return self.scale * xyz @ self.rotation.mT + self.translation

    def cameras(self, cameras: Cameras) -> Cameras:
        """Cameras moved likewise; poses remain rigid (only their centres are scaled)."""
        moved = cameras.cam_to_world.clone()
        moved[:, :3, :3] = self.rotation @ cameras.cam_to_world[:, :3, :3]
        moved[:, :3, 3] = self.points(cameras.cam_to_world[:, :3, 3])
        return replace(cameras, cam_to_world=moved)

    def inverse(self) -> Similarity:
        """From the true world to the estimate's."""
        rotation = self.rotation.mT
        return Similarity(1 / self.scale, rotation, -(rotation @ self.translation) / self.scale)


def relative_pose_errors(estimated: Cameras, truth: Cameras) -> tuple[Float[Tensor, " pairs"], Float[Tensor, " pairs"]]:
    """Angles in degrees between estimated and true relative rotations, and between relative translations' directions.

    Over all pairs of views. A translation has no direction where the true centres coincide; such a pair counts as 0.
    """
    i, j = torch.combinations(torch.arange(len(truth)), 2).T
    found, true = (torch.linalg.inv(c.cam_to_world[j].double()) @ c.cam_to_world[i].double() for c in (estimated, truth))
    rotation = rotation_angle(found[:, :3, :3], true[:, :3, :3])
    a, b = found[:, :3, 3], true[:, :3, 3]
    translation = torch.rad2deg(torch.atan2(torch.linalg.cross(a, b).norm(dim=-1), (a * b).sum(-1)))
    still = b.norm(dim=-1) < 1e-9 * truth.cam_to_world[:, :3, 3].abs().max().clamp(min=1e-9)
    return rotation, torch.where(still, 0.0, translation)


def auc(errors: Float[Tensor, " n"], threshold: float) -> float:
    """Area under the curve "share of errors below x" for x from 0 to ``threshold``, as a share of that interval.

    Exact: the curve is a staircase, and the area under it the mean over errors of max(0, 1 - error / threshold).
    """
    return float((1 - errors / threshold).clamp(min=0).mean())


def trapezoid_auc(errors: Float[Tensor, " n"], threshold: float) -> float:
    """The same area as SuperGlue and its successors take it: under straight lines from each sorted error to the next.

    The lines begin at (0, 0) and go on level from the last error below ``threshold``. Of few pairs it is larger than `auc`.
    """
    below = errors.double().sort().values
    below = below[below < threshold]
    share = torch.arange(len(below) + 1, dtype=torch.float64) / len(errors)
    at = torch.cat([below.new_zeros(1), below, below.new_tensor([float(threshold)])])
    return float(torch.trapezoid(torch.cat([share, share[-1:]]), at) / threshold)


def binned_auc(errors: Float[Tensor, " n"], threshold: int) -> float:
    """The same area as VGGT and others that score on CO3D take it (mAA): the mean share of errors below 1, 2, ... degrees."""
    whole = torch.arange(1, threshold + 1)
    below = (errors < whole[:, None]) | ((errors == threshold) & (whole[:, None] == threshold))  # numpy's last bin is closed
    return float(below.double().mean())


def pose_errors(estimated: Cameras, truth: Cameras) -> dict[str, float]:
    """``rotation_error`` and ``translation_error`` (mean, degrees) and areas under the curve of the larger one per pair.

    ``auc_5`` ... ``auc_30`` are exact, and a translation may be up to 180 degrees off; ``auc_5_trapezoid`` ... and
    ``auc_5_binned`` ... are those of the field, in which an opposite translation counts as right.
    """
    rotation, translation = relative_pose_errors(estimated, truth)
    worst = torch.maximum(rotation, translation)
    field = torch.maximum(rotation, torch.minimum(translation, 180 - translation))
    scores = {f"auc_{t}": auc(worst, t) for t in AUC_THRESHOLDS}
    scores |= {f"auc_{t}_trapezoid": trapezoid_auc(field, t) for t in AUC_THRESHOLDS}
    scores |= {f"auc_{t}_binned": binned_auc(field, t) for t in AUC_THRESHOLDS}
    return {"rotation_error": float(rotation.mean()), "translation_error": float(translation.mean()), **scores}


def align_cameras(estimated: Cameras, truth: Cameras) -> Similarity:
    """Similarity transform by least squares over camera centres and orientations, so that two cameras are enough.

    Every camera contributes its centre and the tips of its three axes, whose length is the spread of the cameras. Without
    the axes, a rotation about the line through the centres is undetermined if there are two or all lie on one line.
    """
    found, true = estimated.cam_to_world.double(), truth.cam_to_world.double()
    size_found, size_true = _spread(found), _spread(true)
    if size_found < 1e-12 or size_true < 1e-12:
        return _align_coincident(found, true)
    source, target = _tips(found, size_found), _tips(true, size_true)
    scale, rotation, translation = fit_similarity(source, target, torch.ones(len(source), dtype=source.dtype))
    return Similarity(float(scale), rotation.to(estimated.cam_to_world), translation.to(estimated.cam_to_world))


def _spread(cam_to_world: Float[Tensor, "n 4 4"]) -> Float[Tensor, ""]:
    centres = cam_to_world[:, :3, 3]
    return (centres - centres.mean(0)).norm(dim=-1).mean()


def _tips(cam_to_world: Float[Tensor, "n 4 4"], length: Float[Tensor, ""]) -> Float[Tensor, "m 3"]:
    centres = cam_to_world[:, None, :3, 3]
    return torch.cat([centres, centres + length * cam_to_world[:, :3, :3].mT], 1).reshape(-1, 3)


def _align_coincident(found: Float[Tensor, "n 4 4"], true: Float[Tensor, "n 4 4"]) -> Similarity:
    """Cameras that share one centre (or a single camera): scale 1, mean rotation."""
    u, _, vt = torch.linalg.svd((true[:, :3, :3] @ found[:, :3, :3].mT).sum(0))
    u[:, 2] *= torch.linalg.det(u @ vt)
    rotation = u @ vt
    return Similarity(1.0, rotation.float(), (true[:, :3, 3].mean(0) - rotation @ found[:, :3, 3].mean(0)).float())
