"""Weight files: opened without being loaded, matched with a network's parameters, recorded with their SHA-256."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reconx_core.cache.store import file_digest
from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk

PICKLES = (".pth", ".pt", ".ckpt")
STEMS = ("model", "diffusion_pytorch_model")  # of .safetensors files, as the Hub's libraries write them
RECORDS = ("fetched.json", "provenance.json")  # beside the weights; their entry "files" has sizes and SHA-256
WRAPPERS = ("model", "state_dict", "module")  # keys under which a pickle may hold the state dict


@dataclass(frozen=True)
class Opened:
    """Weights on disk. The tensors are memory-mapped: those that are not used are not read."""

    source: Path  # a file, or the folder of all of them
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]  # in the files' order
    config: dict[str, Any] | None  # config.json beside them
    arguments: Any = None  # the entry "args" of a pickle: the options that the network was trained with


@dataclass(frozen=True)
class Verified:
    """Weights whose keys and shapes match their network."""

    what: str
    source: Path
    files: tuple[Path, ...]
    tensors: int  # in the files
    unused: int  # of these, how many the network does not read
    parameters: int  # of the network
    dtypes: tuple[str, ...]


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
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read as JSON ({type(error).__name__}); download it again.") from None
    if not isinstance(found, dict):
        raise UserError(f"'{path}' holds no settings; download it again.")
    return found


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


def describe_files(files: Iterable[Path], folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file by its path in ``folder``, as they are recorded."""
    return {file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_digest(file)} for file in files}


def check_digests(folder: Path, files: Iterable[Path]) -> dict[str, tuple[str, bool]]:
    """By name the SHA-256 of every file, and whether it is recorded in ``folder``. All recorded files are checked.

    Raises:
        UserError: a recorded file is missing or has changed.
    """
    record = read_record(folder)
    chosen = {file.relative_to(folder).as_posix(): file for file in files} | {name: folder / name for name in record}
    result = {}
    for name, file in chosen.items():
        recorded = record.get(name)
        if recorded is not None and not file.is_file():
            raise UserError(f"'{folder}' lacks '{name}', which was recorded there; fetch or convert it again.")
        digest = file_digest(file)
        if recorded is not None and digest != recorded["sha256"]:
            raise UserError(f"'{file}' is not the file that was recorded: its SHA-256 is {digest}; fetch or convert it again.")
        result[name] = (digest, recorded is not None)
    return result


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """The recorded result of :func:`describe_files` for a folder; empty if there is no record.

    Raises:
        UserError: the record is damaged.
    """
    for name in RECORDS:
        files = (read_config(folder / name) or {}).get("files", {})
        good = isinstance(files, dict) and all(isinstance(entry, dict) and "sha256" in entry for entry in files.values())
        if not good or any(Path(file).is_absolute() or ".." in Path(file).parts for file in files):
            raise UserError(f"'{folder / name}' is damaged; remove it, and the files are no longer compared with it.")
        if files:
            return files
    return {}


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside ``out`` that is renamed to ``out`` at the end of the block.

    Raises:
        UserError: it cannot be written.
    """
    temporary = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}")
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
