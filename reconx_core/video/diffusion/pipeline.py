"""The diffusion pipeline: photos, renders and points to the frames of a clip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.utils import BaseOutput
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModel

from reconx_core.errors import UserError
from reconx_core.video.diffusion.conditioning import ImageProjector, image_tokens, text_ids, text_tokens
from reconx_core.video.diffusion.guidance import guidance_passes, guided_prediction
from reconx_core.video.diffusion.latents import (
    Noise,
    NoiseSource,
    PatchLatents,
    condition_latents,
    decode_frames,
    encode_frames,
    latent_stride,
    noise_source,
    visibility_channels,
)
from reconx_core.video.diffusion.scheduler import ReconXScheduler
from reconx_core.video.diffusion.structure_encoder import StructureEncoder
from reconx_core.video.diffusion.unet import ReconXUNet

# Conditional and unconditional tokens of a condition (None: the condition takes no part in guidance).
Tokens = tuple[Float[Tensor, "b n d"], Float[Tensor, "b n d"] | None]
Pass = tuple[dict[str, Tensor], float]
HEAD_WIDTH = 64  # channels per attention head of a structure encoder
MOVED = {  # module names in folders written by version 0.1.0 -> current names
    "reconx_core.video.structure": "reconx_core.video.diffusion.structure_encoder",
    **{
        f"reconx_core.video.{name}": f"reconx_core.video.diffusion.{name}"
        for name in ("conditioning", "latents", "scheduler", "unet")
    },
}
# diffusers' hook after each step: (pipeline, step, timestep, {"latents": ...}) -> tensors to replace.
StepEnd = Callable[["ReconXPipeline", int, Tensor, dict[str, Tensor]], dict[str, Tensor]]


@dataclass
class ReconXPipelineOutput(BaseOutput):
    """``frames``: [b, f, 3, H, W] in [0, 1], or the latents [b, c, f, h, w] with ``output_type="latent"``."""

    frames: Tensor


class ReconXPipeline(DiffusionPipeline):
    """The paper's video diffusion model (PAPER.md 3), DynamiCrafter or ViewCrafter, depending on the components.

    ``concat_visibility``: the visibility of every pixel of the renders is concatenated to the network's input. ``residual``:
    the model diffuses a frame's latents minus those of its render, so that a prediction of zeros gives the render.
    ``trained_pixels``: the area of an image that it was trained at last, for what generates with it; 0: not known, or any.

    `save_pretrained` and `ReconXPipeline.from_pretrained` take the whole folder. The text encoder and its tokenizer, the image
    encoder and its projector, and the structure encoder may be missing; the model then runs without that condition.
    """

    config: Any  # diffusers' dict with attributes
    model_cpu_offload_seq: Any = "text_encoder->image_encoder->image_projector->structure_encoder->unet->vae"
    _optional_components = ["text_encoder", "tokenizer", "image_encoder", "image_projector", "structure_encoder"]  # noqa: RUF012
    _callback_tensor_inputs = ["latents"]  # noqa: RUF012

    def __init__(
        self,
        unet: ReconXUNet,
        scheduler: ReconXScheduler,
        vae: AutoencoderKL | PatchLatents,
        text_encoder: CLIPTextModel | None = None,
        tokenizer: CLIPTokenizer | None = None,
        image_encoder: CLIPVisionModel | None = None,
        image_projector: ImageProjector | None = None,
        structure_encoder: StructureEncoder | None = None,
        concat_visibility: bool = False,
        residual: bool = False,
        sources: int = 0,
        trained_pixels: int = 0,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=unet, scheduler=scheduler, vae=vae, text_encoder=text_encoder, tokenizer=tokenizer,
            image_encoder=image_encoder, image_projector=image_projector, structure_encoder=structure_encoder,
        )  # fmt: skip
        self.register_to_config(
            concat_visibility=concat_visibility, residual=residual, sources=sources, trained_pixels=trained_pixels
        )

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, with MOVED modules renamed in the model_index.json of earlier versions."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        for name, part in config.items():
            if isinstance(part, list) and part and part[0] in MOVED:
                config[name] = [MOVED[part[0]], *part[1:]]
        return loaded

    def add_structure(self, seed: int) -> None:
        """Give a model without it (DynamiCrafter's) the paper's structure condition: until trained, its frames are the same.

        The encoder and the projections are random, determined by ``seed``; the gates are zero (PAPER.md 3).
        """
        width = int(self.unet.config["cross_attention_dim"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = StructureEncoder(width, heads=max(1, width // HEAD_WIDTH))
            self.unet.add_structure(width)
        self.register_modules(structure_encoder=encoder.to(self.unet.device, self.unet.dtype))

    @torch.no_grad()
    def __call__(
        self,
        photos: Float[Tensor, "b k 3 H W"],
        positions: Sequence[int],
        generator: Noise,
        num_frames: int = 16,
        renders: Float[Tensor, "b f 3 H W"] | None = None,
        visibility: Float[Tensor, "b f H W"] | None = None,
        sources: Float[Tensor, "b f s 4 H W"] | None = None,
        points: Float[Tensor, "b n 3"] | None = None,
        point_features: Float[Tensor, "b n d"] | None = None,
        prompt: str | Sequence[str] = "",
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        image_guidance_scale: float | None = None,
        structure_guidance_scale: float | None = None,
        guidance_rescale: float = 0.7,
        eta: float = 1.0,
        fps: int | None = None,
        batch_guidance: bool = True,
        vae_slice_size: int = 8,
        output_type: str = "pt",
        callback_on_step_end: StepEnd | None = None,
    ) -> ReconXPipelineOutput:
        """Generate clips of ``num_frames`` frames.

        Photos, renders and frames are in [0, 1]. The photos' ``positions`` are frame numbers, one list for all clips:
        [0, num_frames - 1] is the paper's interpolation, [0, 10] its extrapolation, one photo alone image-to-video; CLIP
        encodes the first photo. With ``renders`` (ViewCrafter's mode) every frame is conditioned on its render of the point
        cloud; their ``visibility`` is used if the model takes it, as are ``sources``: colours in [0, 1] and visibility of the
        images that a frame may be blended from in addition to its render (`frame_sources`). ``points`` are as
        `StructureEncoder` expects them.

        ``generator``: a torch.Generator, one per clip, or a function that makes the noise (see `NoiseSource`). ``prompt``:
        one for all, or one per clip. ``image_guidance_scale`` and ``structure_guidance_scale`` default to
        ``guidance_scale``, the scale of all conditions (see :func:`guidance_passes`); 1 is no guidance. ``fps``: the frame
        rate condition (None: the network's default). ``batch_guidance``: run the passes of guidance as one batch, which is
        faster but takes more memory. ``vae_slice_size``: frames per VAE call. ``output_type``: "pt" for
        frames, "latent" for latents. ``callback_on_step_end``: diffusers' hook, with ``latents``.

        Raises:
            UserError: inputs that do not fit each other or the model; a prompt without tokenizer.
        """
        prompts = [prompt] * len(photos) if isinstance(prompt, str) else list(prompt)
        if output_type not in ("pt", "latent"):
            raise UserError(f"There is no output type '{output_type}'; choose pt or latent.")
        self._check_model(prompts, renders, visibility, sources, points)
        if self.config.sources and num_inference_steps != 1:
            raise UserError(f"This video model is sampled in one step, not in {num_inference_steps}; leave video.steps at 0.")
        _check_clips(photos, positions, num_frames, renders, visibility, self.pixels_per_step)
        _check_per_clip(len(photos), prompts, generator)
        device = self._execution_device
        noise = noise_source(generator, device)

        # 1. Conditions.
        photos, shown = photos.to(device) * 2 - 1, None if renders is None else renders.to(device) * 2 - 1
        condition = condition_latents(self.vae, photos, positions, num_frames, shown, noise, vae_slice_size)
        shared = {"condition": self.input_condition(condition, positions, visibility, sources)}
        if fps is not None:
            shared["fps"] = torch.full((len(photos),), fps, device=device)
        tokens = self.condition_tokens(photos[:, 0], prompts, points, point_features)
        own = {"image": image_guidance_scale, "structure": structure_guidance_scale}
        passes = self.forward_passes(tokens, {name: guidance_scale if own.get(name) is None else own[name] for name in tokens})

        # 2. Denoise.
        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            network = partial(self.network, timestep=timestep)
            return guided_prediction(network, {"latents": latents, **shared}, passes, guidance_rescale, batch_guidance)

        latents = self.denoise(predict, tuple(condition.shape), noise, num_inference_steps, eta, callback_on_step_end)

        # 3. Decode.
        result = latents + condition if self.config.residual else latents
        if output_type == "pt":
            result = (decode_frames(self.vae, result, vae_slice_size) / 2 + 0.5).clamp(0, 1)
        self.maybe_free_model_hooks()
        return ReconXPipelineOutput(result)

    @property
    def pixels_per_step(self) -> int:
        """Height and width must be multiples of this, for the VAE and every level of the network."""
        return latent_stride(self.vae) * 2 ** (len(self.unet.config.block_out_channels) - 1)

    def input_condition(
        self,
        condition: Float[Tensor, "b c f h w"],
        positions: Sequence[int],
        visibility: Float[Tensor, "b f H W"] | None = None,
        sources: Float[Tensor, "b f s 4 H W"] | None = None,
    ) -> Float[Tensor, "b d f h w"]:
        """The condition latents and, if the model takes them, the visibility (without renders: 1 for the photos, else 0) and
        per source the difference of its latents from those of the render, and its visibility.
        """
        if not self.config.concat_visibility:
            return condition
        stride = latent_stride(self.vae)
        if visibility is None:
            batch, _, frames, height, width = condition.shape
            visibility = condition.new_zeros(batch, frames, height * stride, width * stride)
        parts = [condition, visibility_channels(visibility.to(condition), positions, stride)]
        for source in [] if sources is None else sources.to(condition).unbind(2):
            shown = encode_frames(self.vae, source[:, :, :3] * 2 - 1, torch.Generator()) - condition
            shown[:, :, list(positions)] = 0.0
            parts += [shown, visibility_channels(source[:, :, 3], positions, stride)]
        return torch.cat(parts, 1)

    def condition_tokens(
        self,
        photo: Float[Tensor, "b 3 H W"],
        prompts: Sequence[str],
        points: Float[Tensor, "b n 3"] | None = None,
        point_features: Float[Tensor, "b n d"] | None = None,
        farthest: Int[Tensor, "b t"] | None = None,
    ) -> dict[str, Tokens]:
        """Conditional and unconditional tokens of each condition, in the order of guidance.

        ``photo`` is in [-1, 1]. The unconditional inputs are a mid-grey image, zeros as structure tokens, and the empty prompt.
        Conditions without an encoder have no tokens; a structure encoder without point features (the paper's) gets only points.
        ``farthest``: the points that become tokens, where they are known (`StructureEncoder.sample`).
        """
        nothing = photo.new_zeros(len(photo), 0, self.unet.config.cross_attention_dim)
        tokens: dict[str, Tokens] = {"image": (nothing, None), "text": (nothing, None)}
        if self.image_encoder is not None:
            shown = image_tokens(self.image_encoder, self.image_projector, photo)
            grey = image_tokens(self.image_encoder, self.image_projector, torch.zeros_like(photo[:1]))
            tokens["image"] = shown, grey.expand_as(shown)
        if points is not None:
            if self.structure_encoder.config["feature_dim"] == 0:
                point_features = None
            features = None if point_features is None else point_features.to(photo.device)
            structure = self.structure_encoder(points.to(photo.device), features, farthest)
            tokens["structure"] = structure, torch.zeros_like(structure)
        if self.text_encoder is not None:
            states = text_tokens(self.text_encoder, text_ids(self.tokenizer, [*prompts, ""]))
            empty = states[-1:].expand(len(prompts), -1, -1)
            tokens["text"] = (states[:-1], empty) if any(prompts) else (empty, None)
        return {name: tokens[name] for name in ("image", "structure", "text") if name in tokens}

    def forward_passes(self, tokens: dict[str, Tokens], scales: dict[str, float]) -> list[Pass]:
        """The tokens and the weight of each guidance pass; ``scales``: guidance scale per condition."""
        withheld = {name: scales[name] for name, (_, absent) in tokens.items() if absent is not None}
        return [
            ({name: t if absent is None or name in seen else absent for name, (t, absent) in tokens.items()}, weight)
            for seen, weight in guidance_passes(withheld)
        ]

    def network(
        self,
        timestep: Tensor,
        latents: Float[Tensor, "b c f h w"],
        condition: Float[Tensor, "b d f h w"],
        fps: Int[Tensor, " b"] | None = None,
        **tokens: Float[Tensor, "b n e"],
    ) -> Float[Tensor, "b c f h w"]:
        """One forward pass, in the network's precision; ``tokens``: image, structure, text."""
        device, dtype = latents.device, self.unet.dtype
        inputs = {f"{name}_tokens": value.to(dtype) for name, value in tokens.items()}
        sample = torch.cat([latents, condition], 1).to(dtype)
        prediction = self.unet(sample, timestep.to(device), fps=fps, **inputs).sample
        return self.blend(prediction.float(), condition) if self.config.sources else prediction

    def blend(
        self, prediction: Float[Tensor, "b e f h w"], condition: Float[Tensor, "b d f h w"]
    ) -> Float[Tensor, "b c f h w"]:
        """Prediction of a blending model, v = -x0 at the last timestep: per pixel a convex combination of render and sources.

        The network predicts a logit per pixel for the render and for each source.
        """
        count, pixels = self.config.sources, latent_stride(self.vae) ** 2
        shares = prediction.unflatten(1, (1 + count, 1, pixels)).softmax(1)[:, 1:]
        beside = condition[:, 4 * pixels :].unflatten(1, (count, 4 * pixels))[:, :, : 3 * pixels].unflatten(2, (3, pixels))
        return -(shares * beside).sum(1).flatten(1, 2)

    def denoise(
        self,
        predict: Callable[[Tensor, Tensor], Tensor],
        shape: tuple[int, ...],
        noise: NoiseSource,
        num_inference_steps: int,
        eta: float,
        on_step_end: StepEnd | None = None,
    ) -> Float[Tensor, "b c f h w"]:
        """Sample latents from noise, in float32; ``predict`` computes v from latents and a timestep."""
        self.scheduler.set_timesteps(num_inference_steps)
        latents = noise("start", 0, shape) * (self.config.sources == 0)
        with self.progress_bar(total=len(self.scheduler.timesteps)) as bar:
            for step, timestep in enumerate(self.scheduler.timesteps):
                prediction = predict(latents, timestep)
                drawn = noise("step", step, shape) if eta > 0 else None
                latents = self.scheduler.step(prediction, timestep, latents, eta, drawn).prev_sample
                if on_step_end is not None:
                    latents = on_step_end(self, step, timestep, {"latents": latents}).get("latents", latents)
                bar.update()
        return latents

    def _check_model(
        self, prompts: Sequence[str], renders: Tensor | None, visibility: Tensor | None, sources: Tensor | None,
        points: Tensor | None,
    ) -> None:  # fmt: skip
        """Raise UserError if an input is given that the model does not take, or one is missing that it needs."""
        if self.image_projector is not None and self.image_encoder is None:
            raise UserError(
                "This video model has no image encoder; convert its checkpoint again with --clip (docs/weights.md)."
            )
        if any(prompts) and self.text_encoder is None:
            raise UserError("This video model has no text encoder; leave the prompt empty.")
        if points is not None and self.structure_encoder is None:
            raise UserError("This video model has no structure encoder; leave the points out.")
        if self.config.residual and renders is None:
            raise UserError("This video model adds to renders of the point cloud; give it renders.")
        if self.config.concat_visibility and renders is not None and visibility is None:
            raise UserError("This video model sees which pixels of the renders are known; give it their visibility.")
        given = 0 if sources is None else sources.shape[2]
        if given != self.config.sources:
            raise UserError(f"This video model blends {self.config.sources} sources beside the render, not {given}.")


def _check_clips(
    photos: Tensor, positions: Sequence[int], num_frames: int, renders: Tensor | None, visibility: Tensor | None, multiple: int
) -> None:
    """Raise UserError if the shapes of the inputs do not match each other or the network."""
    batch, count, _, height, width = photos.shape
    if len(positions) != count or len(set(positions)) != count or not all(0 <= p < num_frames for p in positions):
        raise UserError(
            f"{count} photos need as many different positions from 0 to {num_frames - 1}, not {', '.join(map(str, positions))}."
        )
    if height % multiple or width % multiple:
        raise UserError(f"Width and height must be multiples of {multiple} for this video model, not {width}×{height}.")
    if renders is not None and renders.shape != (batch, num_frames, 3, height, width):
        raise UserError(f"The renders have the shape {tuple(renders.shape)}, not {(batch, num_frames, 3, height, width)}.")
    if visibility is not None and visibility.shape != (batch, num_frames, height, width):
        raise UserError(f"The visibility has the shape {tuple(visibility.shape)}, not {(batch, num_frames, height, width)}.")


def _check_per_clip(clips: int, prompts: Sequence[str], generator: Noise) -> None:
    if len(prompts) != clips:
        raise UserError(f"There are {len(prompts)} prompts for {clips} clips; give one for all, or one per clip.")
    if isinstance(generator, list) and len(generator) != clips:
        raise UserError(f"There are {len(generator)} generators for {clips} clips; give one for all, or one per clip.")
