"""Folders of weights written whole or not at all."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk, temporary_beside


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that is renamed to ``out`` at the end of the block.

    Raises:
        UserError: it cannot be written.
    """
    temporary = temporary_beside(out)
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(out)
    except OSError as error:
        raise explain_disk(error, out.parent) from error
    except SafetensorError as error:
        raise UserError(f"Cannot write under {out.parent}: {error}.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def require_space(needed: int, folder: Path) -> None:
    """Raise UserError unless ``needed`` bytes are free under an existing folder."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(f"The weights take {needed / 1e9:.1f} GB but only {free / 1e9:.1f} GB are free under {folder}.")


def unshared(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: safetensors refuses weights that share memory."""
    whole = tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)
