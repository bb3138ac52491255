"""Weights of the geometry networks, compared with what the networks need; the values are not read."""

from __future__ import annotations

import re
from pathlib import Path

from reconx_core.errors import UserError
from reconx_core.pointcloud.networks.checkpoints import prepare, recognise
from reconx_core.weights.files import dtype_name, open_weights
from reconx_core.weights.records import Verified


def verify(path: Path) -> Verified:
    """Compare the keys and shapes of a network's weights with those of the network; their values are not read.

    Raises:
        UserError: as in `load_dust3r`.
    """
    opened = open_weights(path)
    family = recognise(opened)
    if family is None:
        raise UserError(f"'{path}' holds weights of neither DUSt3R, VGGT nor Depth-Anything-3.")
    network, _, _ = prepare(family, opened)
    config = network.config
    head = f", {config.head} head" if hasattr(config, "head") else ""
    return Verified(
        f"{family.name}, {config.image_size} pixels{head}",
        opened.source,
        opened.files,
        len(opened.tensors),
        sum(re.fullmatch(family.unused, key) is not None for key in opened.tensors),
        sum(value.numel() for value in network.parameters()),
        tuple(sorted({dtype_name(value) for value in opened.tensors.values()})),
    )
