"""Scores of what another method made, its pictures of held-out views or its Gaussians, by the metrics of our own scenes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from reconx_core.errors import UserError
from reconx_core.losses.lpips import load_nets
from reconx_core.metrics import resized_views, score_views, summarise
from reconx_core.metrics.image import psnr, score_view
from reconx_core.metrics.pictures import Picture, error_heat
from reconx_core.rasterize import rasterize
from reconx_core.settings import MetricsSettings
from reconx_core.types import Gaussians, Scores, Views, ViewScore

LEAST_AGREEMENT = 20.0  # dB, below which another program's photos are not ours: another crop, lens or order
FULL_AGREEMENT = 30.0  # dB, to which two programs' ways of making a photo smaller come
_COVERED = 0.02  # share of the pixels of all views that a scene in the cameras' frame covers at least


def held_out(views: Views, settings: MetricsSettings) -> Views:
    """The held-out views at the size at which they are scored.

    Raises:
        UserError: there are none.
    """
    targets = resized_views(views.targets(), settings.size)
    if not len(targets):
        raise UserError("no view is held out, so there is nothing to score; choose a --protocol or a --split.")
    return targets


def score_pictures(
    renders: Sequence[Float[Tensor, "h w 3"]], targets: Views, settings: MetricsSettings, refined: Sequence[bool] = ()
) -> list[tuple[ViewScore, Picture]]:
    """Score and picture of every held-out view of ``targets`` (see :func:`held_out`), ``renders`` in their order and size.

    ``refined``: of each, whether its camera was refined; none: not one.

    Raises:
        UserError: a view's mask leaves nothing to score, or damaged LPIPS weights.
    """
    lpips = load_nets("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for i, (name, render) in enumerate(zip(targets.names, renders, strict=True)):
        photo, mask, done = targets.images[i], targets.masks[i], bool(refined[i]) if refined else False
        score = score_view(name, render, photo, mask, lpips, refined=done, is_target=True, background=settings.background)
        panels = {"photo": photo, "render": render.clamp(0, 1), "error": error_heat(render, photo, mask)}
        results.append((score, Picture(name, True, done, panels)))
    return results


def score_gaussians(gaussians: Gaussians, views: Views, settings: MetricsSettings) -> list[tuple[ViewScore, Picture]]:
    """Scores and pictures of inputs and held-out views, for which :func:`require_seen` has no complaint.

    Raises:
        UserError: a view's mask leaves nothing to score, or damaged LPIPS weights.
    """
    sized = resized_views(views, settings.size)
    assert sized.cameras is not None  # else there is a complaint
    inputs, targets = ~sized.is_target, sized.is_target
    scored = (score_views(gaussians, sized.select(i), sized.cameras[i], settings.background) for i in (inputs, targets))
    return [result for results in scored for result in results]


@torch.no_grad()
def require_seen(gaussians: Gaussians, views: Views) -> None:
    """Raise UserError unless the views have the dataset's cameras and these see the Gaussians."""
    if views.protocol != "posed" or views.cameras is None:
        raise UserError("Gaussians are seen by the dataset's cameras; it needs some, and views.protocol=posed.")
    covered = [(rasterize(gaussians, views.cameras[i : i + 1]).alpha > 0.5).float().mean().item() for i in range(len(views))]
    if (share := sum(covered) / len(covered)) < _COVERED:
        raise UserError(
            f"The cameras see nearly nothing of the Gaussians ({share:.1%} of the pixels): their frame is not the dataset's; "
            "train without normalising it (gsplat: --no-normalize-world-space), or give the pictures."
        )


def scores_of(results: Sequence[tuple[ViewScore, Picture]], views: Views, gaussians: Gaussians | None = None) -> Scores:
    """The scores with their means, as :func:`reconx_core.metrics.score_scene` has them."""
    scores = [score for score, _ in results]
    count: dict[str, float | None] = {} if gaussians is None else {"gaussians": float(len(gaussians))}
    return Scores(tuple(scores), summarise(scores) | count, views.protocol)


def fitted(picture: Float[Tensor, "h w 3"], height: int, width: int) -> Float[Tensor, "height width 3"]:
    """The picture itself, or one that is a whole number of times as large, each of its blocks averaged to a pixel.

    Raises:
        ValueError: it has another size.
    """
    factor = picture.shape[0] // height
    if factor < 1 or picture.shape[:2] != (factor * height, factor * width):
        raise ValueError(f"{picture.shape[1]}x{picture.shape[0]} is no whole multiple of {width}x{height}")
    if factor == 1:
        return picture
    return picture.reshape(height, factor, width, factor, 3).mean((1, 3))


def agreement(truth: Float[Tensor, "h w 3"], targets: Views, i: int) -> float:
    """PSNR in dB between another program's photo and our view ``i``, over its usable pixels."""
    return psnr(truth, targets.images[i], targets.masks[i])


def like_another(truth: Float[Tensor, "h w 3"], targets: Views, i: int) -> str | None:
    """The name of a held-out view that another program's photo of view ``i`` is more like than of that one."""
    found = [agreement(truth, targets, k) for k in range(len(targets))]
    best = max(range(len(targets)), key=found.__getitem__)
    return targets.names[best] if found[best] > found[i] else None
