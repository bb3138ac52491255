"""`reconx weights`: published checkpoints of the video models to folders that the backends load."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from reconx_core.lpips import weights_folder
from reconx_core.video.checkpoint import convert as convert_checkpoint

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
    with console.status(f"Converting {escape(str(path))}"):
        folder, told = convert_checkpoint(path, out, variant, dtype, config, clip)
    for line in _report(folder, told):
        console.print(line, markup=False, soft_wrap=True)


def _report(folder: Path, told: dict[str, Any]) -> list[str]:
    name = folder.name if folder.parent == weights_folder() else str(folder)
    use = f"-S video.backend={BACKENDS[told['variant']]} -S {shlex.quote(f'video.weights={name}')}"
    lines = [
        f"{MODELS[told['variant']]}, class {told['class']}, {told['dtype']}, in {folder}",
        f"Licence: {told['licence']}",
        f"SHA-256 of {told['source']}: {told['sha256']}",
    ]
    if told["missing"]:
        lines.append(_lacking(told["missing"]))
    return [*lines, f"Use it with {use}"]


def _lacking(missing: list[str]) -> str:
    if missing == ["tokenizer"]:
        return "It has no tokenizer, which prompts need; give --clip a folder with CLIP's vocab.json and merges.txt."
    return f"It lacks {', '.join(missing)}; convert again with --clip and the folder of CLIP-ViT-H-14 (see docs/weights.md)."
