"""Depth-Anything-3's network with the weights of its fixtures."""

import re

import torch
from upstream import recipe

from reconx_core.pointcloud.networks.da3 import DA3
from reconx_core.pointcloud.networks.da3_config import da3_config

SHARED = re.compile(r"(head\.scratch\.output_conv2_aux\.)\d(\.2\.\w+)")
KNOWN = {  # where the fixtures depart from the recipe: a factor, or values
    "cam_dec.fc_fov.0.weight": 0.1, "cam_dec.fc_fov.0.bias": [0.9, 1.1], "cam_dec.fc_qvec.weight": 0.3,
    "cam_dec.fc_qvec.bias": [0.05, -0.1, 0.08, 1.0],
}  # fmt: skip


def upstream_network(metadata):
    """The fixture's network: weights by their names, with the exceptions that the fixture tells."""
    with torch.device("meta"):
        network = DA3(da3_config(metadata["config"]))
    prefix = re.search(r"prefix=(\w+\.)", metadata["weights"])[1]
    quiet = re.search(r"rows of q and k .* \*=([\d.]+) for", metadata["weights"])
    state = {}
    for name, wanted in network.state_dict().items():
        value = recipe().recipe_tensor(prefix + SHARED.sub(r"\g<1>0\g<2>", name), wanted.shape)
        known = KNOWN.get(name, 1.0)
        state[name] = torch.tensor(known) if isinstance(known, list) else known * value
        block = re.match(r"backbone\.pretrained\.blocks\.(\d+)\.attn\.qkv\.", name)
        if block and quiet and int(block[1]) >= network.config.start:
            state[name][: 2 * len(value) // 3] *= float(quiet[1])
    network.load_state_dict(state, assign=True)
    return network.eval()
