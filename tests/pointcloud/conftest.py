"""What many tests here ask for is computed once: features of a picture, and pictures of a procedural room."""

import numpy as np
import pytest
import torch

from reconx_core.datasets import procedural
from reconx_core.pointcloud.sfm import matching

SIFT = matching._sift


def remembered(compute):
    """The function with a memory; what it takes is told apart by its bytes, and what it gives is a copy."""
    known = {}

    def recall(*arguments):
        key = tuple((a.shape, a.tobytes()) if isinstance(a, np.ndarray) else repr(a) for a in map(as_array, arguments))
        if key not in known:
            known[key] = compute(*arguments)
        return tuple(part.clone() if isinstance(part, torch.Tensor) else part.copy() for part in known[key])

    return recall


def as_array(argument):
    return argument.numpy() if isinstance(argument, torch.Tensor) else argument


@pytest.fixture(scope="session", autouse=True)
def computed_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matching, "_sift", remembered(SIFT))
        patch.setattr(procedural, "_render", remembered(procedural._render))
        yield


@pytest.fixture
def computed_anew(monkeypatch):
    """For tests that the same photos give the same bytes: from nothing remembered."""
    monkeypatch.setattr(matching, "_sift", SIFT)
