"""What a setting `auto` stands for, by the weights that are there."""

from __future__ import annotations

from reconx_core.settings import PointcloudSettings
from reconx_core.weights.folder import weights_folder

DA3_WEIGHTS = ("DA3-BASE", "DA3-SMALL")  # folders of the weights folder, the better ones first


def resolve_geometry(settings: PointcloudSettings) -> PointcloudSettings:
    """The settings with the backend that ``auto`` stands for on this machine: `da3` where its weights are, else `classical`."""
    if settings.backend != "auto":
        return settings
    names = (settings.weights,) if settings.weights else DA3_WEIGHTS
    found = any((weights_folder() / name).exists() for name in names)
    return settings.model_copy(update={"backend": "da3" if found else "classical"})
