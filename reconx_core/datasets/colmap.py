"""A COLMAP model (text or binary) with its images: ``SCENE/sparse/N`` and ``SCENE/images``, or the model's own folder.

This is how 3D Gaussian Splatting publishes Tanks and Temples, and Mip-NeRF 360 its scenes, with ``images_2``, ``images_4`` ...
"""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from reconx_core.datasets.calibrated import calibrated_photo
from reconx_core.datasets.capture import Capture, Photo, Split, every_eighth, pinhole
from reconx_core.datasets.colmap_model import (
    ModelCamera,
    ModelImage,
    check_lengths,
    count_images,
    is_model,
    read_cameras,
    read_images,
)
from reconx_core.datasets.locate import PictureFinder, with_slashes
from reconx_core.datasets.photos import (
    files_within,
    find_mask,
    find_photos,
    image_folders,
    mask_folders,
    natural_key,
    unique_names,
    warn_of_unlisted,
    with_outside,
)
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.io.images import is_image

# index of fx fy cx cy k1 k2 p1 p2, and of some k3 k4 k5 k6, among each model's parameters; None: the value is zero
_PARAMETERS: dict[str, tuple[int | None, ...]] = {
    "SIMPLE_PINHOLE": (0, 0, 1, 2, None, None, None, None),
    "PINHOLE": (0, 1, 2, 3, None, None, None, None),
    "SIMPLE_RADIAL": (0, 0, 1, 2, 3, None, None, None),
    "RADIAL": (0, 0, 1, 2, 3, 4, None, None),
    "OPENCV": (0, 1, 2, 3, 4, 5, 6, 7),
    "FULL_OPENCV": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
}

_ALIKE = re.compile("colmap|sparse", re.IGNORECASE)


def find_model(path: Path) -> Path | None:
    """The folder with cameras and images files (``.bin`` or ``.txt``) of a scene: of several models the largest."""
    models = _find_models(path)
    return max(models, key=count_images) if len(models) > 1 else next(iter(models), None)


def holds_distortion(model: Path) -> bool:
    """Whether any camera of a model has distortion. False for a file that cannot be read: :func:`read` reports it."""
    try:
        return any(camera.model not in ("SIMPLE_PINHOLE", "PINHOLE") for camera in read_cameras(model).values())
    except UserError:
        return False


def check(path: Path) -> None:
    """Raises UserError if the model is missing or truncated, or if there is no picture at all."""
    model = _require_model(path)
    check_lengths(model)
    if not any(is_image(file) for folder in (*_image_folders(path, model), path) for file in folder.rglob("*")):
        raise UserError(f"The COLMAP model in {model} has no pictures beside it, in images or images_N; fetch them, too.")


def files_of(path: Path) -> dict[str, Path]:
    """All files in the scene's folder; if ``path`` is the model's own folder, also the pictures and masks beside it; and
    pictures elsewhere, where the model names them by absolute paths or by ``../``."""
    folder, model = path.resolve(), _require_model(path)
    beside = [f for f in _image_folders(path, model) if not f.resolve().is_relative_to(folder)]
    files = files_within(path, *beside, *(masks for images in beside for masks in mask_folders(images)))
    return with_outside(path, files, _pictures_elsewhere(path, model))


def _pictures_elsewhere(path: Path, model: Path) -> Iterator[Path]:
    try:
        names = [image.name for image in read_images(model)]
    except UserError:  # the reader raises it
        return
    finder = PictureFinder()
    for name in names:
        slashed = with_slashes(name)
        if slashed.startswith("/") or ".." in slashed.split("/"):
            found = (finder.find_written(folder, name) for folder in (*_image_folders(path, model), path))
            yield from filter(None, found)


def read(path: Path) -> Capture:
    """Registered images in natural order of their names, from the folder that has most of them (of equals, the largest size).

    The split ``every_8th`` holds out every eighth image in the alphabetical order of their names. It is the default of scenes
    with a ``poses_bounds.npy`` beside the model, which are Mip-NeRF 360's; of other scenes every image is an input.

    Raises:
        UserError: no model, a broken one, a fisheye or other unsupported camera model, or no folder of images.
    """
    model = _require_model(path)
    _warn_of_other_models(path, model)
    check_lengths(model)
    cameras, images = read_cameras(model), _read_images(model)
    pictures = _find_pictures(path, model, [image.name for image in images])
    warn_of_unlisted(pictures, model)
    names = unique_names([Path(image.name.replace("\\", "/")) for image in images])
    photos = (_photo(i, camera_of(i, cameras, model), file, name) for i, file, name in zip(images, pictures, names))
    splits = {"every_8th": _every_eighth([image.name for image in images])}
    scored = (path / "poses_bounds.npy").is_file()
    return make_usable(Capture(path.resolve().name, tuple(photos), splits, "every_8th" if scored else None), model)


def _require_model(path: Path) -> Path:
    model = find_model(path)
    if model is None:
        raise UserError(f"There is no COLMAP model (cameras.bin or .txt) in '{path}', its sparse/0 or its sparse folder.")
    return model


def _every_eighth(names: list[str]) -> Split:
    """Published results count images in alphabetical order (9 after 10), not in capture order."""
    order = sorted(range(len(names)), key=lambda i: names[i])
    return Split(*(tuple(sorted(order[i] for i in part)) for part in every_eighth(len(names))))


def _find_models(path: Path) -> list[Path]:
    """The models in the first of the usual places that has any; COLMAP writes one for each part that it could connect."""
    sparse = (path, path / "sparse", path / "colmap" / "sparse")
    places = [[path], *([*_numbered(folder), folder] for folder in sparse if folder.absolute().name == "sparse")]
    places += [[path / "dense" / "sparse"], [folder / "sparse" for folder in _numbered(path / "dense")]]  # undistorted ones
    places += [[*_numbered(folder), folder, *_numbered(folder / "sparse"), folder / "sparse"] for folder in _named_alike(path)]
    return next((found for place in places if (found := [folder for folder in place if is_model(folder)])), [])


def _named_alike(path: Path) -> list[Path]:
    """Folders of other tools: ``colmap_text``, ``Sparse``, ``sparse_txt``, ``colmap_sparse``.

    Not scenes, which have pictures of their own.
    """
    inside = path.iterdir() if path.is_dir() else iter(())
    folders = (p for p in inside if _ALIKE.search(p.name) and not p.name.startswith(".") and p.is_dir())
    return sorted((p for p in folders if not image_folders(p) and not find_photos(p)), key=natural_key)


def _numbered(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("*") if p.is_dir()), key=natural_key)


def _warn_of_other_models(path: Path, model: Path) -> None:
    models = _find_models(path)
    if len(models) > 1:
        labels = {folder: folder.parent.name if folder.parent.parent.name == "dense" else folder.name for folder in models}
        sizes = ", ".join(f"{label} ({count_images(folder)})" for folder, label in labels.items())
        message = f"'{path}' has {len(models)} COLMAP models, with so many photos: {sizes}"
        warnings.warn(f"{message}; {labels[model]} is used, and the others are not.", stacklevel=2)


def _read_images(model: Path) -> list[ModelImage]:
    """Images with a pose, in natural order of names; a warning tells of the others. Raises UserError if there are none."""
    images = sorted(read_images(model), key=lambda image: natural_key(image.name))
    lost = [image.name for image in images if not np.isfinite(image.world_to_cam).all()]
    posed = [image for image in images if np.isfinite(image.world_to_cam).all()]
    if not posed:
        lack = "images with a valid pose; export it again" if images else "registered images"
        raise UserError(f"The COLMAP model in {model} has no {lack}.")
    if lost:
        message = f"{len(lost)} of {len(images)} images of the COLMAP model in {model} have no valid pose"
        warnings.warn(f"{message}, such as {lost[0]}; they are left out.", stacklevel=2)
    return posed


def camera_of(image: ModelImage, cameras: dict[int, ModelCamera], model: Path) -> ModelCamera:
    """The camera of an image of the model. Raises UserError if the model has none of that number."""
    if image.camera not in cameras:
        raise UserError(f"In the COLMAP model in {model}, {image.name} has camera {image.camera}, which is not in its cameras.")
    return cameras[image.camera]


def _image_folders(path: Path, model: Path) -> list[Path]:
    """Where pictures may be: ``images`` and ``images_N`` of the scene, beside the model and above it.

    An undistorted model's own pictures come first, because those of the scene are the distorted ones under the same names.
    """
    beside = [model.parent] if _is_undistorted(path, model) else []
    roots = dict.fromkeys((*beside, path, model, *model.resolve().parents[:3]))
    return [folder for root in roots for folder in image_folders(root)]


def _is_undistorted(path: Path, model: Path) -> bool:
    """Whether a model of a scene is the output of COLMAP's ``image_undistorter``."""
    return path / "dense" in model.parents


def _find_pictures(path: Path, model: Path, names: Sequence[str]) -> list[Path]:
    """The picture of every image, from the folder that has most of them. Raises UserError if there is none."""
    finder = PictureFinder()
    found = {folder: [finder.find(folder, name) for name in names] for folder in (*_image_folders(path, model), path)}
    counts = {folder: sum(file is not None and file.is_file() for file in files) for folder, files in found.items()}
    best = max(counts, key=lambda folder: counts[folder])  # the first of those with equal counts
    if not counts[best]:
        raise UserError(f"The images of the COLMAP model in {model} (such as {names[0]}) are not in {path / 'images'}.")
    if _is_undistorted(path, model) and sum(map(bool, counts.values())) > 1:
        message = f"Of '{path}', the model in {model} with the pictures in {best} is used"
        warnings.warn(f"{message}, and the pictures of the same names elsewhere are not.", stacklevel=2)
    return _without_clashes(best, names, found[best])


def _without_clashes(folder: Path, names: Sequence[str], found: Sequence[Path | None]) -> list[Path]:
    """The pictures found; one that several names lead to belongs to the name that it has itself."""
    uses = Counter(found)
    files = [
        file if file is not None and (uses[file] == 1 or file == folder / name) else folder / name
        for name, file in zip(names, found)
    ]
    renamed = [(name, file) for name, file in zip(names, files) if file.suffix.lower() != Path(name).suffix.lower()]
    if renamed:
        message = f"{len(renamed)} picture(s) are read from files of another format than the COLMAP model names"
        warnings.warn(f"{message}, such as {renamed[0][1].name} for {renamed[0][0]}.", stacklevel=2)
    return files


def _photo(image: ModelImage, camera: ModelCamera, path: Path, name: str) -> Photo:
    import torch

    fx, fy, cx, cy, *distortion = opencv_parameters(image, camera)
    return calibrated_photo(
        path,
        name,
        find_mask(path),
        intrinsics=pinhole(fx, fy, cx, cy),
        size=(camera.height, camera.width),
        distortion=tuple(distortion),
        cam_to_world=torch.linalg.inv(torch.from_numpy(image.world_to_cam)),
    )


def opencv_parameters(image: ModelImage, camera: ModelCamera) -> list[float]:
    """fx, fy, cx, cy in pixels, and OpenCV's distortion. Raises UserError for a fisheye or other camera model."""
    indices = _PARAMETERS.get(camera.model)
    if indices is None:
        raise UserError(
            f"COLMAP camera {image.camera} has the model {camera.model}; undistort the images first "
            f"(colmap image_undistorter) or use one of {', '.join(_PARAMETERS)}."
        )
    return [0.0 if index is None else camera.params[index] for index in indices]
