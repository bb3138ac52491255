"""Published checkpoints of DUSt3R, VGGT and Depth-Anything-3: recognised and loaded.

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
from torch import Tensor, nn

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.da3 import DA3
from reconx_core.pointcloud.networks.da3_config import da3_config
from reconx_core.pointcloud.networks.dust3r import DUSt3R, dust3r_config
from reconx_core.pointcloud.networks.vggt import VGGT, vggt_config
from reconx_core.weights.files import Opened, match, open_weights

CONSTRUCTOR = "AsymmetricCroCo3DStereo"  # a .pth of DUSt3R contains the text of a call of this, with the network's sizes
SECOND_NAME = re.compile(r"(downstream_head\d\.dpt\.scratch\.)layer(\d)_rn\.weight")
SHARED_NORM = re.compile(r"(head\.scratch\.output_conv2_aux\.)\d(\.2\.\w+)")
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


def load_da3(path: Path) -> DA3:
    """Depth-Anything-3 from a folder (config.json and model.safetensors, as on the Hub) or from that file, in float32.

    Raises:
        UserError: the weights are not there, damaged or another network's, or a tensor is missing, unknown or misshapen.
    """
    return _load(DA3_FILES, path)


def recognise(opened: Opened) -> Family | None:
    """The family of the weights, None if they are of no network here."""
    return next((family for family in FAMILIES if any(key.startswith(family.mark) for key in opened.tensors)), None)


def _load(family: Family, path: Path) -> Any:
    opened = open_weights(path)
    network, keys, _ = prepare(family, opened)
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


def prepare(family: Family, opened: Opened) -> tuple[Any, dict[str, str], Mapping[str, Any]]:
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


def da3_settings(opened: Opened) -> Mapping[str, Any]:
    """config.json.

    Raises:
        UserError: there is none.
    """
    if opened.config is None:
        raise UserError(f"'{opened.source}' does not tell the sizes of its network; put DA3's config.json beside it.")
    return opened.config


def da3_names(name: str) -> tuple[str, ...]:
    """One normalisation of the rays' convolutions is shared by four levels, and a file holds it under the first one's name."""
    found = SHARED_NORM.fullmatch(name)
    return (f"model.{found[1]}0{found[2]}", f"model.{name}") if found else (f"model.{name}",)


DUST3R_FILES = Family(
    "DUSt3R", "enc_blocks.", "mask_token", dust3r_settings, lambda settings: DUSt3R(dust3r_config(settings)),
    with_second_decoder, dust3r_names,
)  # fmt: skip
VGGT_FILES = Family(
    "VGGT", "aggregator.", r"track_head\..*|aggregator\.patch_embed\.mask_token",
    lambda opened: opened.config or {}, lambda settings: VGGT(vggt_config(settings)),
)  # fmt: skip
DA3_FILES = Family(
    "Depth-Anything-3", "model.backbone.pretrained.", "", da3_settings, lambda settings: DA3(da3_config(settings)),
    names=da3_names,
)  # fmt: skip
FAMILIES = (DUST3R_FILES, VGGT_FILES, DA3_FILES)
