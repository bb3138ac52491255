"""Gaussians as binary glTF (``.glb``) with the extension KHR_gaussian_splatting: lossless, a point cloud for other readers; and
coloured meshes.

Y is up in glTF: the scene is turned by 180 degrees about its z axis, as PlayCanvas's converter does.
"""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from reconx_core.export.origin import NO_ORIGIN, Origin, parse_origin
from reconx_core.io.images import to_uint8
from reconx_core.rasterize.conventions import SH_0
from reconx_core.types import Gaussians
from reconx_core.version import __version__

EXTENSION = "KHR_gaussian_splatting"
_UNLIT = "KHR_materials_unlit"
_ORIGIN = "reconx_origin"
_JSON, _BIN = 0x4E4F534A, 0x004E4942  # types of a GLB's chunks
_POINTS, _TRIANGLES = 0, 4
_VERTICES, _INDICES = 34962, 34963  # targets of buffer views
_COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}
_ABOUT = {
    "kernel": "ellipse", "colorSpace": "srgb_rec709_display", "sortingMethod": "cameraDistance", "projection": "perspective",
}  # fmt: skip


def gaussians_to_glb(gaussians: Gaussians, origin: Origin = NO_ORIGIN) -> bytes:
    """All parameters in single precision. ``origin`` is noted, as in a PLY."""
    blocks = _attributes(_turned(gaussians.detach()))
    primitive = {
        "mode": _POINTS, "attributes": {name: i for i, name in enumerate(blocks)}, "extensions": {EXTENSION: _ABOUT},
    }  # fmt: skip
    noted = {"extras": {_ORIGIN: list(origin)}} if any(origin) else {}
    return _glb(blocks, primitive, {"extensionsUsed": [EXTENSION]}, noted)


def mesh_to_glb(vertices: Float[Tensor, "v 3"], faces: Int[Tensor, "f 3"], colours: Float[Tensor, "v 3"]) -> bytes:
    """A mesh that is shown in the colours of its vertices (sRGB, [0, 1]), whatever the light is."""
    linear = torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055).clamp(min=0) ** 2.4)
    alpha = torch.ones(len(colours), 1)
    blocks = {
        "POSITION": (vertices * vertices.new_tensor([-1, -1, 1])).numpy().astype("<f4"),
        "COLOR_0": (torch.cat([linear, alpha], -1).clamp(0, 1) * 65535).round().numpy().astype("<u2"),
        "": faces.reshape(-1).numpy().astype("<u4"),
    }
    primitive = {"mode": _TRIANGLES, "attributes": {"POSITION": 0, "COLOR_0": 1}, "indices": 2, "material": 0}
    unlit = {"pbrMetallicRoughness": {"metallicFactor": 0}, "doubleSided": True, "extensions": {_UNLIT: {}}}
    return _glb(blocks, primitive, {"extensionsUsed": [_UNLIT], "materials": [unlit]}, {})


def gaussians_from_glb(data: bytes) -> Gaussians:
    """Gaussians of the first primitive that has them.

    Raises:
        ValueError: there is none, the file is damaged, or the Gaussians are compressed or moved by their node.
    """
    content, binary = read_glb(data)
    primitive = _primitive(content)
    found = {name.removeprefix(f"{EXTENSION}:"): i for name, i in primitive["attributes"].items()}
    degree = max(d for d in range(4) if f"SH_DEGREE_{d}_COEF_0" in found) if "SH_DEGREE_0_COEF_0" in found else 0
    harmonics = [f"SH_DEGREE_{d}_COEF_{i}" for d in range(degree + 1) for i in range(2 * d + 1)]
    names = ["POSITION", "ROTATION", "SCALE", "OPACITY", *harmonics]
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"its Gaussians have no {missing[0]}")
    means, rotations, scales, opacities, *sh = (_values(content, binary, found[name]) for name in names)
    quats = rotations[:, [3, 0, 1, 2]]
    return _turned(Gaussians(means, quats, scales.log(), torch.logit(opacities[:, 0].double()).float(), torch.stack(sh, 1)))


def origin_of_glb(data: bytes) -> Origin | None:
    """The origin that the file notes; None where the note is damaged."""
    extras = read_glb(data)[0].get("asset", {}).get("extras")
    return parse_origin(extras[_ORIGIN]) if isinstance(extras, dict) and _ORIGIN in extras else NO_ORIGIN


def read_glb(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON and the binary chunk of a GLB. Raises ValueError if it is none."""
    if data[:4] != b"glTF" or len(data) < 20:
        raise ValueError("it does not begin as binary glTF does")
    chunks, at = dict[int, bytes](), 12
    while at + 8 <= len(data):
        length, kind = struct.unpack_from("<II", data, at)
        chunks.setdefault(kind, data[at + 8 : at + 8 + length])
        at += 8 + length
    content = json.loads(chunks.get(_JSON, b""))
    if not isinstance(content, dict):
        raise ValueError("its JSON is no object")
    return content, chunks.get(_BIN, b"")


def _turned(g: Gaussians) -> Gaussians:
    """By 180 degrees about z, which is its own inverse up to the sign of a quaternion."""
    w, x, y, z = F.normalize(g.quats, dim=-1).unbind(-1)
    # The basis functions in the order of the PLY: those of odd m change their sign.
    odd = torch.tensor([m % 2 for degree in range(g.sh_degree + 1) for m in range(-degree, degree + 1)])
    signs = (1 - 2 * odd).to(g.sh)[:, None]
    means = g.means * g.means.new_tensor([-1, -1, 1])
    return Gaussians(means, torch.stack([-z, -y, x, w], -1), g.log_scales, g.logit_opacities, g.sh * signs)


def _attributes(g: Gaussians) -> dict[str, np.ndarray]:
    def array(values: Float[Tensor, "n ..."]) -> np.ndarray:
        return values.cpu().numpy().astype("<f4")

    opacity = g.logit_opacities.sigmoid()
    fallback = to_uint8(torch.cat([0.5 + SH_0 * g.sh[:, 0], opacity[:, None]], -1))
    basic = {"ROTATION": g.quats[:, [1, 2, 3, 0]], "SCALE": g.log_scales.exp(), "OPACITY": opacity}
    orders = [(degree, i) for degree in range(g.sh_degree + 1) for i in range(2 * degree + 1)]
    harmonics = {f"SH_DEGREE_{degree}_COEF_{i}": g.sh[:, k] for k, (degree, i) in enumerate(orders)}
    named = {f"{EXTENSION}:{name}": array(values) for name, values in (basic | harmonics).items()}
    return {"POSITION": array(g.means), "COLOR_0": fallback, **named}


def _accessor(view: int, name: str, block: np.ndarray) -> dict[str, Any]:
    width = 1 if block.ndim == 1 else block.shape[1]
    kind = next(kind for kind, count in _WIDTHS.items() if count == width)
    component = next(code for code, dtype in _COMPONENTS.items() if np.dtype(dtype) == block.dtype)
    about: dict[str, Any] = {"bufferView": view, "count": len(block), "type": kind, "componentType": component}
    if name == "COLOR_0":
        about |= {"normalized": True}
    if name == "POSITION":
        about |= {"min": block.min(0).tolist(), "max": block.max(0).tolist()}
    return about


def _glb(blocks: dict[str, np.ndarray], primitive: dict[str, Any], about: dict[str, Any], asset: dict[str, Any]) -> bytes:
    """A file of one primitive, whose accessors are ``blocks`` in their order; the name of indices is empty."""
    arrays = [np.ascontiguousarray(values) for values in blocks.values()]
    offsets = np.cumsum([0, *(array.nbytes for array in arrays)]).tolist()  # each a multiple of 4, as glTF wants it
    views = [
        {"buffer": 0, "byteOffset": offset, "byteLength": array.nbytes, "target": _VERTICES if name else _INDICES}
        for name, offset, array in zip(blocks, offsets, arrays)
    ]
    content = {
        "asset": {"version": "2.0", "generator": f"reconx {__version__}"} | asset,
        **about,
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [primitive]}],
        "buffers": [{"byteLength": offsets[-1]}], "bufferViews": views,
        "accessors": [_accessor(i, name, array) for i, (name, array) in enumerate(zip(blocks, arrays))],
    }  # fmt: skip
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    binary = b"".join(array.tobytes() for array in arrays)
    head = struct.pack("<III", 0x46546C67, 2, 28 + len(text) + len(binary))
    return b"".join([head, struct.pack("<II", len(text), _JSON), text, struct.pack("<II", len(binary), _BIN), binary])


def _primitive(content: dict[str, Any]) -> dict[str, Any]:
    """The first primitive of Gaussians. Raises ValueError as :func:`gaussians_from_glb` does."""
    meshes = enumerate(content.get("meshes", []))
    found = [(i, p) for i, mesh in meshes for p in mesh["primitives"] if EXTENSION in p.get("extensions", {})]
    if not found:
        raise ValueError(f"it has no primitive with {EXTENSION}")
    mesh, primitive = found[0]
    if primitive["extensions"][EXTENSION].get("extensions"):
        raise ValueError("its Gaussians are compressed by a further extension")
    nodes = [node for node in content.get("nodes", []) if node.get("mesh") == mesh]
    if any(node.keys() & {"matrix", "rotation", "translation", "scale"} for node in nodes):
        raise ValueError("its Gaussians are moved by their node")
    return primitive


def _values(content: dict[str, Any], binary: bytes, index: int) -> Float[Tensor, "n c"]:
    """An accessor as float32; integers are normalised."""
    about = content["accessors"][index]
    view = content["bufferViews"][about["bufferView"]]
    kind, width, count = np.dtype(_COMPONENTS[about["componentType"]]), _WIDTHS[about["type"]], about["count"]
    start = view.get("byteOffset", 0) + about.get("byteOffset", 0)
    strides = (view.get("byteStride", kind.itemsize * width), kind.itemsize)
    if count and start + strides[0] * (count - 1) + kind.itemsize * width > len(binary):
        raise ValueError("it ends before its data do")
    array = np.ndarray((count, width), kind, binary, start, strides)
    whole = array.astype(np.float32) if kind.kind == "f" else array.astype(np.float32) / np.iinfo(kind).max
    return torch.from_numpy(whole)
