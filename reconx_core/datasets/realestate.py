"""RealEstate10K and ACID: pixelSplat's chunks (``000000.torch`` with ``index.json``), or camera files beside folders of frames.

Both give each camera as 18 numbers: fx fy cx cy in units of the frame's width and height, two zeros, and the 3x4
world-to-camera matrix row by row (OpenCV axes).
"""

from __future__ import annotations

import io
import operator
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from reconx_core.datasets.capture import Capture, Photo, Split, pinhole
from reconx_core.datasets.locate import is_path
from reconx_core.datasets.photos import find_photos
from reconx_core.datasets.poses import make_usable
from reconx_core.errors import UserError
from reconx_core.io.files import read_text
from reconx_core.io.images import ImageError, is_image, read_image, read_size
from reconx_core.io.json_files import read_json
from reconx_core.names import abbreviate

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "index.json"
_SPLITS = ("test", "train", "val")


def is_scene(path: Path) -> bool:
    """Whether a path is ``SPLIT/KEY`` with a key of the split's index, or a folder of frames with its camera file beside."""
    if path.exists():
        return _camera_file(path) is not None
    return _holds_chunks(path.parent) and path.name in _index(path.parent)


def holds_scenes(path: Path) -> bool:
    """Whether a folder holds chunks, or splits that do."""
    return _holds_chunks(path) or any(_holds_chunks(path / split) for split in _SPLITS)


def scenes(folder: Path) -> list[tuple[str, Path]]:
    """(key, ``folder/key``) of the scenes whose chunk is there, in the order of the index; a warning names the other chunks.

    Raises:
        UserError: ``folder`` holds splits and is not one itself, or its index or all of its chunks cannot be read.
    """
    if not _holds_chunks(folder):
        splits = [split for split in _SPLITS if _holds_chunks(folder / split)]
        raise UserError(f"'{folder}' holds the splits {', '.join(splits)}; name one of them, such as '{folder / splits[0]}'.")
    index = _index(folder)
    chunks = dict.fromkeys(index.values())
    # A zip's directory is at its end, so a truncated chunk fails the test.
    complete = {chunk for chunk in chunks if zipfile.is_zipfile(folder / chunk)}
    broken = [chunk for chunk in chunks if chunk not in complete]
    if not complete:
        raise UserError(
            f"None of the {len(chunks)} chunks in '{folder}' can be read; download them ({abbreviate(broken)}) again."
        )
    if broken:
        problem = f"{len(broken)} of {len(chunks)} chunks in '{folder}' are missing or half downloaded"
        warnings.warn(f"{problem}: {abbreviate(broken)}. Their scenes are left out.", stacklevel=2)
    return [(key, folder / key) for key, chunk in index.items() if chunk in complete]


def check(path: Path) -> None:
    """Raises UserError if no frame was fetched for a camera file."""
    if path.is_dir() and not any(is_image(file) for file in path.iterdir()):
        raise UserError(f"The scene '{path}' has no frames; fetch its pictures or choose another scene.")


def warn_of_missing_frames(dataset: Path) -> None:
    """Warn of the camera files in a dataset that have no folder of frames."""
    separate = (dataset / "cameras").is_dir() and (dataset / "frames").is_dir()
    frames = dataset / "frames" if separate else dataset
    files = sorted((dataset / "cameras" if separate else dataset).glob("*.txt"))
    missing = [file.stem for file in files if not (frames / file.stem).is_dir() and _lists_cameras(file)]
    if missing:
        problem = f"{len(missing)} of the {len(files)} camera files in '{dataset}' have no frames: {abbreviate(missing)}"
        warnings.warn(f"{problem}. Their scenes are left out.", stacklevel=2)


def files_of(scene: Path) -> dict[str, Path]:
    """The files that a scene is read from, by their names in the cache key (of a chunk, with the scene's name)."""
    camera_file = _camera_file(scene)
    if camera_file is None:
        chunk = _chunk_of(scene)
        return {f"{chunk.name}/{scene.name}": chunk}
    return {file.name: file for file in (camera_file, *find_photos(scene))}


def read(path: Path) -> Capture:
    """A scene's frames in order of time; those whose picture was never fetched are left out with a warning.

    Raises:
        UserError: the path holds several scenes; the chunk or camera file is missing, damaged or malformed; no frames.
    """
    if holds_scenes(path):
        found = scenes(path)
        raise UserError(f"'{path}' holds {len(found)} scenes; name one of them, such as '{found[0][1]}'.")
    camera_file = _camera_file(path)
    photos = tuple(_read_chunk(path) if camera_file is None else _read_frames(path, camera_file))
    if not photos:
        raise UserError(f"The scene '{path}' has no frames; fetch its pictures or choose another scene.")
    return make_usable(Capture(path.absolute().name, photos), camera_file or path)


def published_splits(listed: Any, file: Path) -> dict[str, Split]:
    """Context and target views per scene, as pixelSplat and its successors publish them; scenes set to null are left out.

    ``listed``: what ``file`` holds. Views count a scene's frames from 0. They are returned as listed: published targets may be
    among the context views.

    Raises:
        UserError: it is of another format.
    """
    try:
        entries = {key: _only(entry) for key, entry in listed.items() if entry}
        return {key: Split(as_indices(entry["context"]), as_indices(entry["target"])) for key, entry in entries.items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(f"{file} should map each scene to its 'context' and 'target' views, or to null.") from None


def overlaps_of(listed: Any, file: Path) -> dict[str, float]:
    """How much the context views of each scene show of the same, in [0, 1], where the index says it.

    ``listed``: what ``file`` holds, as of :func:`published_splits`.

    Raises:
        UserError: it is of another format.
    """
    try:
        entries = {key: _only(entry) for key, entry in listed.items() if entry}
        return {key: float(entry["overlap"]) for key, entry in entries.items() if entry.get("overlap") is not None}
    except (AttributeError, TypeError, ValueError):
        raise UserError(f"{file} should say the 'overlap' of each scene's views as a number.") from None


def _only(entry: Any) -> Any:
    """The entry itself; latentSplat wraps each in a list."""
    if isinstance(entry, list):
        (entry,) = entry
    return entry


def as_indices(values: Iterable[int]) -> tuple[int, ...]:
    """Numbers of views as a file lists them. Raises TypeError if they are none."""
    return tuple(map(operator.index, values))


def _holds_chunks(folder: Path) -> bool:
    """Whether there are chunks, or at least an index of chunks, so that missing ones can be reported by name."""
    return any(folder.glob("[0-9]" * 6 + ".torch")) or '.torch"' in _index_text(folder)


def _index_text(folder: Path) -> str:
    file = folder / _INDEX
    return _text(file, file.stat().st_mtime_ns) if file.is_file() else ""


@lru_cache(maxsize=8)
def _text(file: Path, modified: int) -> str:
    return read_text(file, "replace")


def _index(folder: Path) -> dict[str, str]:
    """Chunk of each scene. Raises UserError if the index is missing or malformed."""
    file = folder / _INDEX
    if not os.path.isfile(file):  # which does not mind a name that is too long
        raise UserError(f"There is no {file}, which tells the chunk of each scene; fetch it, too.")
    return _parse_index(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _parse_index(file: Path, modified: int) -> dict[str, str]:
    index = read_json(file)
    if not isinstance(index, dict) or not all(map(is_path, (*index, *index.values()))):
        raise UserError(f"{file} should map each scene to the name of its chunk.")
    return index


def _chunk_of(scene: Path) -> Path:
    index = _index(scene.parent)
    if scene.name not in index:
        raise UserError(f"{scene.parent / _INDEX} lists no scene '{scene.name}'.")
    return scene.parent / index[scene.name]


def _read_chunk(scene: Path) -> Iterator[Photo]:
    file = _chunk_of(scene)
    if not os.path.isfile(file):  # which does not mind a name that is too long
        raise UserError(f"The chunk {file} with the scene '{scene.name}' is not there; download it.")
    example = _load_chunk(file, file.stat().st_mtime_ns).get(scene.name)
    label = f"'{scene.name}' in {file}"
    if example is None:
        raise UserError(f"There is no scene {label}, although {_INDEX} says so; download both again.")
    images, cameras = _parts(example, label)
    names = [f"frame_{i:05d}" for i in range(len(images))]
    size = _first_size(partial(_encoded_size, image, label) for image in images)
    loads = [partial(_decode, image, f"{name} of {label}") for name, image in zip(names, images)]
    return _photos(names, loads, size, cameras, label)


def _parts(example: dict[str, Any], label: str) -> tuple[list[Tensor], Tensor]:
    """Encoded pictures and cameras."""
    from torch import Tensor, uint8

    images, cameras = example.get("images", ()), example.get("cameras")
    encoded = isinstance(images, list) and all(isinstance(i, Tensor) and i.dtype == uint8 for i in images)
    if not encoded or not isinstance(cameras, Tensor) or cameras.shape[:1] != (len(images),):
        raise UserError(f"The scene {label} should have one picture (bytes of a JPEG) for each of its cameras.")
    return images, cameras


@lru_cache(maxsize=4)
def _load_chunk(file: Path, modified: int) -> dict[str, dict[str, Any]]:
    """A chunk's examples by key; memory-mapped, so that only the frames in use are read from disk."""
    import torch

    try:
        examples = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
        return {example["key"]: example for example in examples}
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"Cannot read the chunk {file}; download it again ({reason}).") from None


def _open(encoded: UInt8[Tensor, " b"], label: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(encoded.numpy().tobytes()))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ImageError(f"Cannot read the picture {label}: {error}.") from None


def _encoded_size(encoded: UInt8[Tensor, " b"], label: str) -> tuple[int, int]:
    picture = _open(encoded, label)
    return picture.height, picture.width


def _decode(encoded: UInt8[Tensor, " b"], label: str) -> Float[Tensor, "h w 3"]:
    import torch

    picture = _open(encoded, label)
    try:
        pixels = np.array(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"Cannot read the picture {label}: {error}.") from None
    return torch.from_numpy(pixels).float().div_(255)


def _camera_file(folder: Path) -> Path | None:
    """``ROOT/KEY.txt`` of ``ROOT/KEY``, or ``ROOT/cameras/KEY.txt`` of ``ROOT/frames/KEY``."""
    if not folder.is_dir():
        return None
    folder = folder.absolute()  # not resolved: files beside a link count, not those beside its target
    candidates = [folder.with_name(f"{folder.name}.txt")]
    if folder.parent.name == "frames":
        candidates.append(folder.parent.with_name("cameras") / f"{folder.name}.txt")
    return next((file for file in candidates if _lists_cameras(file)), None)


def _lists_cameras(file: Path) -> bool:
    """Whether a text file is a camera file (a URL, then a camera per line) and not, say, notes beside photos."""
    if not os.path.isfile(file):  # which does not mind a name that is too long
        return False
    lines = [*read_text(file, "replace").split("\n", 2), ""]
    return lines[0].startswith("http") and len(lines[1].split()) == 19


def _read_frames(folder: Path, file: Path) -> Iterator[Photo]:
    times, cameras = _read_cameras(file)
    pictures = {int(path.stem): path for path in find_photos(folder) if path.stem.isdecimal()}
    available = [i for i, time in enumerate(times) if time in pictures]
    if 0 < len(available) < len(times):
        absent = next(time for time in times if time not in pictures)
        problem = f"{len(times) - len(available)} of {len(times)} frames of '{folder}' are missing, such as {absent}"
        warnings.warn(f"{problem}; they are left out.", stacklevel=3)
    paths = [pictures[times[i]] for i in available]
    size = _first_size(partial(read_size, path) for path in paths)
    loads = [partial(read_image, path, upright=False) for path in paths]
    photos = _photos([path.stem for path in paths], loads, size, cameras[available], str(file))
    return (replace(photo, number=i) for photo, i in zip(photos, available))


def _read_cameras(file: Path) -> tuple[list[int], Float[Tensor, "n 18"]]:
    """Timestamps (microseconds) and cameras."""
    import torch

    lines = read_text(file, "replace").splitlines()
    rows = [line.split() for line in lines[1:] if line.strip()]
    try:
        return [int(row[0]) for row in rows], torch.tensor([list(map(float, row[1:])) for row in rows], dtype=torch.float64)
    except ValueError:
        raise UserError(f"{file} should hold an address, then lines with a timestamp and the 18 numbers of a camera.") from None


def _first_size(sizes: Iterable[partial[tuple[int, int]]]) -> tuple[int, int] | None:
    """(height, width) of the first readable frame; all frames of a video have one size, and each header costs a seek."""
    for size in sizes:
        try:
            return size()
        except ImageError:  # reported by name when the photo itself is loaded
            continue
    return None


def _photos(
    names: Sequence[str], loads: Sequence[Any], size: tuple[int, int] | None, cameras: Float[Tensor, "n 18"], label: str
) -> Iterator[Photo]:
    from reconx_core.geometry.transforms import rigid

    _check_cameras(cameras, label)
    world_to_cam = cameras[:, 6:].double().reshape(-1, 3, 4)
    rotation = world_to_cam[:, :, :3].transpose(1, 2)
    poses = rigid(rotation, -(rotation @ world_to_cam[:, :, 3:])[..., 0])
    known = cameras.isfinite().all(1).tolist()
    for name, load, camera, pose, is_known in zip(names, loads, cameras.tolist(), poses, known):
        intrinsics = _intrinsics(camera, size) if is_known else None
        yield Photo(name, load, intrinsics=intrinsics, size=size, cam_to_world=pose if is_known else None)


def _check_cameras(cameras: Float[Tensor, "n 18"], label: str) -> None:
    """Raises UserError unless these are cameras; some may be unknown, with numbers that are not finite."""
    import torch

    if cameras.ndim != 2 or cameras.shape[1] != 18 or (len(cameras) and not cameras.isfinite().all(1).any()):
        raise UserError(f"The cameras of {label} should be 18 finite numbers each, but have shape {tuple(cameras.shape)}.")
    rotation = cameras[:, 6:].double().reshape(-1, 3, 4)[:, :, :3]
    error = (rotation @ rotation.transpose(1, 2) - torch.eye(3, dtype=torch.float64)).abs().amax((1, 2))
    wrong = (error > 1e-2) | (torch.linalg.det(rotation) < 0) | (cameras[:, :2] <= 0).any(1)
    wrong &= cameras.isfinite().all(1)
    if wrong.any():
        raise UserError(f"Camera {int(wrong.nonzero()[0])} of {label} has no rotation or no focal length; leave the scene out.")


def _intrinsics(camera: list[float], size: tuple[int, int] | None) -> Float[Tensor, "3 3"] | None:
    if size is None:
        return None
    height, width = size
    return pinhole(camera[0] * width, camera[1] * height, camera[2] * width, camera[3] * height)
