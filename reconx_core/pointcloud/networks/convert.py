"""DUSt3R's published .pth, brought into the Hub's layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from reconx_core.cache.digests import file_digest
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable, write_json
from reconx_core.pointcloud.networks.checkpoints import DUST3R_FILES, prepare
from reconx_core.version import __version__
from reconx_core.weights.files import Opened, open_weights
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.records import describe_files
from reconx_core.weights.writing import new_folder, require_space, unshared

DUST3R_LICENCE = "CC BY-NC-SA 4.0: non-commercial use only"


def convert_dust3r(path: Path, out: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Write a .pth of DUSt3R to a new folder in the Hub's layout, bit for bit; returns the folder and its provenance.json.

    ``out``: by default a folder in the weights folder, named after the file.

    Raises:
        UserError: as in `load_dust3r`, or the folder cannot be written.
    """
    opened = open_weights(path)
    if opened.files[0].suffix == ".safetensors":
        raise UserError(f"'{path}' is in the Hub's layout already; use it as it is.")
    _, keys, settings = prepare(DUST3R_FILES, opened)
    out = out or weights_folder() / opened.source.stem
    if out.exists():
        raise UserError(f"{out} is there already; remove it or choose another folder with -o.")
    kept = {name: opened.tensors[key] for name, key in keys.items() if key in opened.tensors}
    kept |= {key: value for key, value in opened.tensors.items() if re.fullmatch(DUST3R_FILES.unused, key)}
    require_writable(out.parent)
    require_space(sum(value.nbytes for value in kept.values()), out.parent)
    with new_folder(out) as folder:
        write_json(folder / "config.json", settings)
        save_file({name: unshared(value) for name, value in kept.items()}, folder / "model.safetensors", {"format": "pt"})
        provenance = _provenance(opened, folder)
        write_json(folder / "provenance.json", provenance)
    return out, provenance


def _provenance(opened: Opened, folder: Path) -> dict[str, Any]:
    """Origin of the converted weights."""
    return {
        "source": opened.source.name,
        "bytes": opened.source.stat().st_size,
        "sha256": file_digest(opened.source),
        "network": DUST3R_FILES.name,
        "licence": DUST3R_LICENCE,
        "files": describe_files(sorted(folder.iterdir()), folder),
        "reconx": __version__,
    }
