"""`scene.html`: a scene to orbit and fly through, with its cameras and photos, in one page that needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from markupsafe import Markup
from torch import Tensor

from reconx_core.export.finite import finite_gaussians, select_gaussians
from reconx_core.export.origin import NO_ORIGIN, Origin
from reconx_core.export.prune import cameras_of_scene, choose
from reconx_core.io.images import encode, resize
from reconx_core.reporting.above import axes_above
from reconx_core.reporting.packed import pack
from reconx_core.reporting.pages import data_uri, render_page, write_page
from reconx_core.types import Cameras, Gaussians

MOST_GAUSSIANS = 300_000  # in a page; about 2 MB per 100,000 with harmonics of degree 1
PHOTO_SIDE, MANY_PHOTO_SIDE = 640, 240  # pixels; the latter of more than MANY
MANY = 24


def write_scene_page(
    path: Path, title: str, gaussians: Gaussians, cameras: Cameras | None = None, names: Sequence[str] = (),
    photos: Float[Tensor, "n h w 3"] | None = None, origin: Origin = NO_ORIGIN,
) -> None:  # fmt: skip
    """Write the page atomically; see :func:`render_scene_page`.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    write_page(path, render_scene_page(title, gaussians, cameras, names, photos, origin))


def render_scene_page(
    title: str, gaussians: Gaussians, cameras: Cameras | None = None, names: Sequence[str] = (),
    photos: Float[Tensor, "n h w 3"] | None = None, origin: Origin = NO_ORIGIN,
) -> str:  # fmt: skip
    """The page's HTML. Of more than ``MOST_GAUSSIANS`` it has those that contribute most to the cameras' pictures, and says so.

    ``names`` and ``photos``, of the cameras' size: one per camera, or none. ``origin``: where the scene's zero lies in the
    frame of the given cameras, in which the page saves camera paths.
    """
    finite = finite_gaussians(gaussians.detach(), f"the page of {title}")
    shown = _most_seen(finite, cameras)
    packed = pack(shown)
    kept = "those that the cameras see most of" if cameras else "the largest"
    lost = f" of {len(gaussians):,}, {kept}" if len(shown) < len(gaussians) else ""
    about = packed.header() | _world(shown, cameras) | {
        "origin": origin,
        "cameras": [] if cameras is None else _cameras(cameras, names, photos),
    }  # fmt: skip
    return render_page(
        "scene",
        title=title,
        note=f"{len(shown):,} Gaussians{lost}.",
        about=about,
        splats=base64.b64encode(packed.content).decode(),
        script=Markup(_script()),
    )


def _most_seen(gaussians: Gaussians, cameras: Cameras | None) -> Gaussians:
    """Those that contribute most to what the cameras see; without cameras the largest and most opaque."""
    if len(gaussians) <= MOST_GAUSSIANS:
        return gaussians
    if cameras is not None:
        return select_gaussians(gaussians, choose(gaussians, cameras_of_scene(cameras), MOST_GAUSSIANS))
    size = gaussians.logit_opacities.sigmoid() * gaussians.log_scales.sort(dim=-1).values[:, 1:].sum(-1).exp()
    return select_gaussians(gaussians, size.argsort(descending=True, stable=True)[:MOST_GAUSSIANS].sort().values)


def page_version() -> str:
    """Digest of what the page is made of beside Python."""
    return hashlib.sha256(b"".join(_part(name) for name in ("scene.html.jinja", "scene.js"))).hexdigest()[:16]


@cache
def _part(name: str) -> bytes:
    return resources.files("reconx_core.reporting").joinpath("templates", name).read_bytes()


def _script() -> str:
    return _part("scene.js").decode()


def _world(gaussians: Gaussians, cameras: Cameras | None) -> dict[str, Any]:
    """Up, a unit of length, the photos' size, and where the page starts if there are no cameras."""
    if cameras is None or not len(cameras):
        middle = gaussians.means.median(0).values
        extent = float((gaussians.means - middle).norm(dim=-1).median().clamp(min=1e-6))
        eye = (middle - torch.tensor([0.0, 0.0, 2 * extent])).tolist()
        start = {"eye": eye, "turn": torch.eye(3).tolist(), "lens": [600, 600, 400, 300]}
        return {"up": [0, -1, 0], "unit": extent, "width": 800, "height": 600, "start": start}
    centres = cameras.cam_to_world[:, :3, 3]
    apart = float((centres - centres.mean(0)).norm(dim=-1).square().mean().sqrt())
    unit = apart if apart > 1e-6 else float((gaussians.means - centres[0]).norm(dim=-1).median())
    up = axes_above(cameras)[2].tolist()
    return {"up": up, "unit": max(unit, 1e-6), "width": cameras.width, "height": cameras.height}


def _cameras(cameras: Cameras, names: Sequence[str], photos: Float[Tensor, "n h w 3"] | None) -> list[dict[str, Any]]:
    lenses = cameras.intrinsics[:, [0, 1, 0, 1], [0, 1, 2, 2]].tolist()
    poses = cameras.cam_to_world[:, :3].tolist()
    named = names or [f"camera {i + 1}" for i in range(len(cameras))]
    shots: Sequence[str | None] = [None] * len(cameras) if photos is None else [_photo_uri(p, len(photos)) for p in photos]
    return [
        {"name": name, "lens": lens, "pose": pose, "photo": photo}
        for name, lens, pose, photo in zip(named, lenses, poses, shots, strict=True)
    ]


def _photo_uri(photo: Float[Tensor, "h w 3"], count: int) -> str:
    height, width = photo.shape[:2]
    scale = min(1.0, (PHOTO_SIDE if count <= MANY else MANY_PHOTO_SIDE) / max(height, width))
    small = resize(photo, max(1, round(scale * height)), max(1, round(scale * width)))
    return data_uri("image/jpeg", encode(small, "JPEG", quality=85))
