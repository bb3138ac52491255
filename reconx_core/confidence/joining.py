"""The end of a round: frames that are confident enough become views of the geometry, with their cameras and points.

Of a round's frames one of the inner half and one farther out become the pair that the next round goes on from: those that are
most confident and show most that was not seen before. What lies beyond the outer one is generated again, from more knowledge.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.confidence.judging import SURE, confident_share
from reconx_core.geometry.camera_path import se3_exp, se3_log
from reconx_core.geometry.orbit import orbit_of
from reconx_core.geometry.point_renders import OCCLUDER_CONFIDENCE, render_points, visible_points
from reconx_core.geometry.transforms import join_cameras, rotation_angle, transform
from reconx_core.types import Cameras, Condition, Frames, GeometryBackend, Located, PointCloud, Pointmaps, Views

ENOUGH = 0.3  # share of a frame's pixels that have to be sure, or it does not join
MOST = 6  # frames that join in a round, evenly spaced
MOST_TURN, MOST_SHIFT = 1.0, 0.01  # degrees and radii up to which a ring is closed
CERTAIN = 0.5  # confidence from which points of plain places join, too; what nothing but neighbours confirms has less
CONTRAST, AROUND = 0.05, 7  # least deviation of other places, of so many pixels a side, relative to their mean
NEIGHBOURS = 4  # views of the geometry that depth of new frames is matched with


@dataclass(frozen=True)
class Joined:
    """The scene after a round."""

    views: Views  # the photos, then the frames that have joined; all of them inputs
    pointmaps: Pointmaps  # of the views
    frames: Frames  # the views, then the other generated frames
    photos: int
    path: Cameras  # of all generated frames, in the order of the path
    pair: tuple[int, int] | None = None  # views that the next round goes on from
    reached: Float[Tensor, "4 4"] | None = None  # planned camera of the last frame of the path
    rounds: list[dict[str, Any]] = field(default_factory=list)  # what came of each, for the report


def photos_alone(photos: Views, pointmaps: Pointmaps) -> Joined:
    """The scene before the first round."""
    n, cameras = len(photos), pointmaps.cameras
    views = replace(photos, cameras=cameras, protocol="posed", is_target=torch.zeros(n, dtype=torch.bool))
    frames = Frames(photos.images, cameras, photos.masks.float(), torch.ones(n, dtype=torch.bool))
    return Joined(views, pointmaps, frames, n, cameras[:0])


def join_round(
    before: Joined, guide: Condition, made: Frames, kept: Sequence[int], backend: GeometryBackend, last: bool,
    generator: torch.Generator,
) -> Joined:  # fmt: skip
    """The scene with a round's frames ``made``, judged, of which some join. ``kept``: their places in ``guide``."""
    new = made.select((~made.is_photo).nonzero()[:, 0])
    if len(new) == 0:
        return replace(before, rounds=[*before.rounds, {"frames": 0, "joined": 0}])
    index = torch.tensor(list(kept))
    closes = bool(guide.position[index[-1]] >= 1 - 1e-6) and int(guide.pair[index[-1], 0]) >= before.photos
    closes &= int(guide.pair[index[-1], 1]) < before.photos
    unseen = (guide.visibility[index] == 0).float().mean((1, 2))
    pair = None if last or closes else choose_pair(new, unseen)
    count = len(new) if pair is None else pair[1] + 1  # beyond the pair, frames are made again
    new, unseen = new.select(torch.arange(count)), unseen[:count]
    chosen = frames_to_join(new, pair)
    grown = add_views(before, new, chosen, backend, generator)
    about = {"frames": count, "joined": len(chosen), "unseen": float(unseen.mean()), "seen": confident_share(new).tolist()}
    grown = replace(
        grown, pair=None if pair is None else (place(before, chosen, pair[0]), place(before, chosen, pair[1])),
        reached=guide.cameras.cam_to_world[index[count - 1]], rounds=[*before.rounds, about],
    )  # fmt: skip
    return close_ring(before, grown, new, made.cameras_told, backend, generator) if closes else grown


def place(before: Joined, chosen: list[int], frame: int) -> int:
    """Where among the views a frame of the round is that has joined."""
    return len(before.views) + chosen.index(frame)


def choose_pair(frames: Frames, unseen: Float[Tensor, " f"]) -> tuple[int, int] | None:
    """A frame of the inner half and one of the outer half, each the most confident that opens most; None if none is sure."""
    sure = confident_share(frames) >= ENOUGH
    score = frames.confidence.mean((1, 2)) * (unseen + 1e-3) * sure
    half = len(frames) // 2
    if half == 0 or not sure[half:].any():
        return None
    outer = half + int(score[half:].argmax())
    inner = int(score[:half].argmax()) if bool(sure[:half].any()) else half if outer > half else None
    return None if inner is None else (inner, outer)


def frames_to_join(frames: Frames, pair: tuple[int, int] | None) -> list[int]:
    """The frames that become views: the pair, and others that are sure, evenly."""
    sure = (confident_share(frames) >= ENOUGH).nonzero()[:, 0]
    evenly = sure[torch.linspace(0, len(sure) - 1, min(MOST, len(sure))).round().long()] if len(sure) else sure
    return sorted({*evenly.tolist(), *(pair or ())})


def add_views(before: Joined, new: Frames, chosen: list[int], backend: GeometryBackend, generator: torch.Generator) -> Joined:
    """The scene with the frames: those ``chosen`` as views with points where nothing was, the others after them."""
    index, rest = torch.tensor(chosen, dtype=torch.int64), [i for i in range(len(new)) if i not in chosen]
    views, n = as_views(new, len(before.path)), len(before.views)
    found = depth_of_frames(before, views, backend, generator)
    joining = Pointmaps(found.points_world[index], found.confidence[index], new.cameras[index], before.pointmaps.sparse)
    told_apart = has_contrast(new.images[index]) | (new.confidence[index] >= CERTAIN)
    fits = nothing_there(before, new.cameras[index]) & told_apart
    joining = replace(joining, confidence=joining.confidence * fits)
    old = torch.arange(len(before.frames))
    frames = joined_frames(
        before.frames.select(old[:n]), new.select(index), before.frames.select(old[n:]), new.select(torch.tensor(rest).long())
    )
    return replace(
        before, views=joined_views(before.views, views.select(index)), pointmaps=joined_pointmaps(before.pointmaps, joining),
        frames=frames, path=join_cameras(before.path, new.cameras),
    )  # fmt: skip


def as_views(frames: Frames, number: int) -> Views:
    """Generated frames as inputs of known cameras, of which only sure pixels may be used; named from ``number`` on."""
    n = len(frames)
    names = tuple(f"frame_{number + i:04d}" for i in range(n))
    nothing = torch.zeros(n, dtype=torch.bool)
    sure = frames.confidence >= SURE
    return Views(frames.images, sure, names, nothing, frames.cameras, torch.full((n,), torch.nan), "posed")


def depth_of_frames(before: Joined, new: Views, backend: GeometryBackend, generator: torch.Generator) -> Pointmaps:
    """Pointmaps of frames, by the backend with all cameras fixed, matched with each other and the views nearest to them.

    A pixel has confidence 0 where the frame is not sure, and all of a frame that the backend cannot use.
    """
    near = nearest_views(before.views, new)
    together = joined_views(before.views.select(near), new)
    found, kept = backend(together, together.cameras, generator)
    n, height, width = new.masks.shape
    points, confidence = torch.zeros(n, height, width, 3), torch.zeros(n, height, width)
    of_new = kept >= len(near)
    points[kept[of_new] - len(near)] = found.points_world[of_new]
    confidence[kept[of_new] - len(near)] = found.confidence[of_new]
    return Pointmaps(points, confidence * new.masks, cameras_of(new), before.pointmaps.sparse)


def nearest_views(views: Views, new: Views) -> Int[Tensor, " k"]:
    """The views nearest in direction to any of the new ones, ascending."""
    apart = -(cameras_of(views).cam_to_world[:, :3, 2] @ cameras_of(new).cam_to_world[:, :3, 2].mT).amax(1)
    return apart.argsort(stable=True)[:NEIGHBOURS].sort().values


def nothing_there(before: Joined, cameras: Cameras) -> Bool[Tensor, "k h w"]:
    """Pixels of cameras at which no point that could hide others is seen so far."""
    _, visibility, _ = render_points(*visible_points(before.views, before.pointmaps), cameras)
    return visibility < OCCLUDER_CONFIDENCE


def has_contrast(images: Float[Tensor, "k h w 3"]) -> Bool[Tensor, "k h w"]:
    """Pixels of frames in whose surroundings something stands out: in fog that a model makes, any depth agrees."""
    grey = images.mean(-1)[:, None]
    mean, square = (F.avg_pool2d(x, AROUND, 1, AROUND // 2, count_include_pad=False) for x in (grey, grey.square()))
    return (square - mean.square() >= (CONTRAST * mean).square())[:, 0]


def joined_views(first: Views, second: Views) -> Views:
    """Views whose cameras are known, as one."""
    images, masks, is_target, focal = (
        torch.cat([getattr(part, name) for part in (first, second)]) for name in ("images", "masks", "is_target", "focal_prior")
    )
    cameras = join_cameras(cameras_of(first), cameras_of(second))
    return Views(images, masks, (*first.names, *second.names), is_target, cameras, focal, "posed")


def cameras_of(views: Views) -> Cameras:
    """Those of views of the geometry, which have some."""
    assert views.cameras is not None
    return views.cameras


def joined_pointmaps(first: Pointmaps, second: Pointmaps) -> Pointmaps:
    """Both, without the lens and the exposures of the first, whose photos are straight and in one light by now."""
    points = torch.cat([first.points_world, second.points_world])
    confidence = torch.cat([first.confidence, second.confidence])
    cameras = join_cameras(first.cameras, second.cameras)
    return replace(first, points_world=points, confidence=confidence, cameras=cameras, radial=None, exposures=None)


def joined_frames(*parts: Frames) -> Frames:
    """All of them, of which it no longer counts which lies between which."""
    images, confidence, is_photo = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("images", "confidence", "is_photo")
    )
    intrinsics, poses = (torch.cat([getattr(part.cameras, name) for part in parts]) for name in ("intrinsics", "cam_to_world"))
    cameras = Cameras(intrinsics, poses, parts[0].cameras.width, parts[0].cameras.height)
    return Frames(images, cameras, confidence, is_photo, None, all(part.cameras_told for part in parts))


def close_ring(
    before: Joined, grown: Joined, new: Frames, told: bool, backend: GeometryBackend, generator: torch.Generator
) -> Joined:
    """The closed ring with its drift measured: the frame at the first photo's place, as the photos alone say where it is.

    Where the generator was not told the cameras, that is held against where the joined frames alone say that it is, and the
    drift is distributed over all frames, evenly along the ring.
    """
    photos, frames = torch.arange(grown.photos), torch.arange(grown.photos, len(before.views))
    end, true = new.cameras.cam_to_world[-1], located_among(grown, photos, new, backend, generator)
    chained = Located(end[None], ("",)) if told else located_among(grown, frames, new, backend, generator)
    about: dict[str, Any] = {"lost": true.lost[0] or chained.lost[0], "distributed": False}
    if not about["lost"]:
        known = views_of(grown.pointmaps, photos)
        about |= drift(chained.cam_to_world[0], true.cam_to_world[0], known) | {"distributed": not told}
        if not told:
            grown = distributed(grown, true.cam_to_world[0] @ torch.linalg.inv(chained.cam_to_world[0]))
    warn_of_drift(about)
    return replace(grown, rounds=[*grown.rounds[:-1], grown.rounds[-1] | {"closed": about}])


def warn_of_drift(about: dict[str, Any]) -> None:
    """A sentence where the ring does not close, or nobody can tell."""
    if about["lost"]:
        warnings.warn(f"Whether the ring closes cannot be told: its last frame {about['lost']}.", stacklevel=3)
    elif about["degrees"] > MOST_TURN or about["radii"] > MOST_SHIFT:
        done = "; that is distributed over all frames" if about["distributed"] else ""
        off = f"{about['degrees']:.1f} degrees and {about['radii']:.1%} of the radius off"
        warnings.warn(f"The ring does not close: its last frame shows the first photo's place {off}{done}.", stacklevel=3)


def located_among(
    scene: Joined, index: Int[Tensor, " k"], new: Frames, backend: GeometryBackend, generator: torch.Generator
) -> Located:
    """The camera of the last of the ``new`` frames, found among some views of the scene."""
    frame = replace(as_views(new.select(torch.tensor([len(new) - 1])), len(scene.path) - 1), protocol="intrinsics")
    return backend.locate(scene.views.select(index), views_of(scene.pointmaps, index), frame, None, generator)


def views_of(pointmaps: Pointmaps, index: Int[Tensor, " k"]) -> Pointmaps:
    """The pointmaps of some views, without feature points."""
    nothing = PointCloud(torch.zeros(0, 3), torch.zeros(0, 3), torch.zeros(0))
    return Pointmaps(pointmaps.points_world[index], pointmaps.confidence[index], pointmaps.cameras[index], nothing)


def drift(planned: Float[Tensor, "4 4"], found: Float[Tensor, "4 4"], photos: Pointmaps) -> dict[str, float]:
    """How far a camera is from where its frame says that it is: degrees, and a share of the orbit's radius."""
    turn = float(rotation_angle(planned[:3, :3], found[:3, :3]))
    return {"degrees": turn, "radii": float((planned[:3, 3] - found[:3, 3]).norm() / orbit_of(photos).radius.mean())}


def distributed(scene: Joined, whole: Float[Tensor, "4 4"]) -> Joined:
    """The scene with each frame and its points moved by its share of the drift, ``whole`` (world) at the end of the ring."""
    n, count = len(scene.views), len(scene.path)
    place_on_path = {tuple(pose.flatten().tolist()): i for i, pose in enumerate(scene.path.cam_to_world)}
    order = [place_on_path.get(tuple(pose.flatten().tolist()), -1) for pose in scene.frames.cameras.cam_to_world]
    share = (torch.tensor(order, dtype=torch.float64) + 1) / count
    share[: scene.photos] = 0
    moves = se3_exp(share[:, None] * se3_log(whole.double())).float()
    along = se3_exp(((torch.arange(count) + 1.0) / count).double()[:, None] * se3_log(whole.double())).float()
    shape = scene.pointmaps.points_world.shape
    points = transform(moves[:n], scene.pointmaps.points_world.reshape(n, -1, 3)).reshape(shape)
    cameras = replace(scene.frames.cameras, cam_to_world=moves @ scene.frames.cameras.cam_to_world)
    return replace(
        scene, views=replace(scene.views, cameras=cameras[:n]), frames=replace(scene.frames, cameras=cameras),
        pointmaps=replace(scene.pointmaps, points_world=points, cameras=cameras[:n]),
        path=replace(scene.path, cam_to_world=along @ scene.path.cam_to_world),
    )  # fmt: skip
