"""The results of stages on disk: the format of artifacts and the content-addressed store that holds them.

An artifact is a folder ``<store>/<stage>/<key>/`` with arrays in Zarr v3 (one chunk per frame, one shard per array,
crc32c), tables in Parquet, ``manifest.json`` (settings, parents, SHA-256 of every file) and ``measured.json`` (time,
memory, machine; not part of any digest). It is written under a temporary name and published by one rename, so that a reader
never sees a partial artifact. No other module knows the format.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import zarr
from jaxtyping import Float, UInt8
from numcodecs import blosc
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec

from reconx_core import types
from reconx_core.cache import digests
from reconx_core.cache.digests import Entry
from reconx_core.errors import UserError
from reconx_core.io.files import explain_disk, write_json
from reconx_core.names import quoted

SCHEMA = 1  # part of every cache key: increase it when the format or the meaning of a field changes
MANIFEST, MEASURED, RECORD = "manifest.json", "measured.json", "prefect.json"
_KEY, _STAGE = re.compile("[0-9a-f]{32}"), re.compile("[a-z]+")
_OUTSIDE_DIGEST = {MANIFEST, MEASURED, RECORD}
_COLOUR_FIELDS = {"images", "renders", "alone"}  # float in memory, uint8 sRGB on disk
# Of training clips, of which there may be hundreds of thousands, everything is small on disk, and float in memory.
_SMALL = {"Clip": {"visibility": "uint8", "alone_visibility": "uint8", "colours": "uint8", "points": "float16"}}
_HOSTS_OWN = 4026531836  # inode of Linux's first namespace of processes, the same on every machine
# Arrays with rows at least this large are chunked per row (a frame). A chunk costs a millisecond whatever it holds.
_FRAME_ELEMENTS = 1 << 16

# One Blosc thread: several would write blocks in the order in which they finish, so bytes would differ from run to run.
blosc.use_threads = False

Writer = Callable[[Path], None]
Output = Any  # a dataclass of `types`, a tuple of flat dataclasses, a tensor, bytes, or a Writer


class DamagedEntry(Exception):
    """An artifact whose files do not match its manifest."""


@dataclass(frozen=True)
class Reference:
    """What tasks pass to each other instead of arrays. ``digest``: of the artifact's files, independent of its key."""

    stage: str
    key: str
    digest: str

    def folder(self, root: Path) -> Path:
        return root / self.stage / self.key


# --- values -> files ---------------------------------------------------------------------------------------------------


def save(folder: Path, name: str, value: Output) -> None:
    """Write one output of a stage into ``folder`` as ``name.zarr``, ``name.parquet`` or, for bytes and writers, ``name``."""
    if isinstance(value, Tensor):
        _save_array(zarr.open_group(folder / f"{name}.zarr", mode="w"), "value", value)
    elif isinstance(value, (types.PointCloud, tuple)):
        _save_table(folder / f"{name}.parquet", value)
    elif is_dataclass(value):
        _save_dataclass(folder, name, zarr.open_group(folder / f"{name}.zarr", mode="w"), value)
    else:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value) if isinstance(value, bytes) else value(path)


def load(folder: Path, name: str) -> Any:
    """Read back what :func:`save` wrote under ``name`` (for bytes and writers, open the file by its path instead)."""
    table = folder / f"{name}.parquet"
    if table.exists():
        return _load_table(table)
    group = zarr.open_group(folder / f"{name}.zarr", mode="r")
    return _load_dataclass(folder, name, group) if "type" in group.attrs else _load_array(dict(group.arrays())["value"])


def shape_of(folder: Path, name: str, field: str) -> tuple[int, ...]:
    """The shape of one tensor of a dataclass that :func:`save` wrote under ``name``, without reading its values."""
    return zarr.open_array(folder / f"{name}.zarr" / field, mode="r").shape


def _save_dataclass(folder: Path, prefix: str, group: zarr.Group, value: Any) -> None:
    scalars, tables = {}, []
    for field in fields(value):
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            _save_array(group, field.name, _to_disk(item, type(value).__name__, field.name))
        elif isinstance(item, types.PointCloud):
            _save_table(folder / f"{prefix}.{field.name}.parquet", item)
            tables.append(field.name)
        elif is_dataclass(item):
            _save_dataclass(folder, f"{prefix}.{field.name}", group.create_group(field.name), item)
        else:
            scalars[field.name] = item
    group.attrs.put({"type": type(value).__name__, "scalars": scalars, "tables": tables})


def _load_dataclass(folder: Path, prefix: str, group: zarr.Group) -> Any:
    attributes: dict[str, Any] = group.attrs.asdict()
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in attributes["scalars"].items()}
    values |= {name: _from_disk(_load_array(array), attributes["type"], name) for name, array in group.arrays()}
    values |= {name: _load_dataclass(folder, f"{prefix}.{name}", member) for name, member in group.groups()}
    values |= {name: _load_table(folder / f"{prefix}.{name}.parquet") for name in attributes["tables"]}
    return getattr(types, attributes["type"])(**values)


def _save_array(group: zarr.Group, name: str, tensor: Tensor) -> None:
    array = tensor.detach().cpu().contiguous().numpy()
    framed = array.ndim >= 2 and array[:1].size >= _FRAME_ELEMENTS
    whole = tuple(max(1, n) for n in array.shape)
    parts: dict[str, Any] = {"chunks": (1, *whole[1:]), "shards": whole} if framed else {"chunks": whole}
    group.create_array(
        name, shape=array.shape, dtype=array.dtype, **parts,
        compressors=[BloscCodec(cname="zstd", clevel=3), Crc32cCodec()], config={"write_empty_chunks": True},
    )[...] = array  # fmt: skip


def _load_array(array: zarr.Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[...]))


def _stored_as(kind: str, name: str) -> str:
    """The type on disk of a float field: "uint8" for numbers in [0, 1], "float16", or "" for the tensor's own."""
    return "uint8" if name in _COLOUR_FIELDS else _SMALL.get(kind, {}).get(name, "")


def _to_disk(tensor: Tensor, kind: str, name: str) -> Tensor:
    stored = _stored_as(kind, name)
    return to_uint8(tensor) if stored == "uint8" else tensor.half() if stored == "float16" else tensor


def _from_disk(tensor: Tensor, kind: str, name: str) -> Tensor:
    # By what is there: earlier versions stored some of these fields as float32.
    stored = _stored_as(kind, name)
    return from_uint8(tensor) if stored == "uint8" and tensor.dtype == torch.uint8 else tensor.float() if stored else tensor


def _save_table(path: Path, value: types.PointCloud | tuple[Any, ...]) -> None:
    kind = "PointCloud" if isinstance(value, types.PointCloud) else type(value[0]).__name__ if value else ""
    columns = _cloud_columns(value) if isinstance(value, types.PointCloud) else _row_columns(value)
    table = pa.table(columns).replace_schema_metadata({"reconx.type": kind})
    with path.open("wb") as file:  # Arrow opens only paths that are UTF-8
        pq.write_table(table, file, compression="zstd", compression_level=3, write_page_checksum=True)


def _load_table(path: Path) -> Any:
    with path.open("rb") as file:
        table = pq.read_table(file, page_checksum_verification=True)
    kind = table.schema.metadata[b"reconx.type"].decode()
    if kind != "PointCloud":
        return tuple(getattr(types, kind)(**row) for row in table.to_pylist())
    column = {name: torch.from_numpy(table[name].to_numpy().copy()) for name in table.column_names}
    return types.PointCloud(
        xyz=torch.stack([column[k] for k in "xyz"], dim=-1),
        rgb=from_uint8(torch.stack([column[k] for k in ("red", "green", "blue")], dim=-1)),
        confidence=column["confidence"],
    )


def _cloud_columns(cloud: types.PointCloud) -> dict[str, np.ndarray]:
    xyz = {k: cloud.xyz[:, i].detach().cpu().numpy() for i, k in enumerate("xyz")}
    rgb = {k: to_uint8(cloud.rgb)[:, i].cpu().numpy() for i, k in enumerate(("red", "green", "blue"))}
    return {**xyz, **rgb, "confidence": cloud.confidence.detach().cpu().numpy()}


def _row_columns(rows: tuple[Any, ...]) -> dict[str, list[Any]]:
    return {field.name: [getattr(row, field.name) for row in rows] for field in fields(rows[0])} if rows else {}


def to_uint8(colour: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Colour in [0, 1] to 8 bits; values outside are clamped."""
    return (colour.detach() * 255).round().clamp(0, 255).to(torch.uint8)


def from_uint8(colour: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """8-bit colour to float32 in [0, 1]."""
    return colour.float() / 255


# --- the store ---------------------------------------------------------------------------------------------------------


def artifact_key(**parts: Any) -> str:
    """The cache key of an artifact: a digest of everything that its bytes depend on (JSON-serialisable values)."""
    return hashlib.sha256(json.dumps({"schema": SCHEMA, **parts}, sort_keys=True).encode()).hexdigest()[:32]


def find(root: Path, stage: str, key: str) -> Reference | None:
    """The artifact at (stage, key) after checking every file against its manifest, or None if there is none.

    Files that were hashed before and have the same stamp are not read again (see `digests`).

    Raises:
        DamagedEntry: a file is missing, unexpected or changed since it was published.
    """
    folder = root / stage / key
    if not folder.is_dir():
        return None
    return _check(folder, stage, key, lambda files: digests.digests_of(root, f"{stage}/{key}", files))


def _check(folder: Path, stage: str, key: str, digest: Callable[[Mapping[str, Path]], Mapping[str, str]]) -> Reference:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        expected, found = manifest["files"], digest(_files(folder))
        wrong = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedEntry(f"{stage}/{key}: {error}") from error
    if wrong or manifest.get("key") != key:
        raise DamagedEntry(f"{stage}/{key}: {', '.join(wrong) or MANIFEST} changed since it was written")
    return Reference(stage, key, _output_digest(expected))


def manifest_of(root: Path, stage: str, key: str) -> dict[str, Any] | None:
    """The manifest of an entry, whose files are not checked; None if it is missing or cannot be read."""
    try:
        manifest = json.loads((root / stage / key / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    whole = isinstance(manifest, dict) and isinstance(manifest.get("files"), dict)
    return manifest if whole and (manifest.get("stage"), manifest.get("key")) == (stage, key) else None


def reference_of_manifest(manifest: Mapping[str, Any]) -> Reference:
    """The reference of the entry that has this manifest."""
    return Reference(manifest["stage"], manifest["key"], _output_digest(manifest["files"]))


def publish(
    root: Path, stage: str, key: str, metadata: dict[str, Any], outputs: Mapping[str, Output], measured: dict
) -> Reference:
    """Write ``outputs`` as the artifact (stage, key) and return its reference; if another writer was first, that of theirs.

    ``metadata`` (settings, parents, ...) is part of the manifest, ``measured`` is written beside it.

    Raises:
        UserError: the disk is full, or the store cannot be written to. No partial entry is left; existing ones are unchanged.
    """

    def fill(folder: Path) -> dict[str, Entry]:
        for name, value in outputs.items():
            save(folder, name, value)
        files = _files(folder)
        digests.backdate(files.values())
        entries = digests.hash_files(files)
        named = {name: entry.digest for name, entry in entries.items()}
        write_json(folder / MANIFEST, {"schema": SCHEMA, "stage": stage, "key": key, **metadata, "files": named})
        write_json(folder / MEASURED, measured)
        return entries

    return _place(root, stage, key, fill)


def adopt(root: Path, stage: str, key: str, fill: Writer) -> Reference | None:
    """Import an entry whose files ``fill`` writes; None, and nothing is imported, if they do not match its manifest.

    Raises:
        UserError: the disk is full, the store cannot be written to, or ``stage`` and ``key`` are no place in it.
    """
    if not is_place(stage, key):
        raise UserError(f"{quoted(stage)}, {quoted(key)} is no place of an artifact, so nothing is taken into the store.")

    def fill_and_check(folder: Path) -> dict[str, Entry]:
        fill(folder)
        entries = digests.hash_files(_files(folder))
        _check(folder, stage, key, lambda files: {name: entries[name].digest for name in files})
        return entries

    try:
        return _place(root, stage, key, fill_and_check)
    except DamagedEntry:
        return None


def _place(root: Path, stage: str, key: str, fill: Callable[[Path], dict[str, Entry]]) -> Reference:
    """Fill a temporary folder, which returns what it wrote, and publish it by one rename."""
    folder, final = _temporary(root), root / stage / key
    try:
        folder.mkdir(parents=True)
        entries = fill(folder)
        _flush(folder)
        if not _rename_new(folder, final):
            return _existing(root, stage, key)
    except OSError as error:
        raise explain_disk(error, root) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    digests.remember(root, f"{stage}/{key}", entries)
    return Reference(stage, key, _output_digest({name: entry.digest for name, entry in entries.items()}))


def remove(root: Path, stage: str, key: str) -> None:
    """Remove an entry from the store. It is renamed first, so that a reader never sees a partial one."""
    trash = _temporary(root)
    try:
        trash.parent.mkdir(parents=True, exist_ok=True)
        os.rename(root / stage / key, trash)
    except FileNotFoundError:
        return
    except OSError as error:
        raise explain_disk(error, root) from error
    digests.forget(root, f"{stage}/{key}")
    shutil.rmtree(trash, ignore_errors=True)


def measured(root: Path, reference: Reference) -> dict[str, Any] | None:
    """Wall time, peak memory and machine of the run that made the artifact; None if it was not computed in this store."""
    path = reference.folder(root) / MEASURED
    return json.loads(path.read_text()) if path.exists() else None


# --- housekeeping ------------------------------------------------------------------------------------------------------


def entries(root: Path) -> Iterator[tuple[str, str]]:
    """(stage, key) of everything in the store, damaged artifacts included; not of folders that somebody else has put there."""
    for stage in stage_folders(root):
        yield from ((stage.name, f.name) for f in sorted(stage.iterdir()) if f.is_dir() and _KEY.fullmatch(f.name))


def is_place(stage: object, key: object) -> bool:
    """Whether an artifact may lie at (stage, key): what a file from elsewhere says is checked before it becomes a path."""
    return isinstance(stage, str) and bool(_STAGE.fullmatch(stage)) and isinstance(key, str) and bool(_KEY.fullmatch(key))


def changed(root: Path, stage: str, key: str) -> float:
    """When an entry was made in this store, or taken into it, in seconds since the epoch."""
    folder = root / stage / key
    return max(place.stat().st_mtime for place in (folder, folder / MANIFEST) if place.exists())


def stage_folders(root: Path) -> list[Path]:
    """The folders of the stages; other folders in the store (temporary files, runs, Prefect's home) start with a dot."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")) if root.is_dir() else []


def clear_abandoned(root: Path, unwatched: float = math.inf) -> int:
    """Remove the temporary folders of killed writers on this machine; returns how many there were.

    ``unwatched``: those of other machines, whose processes cannot be seen from here, count as killed after so many seconds.
    """
    folders = [folder for folder in (root / ".tmp").glob("*") if _is_abandoned(folder, unwatched)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _is_abandoned(folder: Path, unwatched: float) -> bool:
    machine, _, rest = folder.name.rpartition("-")[0].rpartition("-")
    if machine == _machine() and rest.isdecimal():
        return not psutil.pid_exists(int(rest))
    try:
        return time.time() - folder.stat().st_mtime > unwatched
    except FileNotFoundError:  # its writer has just ended
        return False


@contextmanager
def token(root: Path) -> Iterator[Path]:
    """The absolute path of an empty folder that exists during the block; processes that see it share this store."""
    folder = _temporary(root).resolve()
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _temporary(root: Path) -> Path:
    return root / ".tmp" / f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def _machine() -> str:
    """The host's name, and in a container that has it, too, which numbers of processes are meant."""
    space = Path("/proc/self/ns/pid")
    numbers = space.stat().st_ino if space.exists() else _HOSTS_OWN
    return socket.gethostname() + (f".{numbers}" if numbers != _HOSTS_OWN else "")


def _files(folder: Path) -> dict[str, Path]:
    """The files of an artifact that are inside its digest, by their names."""
    found = (Path(current, name) for current, _, names in os.walk(folder) for name in names)
    files = {path.relative_to(folder).as_posix(): path for path in found}
    return {name: files[name] for name in sorted(files) if name not in _OUTSIDE_DIGEST and not name.startswith(f".{RECORD}.")}


def _output_digest(files: Mapping[str, str]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _rename_new(folder: Path, final: Path) -> bool:
    final.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.rename(folder, final)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    _fsync(final.parent)
    return True


def _existing(root: Path, stage: str, key: str) -> Reference:
    reference = find(root, stage, key)
    if reference is None:
        raise UserError(f"The store entry {stage}/{key} vanished while it was written; run the same command again.")
    return reference


def _flush(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
