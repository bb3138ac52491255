"""The video backends built on `ReconXPipeline`: `reconx-tiny`, `reconx` (the paper's) and `viewcrafter`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.settings import VideoSettings
from reconx_core.types import Condition, Pointmaps, Views
from reconx_core.video.clip import PLAUSIBLE, POINTS, clips_through, model_size, network_dtype, structure_points
from reconx_core.video.diffusion.structure_points import normalise_points
from reconx_core.video.hole_filling import fill_holes
from reconx_core.video.sources import SOURCES, frame_sources, photo_renders
from reconx_core.weights.folder import weights_folder
from reconx_core.weights.loaded import keep_loaded

if TYPE_CHECKING:
    from reconx_core.video.diffusion.pipeline import ReconXPipeline

OWN_UNLESS_SET = ("steps", "guidance", "image_guidance", "structure_guidance", "fps", "pixels", "prompt")
_one_clip_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Recipe:
    """A model's default settings."""

    weights: str  # folder name: in the package for reconx-tiny, else in RECONX_WEIGHTS
    renders: bool  # whether the model gets the renders; otherwise it interpolates between the photos only
    steps: int
    guidance: float
    eta: float
    fps: int | None = None
    points: int = POINTS  # points for the structure encoder
    pixels: int = 0  # image area that the model was trained at; 0: any size, frames are only padded to a multiple
    prompt: str = ""
    image_guidance: float | None = None  # None: as `guidance`
    structure_guidance: float | None = None
    batch_guidance: bool = True
    vae_slice: int = 8


RECIPES = {
    "reconx-tiny": Recipe("reconx-tiny", renders=True, steps=1, guidance=1.0, eta=0.0, points=2048),
    # 5 frames a second is how DynamiCrafter's interpolation model is sampled (MODELS.md 2.3).
    "reconx": Recipe("reconx", renders=False, steps=50, guidance=7.5, eta=1.0, fps=5, pixels=512 * 512),
    "viewcrafter": Recipe(
        "viewcrafter_1024", True, 50, 7.5, 1.0, fps=10, pixels=576 * 1024, prompt="Rotating view of a scene"
    ),
}  # fmt: skip


def learned_frames(
    inputs: Views, pointmaps: Pointmaps, condition: Condition, settings: VideoSettings, generator: torch.Generator,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float[Tensor, "f h w 3"], Float[Tensor, "f h w"]]:  # fmt: skip
    """Frames in [0, 1], one clip per pair of views (beyond the second one, too), and their confidence.

    That is the visibility, but at least PLAUSIBLE.

    ``progress`` is called with the completed and the total number of denoising steps.

    Raises:
        UserError: the weights are missing or cannot be read.
    """
    pipeline = load_pipeline(find_model(settings), settings.offload, settings.dtype)
    recipe = with_settings(as_trained(RECIPES[settings.backend], pipeline), settings)
    structure = settings.structure and pipeline.structure_encoder is not None
    points = structure_points(inputs.images, pointmaps, recipe.points) if structure else None
    clips = clips_through(condition)
    seeds = torch.randint(2**62, (len(clips),), generator=generator).tolist()
    images = torch.empty_like(condition.renders)
    for number, ((pair, frames, second, own), seed) in enumerate(zip(clips, seeds)):
        on_step = lambda step, number=number: progress(number * recipe.steps + step + 1, len(clips) * recipe.steps)  # noqa: E731
        cloud = None if points is None else _in_frame_of(points, pointmaps.cameras.cam_to_world[pair[0]])
        clip = (inputs.images[pair], len(frames), condition.renders[frames], condition.visibility[frames])
        alone = photo_renders(inputs, pointmaps, pair, condition.cameras[frames]) if pipeline.config.sources else None
        with _one_clip_at_a_time:  # scenes may run in parallel threads, and the scheduler has state
            draw = torch.Generator().manual_seed(seed)
            made = generate_clip(pipeline, recipe, *clip, alone, cloud, draw, second, on_step)
        images[frames[own]] = made[own]
    return images, condition.visibility.clamp(min=PLAUSIBLE)


def as_trained(recipe: Recipe, pipeline: ReconXPipeline) -> Recipe:
    """The recipe at the size that the model says it was trained at."""
    return replace(recipe, pixels=pipeline.config.trained_pixels or recipe.pixels)


def with_settings(recipe: Recipe, settings: VideoSettings) -> Recipe:
    """The recipe, overridden by the settings that the user has set."""
    own = {name: value for name in OWN_UNLESS_SET if (value := getattr(settings, name))}
    return replace(recipe, **own, batch_guidance=settings.batch_guidance, vae_slice=settings.vae_slice)


def generate_clip(
    pipeline: ReconXPipeline, recipe: Recipe, photos: Float[Tensor, "2 h w 3"], count: int,
    renders: Float[Tensor, "k h w 3"] | None, visibility: Float[Tensor, "k h w"] | None, alone: tuple[Tensor, Tensor] | None,
    cloud: tuple[Tensor, Tensor] | None, generator: torch.Generator, second: int | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Float[Tensor, "k h w 3"]:  # fmt: skip
    """Generate the k = ``count`` frames of a clip beside its two photos, in order.

    ``second``: the frame that is the second photo, the first being frame 0; None: the last (interpolation), otherwise the
    frames after it go on where the photos end (PAPER.md 5). ``renders``, ``visibility``: of the generated frames; only for
    recipes with renders. ``alone``: the result of `photo_renders`, for a model that blends sources. ``cloud``: points in the
    camera frame of the first photo, and their colours.
    """
    ends = [0, count + 1 if second is None else second]
    height, width = photos.shape[1:3]
    fit, back = resizers(height, width, recipe.pixels, pipeline.pixels_per_step)
    given: dict[str, Any] = {}
    if recipe.renders:
        assert renders is not None
        assert visibility is not None
        if pipeline.config.residual:
            renders, visibility = fill_holes(renders, visibility)
        given["renders"] = fit(_between(renders, photos, ends))[None]
        given["visibility"] = fit(_between(visibility, torch.ones_like(photos[..., 0]), ends)[..., None])[None, :, 0]
        if alone is not None:
            sources = frame_sources(renders, visibility, alone)
            beside = _between(sources, sources.new_zeros(2, *sources.shape[1:]), ends)
            given["sources"] = fit(beside.flatten(0, 1)).unflatten(0, (-1, SOURCES))[None]
    if cloud is not None:
        given["points"], given["point_features"] = cloud[0][None], cloud[1][None]

    def callback(pipeline: ReconXPipeline, step: int, timestep: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        on_step(step)
        return tensors

    made = pipeline(
        fit(photos)[None], ends, generator, count + 2, **given, prompt=recipe.prompt,
        num_inference_steps=recipe.steps, guidance_scale=recipe.guidance, image_guidance_scale=recipe.image_guidance,
        structure_guidance_scale=recipe.structure_guidance, eta=recipe.eta, fps=recipe.fps,
        batch_guidance=recipe.batch_guidance, vae_slice_size=recipe.vae_slice, callback_on_step_end=callback,
    )  # fmt: skip
    others = [frame for frame in range(count + 2) if frame not in ends]
    return back(made.frames[0, others].float().cpu()).clamp(0, 1)


def _between(frames: Float[Tensor, "k ..."], photos: Float[Tensor, "2 ..."], ends: list[int]) -> Float[Tensor, "f ..."]:
    """All frames of a clip in order: the photos at ``ends``, of which the first is 0, the others at the other places."""
    return torch.cat([photos[:1], frames[: ends[1] - 1], photos[1:], frames[ends[1] - 1 :]])


def resizers(
    height: int, width: int, pixels: int, multiple: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Two functions: images [n, h, w, c] to a size the network accepts [n, c, H, W], and its frames back to (height, width).

    If ``pixels`` is 0, the images are padded by edge replication to the next multiples, so that no pixel is resampled.
    """
    if not pixels:
        right, below = -width % multiple, -height % multiple
        pad = lambda x: F.pad(x.movedim(-1, 1), (0, right, 0, below), mode="replicate")  # noqa: E731
        return pad, lambda x: x[..., :height, :width].movedim(1, -1)
    size = model_size(height, width, pixels, multiple)
    resize = lambda x, to: F.interpolate(x, to, mode="bilinear", antialias=True, align_corners=False)  # noqa: E731
    return lambda x: resize(x.movedim(-1, 1), size), lambda x: resize(x, (height, width)).movedim(1, -1)


def find_model(settings: VideoSettings) -> Path:
    """The model's folder: ``video.weights`` as a path or as a name in RECONX_WEIGHTS; by default the backend's own.

    Raises:
        UserError: there is no such folder.
    """
    name = settings.weights or RECIPES[settings.backend].weights
    own = Path(__file__).parents[1] / "reconx-tiny" if settings.backend == "reconx-tiny" and not settings.weights else None
    places = [own] if own else [Path(name).expanduser(), weights_folder() / name]
    found = next((place for place in places if (place / "model_index.json").is_file()), None)
    if found is None:
        raise UserError(
            f"There are no weights for video.backend={settings.backend} in {' or '.join(map(str, places))}; make them with "
            "`reconx weights convert` (docs/weights.md), or use video.backend=points, which needs none."
        )
    return found.resolve()


@keep_loaded("video")
def load_pipeline(folder: Path, offload: bool = False, dtype: str = "auto") -> ReconXPipeline:
    """The pipeline in ``folder``, on the GPU if there is one, in the numbers of `network_dtype`; cached for the next scene.

    Raises:
        UserError: a file is missing or invalid.
    """
    from reconx_core.video.diffusion.pipeline import ReconXPipeline

    cuda = torch.cuda.is_available()
    hide_progress_bars()
    try:
        pipeline = ReconXPipeline.from_pretrained(
            folder, dtype=network_dtype(dtype), local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(f"Cannot read the video model in {folder}: {str(error).strip().splitlines()[0]}") from error
    pipeline.set_progress_bar_config(disable=True)
    if cuda and offload:
        pipeline.enable_model_cpu_offload()
        return pipeline
    return pipeline.to("cuda" if cuda else "cpu")


def hide_progress_bars() -> None:
    """Of the libraries that load and save models: a run shows its own progress."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()


def _in_frame_of(points: tuple[Tensor, Tensor], cam_to_world: Float[Tensor, "4 4"]) -> tuple[Tensor, Tensor]:
    return normalise_points(points[0], cam_to_world), points[1]
