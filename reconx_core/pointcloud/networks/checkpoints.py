"""Published checkpoints of DUSt3R and VGGT: loading, verification without loading, and conversion to the Hub's layout.

Every tensor must be known: a weight of the network, or on the list of unused ones. The files are memory-mapped, so that
loading copies nothing.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import reconx_core
from reconx_core.cache.store import file_digest
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable, write_json
from reconx_core.pointcloud.networks.dust3r import DUSt3R, dust3r_config
from reconx_core.pointcloud.networks.vggt import VGGT, vggt_config
from reconx_core.weights.files import (
    Opened,
    Verified,
    describe_files,
    dtype_name,
    match,
    new_folder,
    open_weights,
    require_space,
    unshared,
)  # fmt: skip
from reconx_core.weights.folder import weights_folder

CONSTRUCTOR = "AsymmetricCroCo3DStereo"  # a .pth of DUSt3R contains the text of a call of this, with the network's sizes
DUST3R_LICENCE = "CC BY-NC-SA 4.0: non-commercial use only"
SECOND_NAME = re.compile(r"(downstream_head\d\.dpt\.scratch\.)layer(\d)_rn\.weight")
CANNOT_BUILD = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Family:
    """The checkpoint format of a network."""

    name: str
    mark: str  # key prefix that identifies the network
    unused: str  # pattern of the keys that the network does not use
    settings: Callable[[Opened], Mapping[str, Any]]  # upstream's
    build: Callable[[Mapping[str, Any]], Any]  # the network with upstream's settings
    complete: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors
    names: Callable[[str], Sequence[str]] = lambda name: (name,)  # possible keys of a weight; the last one present counts


def load_dust3r(path: Path) -> DUSt3R:
    """DUSt3R from a folder (config.json and model.safetensors, as on the Hub) or from the authors' .pth, in float32.

    Raises:
        UserError: the weights are missing, damaged or of another network, or a tensor is missing, unknown or misshapen.
    """
    return _load(DUST3R_FILES, path)


def load_vggt(path: Path) -> VGGT:
    """VGGT from a folder (model.safetensors, also in shards, or a .pt; config.json if the sizes differ from VGGT-1B) or a file.

    Raises:
        UserError: the weights are missing, damaged or of another network, or a tensor is missing, unknown or misshapen.
    """
    return _load(VGGT_FILES, path)


def recognise(opened: Opened) -> Family | None:
    """The family of the weights, None if they are neither DUSt3R's nor VGGT's."""
    return next((family for family in FAMILIES if any(key.startswith(family.mark) for key in opened.tensors)), None)


def verify(path: Path) -> Verified:
    """Compare the keys and shapes of DUSt3R's or VGGT's weights with those of the network; their values are not read.

    Raises:
        UserError: as in `load_dust3r`.
    """
    opened = open_weights(path)
    family = recognise(opened)
    if family is None:
        raise UserError(f"'{path}' holds neither DUSt3R's nor VGGT's weights.")
    network, _, _ = _prepare(family, opened)
    config = network.config
    head = f", {config.head} head" if hasattr(config, "head") else ""
    return Verified(
        f"{family.name}, {config.image_size} pixels{head}",
        opened.source,
        opened.files,
        len(opened.tensors),
        sum(re.fullmatch(family.unused, key) is not None for key in opened.tensors),
        sum(value.numel() for value in network.state_dict().values()),
        tuple(sorted({dtype_name(value) for value in opened.tensors.values()})),
    )


def convert_dust3r(path: Path, out: Path | None = None) -> tuple[Path, dict[str, Any]]:
    """Write a .pth of DUSt3R to a new folder in the Hub's layout, bit for bit; returns the folder and its provenance.json.

    ``out``: by default a folder in the weights folder, named after the file.

    Raises:
        UserError: as in `load_dust3r`, or the folder cannot be written.
    """
    opened = open_weights(path)
    if opened.files[0].suffix == ".safetensors":
        raise UserError(f"'{path}' is in the Hub's layout already; use it as it is.")
    _, keys, settings = _prepare(DUST3R_FILES, opened)
    out = out or weights_folder() / opened.source.stem
    if out.exists():
        raise UserError(f"{out} is there already; remove it or choose another folder with -o.")
    kept = {name: opened.tensors[key] for name, key in keys.items() if key in opened.tensors}
    kept |= {key: value for key, value in opened.tensors.items() if re.fullmatch(DUST3R_FILES.unused, key)}
    require_writable(out.parent)
    require_space(sum(value.nbytes for value in kept.values()), out.parent)
    with new_folder(out) as folder:
        write_json(folder / "config.json", settings)
        save_file({name: unshared(value) for name, value in kept.items()}, folder / "model.safetensors", {"format": "pt"})
        provenance = _provenance(opened, folder)
        write_json(folder / "provenance.json", provenance)
    return out, provenance


def _provenance(opened: Opened, folder: Path) -> dict[str, Any]:
    """Origin of the converted weights."""
    return {
        "source": opened.source.name,
        "bytes": opened.source.stat().st_size,
        "sha256": file_digest(opened.source),
        "network": DUST3R_FILES.name,
        "licence": DUST3R_LICENCE,
        "files": describe_files(sorted(folder.iterdir()), folder),
        "reconx": reconx_core.__version__,
    }


def _load(family: Family, path: Path) -> Any:
    opened = open_weights(path)
    network, keys, _ = _prepare(family, opened)
    tensors = family.complete(opened.tensors)
    # The heads compute in float32; half-precision weights are converted, all others stay mapped.
    weights = {name: tensors[key].float() for name, key in keys.items()}
    network.load_state_dict(_unshare(weights), assign=True)
    return network.eval()


def _unshare(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Clone weights that share memory, so that changing one does not change the other."""
    seen: set[int] = set()
    for name, value in weights.items():
        weights[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return weights


def _prepare(family: Family, opened: Opened) -> tuple[Any, dict[str, str], Mapping[str, Any]]:
    """The network without its weights (on the meta device), the key of each of them, and upstream's settings."""
    found = recognise(opened)
    if found is not family:
        other = f" but {found.name}'s" if found else f": no key starts with '{family.mark}'"
        raise UserError(f"'{opened.source}' holds no weights of {family.name}{other}.")
    settings = family.settings(opened)
    try:
        with torch.device("meta"):
            network: nn.Module = family.build(settings)
    except CANNOT_BUILD as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"The settings of {family.name} with '{opened.source}' make no network ({what}).") from None
    tensors = family.complete(opened.tensors)
    return network, match(network.state_dict(), tensors, opened.source, family.names, family.unused), settings


def dust3r_settings(opened: Opened) -> Mapping[str, Any]:
    """Upstream's settings, from the .pth itself or else from config.json.

    Raises:
        UserError: there is neither, or it is malformed.
    """
    text = getattr(opened.arguments, "model", None)
    if isinstance(text, str):
        return parse_constructor(text, opened.source)
    if opened.config is None:
        raise UserError(f"'{opened.source}' does not tell the sizes of its network; put DUSt3R's config.json beside it.")
    return opened.config


def parse_constructor(text: str, source: Path) -> dict[str, Any]:
    """The arguments in the text of DUSt3R's constructor call, parsed without evaluating it: literals and inf only.

    `AsymmetricCroCo3DStereo(img_size=(512, 512), depth_mode=('exp', -inf, inf))` for example.

    Raises:
        UserError: the call is of another network, or contains anything else.
    """
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError("no call with named arguments")
        if call.func.id != CONSTRUCTOR:
            raise UserError(f"'{source}' holds another network than DUSt3R: {call.func.id}.")
        names = [keyword.arg for keyword in call.keywords]
        if None in names or len(set(names)) < len(names):
            raise ValueError("arguments without a name, or given twice")
        return {str(keyword.arg): ast.literal_eval(_Infinities().visit(keyword.value)) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(
            f"The settings in '{source}' are not those of DUSt3R ({type(error).__name__}); download it again."
        ) from None


class _Infinities(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Constant(torch.inf) if node.id == "inf" else node


def with_second_decoder(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """DUSt3R's tensors; if the file has only one decoder, it is used for both views."""
    if any(key.startswith("dec_blocks2.") for key in tensors):
        return tensors
    first = {key: value for key, value in tensors.items() if key.startswith("dec_blocks.")}
    return {**tensors, **{key.replace("dec_blocks.", "dec_blocks2.", 1): value for key, value in first.items()}}


def dust3r_names(name: str) -> tuple[str, ...]:
    """Possible keys of a weight: upstream registers the dense heads' first convolutions twice; the last one loaded counts."""
    found = SECOND_NAME.fullmatch(name)
    return (name, f"{found[1]}layer_rn.{int(found[2]) - 1}.weight") if found else (name,)


DUST3R_FILES = Family(
    "DUSt3R", "enc_blocks.", "mask_token", dust3r_settings, lambda settings: DUSt3R(dust3r_config(settings)),
    with_second_decoder, dust3r_names,
)  # fmt: skip
VGGT_FILES = Family(
    "VGGT", "aggregator.", r"track_head\..*|aggregator\.patch_embed\.mask_token",
    lambda opened: opened.config or {}, lambda settings: VGGT(vggt_config(settings)),
)  # fmt: skip
FAMILIES = (DUST3R_FILES, VGGT_FILES)
