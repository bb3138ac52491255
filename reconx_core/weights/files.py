"""Weight files: opened without being loaded, and matched with a network's parameters."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.io.json_files import read_object

PICKLES = (".pth", ".pt", ".ckpt")
STEMS = ("model", "diffusion_pytorch_model")  # of .safetensors files, as the Hub's libraries write them
WRAPPERS = ("model", "state_dict", "module")  # keys under which a pickle may hold the state dict


@dataclass(frozen=True)
class Opened:
    """Weights on disk. The tensors are memory-mapped: those that are not used are not read."""

    source: Path  # a file, or the folder of all of them
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]  # in the files' order
    config: dict[str, Any] | None  # config.json beside them
    arguments: Any = None  # the entry "args" of a pickle: the options that the network was trained with


def open_weights(path: Path) -> Opened:
    """A file of weights (.safetensors, .pth, .pt, .ckpt), or a folder that holds one, or model.safetensors in shards.

    Raises:
        UserError: there is none, or more than one to choose from, or it is damaged or holds more than tensors.
    """
    files = tuple(find_files(path))
    config = read_config(files[0].with_name("config.json"))
    if files[0].suffix in PICKLES:
        loaded = read_file(files[0], (argparse.Namespace,))
        arguments = loaded.get("args") if isinstance(loaded, dict) else None
        return Opened(files[0], files, unwrap(loaded, files[0]), config, arguments)
    tensors = {key: value for file in files for key, value in unwrap(read_file(file), file).items()}
    return Opened(path if len(files) > 1 else files[0], files, tensors, config)


def find_files(path: Path) -> list[Path]:
    """The files that make up the weights in a folder; a file is one itself.

    Raises:
        UserError: there is none, or more than one to choose from.
    """
    if path.is_file():
        if path.suffix not in (".safetensors", *PICKLES):
            raise UserError(f"'{path}' should end in .safetensors, .pth, .pt or .ckpt; other kinds of files are not read.")
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no '{path}'; give a file of weights, or the folder that it is in.")
    found = find_shards(path) or sorted(file for file in path.iterdir() if file.suffix in PICKLES)
    if not found:
        raise UserError(f"'{path}' holds no weights: neither model.safetensors nor a .pth, .pt or .ckpt file.")
    if len(found) > 1 and found[0].suffix in PICKLES:
        raise UserError(f"'{path}' holds several files of weights ({found[0].name}, {found[1].name}); name one of them.")
    return found


def find_shards(folder: Path) -> list[Path]:
    """The .safetensors files of one network, a single one or shards with an index; empty if there are none.

    Raises:
        UserError: a shard is missing, or the index cannot be read.
    """
    for stem in STEMS:
        if (whole := folder / f"{stem}.safetensors").is_file():
            return [whole]
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return _listed(index)
    return []


def _listed(index: Path) -> list[Path]:
    places = (read_config(index) or {}).get("weight_map")
    if not isinstance(places, dict) or not places or any(Path(str(name)).name != name for name in places.values()):
        raise UserError(f"'{index}' does not list the files that the weights are in; download it again.")
    names = sorted(set(places.values()))
    missing = next((name for name in names if not index.with_name(name).is_file()), None)
    if missing is not None:
        raise UserError(f"'{index.parent}' lacks '{missing}', which {index.name} lists; download it again.")
    return [index.with_name(name) for name in names]


def read_config(path: Path) -> dict[str, Any] | None:
    """A JSON object, or None if there is no such file; it may contain Infinity.

    Raises:
        UserError: it is no JSON object.
    """
    return read_object(path, "download it again") if path.is_file() else None


def read_file(path: Path, known: Sequence[type] = ()) -> Any:
    """The content of a .safetensors file or a pickle, with memory-mapped tensors. Code in a pickle is never run.

    ``known``: plain classes whose instances the pickle may contain.

    Raises:
        UserError: it is truncated, damaged, of another kind, or holds more than tensors.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(list(known)):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except PermissionError:
        raise UserError(f"'{path}' may not be read; change its permissions.") from None
    except Exception as error:  # torch and safetensors raise many kinds for damaged files
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> UserError:
    if "unsupported global" in str(error).lower():
        return UserError(f"'{path}' holds Python objects besides tensors and was not opened, because these could run code.")
    # Not torch's own message, which advises to load such a file without weights_only.
    return UserError(f"'{path}' is truncated, damaged or not a checkpoint ({type(error).__name__}); download it again.")


def unwrap(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in the content of a file, which may wrap it.

    Raises:
        UserError: there is none.
    """
    tables = [loaded, *(loaded[name] for name in WRAPPERS if name in loaded)] if isinstance(loaded, dict) else []
    found = next((table for table in tables if _holds_tensors(table)), None)
    if found is None:
        raise UserError(f"'{path}' holds no table of tensors; give a file of weights.")
    return dict(found)


def _holds_tensors(table: Any) -> bool:
    return isinstance(table, dict) and bool(table) and all(isinstance(value, Tensor) for value in table.values())


def match(
    wanted: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    source: Path,
    names: Callable[[str], Sequence[str]] = lambda name: (name,),
    unused: str = "",
) -> dict[str, str]:
    """The key in the file for each of a network's weights.

    ``names``: the keys under which a weight may be stored; of several that exist, the last is used. ``unused``: a pattern for
    keys that the network does not need.

    Raises:
        UserError: a weight is missing or has another shape, or the file has an unexpected key; the message names the first.
    """
    keys = {name: [key for key in names(name) if key in tensors] for name in wanted}
    for name, found in keys.items():
        if not found:
            raise UserError(f"'{source}' lacks the tensor '{names(name)[0]}'; it is incomplete or of another network.")
        for key in found:
            _require_like(wanted[name], tensors[key], key, source)
    used = {key for found in keys.values() for key in found}
    extra = next((key for key in tensors if key not in used and not re.fullmatch(unused, key)), None)
    if extra is not None:
        raise UserError(f"'{source}' holds the tensor '{extra}', which the network does not have; it is of another network.")
    return {name: found[-1] for name, found in keys.items()}


def _require_like(wanted: Tensor, found: Tensor, key: str, source: Path) -> None:
    if wanted.shape != found.shape:
        shapes = f"the shape {list(found.shape)} but should have {list(wanted.shape)}"
        raise UserError(f"The tensor '{key}' in '{source}' has {shapes}; the file is of another network.")
    if wanted.is_floating_point() != found.is_floating_point():
        raise UserError(f"The tensor '{key}' in '{source}' holds {dtype_name(found)} and cannot be a weight of the network.")


def dtype_name(tensor: Tensor) -> str:
    """'float32' and the like."""
    return str(tensor.dtype).removeprefix("torch.")
