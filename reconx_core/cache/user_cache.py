"""What every store of a user may share, in ``~/.cache/reconx``: it only saves time, and may be deleted at any moment."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from reconx_core.io.files import write_atomic


def recall(name: str) -> bytes | None:
    """What :func:`remember` kept under ``name``, a relative path; None if there is nothing."""
    folder = _folder()
    try:
        return (folder / name).read_bytes() if folder else None
    except OSError:
        return None


def remember(name: str, content: bytes) -> None:
    """Keep ``content`` where there is a home that can be written to."""
    folder = _folder()
    if folder:
        with suppress(OSError):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / name, content)


def _folder() -> Path | None:
    home = os.environ.get("HOME")
    return Path(home) / ".cache" / "reconx" if home else None
