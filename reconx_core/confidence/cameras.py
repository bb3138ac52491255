"""The cameras of generated frames: found where the generator was not told them, and frames that fit nowhere left out.

The photos' cameras and points are known and held. The geometry backend locates the frames of a clip among its photos; each
frame is then compared with the photos' points as its camera sees them.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.confidence.agreement import expected, frame_agreement
from reconx_core.confidence.clips import Clip, clips_of
from reconx_core.geometry.transforms import rotation_angle
from reconx_core.settings import ConfidenceSettings
from reconx_core.types import Cameras, Frames, GeometryBackend, PointCloud, Pointmaps, Views

Mode = Literal["given", "refine", "find"]

AGREES = 0.25  # median correlation with the photos' points below which a frame shows something else (docs/confidence.md)
MOST_TURN, MOST_SHIFT = 1.0, 0.05  # degrees, and baselines of its two photos, by which a given camera may be refined
UNLIKE = "does not show what the photos show from there"


@dataclass(frozen=True)
class Placement:
    """What became of the generated frames' cameras."""

    cameras: Mode
    frames: int  # generated, before any was left out
    moved: int = 0  # cameras that were found, or refined within the bound
    turn: float | None = None  # degrees: median rotation of these from the path that the frames were planned on
    shift: float | None = None  # the median distance from it, in baselines of the frames' photos
    left_out: dict[str, str] | None = None  # frame, counted from 0 among the generated ones -> why
    judged: list[dict[str, Any]] | None = None  # what was found of each frame (docs/confidence.md); None: nothing was asked

    def as_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()


class Moves(NamedTuple):
    """New cameras of some frames, and why others have none."""

    cam_to_world: dict[int, Float[Tensor, "4 4"]]
    lost: dict[int, str]


def place_frames(
    inputs: Views, frames: Frames, pointmaps: Pointmaps, backend: GeometryBackend, settings: ConfidenceSettings,
    generator: torch.Generator,
) -> tuple[Frames, Placement]:  # fmt: skip
    """The frames with their cameras found or refined, without those that fit nowhere; and what was done.

    ``settings.cameras``: ``auto`` finds the cameras that the generator was not told and keeps the others. Warns with one
    sentence if frames are left out.
    """
    mode, generated = choose_mode(frames, settings), int((~frames.is_photo).sum())
    if mode == "given" or generated == 0:
        return frames, Placement(mode, generated)
    moves = Moves({}, {})
    for clip in clips_of(frames):
        found = locate_clip(inputs, frames, pointmaps, clip, backend, mode, generator)
        moves.cam_to_world.update(found.cam_to_world)
        moves.lost.update(found.lost)
    placement = describe(frames, moves, mode)
    if moves.lost:
        warnings.warn(_explain(moves.lost, generated), stacklevel=2)
    return apply_moves(frames, moves), placement


def choose_mode(frames: Frames, settings: ConfidenceSettings) -> Mode:
    if settings.cameras != "auto":
        return settings.cameras
    return "given" if frames.cameras_told else "find"


def locate_clip(
    inputs: Views, frames: Frames, pointmaps: Pointmaps, clip: Clip, backend: GeometryBackend, mode: Mode,
    generator: torch.Generator,
) -> Moves:  # fmt: skip
    """New cameras of one clip's frames."""
    photos, known, views = inputs.select(clip.photos), _select(pointmaps, clip.photos), as_views(frames, clip)
    path = frames.cameras[clip.frames]
    located = backend.locate(photos, known, views, path if mode == "refine" else None, generator)
    cameras = replace(path, cam_to_world=located.cam_to_world)
    if mode == "refine":  # a frame whose told camera cannot be bettered keeps it
        turn, shift = shifts(path, cameras, baseline(known.cameras))
        near = (turn <= MOST_TURN) & (shift <= MOST_SHIFT)
        why = ["" if not lost and near[i] else "kept" for i, lost in enumerate(located.lost)]
        return Moves(_moves(clip, cameras, why).cam_to_world, {})
    agreement = frame_agreement(expected(photos, known, views.images, cameras))
    return _moves(clip, cameras, [lost or ("" if agreement[i] >= AGREES else UNLIKE) for i, lost in enumerate(located.lost)])


def _moves(clip: Clip, cameras: Cameras, why: list[str]) -> Moves:
    """The cameras of the frames without a reason against them, and the reasons."""
    frames = list(zip(clip.frames.tolist(), cameras.cam_to_world, why))
    return Moves(
        {frame: pose for frame, pose, reason in frames if not reason}, {f: reason for f, _, reason in frames if reason}
    )


def as_views(frames: Frames, clip: Clip) -> Views:
    """A clip's generated frames with their intrinsics, as a geometry backend takes them."""
    chosen, n = clip.frames, len(clip.frames)
    names = tuple(f"frame_{i:04d}" for i in chosen.tolist())
    return Views(
        frames.images[chosen], frames.confidence[chosen] > 0, names, torch.zeros(n, dtype=torch.bool), frames.cameras[chosen],
        torch.full((n,), torch.nan), "intrinsics",
    )  # fmt: skip


def _select(pointmaps: Pointmaps, index: Tensor) -> Pointmaps:
    """The pointmaps of some views, without feature points, of which it is not known which view sees them."""
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return Pointmaps(pointmaps.points_world[index], pointmaps.confidence[index], pointmaps.cameras[index], nothing)


def baseline(cameras: Cameras) -> float:
    """Largest distance between the cameras."""
    return float(torch.pdist(cameras.cam_to_world[:, :3, 3]).max().clamp(min=1e-9))


def shifts(before: Cameras, after: Cameras, unit: float) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """By how much cameras differ: rotation in degrees, and distance in ``unit``."""
    one, two = before.cam_to_world, after.cam_to_world
    return rotation_angle(one[:, :3, :3], two[:, :3, :3]), (one[:, :3, 3] - two[:, :3, 3]).norm(dim=-1) / unit


def apply_moves(frames: Frames, moves: Moves) -> Frames:
    """The frames with their new cameras, without those that were lost."""
    poses = frames.cameras.cam_to_world.clone()
    for frame, pose in moves.cam_to_world.items():
        poses[frame] = pose
    kept = torch.tensor([frame for frame in range(len(frames)) if frame not in moves.lost])
    return replace(frames, cameras=replace(frames.cameras, cam_to_world=poses)).select(kept)


def describe(frames: Frames, moves: Moves, mode: Mode) -> Placement:
    photos, generated = int(frames.is_photo.sum()), int((~frames.is_photo).sum())
    left_out = {str(frame - photos): why for frame, why in sorted(moves.lost.items())}
    turns, distances = (torch.tensor(values) for values in zip(*_shifts_of(frames, moves))) if moves.cam_to_world else ([], [])
    median = lambda values: float(values.median()) if len(values) else None  # noqa: E731
    return Placement(mode, generated, len(moves.cam_to_world), median(turns), median(distances), left_out)


def _shifts_of(frames: Frames, moves: Moves) -> Iterator[tuple[float, float]]:
    for clip in clips_of(frames):
        unit = baseline(frames.cameras[clip.photos])
        for frame in (i for i in clip.frames.tolist() if i in moves.cam_to_world):
            path = frames.cameras[[frame]]
            turn, shift = shifts(path, replace(path, cam_to_world=moves.cam_to_world[frame][None]), unit)
            yield float(turn), float(shift)


def _explain(lost: dict[int, str], generated: int) -> str:
    reasons = ", ".join(f"{count} ({why})" for why, count in sorted(Counter(lost.values()).items()))
    return f"{len(lost)} of {generated} generated frames are left out, because their cameras cannot be found: {reasons}."
