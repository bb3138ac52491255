"""Whether two photos were taken from different places: from one spot, or of crops of one photo, no depth can be found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

Pixels = Float64[np.ndarray, "k 2"]

CLOSE = 1.0  # pixels from where a camera that only turned would see a point
STILL = 0.88  # share of the matches that are so close where the camera did not move; docs/cameras.md
FOCALS = (0.6, 0.85, 1.2, 1.7, 2.4, 3.4, 5.0)  # in long sides: a turn looks different through every lens
ROUNDS = 4  # of fitting without what fits badly


def from_one_spot(a: Pixels, b: Pixels, size: tuple[int, int]) -> bool:
    """Whether nearly all matches of two photos follow from a turn of the camera, or from a shift, turn and zoom of the picture.

    ``a``, ``b``: pixels of the matched keypoints; ``size``: height and width of the photos. What is flat and far may look so
    from two places, too, and says as little about depth.
    """
    height, width = size
    middle = np.array([width / 2, height / 2])
    one, two = a - middle, b - middle
    fits = [similar, *(turned(focal * max(size)) for focal in FOCALS)]
    return any(np.mean(residuals(fit, one, two) < CLOSE) >= STILL for fit in fits)


def residuals(fit: Callable[[Pixels, Pixels], Callable[[Pixels], Pixels]], a: Pixels, b: Pixels) -> Float64[np.ndarray, " k"]:
    """Pixels between ``b`` and where the map that takes most of ``a`` to ``b`` puts them."""
    keep = np.ones(len(a), bool)
    for _ in range(ROUNDS):
        away = np.linalg.norm(fit(a[keep], b[keep])(a) - b, axis=1)
        keep = away <= max(2 * float(np.median(away)), CLOSE)
    return away


def similar(a: Pixels, b: Pixels) -> Callable[[Pixels], Pixels]:
    """The best shift, turn and zoom, as a product and a sum of complex numbers."""
    one, two = (points[:, 0] + 1j * points[:, 1] for points in (a, b))
    centred = one - one.mean()
    factor = (centred.conj() @ (two - two.mean())) / max(float((abs(centred) ** 2).sum()), 1e-9)

    def apply(points: Pixels) -> Pixels:
        moved = (points[:, 0] + 1j * points[:, 1] - one.mean()) * factor + two.mean()
        return np.stack([moved.real, moved.imag], 1)

    return apply


def turned(focal: float) -> Callable[[Pixels, Pixels], Callable[[Pixels], Pixels]]:
    """The fit of the best rotation of a camera with that focal length in pixels."""

    def fit(a: Pixels, b: Pixels) -> Callable[[Pixels], Pixels]:
        u, _, vt = np.linalg.svd(_rays(a, focal).T @ _rays(b, focal))
        rotation = (u * [1, 1, np.sign(np.linalg.det(u @ vt))]) @ vt

        def apply(points: Pixels) -> Pixels:
            rays = _rays(points, focal) @ rotation
            return focal * rays[:, :2] / np.maximum(rays[:, 2:], 1e-6)

        return apply

    return fit


def _rays(pixels: Pixels, focal: float) -> Float64[np.ndarray, "k 3"]:
    rays = np.concatenate([pixels, np.full((len(pixels), 1), focal)], 1)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)
