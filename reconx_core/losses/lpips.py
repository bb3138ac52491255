"""LPIPS v0.1 with VGG16 or AlexNet: the perceptual distance of Zhang et al. (2018), with weights that the user provides.

Each net needs two files in the weights folder (``RECONX_WEIGHTS``, by default ``~/.cache/reconx/weights``): torchvision's
weights, and the linear heads of the `lpips` package (its ``weights/v0.1``). `reconx weights fetch lpips` places all four.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal
from zipfile import is_zipfile

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from reconx_core.errors import UserError
from reconx_core.losses.mask import hide_unweighted
from reconx_core.weights.folder import weights_folder

Net = Literal["vgg", "alex"]
# The input in [-1, 1] is shifted and scaled to the statistics that the nets were trained with.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


@dataclass(frozen=True)
class Layout:
    """The part of a torchvision network that LPIPS uses: the output of each stage, before the pooling."""

    title: str
    backbone: str  # file name without extension, here and of the heads
    heads: str
    stages: tuple[tuple[int, ...], ...]  # indices of the convolutions in torchvision's `features`
    pooled: tuple[int, ...]  # stages that begin with max pooling
    window: int  # of the pooling, which halves the size
    strides: dict[int, int]  # of convolutions whose stride is not 1
    padding: dict[int, int]  # of convolutions whose padding is not 1

    def files(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names that the files of the backbone and of the heads may have."""
        backbone, heads = ((f"{name}.pth", f"{name}.safetensors") for name in (self.backbone, self.heads))
        return backbone, heads


LAYOUTS: dict[Net, Layout] = {
    "vgg": Layout(
        "VGG16", "vgg16-397923af", "vgg", ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)), (1, 2, 3, 4), 2, {}, {}
    ),
    "alex": Layout("AlexNet", "alexnet-owt-7be5be79", "alex", ((0,), (3,), (6,), (8,), (10,)), (1, 2), 3, {0: 4}, {0: 2, 3: 2}),
}


class Lpips(nn.Module):
    """Differentiable distance between images; each of ``heads`` weighs the channels of its stage of the ``backbone``."""

    shift: Tensor
    scale: Tensor

    def __init__(self, backbone: dict[str, Tensor], heads: dict[str, Tensor], net: Net = "vgg") -> None:
        super().__init__()
        self.layout = LAYOUTS[net]
        for stage, convolutions in enumerate(self.layout.stages):
            self.register_buffer(f"head{stage}", heads[f"lin{stage}.model.1.weight"].float())
            for number in convolutions:
                self.register_buffer(f"weight{number}", backbone[f"features.{number}.weight"].float())
                self.register_buffer(f"bias{number}", backbone[f"features.{number}.bias"].float())
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[:, None, None])

    def forward(
        self,
        images: Float[Tensor, "n h w 3"],
        references: Float[Tensor, "n h w 3"],
        weight: Float[Tensor, "n h w"] | None = None,
    ) -> Float[Tensor, " n"]:
        """Distance of each image (in [0, 1]) from its reference; 0 for equal images.

        ``weight`` multiplies the distance at each pixel before the mean over all (C_i of eq. 14); at a deeper stage it is the
        mean over the pixels that a feature stands for. Pixels of weight 0 have no say in others' features, either.
        """
        if weight is not None:
            images, references = hide_unweighted(images, references, weight)
        distance = images.new_zeros(len(images))
        x, y = self._normalise(images), self._normalise(references)
        for stage in range(len(self.layout.stages)):
            x, y = self._stage(x, stage), self._stage(y, stage)
            per_pixel = F.conv2d((_unit(x) - _unit(y)) ** 2, self.get_buffer(f"head{stage}"))
            if weight is not None:
                per_pixel = per_pixel * F.interpolate(weight[:, None], per_pixel.shape[2:], mode="area")
            distance = distance + per_pixel.mean((1, 2, 3))
        return distance

    def _normalise(self, images: Float[Tensor, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
        return (2 * images.movedim(-1, 1) - 1 - self.shift) / self.scale

    def _stage(self, x: Float[Tensor, "n c h w"], stage: int) -> Float[Tensor, "n d h2 w2"]:
        layout = self.layout
        x = F.max_pool2d(x, layout.window, 2) if stage in layout.pooled else x
        for number in layout.stages[stage]:
            kernel, bias = self.get_buffer(f"weight{number}"), self.get_buffer(f"bias{number}")
            x = F.relu(F.conv2d(x, kernel, bias, layout.strides.get(number, 1), layout.padding.get(number, 1)))
        return x


def load_lpips(device: str = "cpu", net: Net = "vgg") -> Lpips | None:
    """LPIPS with the weights in the weights folder, or None if they are missing (see :func:`lpips_missing_reason`).

    Cached per device, because moving a shared network would also move it for its other users.

    Raises:
        UserError: a file exists but is invalid.
    """
    files = lpips_files(net)
    return None if files is None else _load(*files, device, net)


def load_nets(device: str) -> dict[Net, Lpips | None]:
    """LPIPS by every net, as of :func:`load_lpips`."""
    return {net: load_lpips(device, net) for net in LAYOUTS}


def lpips_files(net: Net = "vgg") -> tuple[Path, Path] | None:
    """The files of the backbone and of the linear heads, or None if one is missing in the weights folder."""
    backbone, heads = (_find(names) for names in LAYOUTS[net].files())
    return None if backbone is None or heads is None else (backbone, heads)


def lpips_missing_reason() -> str | None:
    """Message that names the missing files of VGG16's and their folder, or None if LPIPS can be computed."""
    missing = [" or ".join(names) for names in LAYOUTS["vgg"].files() if _find(names) is None]
    if not missing:
        return None
    folder = weights_folder()
    shown = f"~/{folder.relative_to(Path.home())}" if folder.is_relative_to(Path.home()) else str(folder)
    return f"LPIPS is left out: {' and '.join(missing)} not found in {shown}; `reconx weights fetch lpips` places them."


def _find(names: tuple[str, ...]) -> Path | None:
    return next((path for name in names if (path := weights_folder() / name).is_file()), None)


@cache
def _load(backbone: Path, heads: Path, device: str, net: Net) -> Lpips:
    try:
        return Lpips(_state_dict(backbone), _state_dict(heads), net).eval().to(device)
    except Exception as error:  # torch.load raises many kinds of errors for a damaged file
        what = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(f"Cannot read LPIPS weights from {backbone} and {heads} ({what}); download them again.") from None


def _state_dict(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # With mmap, the classifier (most of the file) is never read. Files of torch < 1.6 (as published) cannot be mapped.
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))


def _unit(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    # The gradient of norm() is NaN where all channels are 0. As in v0.1, the epsilon is outside the root.
    return x / ((x * x).sum(1, keepdim=True).clamp(min=1e-30).sqrt() + 1e-10)
