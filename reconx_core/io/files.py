"""Atomic writing of files, and clear messages for errors of the file system."""

from __future__ import annotations

import codecs
import contextlib
import errno
import json
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from reconx_core.errors import UserError


def write_json(path: Path, value: Any) -> None:
    """Write JSON with sorted keys under a temporary name, then rename."""
    write_atomic(path, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file so that a reader finds the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_text(file: Path, errors: str = "strict") -> str:
    """What a text file holds: in UTF-16 where its byte-order mark says so, as Windows' shells write one, else in UTF-8."""
    content = file.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", errors).replace("\r\n", "\n").replace("\r", "\n")


def temporary_beside(path: Path) -> Path:
    """A new hidden name in the folder of ``path``."""
    return path.with_name(f".{short_name(path.name)}.{uuid.uuid4().hex[:8]}")


def short_name(name: str) -> str:
    """The name, or its first 200 bytes: file systems take 255, of which some are for what is put around it."""
    while len(os.fsencode(name)) > 200:
        name = name[:-1]
    return name


def require_writable(folder: Path) -> None:
    """Raise UserError now, before anything is computed, unless files can be written in ``folder`` (made if missing)."""
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"reconx")
    except OSError as error:
        raise explain_disk(error, folder) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def require_writable_file(path: Path) -> None:
    """Raise UserError now, before anything is computed, unless a file ``path`` can be written (its folder is made)."""
    if path.is_dir():
        raise _is_folder(path)
    require_writable(path.parent)


@contextlib.contextmanager
def as_it_was(folder: Path, files: Sequence[str]) -> Iterator[Callable[[], None]]:
    """Where an error ends the block before the function that it yields is called: the ``files`` in ``folder`` as before, and
    the folder and those above it gone where they are new and empty."""
    before = {file: _bytes_of(file) for file in (folder / name for name in files)}
    new = [place for place in (folder, *folder.parents) if not place.exists()]
    kept: list[bool] = []
    try:
        yield lambda: kept.append(True)
    except BaseException:
        if not kept:
            with contextlib.suppress(OSError):
                for file, content in before.items():
                    _put_back(file, content)
                for place in new:
                    place.rmdir()
        raise


def _bytes_of(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except OSError:
        return None


def _put_back(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif content != _bytes_of(file):
        write_atomic(file, content)


def explain_disk(error: OSError, folder: Path) -> UserError:
    """A UserError that explains a file-system error on writing under ``folder``."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(f"The disk under {folder} is full; free some space and run the same command again to go on from here.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return UserError(f"Cannot write under {folder}: it is read-only; choose another folder or change its permissions.")
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return UserError(f"Cannot write under {folder}: there is a file where a folder is needed; choose another folder.")
    if error.errno == errno.EISDIR:
        # Of a renaming, the second is the target.
        return _is_folder(Path(os.fsdecode(error.filename2 or error.filename or folder)))
    return UserError(f"Cannot write under {folder}: {error.strerror or error}.")


def _is_folder(path: Path) -> UserError:
    return UserError(f"Cannot write '{path}': there is a folder of that name; choose another name or remove it.")
