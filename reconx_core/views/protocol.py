"""Which photos' cameras are known, and which part of them the reconstruction may use."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch

from reconx_core.datasets import Photo
from reconx_core.errors import UserError
from reconx_core.names import abbreviate
from reconx_core.types import CameraProtocol

_RANKS: tuple[CameraProtocol, ...] = ("unposed", "intrinsics", "posed")
_ROUNDING = 1e-6  # of a position in single precision


def leave_out_unposed(photos: Sequence[Photo], chosen: Sequence[int], wanted: str) -> set[int]:
    """Those of the ``chosen`` photos that have no usable pose although most have one; a warning names them.

    None are left out where cameras are estimated anyway: because ``wanted`` says so, or because most poses are unknown, which a
    warning tells.
    """
    unposed = [i for i in chosen if photos[i].cam_to_world is None]
    if wanted not in ("auto", "posed") or not unposed or all(photo.cam_to_world is None for photo in photos):
        return set()
    if wanted == "posed" and len(unposed) == len(chosen):  # `resolve_protocol` tells that there is none
        return set()
    if wanted == "auto" and 2 * len(unposed) > len(chosen):
        problem = f"Only {len(chosen) - len(unposed)} of {len(chosen)} photos have a usable pose"
        warnings.warn(f"{problem}, so no pose is used, and all are estimated from the photos.", stacklevel=1)
        return set()
    _warn_of(photos, unposed, "usable pose", len(chosen))
    return set(unposed)


def leave_out_uncalibrated(photos: Sequence[Photo], chosen: Sequence[int], wanted: str) -> set[int]:
    """As :func:`leave_out_unposed`, of photos without intrinsics."""
    unknown = [i for i in chosen if photos[i].intrinsics is None]
    if wanted == "unposed" or not unknown:
        return set()
    if len(unknown) == len(chosen) or (wanted == "auto" and 2 * len(unknown) > len(chosen)):
        if wanted == "auto" and any(photos[i].cam_to_world is not None for i in chosen):
            problem = f"{len(unknown)} of {len(chosen)} photos have a pose, but no focal length or angle of view"
            warnings.warn(f"{problem}, so no camera is used, and all are estimated from the photos.", stacklevel=1)
        return set()
    _warn_of(photos, unknown, "focal length or angle of view", len(chosen))
    return set(unknown)


def resolve_protocol(photos: Sequence[Photo], wanted: str) -> CameraProtocol:
    """Which part of the cameras may be used: what every photo has, or less if the user restricts it."""
    intrinsics = all(p.intrinsics is not None for p in photos)
    posed = intrinsics and all(p.cam_to_world is not None for p in photos)
    available: CameraProtocol = "posed" if posed else "intrinsics" if intrinsics else "unposed"
    if wanted == "auto":
        return available
    if _RANKS.index(wanted) > _RANKS.index(available):  # type: ignore[arg-type]
        raise UserError(f"views.protocol={wanted} needs cameras that this dataset does not give; it allows '{available}'.")
    return wanted  # type: ignore[return-value]


def require_baseline(name: str, photos: Sequence[Photo], protocol: CameraProtocol) -> None:
    """Raises UserError if the given cameras of scene ``name``'s input photos all stand at one place."""
    if protocol != "posed":
        return
    positions = torch.stack([p.cam_to_world[:3, 3] for p in photos if p.cam_to_world is not None])
    spread = float((positions - positions[0]).abs().max())
    # Cameras that share a position may differ in its last digits; those near zero (`make_usable`) are that far at most.
    if spread <= _ROUNDING * float(positions.abs().max()):
        raise UserError(
            f"All {len(photos)} cameras of '{name}' stand at one place, so nothing can be triangulated; "
            "give the poses of photos from several places, or have them estimated with views.protocol=intrinsics."
        )


def _warn_of(photos: Sequence[Photo], left_out: Sequence[int], lack: str, total: int) -> None:
    names = abbreviate([f"'{photos[i].name}'" for i in left_out])
    problem = f"{len(left_out)} of {total} photos have no {lack} in the dataset"
    warnings.warn(f"{problem} ({names}); they are left out, and the others' cameras are used as given.", stacklevel=1)
