"""A video file: every measured frame is a photo, and sharpness decides which ones are kept when inputs are thinned."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from reconx_core.datasets.capture import Capture, Photo
from reconx_core.io.video import measure_sharpness, read_frame


def read(path: Path) -> Capture:
    """Frames in order of time. Raises UserError if the file is no readable video."""
    frames = measure_sharpness(path)
    photos = (
        Photo(f"frame_{i:05d}", partial(read_frame, path, pts), sharpness=sharpness)
        for i, (pts, sharpness) in enumerate(frames)
    )
    return Capture(path.stem, tuple(photos))
