"""What is known of files of weights: what they were found to be, and a record of their sizes and SHA-256 beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reconx_core.cache.digests import file_digest
from reconx_core.errors import UserError
from reconx_core.weights.files import read_config

RECORDS = ("fetched.json", "provenance.json")  # beside the weights; their entry "files" has sizes and SHA-256


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
