"""The folder of the weights that the user has fetched."""

from __future__ import annotations

import os
from pathlib import Path


def weights_folder() -> Path:
    """``RECONX_WEIGHTS``, by default ``~/.cache/reconx/weights``."""
    return Path(os.environ.get("RECONX_WEIGHTS") or "~/.cache/reconx/weights").expanduser()
