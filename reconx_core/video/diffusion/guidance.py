"""Classifier-free guidance with several conditions: the forward passes, and their combination."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def guidance_passes(scales: Mapping[str, float]) -> list[tuple[frozenset[str], float]]:
    """The forward passes of multi-condition guidance: the conditions of each, and the weight s_k of its term.

    With the conditions in the mapping's order, the prediction is

        e = e_0 + s_1 (e_1 - e_0) + s_2 (e_12 - e_1) + ... = sum over k of s_k (e_k - e_k-1)   with s_0 = 1, e_-1 = 0.

    If two consecutive weights are equal, the pass between them cancels out and is skipped: equal scales give plain guidance
    in two passes, and with a first scale of 1 there is no unconditional pass.
    """
    passes: list[tuple[frozenset[str], float]] = [(frozenset(), 1.0)]
    for name, scale in scales.items():
        seen, weight = passes[-1]
        if scale == weight:
            passes.pop()
        passes.append((seen | {name}, scale))
    return passes


def guided_prediction(
    model: Callable[..., Float[Tensor, "b ..."]],
    shared: Mapping[str, Tensor],
    passes: Sequence[tuple[Mapping[str, Tensor], float]],
    rescale: float = 0.0,
    batch_guidance: bool = True,
) -> Float[Tensor, "b ..."]:
    """The guided prediction from several passes of ``model``, in float32.

    ``shared`` are the keyword arguments of all passes; each of ``passes`` (in the order of :func:`guidance_passes`) has
    further ones and its weight; all tensors have the batch first. ``batch_guidance`` runs all passes as
    one batch; otherwise they run one after the other, with less memory and the same result up to rounding. ``rescale``
    interpolates the standard deviation of each sample's prediction towards that of the last, fully conditional pass.
    """
    calls = [{**shared, **own} for own, _ in passes]
    if batch_guidance and len(calls) > 1:
        together = {name: torch.cat([call[name] for call in calls]) for name in calls[0]}
        predictions = model(**together).float().chunk(len(calls))
    else:
        predictions = tuple(model(**call).float() for call in calls)
    guided = predictions[0]
    for before, after, (_, scale) in zip(predictions, predictions[1:], passes[1:]):
        guided = guided + scale * (after - before)
    return _rescaled(guided, predictions[-1], rescale) if rescale and len(calls) > 1 else guided


def _rescaled(guided: Float[Tensor, "b ..."], conditional: Float[Tensor, "b ..."], amount: float) -> Float[Tensor, "b ..."]:
    axes = tuple(range(1, guided.ndim))
    wanted, found = (p.std(axes, keepdim=True) for p in (conditional, guided))
    # An all-zero prediction, as of a newly initialised network, has standard deviation 0.
    factor = wanted / found.clamp(min=torch.finfo(found.dtype).tiny)
    return amount * factor * guided + (1 - amount) * guided
