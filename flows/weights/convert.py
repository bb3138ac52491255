"""`reconx weights`: published checkpoints verified, and converted to folders that the backends load."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.checkpoints import DA3_FILES, DUST3R_FILES, VGGT_FILES, recognise
from reconx_core.pointcloud.networks.convert import convert_dust3r
from reconx_core.pointcloud.networks.verify import verify as verify_geometry
from reconx_core.video.checkpoints.convert import convert as convert_checkpoint
from reconx_core.weights.files import PICKLES, open_weights
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.records import Verified, check_digests

MODELS = {"i2v": "DynamiCrafter, image to video", "interp": "DynamiCrafter, interpolation", "viewcrafter": "ViewCrafter"}
BACKENDS = {"i2v": "reconx", "interp": "reconx", "viewcrafter": "viewcrafter"}


def convert(
    path: Path,
    out: Path | None,
    variant: str | None,
    dtype: str | None,
    config: Path | None,
    clip: Path | None,
    console: Console,
) -> None:
    """Convert a checkpoint and say what it is, under which licence, what it still lacks, and how to use it."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers', one for every file it writes
    family = recognise(open_weights(path)) if path.is_file() and path.suffix in (".safetensors", *PICKLES) else None
    if family in (VGGT_FILES, DA3_FILES):
        raise UserError(f"'{path}' holds weights of {family.name}, which are used as they are; nothing is to be converted.")
    with console.status(f"Converting {escape(str(path))}"):
        if family is DUST3R_FILES:
            _refuse_options({"--variant": variant, "--dtype": dtype, "--config": config, "--clip": clip})
            lines = _report_dust3r(*convert_dust3r(path, out))
        else:
            lines = _report(*convert_checkpoint(path, out, variant, dtype, config, clip))
    print_lines(lines, console)


def verify(path: Path, console: Console) -> None:
    """Say what weights are, after comparing keys and shapes with the network and the files with their recorded SHA-256.

    ``path``: a file or folder, itself or in the weights folder.

    Raises:
        UserError: something is missing, unknown, misshapen, damaged or not as it was recorded.
    """
    path = next((place for place in (path, weights_folder() / path) if place.exists()), path)
    with console.status(f"Reading {escape(str(path))}"):
        found = inspect(path)
        folder = found.source if found.source.is_dir() else found.source.parent
        digests = check_digests(folder, found.files)
    lines = [
        f"SHA-256 of {name}: {digest} ({'as recorded' if recorded else 'not recorded'})"
        for name, (digest, recorded) in digests.items()
    ]
    print_lines([summary(found), *lines], console)


def inspect(path: Path) -> Verified:
    """Weights of any network here, compared with what it needs by their keys and shapes.

    Raises:
        UserError: they are of no network here, or not complete, or damaged.
    """
    if (path / "model_index.json").is_file():
        from reconx_core.video.checkpoints.verify import verify_folder

        return verify_folder(path)
    opened = open_weights(path)
    if any("model.diffusion_model." in key for key in opened.tensors):
        from reconx_core.video.checkpoints.verify import verify_checkpoint

        return verify_checkpoint(opened.source)
    return verify_geometry(path)


def summary(found: Verified) -> str:
    """What was verified, in one line."""
    unused = f" ({found.unused} not used)" if found.unused else ""
    numbers = f"{found.tensors:,} tensors{unused}, {found.parameters:,} parameters, {' and '.join(found.dtypes)}"
    return f"{found.what}: {numbers}, in {found.source}"


def print_lines(lines: list[str], console: Console) -> None:
    """Print lines as they are, however long."""
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _refuse_options(given: dict[str, Any]) -> None:
    for option, value in given.items():
        if value is not None:
            raise UserError(f"{option} is for the video models; DUSt3R's weights are converted as they are.")


def _report_dust3r(folder: Path, provenance: dict[str, Any]) -> list[str]:
    return [
        f"DUSt3R, bit by bit as in {provenance['source']}, in {folder}",
        f"Licence: {provenance['licence']}",
        f"SHA-256 of {provenance['source']}: {provenance['sha256']}",
        "Use it with -S pointcloud.backend=dust3r",
    ]


def _report(folder: Path, provenance: dict[str, Any]) -> list[str]:
    name = folder.name if folder.parent == weights_folder() else str(folder)
    use = f"-S video.backend={BACKENDS[provenance['variant']]} -S {shlex.quote(f'video.weights={name}')}"
    lines = [
        f"{MODELS[provenance['variant']]}, class {provenance['class']}, {provenance['dtype']}, in {folder}",
        f"Licence: {provenance['licence']}",
        f"SHA-256 of {provenance['source']}: {provenance['sha256']}",
    ]
    if provenance["missing"]:
        lines.append(_lacking(provenance["missing"]))
    return [*lines, f"Use it with {use}"]


def _lacking(missing: list[str]) -> str:
    if missing == ["tokenizer"]:
        return "It has no tokenizer, which prompts need; give --clip a folder with CLIP's vocab.json and merges.txt."
    return f"It lacks {', '.join(missing)}; convert again with --clip and the folder of CLIP-ViT-H-14 (see docs/weights.md)."
