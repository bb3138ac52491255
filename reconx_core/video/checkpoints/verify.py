"""Folders and checkpoints of the video models, compared with their networks' keys and shapes; the values are not read."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.video.checkpoints.convert import (
    check_schedule,
    default_fps,
    plan_checkpoint,
    read_checkpoint,
    read_config,
    schedule_buffers,
    summarise,
)
from reconx_core.weights.files import Opened, dtype_name, find_shards, match, open_weights
from reconx_core.weights.files import read_config as read_json
from reconx_core.weights.records import Verified

NETWORKS = {  # module of each class; module names in a folder are not trusted for import
    "ReconXUNet": "reconx_core.video.diffusion.unet", "ImageProjector": "reconx_core.video.diffusion.conditioning",
    "StructureEncoder": "reconx_core.video.diffusion.structure_encoder", "PatchLatents": "reconx_core.video.diffusion.latents",
    "AutoencoderKL": "diffusers", "CLIPTextModel": "transformers", "CLIPVisionModel": "transformers",
}  # fmt: skip


def verify_folder(folder: Path) -> Verified:
    """A folder with model_index.json: every key and shape of a ReconXPipeline; of another pipeline, only that it can be read.

    Raises:
        UserError: a part is missing or damaged, or a tensor is missing, unknown or misshapen.
    """
    index = read_json(folder / "model_index.json") or {}
    ours = index.get("_class_name") == "ReconXPipeline"
    parts = [part for name, kind in sorted(_parts(index).items()) if (part := _open_part(folder / name, kind, ours))]
    tensors = [value for part in parts for value in part.tensors.values()]
    if not tensors:
        raise UserError(f"'{folder}' holds no weights.")
    files = tuple(file for part in parts for file in part.files)
    parameters = sum(value.numel() for value in tensors)
    return Verified(_name(folder, index, ours), folder, files, len(tensors), 0, parameters, _dtypes(tensors))


def _open_part(folder: Path, kind: str, ours: bool) -> Opened | None:
    """The weights of a part, compared with its network; None for a scheduler or a tokenizer, which has none."""
    if not folder.is_dir():
        raise UserError(f"'{folder.parent}' lacks '{folder.name}', which model_index.json lists; convert or fetch it again.")
    if not find_shards(folder):
        if kind in NETWORKS:
            raise UserError(f"'{folder}' holds no weights of a {kind}; convert or fetch it again.")
        return None
    opened = open_weights(folder)
    if ours:
        match(build(kind, folder).state_dict(), opened.tensors, opened.source)
    return opened


def verify_checkpoint(path: Path) -> Verified:
    """Verify an unconverted checkpoint of DynamiCrafter or ViewCrafter with the published sizes.

    Raises:
        UserError: it is damaged or of another kind, or a tensor is missing, unknown or misshapen.
    """
    tensors, upstream = read_checkpoint(path), read_config(None)
    summary = summarise(tensors, upstream)
    upstream["unet_config"]["default_fs"] = default_fps("i2v", summary)  # no tensor depends on it
    buffers = schedule_buffers(check_schedule(tensors, summary, upstream, "i2v"))
    plans = plan_checkpoint(tensors, upstream, buffers)
    used = {key for plan in plans for key, _, _ in plan.sources.values()}
    what = f"DynamiCrafter or ViewCrafter, class {summary.size}, to be converted (`reconx weights convert`)"
    parameters = sum(value.numel() for plan in plans for value in plan.module.state_dict().values())
    weights = [tensors[key] for key in used]
    return Verified(what, path, (path,), len(tensors), len(tensors) - len(used), parameters, _dtypes(weights))


def build(kind: str, folder: Path) -> Any:
    """The network of a part without its weights, on the meta device.

    Raises:
        UserError: it is no network of these models, or its config.json cannot be read.
    """
    if kind not in NETWORKS:
        raise UserError(f"'{folder}' is a {kind}, which is no part of the video models here.")
    network = getattr(import_module(NETWORKS[kind]), kind)
    try:
        with torch.device("meta"):
            if NETWORKS[kind] == "transformers":
                return network(network.config_class.from_pretrained(folder, local_files_only=True))
            return network.from_config(network.load_config(folder, local_files_only=True))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"The settings in '{folder}' make no {kind} ({what}); convert or fetch it again.") from None


def _parts(index: dict[str, Any]) -> dict[str, str]:
    """The class of every component that model_index.json lists as present, by its name (also its folder's)."""
    listed = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2 and value[1]}
    return {name: str(kind) for name, (_, kind) in listed.items() if Path(name).name == name}


def _name(folder: Path, index: dict[str, Any], ours: bool) -> str:
    provenance = read_json(folder / "provenance.json") or {}
    if "variant" in provenance:
        return f"ReconXPipeline, {provenance['variant']}, class {provenance.get('class')}"
    return "ReconXPipeline" if ours else f"{index.get('_class_name')} (its keys are checked when it is loaded)"


def _dtypes(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    return tuple(sorted({dtype_name(value) for value in tensors}))
