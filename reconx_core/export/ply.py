"""Gaussians and coloured points as PLY, Gaussians in the layout of INRIA's reference code, which all viewers read."""

from __future__ import annotations

import io
import itertools
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from plyfile import PlyData, PlyElement
from torch import Tensor

from reconx_core.export.finite import finite_gaussians, finite_points
from reconx_core.export.origin import NO_ORIGIN, Origin, parse_origin
from reconx_core.io.files import write_atomic
from reconx_core.io.images import to_uint8
from reconx_core.types import Gaussians, PointCloud

_ORIGIN = "reconx_origin"


def gaussians_to_ply(gaussians: Gaussians, origin: Origin = NO_ORIGIN) -> bytes:
    """All parameters unchanged: means, log scales, logit opacities, wxyz quaternions; lossless.

    ``f_rest`` is channel-major: all higher coefficients of red, then of green, then of blue. ``origin``: where the Gaussians'
    zero lies in their dataset's frame. It is only noted, in a comment: viewers compute in single precision, which would tear
    a scene in coordinates as large as that.
    """
    n = len(gaussians)
    columns = {f"f_dc_{i}": gaussians.sh[:, 0, i] for i in range(3)}
    columns |= {f"f_rest_{i}": c for i, c in enumerate(gaussians.sh[:, 1:].mT.flatten(1).unbind(-1))}
    columns |= {"opacity": gaussians.logit_opacities}
    columns |= {f"scale_{i}": gaussians.log_scales[:, i] for i in range(3)}
    columns |= {f"rot_{i}": gaussians.quats[:, i] for i in range(4)}
    normals = {name: torch.zeros(n) for name in ("nx", "ny", "nz")}
    position = {name: gaussians.means[:, i] for i, name in enumerate("xyz")}
    return _to_bytes({name: c.detach().cpu().numpy() for name, c in (position | normals | columns).items()}, origin)


def gaussians_from_ply(path: Path) -> Gaussians:
    """The Gaussians of a file that holds :func:`gaussians_to_ply`. Raises ValueError if properties are missing."""
    vertex = _vertices(path)
    rest = sum(name.startswith("f_rest_") for name in vertex.dtype.names or ())
    dc = _columns(vertex, [f"f_dc_{i}" for i in range(3)])[:, None]
    if rest % 3:
        raise ValueError(f"it has {rest} properties f_rest, which is no multiple of 3")
    higher = _columns(vertex, [f"f_rest_{i}" for i in range(rest)]).reshape(len(dc), 3, rest // 3).mT
    return Gaussians(
        means=_columns(vertex, ["x", "y", "z"]),
        quats=_columns(vertex, [f"rot_{i}" for i in range(4)]),
        log_scales=_columns(vertex, [f"scale_{i}" for i in range(3)]),
        logit_opacities=_columns(vertex, ["opacity"])[:, 0],
        sh=torch.cat([dc, higher], 1),
    )


def points_to_ply(cloud: PointCloud, origin: Origin = NO_ORIGIN) -> bytes:
    """Points with 8-bit colours and their confidence; with an ``origin`` they are moved by it, in double precision."""
    rgb = to_uint8(cloud.rgb)
    xyz = cloud.xyz.cpu().numpy()
    xyz = xyz + np.array(origin) if any(origin) else xyz
    columns = {name: xyz[:, i] for i, name in enumerate("xyz")}
    columns |= {name: rgb[:, i] for i, name in enumerate(("red", "green", "blue"))}
    return _to_bytes(columns | {"confidence": cloud.confidence.cpu().numpy()})


def points_from_ply(path: Path) -> PointCloud:
    """The points of a file that holds :func:`points_to_ply`; those of other programs, without confidence, get confidence 1."""
    vertex = _vertices(path)
    xyz, rgb = _columns(vertex, ["x", "y", "z"]), _columns(vertex, ["red", "green", "blue"]) / 255
    known = "confidence" in (vertex.dtype.names or ())
    return PointCloud(xyz, rgb, _columns(vertex, ["confidence"])[:, 0] if known else torch.ones(len(xyz)))


def write_ply(path: Path, scene: Gaussians | PointCloud, origin: Origin = NO_ORIGIN) -> None:
    """Write Gaussians or points atomically, without those that no viewer can show (:mod:`reconx_core.export.finite`).

    ``origin`` as in the functions above. Raises OSError if the file cannot be written.
    """
    label = f"the scene for {path}"
    if isinstance(scene, Gaussians):
        write_atomic(path, gaussians_to_ply(finite_gaussians(scene, label), origin))
    else:
        write_atomic(path, points_to_ply(finite_points(scene, label), origin))


def read_origin(path: Path) -> Origin | None:
    """Where the zero of a PLY's Gaussians lies in their dataset's frame, as :func:`write_ply` notes it.

    None, with a warning, where the note is damaged.
    """
    with path.open("rb") as file:
        lines = list(itertools.takewhile(lambda line: line.strip() != b"end_header", itertools.islice(file, 500)))
    noted = [line.decode(errors="replace").split()[2:] for line in lines if line.split()[:2] == [b"comment", _ORIGIN.encode()]]
    if not noted:
        return NO_ORIGIN
    origin = parse_origin(noted[0])
    if origin is None:
        warnings.warn(f"The comment {_ORIGIN} in {path} is not three numbers, and is left out of account.", stacklevel=1)
    return origin


def _to_bytes(columns: dict[str, np.ndarray], origin: Origin = NO_ORIGIN) -> bytes:
    length = len(next(iter(columns.values())))
    table = np.empty(length, dtype=[(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
    for name, column in columns.items():
        table[name] = column
    buffer = io.BytesIO()
    comments = [f"{_ORIGIN} {' '.join(map(repr, origin))}"] if any(origin) else []
    PlyData([PlyElement.describe(table, "vertex")], byte_order="<", comments=comments).write(buffer)
    return buffer.getvalue()


def _vertices(path: Path) -> np.ndarray:
    ply = PlyData.read(str(path))  # from a file, which is mapped: from a stream every row is read on its own
    if "vertex" not in ply:
        raise ValueError("it has no vertices")
    return ply["vertex"].data


def _columns(vertex: np.ndarray, names: list[str]) -> Float[Tensor, "n c"]:
    missing = [name for name in names if name not in (vertex.dtype.names or ())]
    if missing:
        raise ValueError(f"it has no property {missing[0]}")
    with np.errstate(over="ignore"):  # doubles too large become infinite, and are left out as such
        columns = [np.asarray(vertex[name], dtype=np.float32) for name in names]
    return torch.from_numpy(np.stack(columns, -1) if columns else np.zeros((len(vertex), 0), np.float32))
