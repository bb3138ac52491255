"""The `views` stage: a dataset or a folder of photos becomes images of one size, inputs first, then held-out targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.datasets import Capture, Photo, Split, fits, read, scene_names
from reconx_core.errors import UserError
from reconx_core.geometry.transforms import size_for
from reconx_core.geometry.undistort import undistort_masked
from reconx_core.io.images import ImageError, resize, resize_mask
from reconx_core.settings import ViewsSettings
from reconx_core.types import CameraProtocol, Cameras, Views
from reconx_core.views.copies import Look, look_of, without_copies
from reconx_core.views.projection import describe_projection
from reconx_core.views.protocol import leave_out_uncalibrated, leave_out_unposed, require_baseline, resolve_protocol
from reconx_core.views.splits import is_rule, split_by_rule

__all__ = [
    "frame_count",
    "load_views",
    "resolve_protocol",
    "scene_names",
    "select_photos",
    "split_name",
    "thin",
    "views_of",
    "views_with_depth",
]


@dataclass(frozen=True)
class _View:
    """One photo, undistorted and resized, on its own canvas."""

    image: Float[Tensor, "h w 3"]
    mask: Bool[Tensor, "h w"]
    focal: float
    intrinsics: Float[Tensor, "3 3"] | None
    cam_to_world: Float[Tensor, "4 4"] | None
    object_mask: Bool[Tensor, "h w"] | None = None
    resized: tuple[int, int] = (0, 0)  # height and width to which the photo was resized, before it was cropped
    look: Look | None = None  # of the photo, by which copies are found


def load_views(source: str | Path, settings: ViewsSettings) -> Views:
    """The scene at ``source`` in any known format.

    Inputs come first, in capture order, then the targets. Photos that cannot be read, panoramas, copies of another input, and
    photos without a camera where most have one are left out with a warning. Photos of several sizes are centred on a common
    canvas, masked out beyond their borders. Cameras are relative to the capture's origin, which is (0, 0, 0) unless they lie
    too far away for float32.

    Raises:
        UserError: nothing readable there, fewer than two different usable input photos, no such split, or a protocol that needs
            cameras which the dataset does not have.
    """
    return views_of(read(Path(source)), settings)


def views_of(capture: Capture, settings: ViewsSettings) -> Views:
    """As :func:`load_views`, of a scene whose dataset has been read already."""
    return views_with_depth(capture, settings)[0]


def views_with_depth(capture: Capture, settings: ViewsSettings) -> tuple[Views, Float[Tensor, "n h w"] | None]:
    """As :func:`views_of`, with the views' true z-depth, 0 where it is not known; None where the dataset has none."""
    inputs, targets = select_photos(capture, settings)
    loaded, problems = _load_all(capture.photos, (*inputs, *targets), settings)
    uncalibrated = leave_out_uncalibrated(capture.photos, list(loaded), settings.protocol)
    usable, targets = ([i for i in part if i in loaded and i not in uncalibrated] for part in (inputs, targets))
    inputs = without_copies(capture.name, capture.photos, usable, {i: look for i in usable if (look := loaded[i].look)})
    if len(inputs) < 2:
        count = f"'{capture.name}' has {len(inputs)} usable input photo(s); at least two photos of the same place are needed."
        raise UserError(" ".join([count, *problems[:1]]))
    order = [*inputs, *targets]
    protocol = resolve_protocol([capture.photos[i] for i in order], settings.protocol)
    require_baseline(capture.name, [capture.photos[i] for i in inputs], protocol)
    if protocol == "posed" and any(capture.origin):
        _tell_origin(capture)
    is_target = torch.tensor([False] * len(inputs) + [True] * len(targets))
    chosen = [loaded[i] for i in inputs] + [_restrict_to_object(loaded[i], settings.mask) for i in targets]
    views = _assemble(chosen, tuple(capture.photos[i].name for i in order), is_target, protocol)
    return views, _depth_of(capture, order, chosen, settings, views)


def _depth_of(
    capture: Capture, order: list[int], chosen: list[_View], settings: ViewsSettings, views: Views
) -> Float[Tensor, "n h w"] | None:
    """The true depth of the photos in ``order`` on the views' canvas."""
    photos = [capture.photos[i] for i in order]
    if all(photo.load_depth is None for photo in photos):
        return None
    depth, problems = torch.zeros(views.masks.shape), []
    for place, photo, view in zip(depth, photos, chosen):
        # Depth is not undistorted: that of a pixel between two surfaces would be neither's.
        if photo.load_depth is not None and not any(photo.distortion):
            (top, left), (height, width) = _corner(view, *place.shape), view.mask.shape
            try:
                place[top : top + height, left : left + width] = _seen(photo.load_depth(), view.resized, settings)
            except ImageError as error:
                problems.append(str(error))
    if problems:
        warnings.warn(f"Of {len(problems)} of {len(photos)} photos no depth could be read: {problems[0]}", stacklevel=2)
    return depth if depth.any() else None


def _seen(depth: Float[Tensor, "h w"], size: tuple[int, int], settings: ViewsSettings) -> Float[Tensor, "height width"]:
    """The depth of a photo's pixels after resizing and cropping, each the one at its centre."""
    resized = F.interpolate(depth[None, None], size, mode="nearest-exact")[0, 0]
    if settings.crop is None:
        return resized
    top, left = ((side - crop) // 2 for side, crop in zip(size, settings.crop))
    return resized[top : top + settings.crop[0], left : left + settings.crop[1]]


def select_photos(capture: Capture, settings: ViewsSettings) -> tuple[list[int], list[int]]:
    """Indices of inputs and targets under the chosen split, the inputs in capture order and thinned to ``max_inputs``."""
    name = split_name(capture, settings)
    if name == "all":
        inputs, targets = Split(tuple(range(len(capture.photos))), ())
    elif is_rule(name):
        inputs, targets = _as_indices(split_by_rule(name, frame_count(capture)), capture)
    elif name in capture.splits:
        inputs, targets = capture.splits[name]
    else:
        raise UserError(f"'{capture.name}' has no split '{name}'; it has {', '.join(['all', *capture.splits])}.")
    inputs = tuple(sorted(inputs))
    # Published splits may list a view as input and as target (575 of RealEstate10K's 6,474 do); they are used as listed.
    if not name.startswith("views:") and (leaked := set(inputs) & set(targets)):
        raise UserError(f"'{capture.name}': split '{name}' has photo {min(leaked)} among its inputs and its targets.")
    unposed = leave_out_unposed(capture.photos, [*inputs, *targets], settings.protocol)
    inputs, targets = (tuple(i for i in part if i not in unposed) for part in (inputs, targets))
    kept = thin([capture.photos[i].sharpness for i in inputs], settings.max_inputs)
    return [inputs[k] for k in kept], list(targets)


def _tell_origin(capture: Capture) -> None:
    """Warn of cameras that are not used in the dataset's own frame."""
    point = ", ".join(f"{value:.12g}" for value in capture.origin)
    problem = f"The cameras of '{capture.name}' lie too far from zero for single precision, so ({point}) is subtracted"
    warnings.warn(f"{problem}: scene.ply is relative to that point, cameras/ is in the given frame.", stacklevel=1)


def _numbers(capture: Capture) -> list[int]:
    """The photos' frame numbers in their dataset."""
    return [i if photo.number is None else photo.number for i, photo in enumerate(capture.photos)]


def frame_count(capture: Capture) -> int:
    """How many frames the scene has, including those that are missing before the last one."""
    return 1 + max(_numbers(capture), default=-1)


def _as_indices(split: Split, capture: Capture) -> Split:
    """A split of frame numbers as indices into the capture's photos. Raises UserError if one of its frames is missing."""
    index_of = {number: i for i, number in enumerate(_numbers(capture))}
    if absent := sorted({*split.inputs, *split.targets} - set(index_of)):
        raise UserError(f"'{capture.name}' lacks frame {absent[0]}, which its split needs; fetch the scene's missing frames.")
    return Split(tuple(index_of[i] for i in split.inputs), tuple(index_of[i] for i in split.targets))


def split_name(capture: Capture, settings: ViewsSettings) -> str:
    """The split that is used: ``auto`` is the one that the dataset is usually scored on, ``all`` makes all photos inputs."""
    return (capture.default_split or "all") if settings.split == "auto" else settings.split


def thin(sharpness: Sequence[float], most: int) -> list[int]:
    """At most ``most`` indices: evenly spaced with both ends, or, if sharpness is known, the sharpest of equal windows."""
    count = len(sharpness)
    if count <= most:
        return list(range(count))
    if any(math.isnan(s) for s in sharpness):
        return [round(k * (count - 1) / (most - 1)) for k in range(most)]
    windows = [range(k * count // most, (k + 1) * count // most) for k in range(most)]
    return [max(window, key=lambda i: sharpness[i]) for window in windows]


def _load_all(photos: Sequence[Photo], indices: Sequence[int], settings: ViewsSettings) -> tuple[dict[int, _View], list[str]]:
    """The photos that can be used, and what is wrong with the others, of which warnings tell, too."""
    loaded: dict[int, _View] = {}
    problems: list[str] = []
    for i in dict.fromkeys(indices):
        try:
            loaded[i] = _load(photos[i], settings)
        except ImageError as error:
            warnings.warn(f"{error} It is left out.", stacklevel=2)
            problems.append(str(error))
    return loaded, problems


def _load(photo: Photo, settings: ViewsSettings) -> _View:
    image = photo.load()
    stored = (image.shape[0], image.shape[1])
    height, width = _size(stored, photo.size or stored, settings)
    mask = torch.ones(stored, dtype=torch.bool) if photo.load_mask is None else photo.load_mask()
    if abs(mask.shape[0] * stored[1] / (mask.shape[1] * stored[0]) - 1) > 0.05:
        sizes = f"{mask.shape[1]}x{mask.shape[0]}, but the photo {stored[1]}x{stored[0]}"
        raise ImageError(f"The mask of photo '{photo.name}' is {sizes}; give a mask of the photo's shape.")
    image, mask = resize(image, height, width), resize_mask(mask, height, width)
    look = look_of(image)
    if not mask.any():
        warnings.warn(f"The mask of photo '{photo.name}' leaves nothing of it.", stacklevel=2)
    object_mask = None if photo.load_object_mask is None else resize_mask(photo.load_object_mask(), height, width)
    intrinsics = photo.intrinsics
    if intrinsics is None:
        _check_projection(photo, image)
    else:
        calibrated = photo.size or stored
        _check_aspect(photo, stored, calibrated)
        intrinsics = intrinsics * torch.tensor([width / calibrated[1], height / calibrated[0], 1.0])[:, None]
        image, mask = undistort_masked(image, mask, intrinsics, photo.distortion)
    focal = photo.focal * max(height, width) / max(stored)
    view = _View(image, mask, focal, intrinsics, photo.cam_to_world, object_mask, (height, width), look)
    return view if settings.crop is None else _cropped(view, *settings.crop)


def _check_projection(photo: Photo, image: Float[Tensor, "h w 3"]) -> None:
    """Raises ImageError for a photo of an unknown camera that cannot be a pinhole's."""
    projection = describe_projection(image)
    if projection is not None:
        advice = "give ordinary photos or cuts of it; if it is one, cut a few columns off"
        raise ImageError(f"Photo '{photo.name}' looks like one that is {projection}, which no pinhole camera fits; {advice}.")


def _size(stored: tuple[int, int], calibrated: tuple[int, int], settings: ViewsSettings) -> tuple[int, int]:
    """Height and width to which a photo is resized; it is never enlarged, except to cover the crop.

    ``calibrated``: the size that its camera is for, of which datasets publish smaller copies, too.
    """
    if settings.shrink is not None:
        return _shrunk(stored, calibrated, settings.shrink)
    if settings.crop is not None:
        scale = max(settings.crop[0] / stored[0], settings.crop[1] / stored[1])
        return max(settings.crop[0], round(stored[0] * scale)), max(settings.crop[1], round(stored[1] * scale))
    return stored if max(stored) <= settings.size else size_for(settings.size, *stored)


def _shrunk(stored: tuple[int, int], calibrated: tuple[int, int], factor: int) -> tuple[int, int]:
    """The calibrated size over ``factor``, rounded; a photo of that size stays as it is, whichever way it was rounded.

    Raises:
        UserError: the photo is smaller.
    """
    if all(abs(side / factor - own) <= 1 for side, own in zip(calibrated, stored)):
        return stored
    height, width = (max(1, math.floor(side / factor + 0.5)) for side in calibrated)
    if height > stored[0] or width > stored[1]:
        wanted = f"{width}x{height}, which views.shrink={factor} makes of its camera's size"
        raise UserError(f"A photo is {stored[1]}x{stored[0]}, smaller than {wanted}; fetch the larger ones.")
    return height, width


def _cropped(view: _View, height: int, width: int) -> _View:
    """The centre crop of the view."""
    top, left = (view.mask.shape[0] - height) // 2, (view.mask.shape[1] - width) // 2
    window = (slice(top, top + height), slice(left, left + width))
    shift = torch.tensor([[0.0, 0, left], [0, 0, top], [0, 0, 0]])
    return replace(
        view, image=view.image[window], mask=view.mask[window],
        intrinsics=None if view.intrinsics is None else view.intrinsics - shift,
        object_mask=None if view.object_mask is None else view.object_mask[window],
    )  # fmt: skip


def _restrict_to_object(view: _View, mask: str) -> _View:
    """A held-out view, its mask restricted to the object if ``mask`` is ``object``.

    Raises:
        UserError: the dataset has no mask of the object.
    """
    if mask == "usable":
        return view
    if view.object_mask is None:
        raise UserError("views.mask=object needs masks of the objects, and a held-out photo has none; fetch them, too.")
    return replace(view, mask=view.mask & view.object_mask)


def _check_aspect(photo: Photo, stored: Sequence[int], calibrated: Sequence[int]) -> None:
    """Raises UserError for intrinsics of another crop or orientation, which would silently distort the scene."""
    if not fits(stored, calibrated):
        sizes = f"{stored[1]}x{stored[0]}, but its camera is for {calibrated[1]}x{calibrated[0]}"
        raise UserError(f"Photo '{photo.name}' is {sizes}; use the photos that the cameras were computed from.")


def _assemble(views: list[_View], names: tuple[str, ...], is_target: Bool[Tensor, " n"], protocol: CameraProtocol) -> Views:
    height, width = (max(v.mask.shape[axis] for v in views) for axis in (0, 1))
    corners = [_corner(v, height, width) for v in views]
    images, masks = torch.zeros(len(views), height, width, 3), torch.zeros(len(views), height, width, dtype=torch.bool)
    for i, (view, (top, left)) in enumerate(zip(views, corners)):
        h, w = view.mask.shape
        images[i, top : top + h, left : left + w] = view.image
        masks[i, top : top + h, left : left + w] = view.mask
    focal = torch.tensor([v.focal for v in views])
    return Views(images, masks, names, is_target, _cameras(views, corners, height, width), focal, protocol)


def _corner(view: _View, height: int, width: int) -> tuple[int, int]:
    """Top and left of the view on a canvas."""
    return (height - view.mask.shape[0]) // 2, (width - view.mask.shape[1]) // 2


def _cameras(views: list[_View], corners: list[tuple[int, int]], height: int, width: int) -> Cameras | None:
    """Cameras on the common canvas. Unknown poses are NaN, so that nothing uses them by mistake."""
    if any(v.intrinsics is None for v in views):
        return None
    shift = torch.tensor([[[0.0, 0, left], [0, 0, top], [0, 0, 0]] for top, left in corners])
    unknown = torch.full((4, 4), math.nan)
    posed = all(v.cam_to_world is not None for v in views)
    poses = [v.cam_to_world if posed and v.cam_to_world is not None else unknown for v in views]
    intrinsics = torch.stack([v.intrinsics for v in views if v.intrinsics is not None])
    return Cameras(intrinsics + shift, torch.stack(poses), width, height)
