"""Dropout whose masks belong to a clip: the same in any batch, on any process, and when a checkpointed block runs again."""

from __future__ import annotations

from jaxtyping import Float
from torch import Generator, Tensor, bool, cat, nn, where

from reconx_core.seeds import derive_seed


class ClipDropout(nn.Module):
    """torch's dropout takes the global generator, whose numbers depend on what else is in the batch.

    Args:
        probability: of a value to become zero; the others are divided by 1 - probability.
        number: of the layer in its network, which gives every layer masks of its own.
        seeds: one per clip of the batch; a list that all layers share and whoever runs the network fills.
    """

    def __init__(self, probability: float, number: int, seeds: list[int]) -> None:
        super().__init__()
        self.probability, self.number, self.seeds = probability, number, seeds

    def forward(self, values: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """``values``: those of a clip (its frames, say) stand together in the first axis."""
        if not self.training:
            return values
        parts = values.unflatten(0, (len(self.seeds), -1))
        kept = cat([self._kept(part, seed) for part, seed in zip(parts, self.seeds)])
        return where(kept, values / (1 - self.probability), 0.0)

    def _kept(self, values: Tensor, seed: int) -> Tensor:
        draw = Generator(values.device).manual_seed(derive_seed(seed, str(self.number)))
        return values.new_empty(values.shape, dtype=bool).bernoulli_(1 - self.probability, generator=draw)


def use_clip_dropout(network: nn.Module, seeds: list[int]) -> None:
    """Put :class:`ClipDropout` in the place of every dropout of the network that drops anything."""
    found = [
        (parent, name, layer)
        for parent in network.modules()
        for name, layer in parent.named_children()
        if isinstance(layer, nn.Dropout | ClipDropout)
    ]
    for number, (parent, name, layer) in enumerate(found):
        probability = layer.p if isinstance(layer, nn.Dropout) else layer.probability
        if probability > 0:
            setattr(parent, name, ClipDropout(probability, number, seeds))
