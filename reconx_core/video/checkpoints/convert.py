"""Convert published checkpoints of DynamiCrafter and ViewCrafter to our folder layout.

Every tensor must be known: a weight, on a part's list of unused ones, or a schedule buffer, which our scheduler must reproduce.
Others are an error. The file is memory-mapped and written part by part, so that about one part is in memory.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from reconx_core.cache.digests import file_digest
from reconx_core.errors import UserError
from reconx_core.io.files import require_writable, write_json
from reconx_core.version import __version__
from reconx_core.video.checkpoints.parts import PUBLISHED, Part, Source, clip_parts, published_parts, stored_parts
from reconx_core.weights.files import read_file
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.records import describe_files
from reconx_core.weights.writing import new_folder, require_space, unshared

if TYPE_CHECKING:  # imported lazily, so that errors about the file come without waiting for them
    from transformers import CLIPTokenizer

    from reconx_core.video.diffusion.scheduler import ReconXScheduler

VARIANTS = ("i2v", "interp", "viewcrafter")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CLASSES = {0.7: "512", 0.3: "1024"}  # by the final value of the dynamic rescale; a file has no other difference
TOWERS = ("text_encoder", "image_encoder")
UNUSED = r"model_ema\."
SHARD = "2GB"
BUFFER_TOLERANCE = 1e-5
LICENCES = {
    "dynamicrafter": "code Apache-2.0; weights: read the LICENSE file where you downloaded them (we have not seen its text)",
    "viewcrafter": "code Apache-2.0; weights tagged apache-2.0 where they are published",
}


@dataclass(frozen=True)
class Summary:
    """Properties of a checkpoint, detected from the file."""

    rescale_base: float
    zero_terminal_snr: bool
    dtype: str  # of the U-Net

    @property
    def size(self) -> str:
        """512 or 1024, the class of resolution; "custom" for another final value of the dynamic rescale."""
        return CLASSES.get(self.rescale_base, "custom")


@dataclass(frozen=True)
class Plan:
    """A network without its weights (on the meta device), and the location of each weight in a file."""

    part: Part
    module: Any  # a model of diffusers or transformers
    tensors: Mapping[str, Tensor]  # the file's
    sources: dict[str, Source]  # keys in full, by the names of the module's weights


def convert(
    path: Path,
    out: Path | None = None,
    variant: str | None = None,
    dtype: str | None = None,
    config: Path | None = None,
    clip: Path | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Write a published checkpoint to a new folder in our layout; returns the folder and the content of its provenance.json.

    ``out``: by default a folder in the weights folder, named after the model. ``variant``: i2v, interp or viewcrafter (by
    default what the file's name says). ``dtype``: float32, float16 or bfloat16 (by default as in the file). ``config``:
    upstream's YAML or JSON of the model, if its sizes differ from the published ones. ``clip``: a folder with CLIP ViT-H/14 (in
    Hugging Face's layout, or written by this function) for what the checkpoint lacks: the two CLIP towers, the tokenizer.

    Raises:
        UserError: the file cannot be read; a tensor is missing, unknown or misshapen; the folder cannot be written.
    """
    variant = choose_variant(path, variant)
    if dtype not in (None, *DTYPES):
        raise UserError(f"There is no data type '{dtype}'; choose one of {', '.join(DTYPES)}.")
    tensors, upstream = read_checkpoint(path), read_config(config)
    summary = summarise(tensors, upstream)
    out = out or weights_folder() / default_name(variant, summary)
    if out.exists():
        raise UserError(f"{out} is there already; remove it or choose another folder with -o.")
    scheduler = check_schedule(tensors, summary, upstream, variant)
    upstream["unet_config"].setdefault("default_fs", default_fps(variant, summary))
    plans = plan_checkpoint(tensors, upstream, schedule_buffers(scheduler))
    towers, tokenizer = _from_clip(clip, plans) if clip else ([], None)
    plans += towers
    require_writable(out.parent)
    _require_space(plans, dtype, out.parent)
    provenance = _provenance(path, variant, summary, dtype, clip if towers else None)
    provenance["missing"] = _missing(plans, tokenizer)
    with new_folder(out) as folder:
        for plan in plans:
            _write_part(plan, dtype, folder / plan.part.folder)
        _write_index(plans, scheduler, tokenizer, folder)
        provenance["files"] = describe_files(sorted(path for path in folder.rglob("*") if path.is_file()), folder)
        write_json(folder / "provenance.json", provenance)
    return out, provenance


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors, .ckpt, .pt or .pth file, mapped, in the file's order. Code in a pickle is never run.

    Raises:
        UserError: there is no such file, or it is truncated, damaged, of another kind, or holds more than tensors.
    """
    if not path.is_file():
        raise UserError(f"There is no file '{path}'; give a checkpoint that you downloaded (.ckpt, .pt or .safetensors).")
    if path.suffix not in (".safetensors", ".ckpt", ".pt", ".pth"):
        raise UserError(f"'{path}' should end in .ckpt, .pt, .pth or .safetensors; other kinds of files are not read.")
    return _state_dict(read_file(path), path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    elif isinstance(loaded, dict) and isinstance(loaded.get("module"), dict):  # DeepSpeed
        loaded = {key.removeprefix("_forward_module."): value for key, value in loaded["module"].items()}
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise UserError(f"'{path}' holds no table of tensors; give a DynamiCrafter or ViewCrafter checkpoint.")
    return dict(loaded)


def read_config(path: Path | None) -> dict[str, Any]:
    """`PUBLISHED`, changed by a model's configuration in upstream's form; a ``clip`` section (open_clip's) is ours.

    Raises:
        UserError: the file cannot be read or is not of that form.
    """
    if path is None:
        return copy.deepcopy(PUBLISHED)
    try:
        given = (json.loads if path.suffix == ".json" else yaml.safe_load)(path.read_text(encoding="utf-8"))
        params = given.get("model", given.get("config", given))["params"]
        nested = {name: {**PUBLISHED[name], **params[name]["params"]} for name in PUBLISHED if name.endswith("_config")}
        return {**PUBLISHED, **params, **given.get("clip", {}), **nested}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError, RecursionError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"'{path}' is not a model's YAML file as DynamiCrafter and ViewCrafter have them ({what}).") from None


def choose_variant(path: Path, variant: str | None) -> str:
    """The given variant, or the one in the name of the file or its folder.

    Raises:
        UserError: there is no such variant, or the names contain none.
    """
    if variant is not None and variant not in VARIANTS:
        raise UserError(f"There is no variant '{variant}'; choose one of {', '.join(VARIANTS)}.")
    names = f"{path.absolute().parent.name}/{path.name}".lower()
    variants = {"viewcrafter": "viewcrafter", "interp": "interp", "dynamicrafter": "i2v"}
    found = variant or next((value for word, value in variants.items() if word in names), None)
    if found is None:
        raise UserError(f"The name '{path.name}' does not tell what the model is for; say --variant {', '.join(VARIANTS)}.")
    return found


def summarise(tensors: Mapping[str, Tensor], upstream: Mapping[str, Any]) -> Summary:
    """Detect from the values in the file the end of the dynamic rescale, and whether the last timestep is pure noise.

    Raises:
        UserError: it is no checkpoint of these models, or that of the 256 model, or it contradicts ``upstream``.
    """
    unet = [value for key, value in tensors.items() if key.startswith("model.diffusion_model.")]
    if not unet:
        raise UserError("This is no DynamiCrafter or ViewCrafter checkpoint: no key starts with 'model.diffusion_model.'.")
    if any(key.endswith("attn2.alpha") or ".framestride_embed." in key for key in tensors):
        raise UserError("This is DynamiCrafter's 256 model, whose noise schedule is another; take 512, 512_Interp or 1024.")
    if "scale_arr" not in tensors and "base_scale" not in upstream:
        raise UserError("The checkpoint lacks 'scale_arr', which tells 512 from 1024; give the model's YAML with --config.")
    detected = {}
    if (scale := tensors.get("scale_arr")) is not None:
        detected["base_scale"] = round(float(scale[-1]), 6 if scale.dtype == torch.float32 else 2)
    if (alphas := tensors.get("alphas_cumprod")) is not None:
        detected["rescale_betas_zero_snr"] = float(alphas[-1]) == 0
    for name, value in detected.items():
        if upstream.get(name, value) != value:
            raise UserError(
                f"The checkpoint has {name} {value}, but the file of --config says {upstream[name]}; give its own YAML."
            )
    found = {"rescale_betas_zero_snr": True, **upstream, **detected}
    return Summary(found["base_scale"], found["rescale_betas_zero_snr"], str(unet[0].dtype).removeprefix("torch."))


def default_name(variant: str, summary: Summary) -> str:
    """The folder's name in the weights folder: dynamicrafter_512, dynamicrafter_512_interp, viewcrafter_1024, ..."""
    if variant == "viewcrafter":
        return f"viewcrafter_{summary.size}"
    return f"dynamicrafter_{summary.size}{'_interp' if variant == 'interp' else ''}"


def default_fps(variant: str, summary: Summary) -> int:
    """The network's default frame rate (MODELS.md 2.3)."""
    return 10 if variant == "viewcrafter" or summary.size == "1024" else 24


def check_schedule(
    tensors: Mapping[str, Tensor], summary: Summary, upstream: Mapping[str, Any], variant: str
) -> ReconXScheduler:
    """The scheduler for a checkpoint; it must reproduce every schedule buffer in the file to 1e-5 (or half precision).

    Raises:
        UserError: it does not.
    """
    from reconx_core.video.diffusion.scheduler import ReconXScheduler

    scheduler = ReconXScheduler(
        num_train_timesteps=upstream["timesteps"],
        beta_start=upstream["linear_start"],
        beta_end=upstream["linear_end"],
        zero_terminal_snr=summary.zero_terminal_snr,
        rescale_base=summary.rescale_base,
        rescale_last_step=variant == "viewcrafter",
    )
    for name, wanted in schedule_buffers(scheduler).items():
        found = tensors.get(name)
        if found is not None and not _agree(found, wanted):
            raise UserError(
                f"The checkpoint's '{name}' is not the published noise schedule's; give the model's YAML with --config."
            )
    return scheduler


def schedule_buffers(scheduler: ReconXScheduler) -> dict[str, Tensor]:
    """Upstream's schedule buffers from our scheduler, in float64 to avoid cancellation in divisors."""
    from reconx_core.video.diffusion.scheduler import RAMP

    betas = scheduler.betas.double()
    alphas = torch.cumprod(1 - betas, 0)
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    variance = betas * (1 - before) / (1 - alphas)
    tail = scheduler.rescale[-1:].expand(len(betas) + RAMP - len(scheduler.rescale))
    return {
        "betas": scheduler.betas,
        "alphas_cumprod": scheduler.alphas_cumprod,
        "alphas_cumprod_prev": before,
        "sqrt_alphas_cumprod": alphas.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - alphas).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - alphas).log(),
        "sqrt_recip_alphas_cumprod": torch.zeros_like(alphas),  # upstream sets both to 0 for v-prediction
        "sqrt_recipm1_alphas_cumprod": torch.zeros_like(alphas),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * before.sqrt() / (1 - alphas),
        "posterior_mean_coef2": (1 - before) * (1 - betas).sqrt() / (1 - alphas),
        "scale_arr": torch.cat([scheduler.rescale, tail]),
    }


def _agree(found: Tensor, wanted: Tensor) -> bool:
    relative = max(BUFFER_TOLERANCE, 2 * torch.finfo(found.dtype).eps)
    return found.shape == wanted.shape and torch.allclose(found.double(), wanted.double(), relative, BUFFER_TOLERANCE)


def plan_checkpoint(tensors: Mapping[str, Tensor], upstream: Mapping[str, Any], buffers: Collection[str]) -> list[Plan]:
    """The location of every weight of every network in the file; only the two CLIP towers may be missing.

    ``buffers``: keys that are already known.

    Raises:
        UserError: a key is missing or misshapen, or else unknown; the message names the first one.
    """
    parts = published_parts(upstream)
    present = [part for part in parts if part.folder not in TOWERS or any(key.startswith(part.prefix) for key in tensors)]
    plans = [plan_part(part, tensors) for part in present]
    used = {key for plan in plans for key, _, _ in plan.sources.values()}.union(buffers)
    dropped = re.compile("|".join([UNUSED, *(rf"{re.escape(part.prefix)}(?:{part.unused})" for part in parts)]))
    unknown = next((key for key in tensors if key not in used and not dropped.match(key)), None)
    if unknown is not None:
        raise UserError(f"The checkpoint holds '{unknown}', which no network of these models has; it is of another kind.")
    return plans


def plan_part(part: Part, tensors: Mapping[str, Tensor]) -> Plan:
    """One network on the meta device, and the location of its weights.

    Raises:
        UserError: a key is missing or misshapen; the message names the first one.
    """
    with torch.device("meta"):
        module = part.build()
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    sources = {name: (part.prefix + key, index, count) for name, (key, index, count) in part.sources(shapes).items()}
    for name, (key, _, count) in sources.items():
        if key not in tensors:
            raise UserError(f"The checkpoint lacks '{key}'; it is not complete, or of a kind that this version does not read.")
        first, *rest = shapes[name]
        wanted, found = (first * count, *rest), tuple(tensors[key].shape)
        # Weights of 1x1 convolutions that are linear layers here have trailing axes of length 1 in the file.
        if found[: len(wanted)] != wanted or any(length != 1 for length in found[len(wanted) :]):
            raise UserError(f"'{key}' has the shape {list(found)} in the checkpoint but should have {list(wanted)}.")
    return Plan(part, module, tensors, sources)


def _from_clip(clip: Path, plans: Sequence[Plan]) -> tuple[list[Plan], CLIPTokenizer | None]:
    from transformers import CLIPTokenizer

    towers = plan_towers(clip, plans) if _missing(plans, None) != ["tokenizer"] else []
    folder = next((f for f in (clip / "tokenizer", clip) if (f / "merges.txt").is_file()), None)
    if folder is None and not towers:
        raise UserError(f"The checkpoint has its own CLIP, and '{clip}' holds no tokenizer (vocab.json and merges.txt).")
    try:
        return towers, CLIPTokenizer.from_pretrained(folder, local_files_only=True) if folder else None
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read the tokenizer in {folder} ({str(error).splitlines()[0]}); download it again.") from None


def plan_towers(clip: Path, plans: Sequence[Plan]) -> list[Plan]:
    """The CLIP towers that a checkpoint lacks, from a folder: Hugging Face's CLIP, or one that was converted before.

    Raises:
        UserError: the folder contains neither, or a CLIP of another size than the other networks need.
    """
    networks = {plan.part.folder: plan.module for plan in plans}
    try:
        found = [plan_part(part, _read_shards(folder)) for part, folder in _tower_folders(clip) if part.folder not in networks]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"'{clip}' holds no CLIP with config.json and model.safetensors that can be read ({what}).") from None
    wanted = {
        "text_encoder": networks["unet"].config.cross_attention_dim,
        "image_encoder": networks["image_projector"].config.embed_dims,
    }
    for plan in found:
        width = plan.module.config.hidden_size
        if width != wanted[plan.part.folder]:
            need = f"{wanted[plan.part.folder]} channels in its {plan.part.folder}"
            raise UserError(f"The CLIP in '{clip}' has {width} channels, but the checkpoint needs {need}; give CLIP ViT-H/14.")
    return found


def _tower_folders(clip: Path) -> list[tuple[Part, Path]]:
    if (clip / "config.json").is_file():
        return [(part, clip) for part in clip_parts(_read_json(clip / "config.json"))]
    configs = [_read_json(clip / name / "config.json") for name in TOWERS]
    return [(part, clip / part.folder) for part in stored_parts(*configs)]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _shards(folder: Path) -> list[Path]:
    # Not all .safetensors files: the folder may also contain open_clip's, with the same weights under other names.
    return sorted(folder.glob("model*.safetensors"))


def _read_shards(folder: Path) -> dict[str, Tensor]:
    shards = _shards(folder)
    if not shards:
        raise FileNotFoundError(f"no model.safetensors in {folder}")
    return {key: value for shard in shards for key, value in load_file(shard).items()}


def _require_space(plans: Sequence[Plan], dtype: str | None, folder: Path) -> None:
    values = [(value.numel(), plan.tensors[plan.sources[name][0]].dtype) for plan in plans for name, value in _targets(plan)]
    needed = sum(count * (DTYPES[dtype] if dtype else own).itemsize for count, own in values)
    require_space(needed, folder)


def _targets(plan: Plan) -> Iterable[tuple[str, Tensor]]:
    return plan.module.state_dict().items()


def _write_part(plan: Plan, dtype: str | None, folder: Path) -> None:
    plan.module.load_state_dict(_weights(plan, dtype), assign=True)
    plan.module.save_pretrained(folder, max_shard_size=SHARD)
    plan.module.to("meta")  # only its class is needed from here on


def _weights(plan: Plan, dtype: str | None) -> dict[str, Tensor]:
    found = {}
    for name, target in _targets(plan):
        key, index, count = plan.sources[name]
        value = plan.tensors[key].chunk(count)[index].reshape(target.shape)
        value = value.to(DTYPES[dtype]) if dtype else value
        found[name] = unshared(value)  # slices of one tensor, and tensors in DeepSpeed's flat buffer, share memory
    return found


def _write_index(plans: Sequence[Plan], scheduler: ReconXScheduler, tokenizer: CLIPTokenizer | None, folder: Path) -> None:
    from reconx_core.video.diffusion.pipeline import ReconXPipeline

    modules = {plan.part.folder: plan.module for plan in plans}
    ReconXPipeline(scheduler=scheduler, tokenizer=tokenizer, **modules).save_config(folder)
    scheduler.save_pretrained(folder / "scheduler")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")


def _missing(plans: Sequence[Plan], tokenizer: CLIPTokenizer | None) -> list[str]:
    have = {plan.part.folder for plan in plans} | ({"tokenizer"} if tokenizer is not None else set())
    return [name for name in (*TOWERS, "tokenizer") if name not in have]


def _provenance(path: Path, variant: str, summary: Summary, dtype: str | None, clip: Path | None) -> dict[str, Any]:
    """Origin of the weights, saved with them as provenance.json."""
    family = "viewcrafter" if variant == "viewcrafter" else "dynamicrafter"
    return {
        "source": path.name,
        "bytes": path.stat().st_size,
        "sha256": file_digest(path),
        "variant": variant,
        "class": summary.size,
        "dtype": dtype or summary.dtype,
        "licence": LICENCES[family],
        "clip": _digests(clip) if clip else {},
        "reconx": __version__,
    }


def _digests(clip: Path) -> dict[str, str]:
    shards = {shard for _, folder in _tower_folders(clip) for shard in _shards(folder)}
    return {str(shard.relative_to(clip)): file_digest(shard) for shard in sorted(shards)}
