"""Reading and writing video files with PyAV, which bundles ffmpeg."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
from jaxtyping import Float

from reconx_core.errors import UserError
from reconx_core.io.files import write_atomic
from reconx_core.io.images import ImageError, to_uint8

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".mts", ".m2ts", ".3gp", ".wmv", ".flv", ".ogv")
_MEASURED_SIDE = 640  # sharpness is compared at this size, so that 4K noise does not count as detail


def is_video(path: Path) -> bool:
    """Whether the file name is a video's."""
    return path.suffix.lower() in SUFFIXES


def read_frames(path: Path) -> Iterator[Float[Tensor, "h w 3"]]:
    """Every frame as RGB in [0, 1], upright. Raises UserError if the file is no readable video."""
    for frame in _decode(path):
        yield _to_tensor(frame)


def read_frame(path: Path, pts: int) -> Float[Tensor, "h w 3"]:
    """The frame with the presentation time stamp ``pts``. Raises ImageError if it cannot be decoded."""
    try:
        for start in (pts, None):  # streams without an index, such as MPEG-TS, cannot seek exactly
            for frame in _decode(path, start):
                if frame.pts == pts:
                    return _to_tensor(frame)
    except UserError as error:
        raise ImageError(str(error)) from None
    raise ImageError(f"The video {path} has no frame at time stamp {pts}.")


def measure_sharpness(path: Path, most: int = 600) -> list[tuple[int, float]]:
    """(time stamp, variance of the Laplacian) of at most about ``most`` frames, evenly spaced over the video.

    A truncated video is used up to the break. Raises UserError if no frame can be read.
    """
    step = max(1, math.ceil(_count(path) / most))
    measured = []
    try:
        for number, frame in enumerate(_decode(path)):
            if number % step == 0 and frame.pts is not None:
                measured.append((frame.pts, _sharpness(frame)))
    except UserError:
        if not measured:
            raise
    if not measured:
        raise UserError(f"The video {path} has no frames that can be read.")
    return measured


def write_mp4(path: Path, frames: Iterable[Float[Tensor, "h w 3"]], fps: float = 30) -> None:
    """Write H.264 in yuv420p, which every player and browser shows: atomically, the same bytes for the same frames.

    Odd sizes are padded by repeating the last row or column. Raises OSError if the file cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "video.mp4"
        _encode(file, frames, fps)
        write_atomic(path, file.read_bytes())


def _encode(file: Path, frames: Iterable[Float[Tensor, "h w 3"]], fps: float) -> None:
    # x264's output depends on the number of threads and, with mbtree, on the memory addresses of its buffers.
    # colormatrix is the one that pixels are converted with; players would otherwise guess it from the size.
    options = {"crf": "18", "preset": "veryfast", "threads": "1", "x264-params": "mbtree=0:colormatrix=smpte170m"}
    with av.open(str(file), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as container:
        stream = None
        for frame in frames:
            pixels = _even(to_uint8(frame))
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
                stream.height, stream.width, stream.pix_fmt = pixels.shape[0], pixels.shape[1], "yuv420p"
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        if stream is None:
            raise ValueError("frames: expected at least one")
        container.mux(stream.encode())


def _even(pixels: np.ndarray) -> np.ndarray:
    return np.pad(pixels, [(0, pixels.shape[0] % 2), (0, pixels.shape[1] % 2), (0, 0)], mode="edge")


def _decode(path: Path, pts: int | None = None) -> Iterator[av.VideoFrame]:
    """Frames from the start, or from the key frame before ``pts``."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if pts is not None:
                container.seek(pts, stream=stream)
            yield from container.decode(stream)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise UserError(f"Cannot read the video {path}: {error}.") from None


def _count(path: Path) -> int:
    """Number of frames from the header or else from duration and frame rate; 0 if unknown."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            seconds = (container.duration or 0) / av.time_base
            return stream.frames or round(seconds * float(stream.average_rate or 0))
    except (av.FFmpegError, IndexError, OSError) as error:
        raise UserError(f"Cannot read the video {path}: {error}.") from None


def _to_tensor(frame: av.VideoFrame) -> Float[Tensor, "h w 3"]:
    import torch

    pixels = frame.to_ndarray(format="rgb24")
    turns = round(frame.rotation / 90) % 4  # phones store portrait video sideways, with a display matrix
    return torch.from_numpy(np.rot90(pixels, turns).copy()).float().div_(255)


def _sharpness(frame: av.VideoFrame) -> float:
    scale = min(1.0, _MEASURED_SIDE / max(frame.width, frame.height))
    size = {"width": round(frame.width * scale) // 2 * 2, "height": round(frame.height * scale) // 2 * 2}
    grey = frame.reformat(**size, format="gray").to_ndarray().astype(np.float32)
    laplacian = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    return float(laplacian.var())
