"""Confidence-aware optimisation of the Gaussians (eq. 14): one frame per step, without cloning, splitting or pruning."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from reconx_core.geometry.transforms import resize_cameras
from reconx_core.losses.lpips import Lpips, load_lpips
from reconx_core.losses.photometric import photometric_loss
from reconx_core.rasterize import Backend, rasterize
from reconx_core.settings import SplatsSettings
from reconx_core.types import Cameras, Frames, Gaussians

# Adam's learning rates of a fit in RATES_FOR steps, decaying exponentially to a tenth; that of the means is relative to the
# scene size. They are high, that of opacities above all: a Gaussian that starts where nothing is has a few dozen visits to go.
MEANS_LR, QUATS_LR, SCALES_LR, OPACITIES_LR, SH0_LR, SHN_LR = 1.2e-3, 6e-3, 3e-2, 0.24, 1.5e-2, 3e-3
RATES_FOR = 400
FRAMES_PER_PHOTO = 2  # generated frames between two photos in the visiting order
LAST = 0.25  # share of the steps, at the end, that leave out generated frames which are no views of the geometry
FULL_STEP = 5  # coarse steps that take as long, to the user's clock
FEW_PHOTOS = 3  # up to which dropout has its full share
DROPOUT_FROM = 0.1  # share of the steps, at the start, without dropout
MOST_OPAQUE = 0.999  # where dropout raises the others' opacity
GONE = -20.0  # logit of an opacity that no backend renders


def optimise(
    start: Gaussians, frames: Frames, joined: Bool[Tensor, " f"], settings: SplatsSettings, backend: Backend,
    generator: torch.Generator, progress: Callable[[int, int], None],
) -> Gaussians:  # fmt: skip
    """Minimise eq. 14 over the frames, each pixel weighted by its confidence.

    ``joined``: generated frames that have become views of the geometry in rounds. They have no backdrop behind them, so that a
    gap would do for a dark line; before a background that changes from step to step it does not.
    """
    device = torch.device("cuda" if backend == "gsplat" else "cpu")
    parameters = _parameters(start, device)
    groups = param_groups(parameters, scene_size(frames.cameras, start.means), settings.steps)
    optimiser = torch.optim.Adam(groups, eps=1e-15, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 0.1 ** (step / max(1, settings.steps)))
    weight = frame_weights(frames, settings)
    lpips = load_lpips(device.type) if settings.lpips_weight > 0 else None
    share = dropout_share(settings, int(frames.is_photo.sum()))
    whole = frames.images, frames.cameras, weight
    ring = bool(joined.any())
    coarse = 0 if ring else round(settings.coarse * settings.steps)  # around a ring it costs a decibel
    small = halved(*whole) if coarse else whole
    for step, i in enumerate(visiting_order(frames.is_photo, joined, settings, generator)):
        images, cameras, weights = small if step < coarse else whole
        gaussians = _gaussians(parameters)
        if step >= DROPOUT_FROM * settings.steps:
            gaussians = drop_some(gaussians, share, generator)
        background = torch.rand(3, generator=generator).to(device) if ring else None
        rendered = rasterize(gaussians, _to(cameras[[i]], device), backend, background).rgb[0]
        target, trust = images[i].to(device), weights[i].to(device)
        loss = step_loss(rendered, target, trust, step, lpips, settings, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        progress(*work_done(step + 1, settings.steps, coarse))
    return Gaussians(*(x.detach().cpu() for x in _fields(_gaussians(parameters))))


def work_done(steps: int, of: int, coarse: int) -> tuple[int, int]:
    """How far the fit is, and of how much, in coarse steps, of which ``coarse`` come first."""
    done, whole = (min(count, coarse) + FULL_STEP * max(0, count - coarse) for count in (steps, of))
    return done, whole


def halved(
    images: Float[Tensor, "f h w 3"], cameras: Cameras, weights: Float[Tensor, "f h w"]
) -> tuple[Float[Tensor, "f h2 w2 3"], Cameras, Float[Tensor, "f h2 w2"]]:
    """Frames, their cameras and the weights of their pixels at half the size; colours are means by weight."""
    size = max(1, cameras.height // 2), max(1, cameras.width // 2)
    stacked = torch.cat([images * weights[..., None], weights[..., None]], -1).permute(0, 3, 1, 2)
    mean = F.interpolate(stacked, size, mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    return mean[..., :3] / mean[..., 3:].clamp(min=1e-6), resize_cameras(cameras, *size), mean[..., 3].contiguous()


def dropout_share(settings: SplatsSettings, photos: int) -> float:
    """The share of a step's Gaussians that are left out: less with more photos, which contradict each other by themselves."""
    return settings.dropout * min(1.0, FEW_PHOTOS / max(1, photos))


def drop_some(gaussians: Gaussians, share: float, generator: torch.Generator) -> Gaussians:
    """A random ``share`` of the Gaussians made invisible, the others more opaque by as much (DropGaussian, CVPR 2025).

    What few photos show can be explained by Gaussians that each serve one photo; where any may be missing, the others have to
    explain it, too.
    """
    if share == 0:
        return gaussians
    stays = (torch.rand(len(gaussians.means), generator=generator) >= share).to(gaussians.means.device)
    logits = gaussians.logit_opacities
    with torch.no_grad():  # else what is clamped would have no gradient
        rise = torch.logit((logits.sigmoid() / (1 - share)).clamp(max=MOST_OPAQUE), eps=1e-6) - logits
    return replace(gaussians, logit_opacities=torch.where(stays, logits + rise, GONE))


def frame_weights(frames: Frames, settings: SplatsSettings) -> Float[Tensor, "f h w"]:
    """C_i of eq. 14: the confidence; in generated frames clamped to `confidence_floor` and multiplied by `frame_weight`."""
    photo = frames.is_photo[:, None, None]
    return torch.where(photo, frames.confidence, settings.frame_weight * frames.confidence.clamp(min=settings.confidence_floor))


def scene_size(cameras: Cameras, means: Float[Tensor, "n 3"]) -> float:
    """Median distance of the Gaussians from the first camera."""
    return float((means - cameras.cam_to_world[0, :3, 3]).norm(dim=-1).median())


def step_loss(
    rendered: Float[Tensor, "h w 3"], target: Float[Tensor, "h w 3"], weight: Float[Tensor, "h w"], step: int,
    lpips: Lpips | None, settings: SplatsSettings, generator: torch.Generator,
) -> Float[Tensor, ""]:  # fmt: skip
    """Eq. 14 of one frame; ``weight``: C_i of its pixels.

    On the CPU the LPIPS term is that of every ``settings.lpips_every``-th step, and counts as often: its mean over the steps is
    that of a term on each.
    """
    loss = photometric_loss(rendered, target, weight, settings.l1_weight, settings.ssim_weight)
    every = settings.lpips_every if rendered.device.type == "cpu" else 1
    if lpips is None or step % every:
        return loss
    return loss + every * settings.lpips_weight * perceptual_loss(lpips, rendered, target, weight, settings, generator)


def perceptual_loss(
    lpips: Lpips, rendered: Float[Tensor, "h w 3"], target: Float[Tensor, "h w 3"], weight: Float[Tensor, "h w"],
    settings: SplatsSettings, generator: torch.Generator,
) -> Float[Tensor, ""]:  # fmt: skip
    """LPIPS with each pixel weighted by its confidence; on the CPU of a random crop, unless ``settings.lpips_crop`` is 0."""
    if rendered.device.type == "cpu" and settings.lpips_crop:
        top, left = (
            int(torch.randint(max(1, side - settings.lpips_crop + 1), (), generator=generator)) for side in weight.shape
        )
        window = (slice(top, top + settings.lpips_crop), slice(left, left + settings.lpips_crop))
        rendered, target, weight = rendered[window], target[window], weight[window]
    return lpips(rendered[None], target[None], weight[None]).mean()


def _parameters(start: Gaussians, device: torch.device) -> dict[str, Tensor]:
    sh0, shN = start.sh[:, :1], start.sh[:, 1:]
    named = dict(zip(("means", "quats", "log_scales", "logit_opacities"), _fields(start)[:4]), sh0=sh0, shN=shN)
    return {name: x.detach().clone().to(device).requires_grad_() for name, x in named.items()}


def param_groups(parameters: dict[str, Tensor], size: float, steps: int) -> list[dict]:
    """More steps are smaller: they go about as far in all, and end nearer."""
    share = min(1.0, RATES_FOR / max(1, steps))
    rates = (MEANS_LR * size, QUATS_LR, SCALES_LR, OPACITIES_LR, SH0_LR, SHN_LR)
    return [{"params": [x], "lr": share * rate} for x, rate in zip(parameters.values(), rates) if x.numel()]


def _gaussians(p: dict[str, Tensor]) -> Gaussians:
    sh = torch.cat([p["sh0"], p["shN"]], 1) if p["shN"].shape[1] else p["sh0"]
    return Gaussians(p["means"], p["quats"], p["log_scales"], p["logit_opacities"], sh)


def _fields(g: Gaussians) -> tuple[Tensor, ...]:
    return g.means, g.quats, g.log_scales, g.logit_opacities, g.sh


def _to(cameras: Cameras, device: torch.device) -> Cameras:
    return Cameras(cameras.intrinsics.to(device), cameras.cam_to_world.to(device), cameras.width, cameras.height)


def visiting_order(
    is_photo: Bool[Tensor, " f"], joined: Bool[Tensor, " f"], settings: SplatsSettings, generator: torch.Generator
) -> Iterator[int]:
    """Frame index per step.

    ``uniform``: epochs over all frames, each in a new random order. ``balanced``: each photo is followed by FRAMES_PER_PHOTO
    generated frames, and the last steps use photos only, or where frames have ``joined`` them, these in the generated ones'
    place. That balances photos against the more numerous generated frames without overfitting to the photos.
    """
    if settings.sampling == "uniform" or bool(is_photo.all()):
        return itertools.islice(_shuffled(torch.arange(len(is_photo)), generator), settings.steps)
    photos, generated, views = (_shuffled(which.nonzero()[:, 0], generator) for which in (is_photo, ~is_photo, joined))
    last = round(LAST * settings.steps)
    both = itertools.islice(_alternate(photos, generated), settings.steps - last)
    return itertools.chain(both, itertools.islice(_alternate(photos, views) if joined.any() else photos, last))


def _alternate(photos: Iterator[int], others: Iterator[int]) -> Iterator[int]:
    while True:
        yield next(photos)
        yield from itertools.islice(others, FRAMES_PER_PHOTO)


def _shuffled(items: Int[Tensor, " n"], generator: torch.Generator) -> Iterator[int]:
    """Endless epochs over the items, each in a new random order."""
    while True:
        yield from items[torch.randperm(len(items), generator=generator)].tolist()
