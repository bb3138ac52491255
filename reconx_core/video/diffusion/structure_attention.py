"""Attention processors of the video network: eq. 11 and plain attention, both over diffusers' choice of attention backends."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn


class Tokens(NamedTuple):
    """Inputs of the spatial cross-attention; diffusers' blocks pass them through unchanged as ``encoder_hidden_states``.

    ``image`` holds one set per clip (m = b, shared by its frames) or one per frame (m = b·f).
    """

    text: Float[Tensor, "b t d"]
    image: Float[Tensor, "m n d"]
    structure: Float[Tensor, "b s e"] | None


def attend(
    query: Float[Tensor, "n q c"], key: Float[Tensor, "m k c"], value: Float[Tensor, "m k c"], heads: int, backend: Any = None
) -> Float[Tensor, "n q c"]:
    """Multi-head attention in which n/m consecutive entries (the frames of a clip) share one set of keys, without copies of it.

    ``backend``: an ``AttentionBackendName`` of diffusers; None is the active one, by default torch's SDPA.
    """
    grouped = query.reshape(len(key), -1, query.shape[-1])
    q, k, v = (states.unflatten(-1, (heads, -1)) for states in (grouped, key, value))
    return dispatch_attention_fn(q, k, v, backend=backend).reshape(query.shape)


class PlainAttnProcessor:
    """softmax(QK^T/√d) V as in diffusers' own processor, but it respects ``set_attention_backend``."""

    _attention_backend = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "n q c"],
        encoder_hidden_states: Float[Tensor, "n k d"] | None = None,
        attention_mask: None = None,
    ) -> Float[Tensor, "n q c"]:
        tokens = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = attn.to_q(hidden_states), attn.to_k(tokens), attn.to_v(tokens)
        attended = attend(query, key, value, attn.heads, self._attention_backend)
        return attn.to_out[1](attn.to_out[0](attended))


class StructureAttnProcessor(nn.Module):
    """Eq. 11 in a spatial cross-attention: text + image + tanh(gate) · structure, each with its own keys and values.

    All terms share the query and the output projection. The gate is initialised to zero, so a pretrained network is
    unchanged; the structure projections are initialised randomly, so that the gate has a gradient from the first step on. They
    have no bias: for a clip whose structure tokens are all zero the third term is exactly zero.

    Args:
        hidden_size: width of the layer, all heads together.
        cross_attention_dim: width of the image tokens.
        structure_dim: width of the structure tokens; None leaves the third term and its parameters out.
    """

    _attention_backend = None

    def __init__(self, hidden_size: int, cross_attention_dim: int, structure_dim: int | None = None) -> None:
        super().__init__()
        # lists of one: the parameter names of diffusers' IP-Adapter processors
        self.to_k_ip = nn.ModuleList([nn.Linear(cross_attention_dim, hidden_size, bias=False)])
        self.to_v_ip = nn.ModuleList([nn.Linear(cross_attention_dim, hidden_size, bias=False)])
        if structure_dim is not None:
            self.add_structure(structure_dim)

    def add_structure(self, structure_dim: int) -> None:
        """Give a layer without it the third term, at first worth zero."""
        beside = next(self.to_k_ip.parameters())
        like: dict[str, Any] = {"bias": False, "device": beside.device, "dtype": beside.dtype}
        self.to_k_structure = nn.Linear(structure_dim, len(beside), **like)
        self.to_v_structure = nn.Linear(structure_dim, len(beside), **like)
        self.structure_gate = nn.Parameter(beside.new_zeros(1))  # not 0-d, which sharded training does not support

    def forward(
        self,
        attn: Attention,
        hidden_states: Float[Tensor, "n q c"],
        encoder_hidden_states: Tokens,
        attention_mask: None = None,
    ) -> Float[Tensor, "n q c"]:
        """The terms of absent tokens (length 0, no structure) are skipped; without any, only ``to_out``'s bias remains."""
        query = attn.to_q(hidden_states)

        def term(tokens: Tensor, to_k: nn.Module, to_v: nn.Module) -> Tensor:
            return attend(query, to_k(tokens), to_v(tokens), attn.heads, self._attention_backend)

        text, image, structure = encoder_hidden_states
        attended = term(text, attn.to_k, attn.to_v) if text.shape[1] else torch.zeros_like(query)
        if image.shape[1]:
            attended = attended + term(image, self.to_k_ip[0], self.to_v_ip[0])
        if structure is not None:
            attended = attended + self.structure_gate.tanh() * term(structure, self.to_k_structure, self.to_v_structure)
        return attn.to_out[1](attn.to_out[0](attended))
