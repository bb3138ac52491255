"""The `wan-vace` backend: diffusers' WanVACEPipeline inpaints the holes of the point cloud renders.

The model keeps the visible pixels of its `video` and generates those of its `mask`. With the renders as video, between two
photos, and their holes as mask, the point cloud conditions public weights that were never trained on point clouds.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.io.images import resize_images
from reconx_core.settings import VideoSettings
from reconx_core.types import Condition, Views
from reconx_core.video.clip import PLAUSIBLE, clips_from_photos, model_size, network_dtype
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.loaded import keep_loaded

MODEL = "Wan-AI/Wan2.1-VACE-1.3B-diffusers"
FLOW_SHIFT = 3.0  # of the noise schedule; recommended for 480p (5 for 720p)
NEGATIVE = "blurry, distorted, people, moving objects, changing light, text, watermark"
PROMPT = "a static scene, filmed by a slowly moving camera"
STEPS, GUIDANCE = 30, 5.0  # as in diffusers' example
PIXELS = 832 * 480  # the area that FLOW_SHIFT is for
TEXT_LENGTH = 512  # length of the text embedding, padded with zeros
GREY = 0.5  # colour of hidden pixels; it becomes 0 in the pipeline's range [-1, 1], the model's value for masked pixels

_one_clip_at_a_time = threading.Lock()


def vace_frames(
    inputs: Views, condition: Condition, settings: VideoSettings, generator: torch.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:  # fmt: skip
    """Frames in [0, 1], clips between photos and beyond them, and their confidence: the visibility, but at least PLAUSIBLE.

    ``progress`` is called with the completed and the total number of denoising steps.

    Raises:
        UserError: the weights are missing or cannot be read.
    """
    folder, settings = find_vace(settings.weights), with_defaults(settings)
    warn_of_unused(settings)
    clips = clips_from_photos(condition)
    seeds = torch.randint(2**62, (len(clips),), generator=generator).tolist()
    images = torch.empty_like(condition.renders)
    with _one_clip_at_a_time:  # scenes may run in parallel threads, and the pipeline's scheduler has state
        # The texts first: their encoder is larger than the rest of the pipeline and is freed before that is loaded.
        texts = encode_texts(folder, (settings.prompt, NEGATIVE), settings.offload, settings.dtype)
        pipeline = load_vace(folder, settings.offload, settings.dtype)
        for clip, ((photos, frames), seed) in enumerate(zip(clips, seeds)):
            video, hidden = model_clip(
                inputs.select(photos), condition.renders[frames], condition.visibility[frames], settings.pixels,
                *_multiples(pipeline),
            )  # fmt: skip
            on_step = _step_callback(progress, clip * settings.steps, len(clips) * settings.steps)
            made = _generate(pipeline, video, hidden, texts, settings, seed, on_step)[1 : len(frames) + 1]
            images[frames] = resize_images(made.movedim(1, -1), *images.shape[1:3]).clamp(0, 1)
    return images, condition.visibility.clamp(min=PLAUSIBLE)


def with_defaults(settings: VideoSettings) -> VideoSettings:
    """The settings with this backend's defaults for those that the user has not set."""
    own = {"prompt": PROMPT, "steps": STEPS, "guidance": GUIDANCE, "pixels": PIXELS}
    return settings.model_copy(update={name: value for name, value in own.items() if not getattr(settings, name)})


def warn_of_unused(settings: VideoSettings) -> None:
    """A sentence for settings of other models that the user has set: this one is guided by the text alone, and knows no fps."""
    unused = [f"video.{name}" for name in ("image_guidance", "structure_guidance", "fps") if getattr(settings, name)]
    if unused:
        reason = "its guidance is of the text alone (video.guidance), and it is given no frame rate"
        warnings.warn(f"wan-vace has no use for {', '.join(unused)} and leaves it out: {reason}.", stacklevel=3)


def model_clip(
    photos: Views, renders: Float[Tensor, "k h w 3"], visibility: Float[Tensor, "k h w"], pixels: int, step: int, multiple: int
) -> tuple[Float[Tensor, "m 3 y x"], Float[Tensor, "m 1 y x"]]:
    """The model's inputs for the frames between two photos, or after one: its video, and its mask (1: generate).

    m is 1 modulo ``step``; y and x are multiples of ``multiple`` with an area of about ``pixels``; the k frames have the
    indices 1 to k.
    """
    colours = torch.cat([photos.images[:1], renders, photos.images[1:]])
    known = torch.cat([photos.masks[:1], visibility >= PLAUSIBLE, photos.masks[1:]])
    height, width = known.shape[1:]
    video, hidden = resize_known(colours, known, *model_size(height, width, pixels, multiple))
    order = frame_order(len(renders), step, len(photos) > 1)
    return video[order].movedim(-1, 1), hidden[order].float()[:, None]


def frame_order(frames: int, step: int, ends: bool = True) -> list[int]:
    """Index into (photo, ``frames`` frames, photo if it ``ends`` with one) of each frame of the model's clip.

    The VAE encodes the first frame as one latent image and every ``step`` further frames as one more, and the transformer
    sees the mask of only one frame per latent image. So no latent image may mix a photo with frames that have holes: the last
    frame is repeated until its latent image is full, and the second photo is repeated to fill one of its own. Nothing is
    interpolated.
    """
    return [0, *range(1, frames + 1), *[frames] * (-frames % step), *[frames + 1] * (step if ends else 0)]


def resize_known(
    images: Float[Tensor, "n h w 3"], known: Bool[Tensor, "n h w"], height: int, width: int
) -> tuple[Float[Tensor, "n height width 3"], Bool[Tensor, "n height width"]]:
    """Images resized from their known pixels only and grey where most is unknown, and the mask of the grey pixels."""
    weight = known[..., None].float()
    share = resize_images(weight, height, width)
    hidden = share < 0.5
    colours = resize_images(images * weight, height, width) / share.clamp(min=0.5)
    return torch.where(hidden, GREY, colours), hidden[..., 0]


def find_vace(source: str | Path) -> Path:
    """The folder of a WanVACEPipeline: ``source`` is a path, a name in the weights folder, or a repository in the Hub's cache.

    Nothing is downloaded. An empty ``source`` means MODEL.

    Raises:
        UserError: there is none (the message says what to fetch, and how), or the folder holds another pipeline.
    """
    name = str(source or MODEL)
    places = (Path(name).expanduser(), weights_folder() / Path(name).name, _cached(name))
    folder = next((place for place in places if place is not None and (place / "model_index.json").is_file()), None)
    if folder is None:
        raise UserError(
            f"There are no Wan VACE weights '{name}'; fetch them (4.3 GB, and 11.4 GB for the text encoder, Apache-2.0) with "
            f"`reconx weights fetch wan-vace`, which puts {MODEL} into {weights_folder()}."
        )
    kind = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if kind != "WanVACEPipeline":
        raise UserError(f"{folder} holds a {kind}, but the backend wan-vace needs a WanVACEPipeline such as {MODEL}.")
    return folder.resolve()


def _cached(repository: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


@keep_loaded("video")
def load_vace(folder: Path, offload: bool = False, dtype: str = "auto") -> Any:
    """The WanVACEPipeline in ``folder`` without its text encoder, on the GPU if there is one, its transformer in ``dtype``.

    ``offload``: on a GPU, each network is moved there only while it runs, and the VAE runs in tiles. Cached for the next scene.

    Raises:
        UserError: a file is missing or invalid.
    """
    from diffusers import AutoencoderKLWan, WanVACEPipeline, WanVACETransformer3DModel

    with _as_user_error(folder):
        kind = network_dtype(dtype)
        transformer = _load_part(WanVACETransformer3DModel, folder / "transformer", kind)
        # The VAE stays in float32, as in diffusers' example: it is small, and the photos are encoded by it.
        vae = _load_part(AutoencoderKLWan, folder / "vae", torch.float32)
        pipeline = WanVACEPipeline.from_pretrained(
            folder, transformer=transformer, vae=vae, text_encoder=None, tokenizer=None, dtype=kind, local_files_only=True
        )
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, flow_shift=FLOW_SHIFT)
    pipeline.set_progress_bar_config(disable=True)
    if not offload or _device() == "cpu":
        return pipeline.to(_device())
    pipeline.vae.enable_tiling()
    pipeline.enable_model_cpu_offload()
    return pipeline


@lru_cache(maxsize=4)
def encode_texts(folder: Path, texts: tuple[str, ...], offload: bool = False, dtype: str = "auto") -> Float[Tensor, "t 512 d"]:
    """Prompt embeddings: the hidden states of the text encoder, padded with zeros.

    The encoder is loaded for this call only; ``offload`` runs it on the CPU even if there is a GPU.

    Raises:
        UserError: a file is missing or invalid.
    """
    from transformers import AutoTokenizer, UMT5EncoderModel

    # Not the pipeline's own encode_prompt: it requires ftfy and pads before encoding.
    device = "cpu" if offload else _device()
    with _as_user_error(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        encoder = _load_part(UMT5EncoderModel, folder / "text_encoder", network_dtype(dtype))
    cleaned = [" ".join(text.split()) for text in texts]
    tokens = tokenizer(cleaned, padding=True, truncation=True, max_length=TEXT_LENGTH, return_tensors="pt").to(device)
    with torch.no_grad():
        states = (
            encoder.to(device)(tokens.input_ids, tokens.attention_mask).last_hidden_state * tokens.attention_mask[..., None]
        )
    return F.pad(states, (0, 0, 0, TEXT_LENGTH - states.shape[1])).to(_device())


def _generate(
    pipeline: Any, video: Float[Tensor, "m 3 y x"], hidden: Float[Tensor, "m 1 y x"], texts: Float[Tensor, "2 512 d"],
    settings: VideoSettings, seed: int, on_step: Callable[..., dict[str, Tensor]],
) -> Float[Tensor, "m 3 y x"]:  # fmt: skip
    return pipeline(
        video=video[None], mask=hidden[None], prompt_embeds=texts[:1], negative_prompt_embeds=texts[1:],
        height=video.shape[2], width=video.shape[3], num_frames=len(video), num_inference_steps=settings.steps,
        guidance_scale=settings.guidance, generator=torch.Generator().manual_seed(seed), output_type="pt",
        callback_on_step_end=on_step,
    ).frames[0].float().cpu()  # fmt: skip


def _step_callback(progress: Callable[[int, int], None], before: int, total: int) -> Callable[..., dict[str, Tensor]]:
    def callback(pipeline: Any, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        progress(before + step + 1, total)
        return tensors

    return callback


def _multiples(pipeline: Any) -> tuple[int, int]:
    """Frames per latent image, and side of a transformer patch in pixels."""
    spatial = pipeline.vae_scale_factor_spatial * pipeline.transformer.config.patch_size[1]
    return pipeline.vae_scale_factor_temporal, spatial


def _load_part(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    part, info = kind.from_pretrained(
        folder, dtype=dtype, output_loading_info=True, local_files_only=True, use_safetensors=True
    )
    if info["missing_keys"]:  # the libraries accept this silently and would run with random weights
        raise ValueError(f"{min(info['missing_keys'])} is not in {folder.name}")
    return part


@contextmanager
def _as_user_error(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the libraries raise many kinds of errors for missing, truncated and foreign files
        what = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"Cannot read the Wan VACE weights in {folder} ({what}); it should hold all that "
            "`reconx weights fetch wan-vace` fetches."
        ) from error


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
