"""The ``.splat`` records of antimatter15's web viewer: 32 bytes per Gaussian.

Position and (linear) scale in float32, colour, opacity and rotation in 8 bits. View-dependent colour is lost: only the
constant term of the spherical harmonics is kept.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from reconx_core.io.images import to_uint8
from reconx_core.rasterize.conventions import SH_0
from reconx_core.types import Gaussians

_RECORD = np.dtype([("position", "<f4", 3), ("scale", "<f4", 3), ("rgba", "u1", 4), ("rotation", "u1", 4)])


def gaussians_to_splat(gaussians: Gaussians) -> bytes:
    """Records from the most to the least visible (volume times opacity), so that a page shows the scene while it loads."""
    g = gaussians.detach()
    opacity = g.logit_opacities.sigmoid()
    visible = g.log_scales.sum(-1) + F.logsigmoid(g.logit_opacities)  # logarithms, since the volume may overflow
    order = torch.argsort(visible, descending=True, stable=True)
    records = np.empty(len(g), dtype=_RECORD)
    records["position"] = g.means[order].cpu().numpy()
    records["scale"] = g.log_scales[order].exp().cpu().numpy()
    records["rgba"] = to_uint8(torch.cat([0.5 + SH_0 * g.sh[:, 0], opacity[:, None]], -1)[order])
    rotation = F.normalize(g.quats[order], dim=-1) * 128 + 128
    records["rotation"] = rotation.round().clamp(0, 255).cpu().numpy().astype(np.uint8)
    return records.tobytes()


def gaussians_from_splat(data: bytes) -> Gaussians:
    """Gaussians of degree 0. Raises ValueError if the length is no multiple of 32."""
    if len(data) % _RECORD.itemsize:
        raise ValueError(f"its length, {len(data)} bytes, is no multiple of {_RECORD.itemsize}")
    records = np.frombuffer(data, dtype=_RECORD)
    rgba = torch.from_numpy(records["rgba"].astype(np.float32) / 255)
    return Gaussians(
        means=torch.from_numpy(records["position"].copy()),
        quats=F.normalize((torch.from_numpy(records["rotation"].astype(np.float32)) - 128) / 128, dim=-1),
        log_scales=torch.from_numpy(records["scale"].copy()).log(),  # NaN of a negative one
        # half a quantisation step inside [0, 1], so that the logits of 0 and 1 stay finite
        logit_opacities=torch.logit(rgba[:, 3].clamp(0.5 / 255, 1 - 0.5 / 255)),
        sh=(rgba[:, None, :3] - 0.5) / SH_0,
    )
